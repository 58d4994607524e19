"""Where compressed models are kept: the cache, a store shared by machines, folders in several formats."""
