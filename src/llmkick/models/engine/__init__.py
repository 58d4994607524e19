"""The scoring and generation engine around a network: batches, caches, attention, memory."""
