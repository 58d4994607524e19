"""The six built-in tasks, one module each; `llmkick.tasks.registry` loads a task by its name."""
