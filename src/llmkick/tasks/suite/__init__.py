"""The six tasks of this package, one module each; `llmkick.tasks.registry` loads them by name."""
