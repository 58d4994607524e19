"""Checkpoints: how weights are located, read and unpacked, from any format."""
