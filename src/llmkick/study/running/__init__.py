"""Running a study: preparation, evaluation of the cells, and the results."""
