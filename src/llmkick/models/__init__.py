"""Language models: where their files are, and what they answer."""
