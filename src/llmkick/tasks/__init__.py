"""Tasks: the questions for a model and the scoring of its answers."""
