"""Judging answers within a study: what to ask, how to score it, how far to trust it."""
