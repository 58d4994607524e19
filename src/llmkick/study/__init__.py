"""Studies: the specification, the journal of records, the run, and the results."""
