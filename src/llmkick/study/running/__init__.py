"""Running a study: from the prepared context to filled cells and the conclusion."""
