"""The walk over a network's blocks, which calibrates and compresses one block after another."""
