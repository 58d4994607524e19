"""How compressed models are kept: cache, shared store, folders, packed formats."""
