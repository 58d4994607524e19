"""Titles of the kinds of levels, in the order of the figures."""

from __future__ import annotations

from collections.abc import Mapping

from llmkick.compression.levels import LevelKind

KINDS: Mapping[LevelKind, str] = {
    "sparsity": "Unstructured sparsity",
    "n:m": "N:M patterns",
    "bits": "Rounding",
    "combined": "Pruned and rounded",
    "other": "Other recipes",
}
