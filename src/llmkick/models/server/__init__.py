"""Models behind an OpenAI-compatible HTTP endpoint."""
