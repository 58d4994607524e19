"""Results of a study: typed records of comparisons, tasks and compression."""
