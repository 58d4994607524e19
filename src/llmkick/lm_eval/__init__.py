"""Exchange with lm-evaluation-harness: import of its results, export of our tasks."""
