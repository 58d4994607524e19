"""The HTML report of several runs side by side."""
