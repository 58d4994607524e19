"""What a study found, as tables, figures and a page.

`page.write_report` writes all of it into a run's folder; `tables.verdict_table` is for a terminal.
"""
