"""Compression kernels: pure functions from one weight matrix to another."""
