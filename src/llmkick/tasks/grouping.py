"""Mean scores by group: MMLU discipline or subject, PopQA popularity, evidence with or without the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkick.errors import ConfigError
from llmkick.tasks.task import Record

# Lower edges of the popularity bins, in page views per month.
POPULARITY_BINS = (0, 100, 1_000, 10_000, 100_000)


@dataclass(frozen=True, kw_only=True)
class GroupedScores:
    """The mean score and number of scored items of each group; `micro` averages items, `macro` averages groups."""

    groups: Mapping[str, tuple[float, int]]
    micro: float
    macro: float


def popularity_bin(views: int) -> str:
    """The name of a popularity bin, such as "1,000 to 9,999"; the last bin has no upper limit."""
    low = max(edge for edge in POPULARITY_BINS if edge <= views)
    above = POPULARITY_BINS[POPULARITY_BINS.index(low) + 1 :]
    return f"{low:,} to {above[0] - 1:,}" if above else f"{low:,} and more"


def _is_group(value: object) -> bool:
    return isinstance(value, str | int | float)


def group_scores(records: Sequence[Record], by: str, *, of: str | None = None) -> GroupedScores | None:
    """Scores grouped by `cluster` (MMLU: the subject) or by one of the records' details, e.g. `discipline`.

    `of` names a number in the details to average instead of the score, e.g. `unique_tokens`. Records without this
    number and unscored records are ignored. The result is None if no records remain.
    Raises ConfigError, with the available details, if the records do not have the detail `by`.
    """
    scores: dict[Any, list[float]] = {}
    for record in records:
        if record.score is None:
            continue
        value = record.score if of is None else record.details.get(of)
        if by != "cluster" and not _is_group(record.details.get(by)):
            there = ", ".join(["cluster", *sorted(name for name, value in record.details.items() if _is_group(value))])
            raise ConfigError(f"cannot group by {by!r}: choose from: {there}")
        group: Any = record.cluster if by == "cluster" else record.details[by]
        if by == "popularity":
            group = max(edge for edge in POPULARITY_BINS if edge <= group)
        if isinstance(value, int | float):
            scores.setdefault(group, []).append(float(value))
    if not scores:
        if of is not None and any(record.score is not None for record in records):
            details = [record.details for record in records]
            numbers = sorted({name for entries in details for name, x in entries.items() if isinstance(x, int | float)})
            raise ConfigError(f"no record has a number {of!r}: choose from: {', '.join(numbers) or 'none'}")
        return None
    means = {
        popularity_bin(group) if by == "popularity" else str(group): (sum(values) / len(values), len(values))
        for group, values in sorted(scores.items(), key=lambda entry: entry[0])
    }
    every = [value for values in scores.values() for value in values]
    return GroupedScores(
        groups=means,
        micro=sum(every) / len(every),
        macro=sum(mean for mean, _ in means.values()) / len(means),
    )
