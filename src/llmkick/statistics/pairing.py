"""Scores of two models aligned by item id or by position; None is an item without a score."""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from llmkick.errors import ConfigError, DataError
from llmkick.statistics.variance import Codes, Floats
from llmkick.statistics.verdict import PairedScores

# By position, or by item id (a mapping, or (id, score) pairs).
Scores = Mapping[str, float | None] | Sequence[float | None] | Sequence[tuple[str, float | None]] | NDArray[Any]
# The above, or the above for every calibration seed: a mapping seed → scores, or the rows of a 2-d array.
SeedScores = Scores | Mapping[int, Scores] | Mapping[str, Scores] | Sequence[Scores]
# The label of each item's group, by id or by position.
Groups = Mapping[str, Hashable] | Sequence[Hashable] | NDArray[Any]


# What the groups of a task's items are: fixed strata, or drawn clusters.
Grouping = Literal["strata", "clusters"]


class GroupsArgument(TypedDict, total=False):
    """The groups of items by id, as the argument of `compare` and `order_items`."""

    strata: Mapping[str, Hashable]
    clusters: Mapping[str, Hashable]


def groups_argument(grouping: Grouping, groups: Mapping[str, Hashable]) -> GroupsArgument:
    """The groups of items by id, under the name of what they are."""
    return {"strata": groups} if grouping == "strata" else {"clusters": groups}


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Scores aligned item by item, NaN where unscored: dense (items,), compressed (seeds, items)."""

    ids: tuple[str, ...] | None  # None: paired by position
    seeds: tuple[int | str, ...]
    calibrated: bool  # whether the method depends on calibration seeds
    dense: Floats
    compressed: Floats
    cluster: Codes
    strata: int | None = None  # number of fixed groups; None if none were declared

    def check_range(self, low: float, high: float) -> None:
        """Raise DataError for a score outside low … high."""
        everything = np.append(self.compressed.ravel(), self.dense)
        outside = everything[(everything < low) | (everything > high)]
        if outside.size:
            raise DataError(f"score {outside[0]} is outside {low} … {high}; scale it or give its score_range")

    def complete(self, low: float, high: float) -> PairedScores:
        """Only the items scored by both models in every seed."""
        scored = ~(np.isnan(self.dense) | np.isnan(self.compressed).any(axis=0))
        cluster = np.unique(self.cluster[scored], return_inverse=True)[1]
        dense, compressed = self.dense[scored], self.compressed[:, scored]
        return PairedScores(dense=dense, compressed=compressed, cluster=cluster, low=low, high=high)

    def filled(self, low: float, high: float, *, worst: bool) -> PairedScores:
        """All items, the unscored at the score that is worst or best for the compressed model."""
        dense, compressed = (high, low) if worst else (low, high)
        return PairedScores(
            dense=np.where(np.isnan(self.dense), dense, self.dense),
            compressed=np.where(np.isnan(self.compressed), compressed, self.compressed),
            cluster=self.cluster,
            low=low,
            high=high,
        )


def pair_scores(
    dense: Scores,
    compressed: SeedScores,
    seeds: Sequence[int | str] | None,
    *,
    clusters: Groups | None = None,
    strata: Groups | None = None,
) -> Pairs:
    """Align scores and groups by id if they have ids, otherwise by position.

    Items of a cluster were drawn together, so clusters are the independent units. Strata are fixed: the claim is about
    these, so items stay independent within them, and what differs between strata is no error. (The variance keeps it:
    the test is a little more careful than stratified theory, by the square of the losses' spread between strata.)
    Raises DataError for items that do not match or have no valid score, ConfigError for a wrong number of seeds.
    """
    ids, values = column_of(dense, "dense scores")
    rows = _seed_rows(compressed)
    aligned = []
    for label, row in rows:
        name = "compressed scores" if label is None else f"compressed scores of seed {label!r}"
        aligned.append(in_order_of(*column_of(row, name), ids, values.size, name))
    if not values.size:
        raise DataError("no items: a comparison needs at least one")
    labels = tuple(label for label, _ in rows if label is not None)
    if seeds is not None and len(seeds) != len(rows) and (seeds or len(rows) > 1):
        raise ConfigError(f"{len(seeds)} seeds named for {len(rows)} sets of compressed scores")
    return Pairs(
        ids=ids,
        seeds=labels if seeds is None else tuple(seeds),
        calibrated=seeds is None or len(seeds) > 0,
        dense=values,
        compressed=np.stack(aligned),
        cluster=np.arange(values.size) if clusters is None else _codes(clusters, ids, values.size, "cluster"),
        strata=None if strata is None else int(_codes(strata, ids, values.size, "stratum").max()) + 1,
    )


def _seed_rows(compressed: SeedScores) -> list[tuple[int | str | None, Any]]:
    """The scores of each calibration seed with its label; the label is None if there are no seeds."""
    if isinstance(compressed, Mapping):
        if compressed and all(_is_column(row) for row in compressed.values()):
            return list(compressed.items())
        return [(None, compressed)]
    if len(compressed) and all(_is_column(row) for row in compressed) and not _is_pair(compressed[0]):
        return list(enumerate(compressed))
    return [(None, compressed)]


def _is_column(row: object) -> bool:
    return isinstance(row, Mapping | Sequence | np.ndarray) and not isinstance(row, str)


def _is_pair(entry: object) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)


def column_of(scores: Any, name: str) -> tuple[tuple[str, ...] | None, Floats]:
    """Ids (None: by position) and values with NaN for None. Raises DataError for values that are not finite numbers."""
    ids: tuple[str, ...] | None = None
    entries: list[Any] = list(scores.items()) if isinstance(scores, Mapping) else list(scores)
    values = entries
    if isinstance(scores, Mapping) or (entries and _is_pair(entries[0])):
        ids, values = tuple(key for key, _ in entries), [value for _, value in entries]
        if len(set(ids)) < len(ids):
            twice = [key for key, count in Counter(ids).items() if count > 1]
            raise DataError(f"{name}: ids occur more than once: {some_of(twice)}; give every item an id of its own")
    column = np.full(len(values), np.nan)
    for index, value in enumerate(values):
        if value is None:
            continue
        try:
            column[index] = float(value)
        except (TypeError, ValueError):
            column[index] = np.nan
        if not math.isfinite(column[index]):
            where = ids[index] if ids else index
            raise DataError(f"{name}: item {where!r} has {value!r}; give a finite number, or None if unscored")
    return ids, column


def in_order_of(
    ids: tuple[str, ...] | None, values: Floats, wanted: tuple[str, ...] | None, items: int, name: str
) -> Floats:
    """Values in the order of the dense scores, whose ids are `wanted`."""
    if (ids is None) != (wanted is None):
        raise DataError(f"{name} and dense scores must both be by id or both by position")
    if ids is None or wanted is None:
        if values.size != items:
            raise DataError(f"{name}: {values.size} items against {items} dense ones; pair them by id")
        return values
    same_items(wanted, ids, name)
    by_id = dict(zip(ids, values, strict=True))
    return np.array([by_id[key] for key in wanted])


def same_items(wanted: Collection[Hashable], given: Collection[Hashable], name: str) -> None:
    """Raise DataError that names a few items if two sets of ids differ."""
    wanted_ids, given_ids = set(wanted), set(given)
    missing, extra = [key for key in wanted if key not in given_ids], [key for key in given if key not in wanted_ids]
    if missing or extra:
        raise DataError(f"{name} are of other items: missing {some_of(missing)}; not in dense {some_of(extra)}")


def _codes(groups: Groups, ids: tuple[str, ...] | None, items: int, name: str) -> Codes:
    """The group of each item as a number from 0, in order of appearance."""
    if isinstance(groups, Mapping) != (ids is not None):
        raise DataError(f"{name} labels and scores must both be by id or both by position")
    if isinstance(groups, Mapping):
        without = [key for key in ids or () if key not in groups]
        if without:
            raise DataError(f"items without a {name}: {some_of(without)}")
        groups = [groups[key] for key in ids or ()]
    if len(groups) != items:
        raise DataError(f"{len(groups)} {name} labels for {items} items; give each item one")
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(label, len(codes)) for label in groups], dtype=np.int64)


def some_of(ids: Sequence[Hashable]) -> str:
    """The first three ids of a list and the number of the others, for an error message."""
    return ", ".join(repr(key) for key in ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "") or "none"


def check_settings(margin: float, alpha: float) -> None:
    """Raise ConfigError for a margin or an error rate out of range."""
    if not 0 < margin < 1:
        raise ConfigError(f"margin {margin} must lie between 0 and 1; 0.05 allows a relative loss of 5 %")
    if not 0 < alpha < 0.5:
        raise ConfigError(f"alpha {alpha} must lie between 0 and 0.5; 0.05 is customary")


def sampling_notes(pairs: Pairs, scores: PairedScores, unit: str) -> tuple[str, ...]:
    """Notes on what the interval does not cover: variance over seeds, a single cluster."""
    notes = []
    if len(pairs.compressed) == 1 and pairs.calibrated:
        notes.append("one calibration seed: calibration variance is not in the interval")
    if len(pairs.compressed) == 2:
        notes.append("two calibration seeds: their variance is hardly known; three or more tell")
    if scores.clusters == 1:
        notes.append(f"only one {unit if scores.dense.size == 1 else 'cluster'}: no interval")
    return tuple(notes)
