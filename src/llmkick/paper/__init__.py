"""The paper that this package follows: its settings, numbers, claims and experiments, as data."""

from llmkick.paper.settings import SETTINGS

__all__ = ["SETTINGS"]
