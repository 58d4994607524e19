"""Compression kernels: pure functions of one weight matrix. Nothing here knows a recipe, a model or a file."""
