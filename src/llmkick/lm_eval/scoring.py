"""The scorers of exported tasks; an export writes their source code into its utils.py.

Each scorer takes a document of the exported file and the model's answers, and returns the metric "acc".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llmkick.tasks.metrics import contains_alias, first_line, holds_alias_anywhere, matches_either_way


def alias_in_first_line(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the first line contains an alias as whole words."""
    return {"acc": float(contains_alias(first_line(results[0]), doc["answers"]))}


def alias_anywhere(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if an alias is a substring of the whole output, ignoring white space and case."""
    return {"acc": float(holds_alias_anywhere(results[0], doc["answers"]))}


def alias_either_way(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the alias or the first line is a substring of the other, ignoring white space and case."""
    return {"acc": float(matches_either_way(first_line(results[0]), doc["answers"]))}


def letter_is_last(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """1 if the output ends with the correct letter."""
    return {"acc": float(results[0][-1:] == doc["answers"][0])}


def likeliest_option(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """1 if the correct option is the only most likely option."""
    return _only_best([logprob for logprob, *_ in results], doc["answer"])


def likeliest_option_per_byte(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """1 if only the correct option has the highest log-probability per byte of its text."""
    values = [result[0] / length for result, length in zip(results, doc["bytes"], strict=True)]
    return _only_best(values, doc["answer"])


def _only_best(values: list[float], answer: int) -> dict[str, float]:
    best = max(values)
    return {"acc": float(values.count(best) == 1 and values.index(best) == answer)}
