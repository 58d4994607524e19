"""The block walk: the driver that calibrates and compresses a network block by block."""
