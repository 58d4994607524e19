"""Language models: their files, loading, and answers to requests."""
