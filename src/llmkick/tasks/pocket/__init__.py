"""Data sets written for this project (CC0): small, easy and offline."""
