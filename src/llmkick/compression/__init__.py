"""Compressing a model's weights: recipes, kernels, and the walk over its blocks."""
