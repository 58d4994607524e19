"""The scorers of exported tasks: their source is written into the utils.py of an export.

Each takes a document of the exported file and the model's answers to it, and returns the metric "acc".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmkick.tasks.metrics import contains_alias, first_line, holds_alias_anywhere, matches_either_way


def alias_in_first_line(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 when an alias stands in the first line as whole words."""
    return {"acc": float(contains_alias(first_line(results[0]), doc["answers"]))}


def alias_anywhere(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 when an alias is a substring of the whole output, white space and case aside."""
    return {"acc": float(holds_alias_anywhere(results[0], doc["answers"]))}


def alias_either_way(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 when alias or first line is a substring of the other, white space and case aside."""
    return {"acc": float(matches_either_way(first_line(results[0]), doc["answers"]))}


def letter_is_last(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 when the output ends with the right letter."""
    return {"acc": float(results[0][-1:] == doc["answers"][0])}


def likeliest_option(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """1 when the right option alone is the likeliest."""
    return _only_best([logprob for logprob, *_ in results], doc["answer"])


def likeliest_option_per_byte(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """1 when the right option alone has the highest log-probability a byte of its text."""
    values = [result[0] / length for result, length in zip(results, doc["bytes"], strict=True)]
    return _only_best(values, doc["answer"])


def _only_best(values: list[float], answer: int) -> dict[str, float]:
    best = max(values)
    return {"acc": float(values.count(best) == 1 and values.index(best) == answer)}
