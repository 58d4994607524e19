"""A study: which cells to run, the journal of every record, and the results."""
