"""Reports of a study's results: tables, figures and an HTML page.

`page.write_report` writes the whole report into a run's folder; `tables.verdict_table` makes a table for a terminal.
"""
