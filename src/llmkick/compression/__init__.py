"""Compression of a model's weights: recipes and methods; `kernels`, the `walk` over the blocks, and `storage`."""
