"""Exchange with lm-evaluation-harness: import of its results and export of tasks."""
