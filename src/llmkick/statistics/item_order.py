"""The order in which items are asked if a comparison may stop early: random, by cluster, in batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeVar

import numpy as np

from llmkick.errors import DataError

Id = TypeVar("Id", bound=Hashable)

# Items between two looks: few at first, so that a clear case wastes few items after its decision; then more, because a
# model answers larger batches faster.
LOOK_ITEMS, EARLY_LOOKS, LATER_LOOK_ITEMS = 32, 2, 64


@dataclass(frozen=True, kw_only=True)
class ItemOrder:
    """The batches in which items are asked; a comparison may stop after each of them."""

    batches: tuple[tuple[str, ...], ...]
    clusters: Mapping[str, Hashable]  # the independent unit of each item: its cluster, or itself
    largest_cluster: int | None  # None: one bet per item
    strata: Mapping[str, Hashable] | None = None  # the fixed group of each item

    @property
    def ids(self) -> tuple[str, ...]:
        """All items in the order in which they are asked."""
        return tuple(item for batch in self.batches for item in batch)

    @property
    def unit(self) -> Literal["item", "cluster"]:
        """The unit of a bet: an item or a whole cluster."""
        return "item" if self.largest_cluster is None else "cluster"


def order_items(
    ids: Sequence[str],
    clusters: Mapping[str, Hashable] | None = None,
    *,
    strata: Mapping[str, Hashable] | None = None,
    seed: int = 0,
    look: int | None = None,
) -> ItemOrder:
    """A random order in batches of `look` items or a few more; by default of 32, 32, 64, 64, … items.

    Clusters, which are drawn, are kept whole, and each is a bet; a turn of a conversation follows the turn before it.
    Without clusters, or where each is a single item, every item is a bet, and strata, which are fixed, are represented
    evenly from the start.
    """
    sizes = Counter(clusters[item] for item in ids) if clusters else Counter()
    largest = max(sizes.values(), default=1)
    drawn = clusters if largest > 1 else None
    order = whole_cluster_order(ids, drawn, seed) if drawn else stratified_order(ids, strata or clusters, seed)
    batches: list[list[str]] = []
    for item in order:
        full = not batches or len(batches[-1]) >= (look or usual_look(len(batches)))
        if full and not (drawn and batches and drawn[batches[-1][-1]] == drawn[item]):
            batches.append([])
        batches[-1].append(item)
    return ItemOrder(
        batches=tuple(map(tuple, batches)),
        clusters={item: drawn[item] if drawn else item for item in ids},
        largest_cluster=largest if drawn else None,
        strata=None if strata is None else {item: strata[item] for item in ids},
    )


def usual_look(number: int) -> int:
    """The items of the batch with this number, counted from 1."""
    return LOOK_ITEMS if number <= EARLY_LOOKS else LATER_LOOK_ITEMS


def stratified_order(
    ids: Sequence[Id], clusters: Mapping[Id, Hashable] | Sequence[Hashable] | None = None, seed: int = 0
) -> tuple[Id, ...]:
    """A random order with every cluster spread evenly: any first part has about its share of each cluster.

    Raises DataError for repeated ids or items without a cluster.
    """
    members = _members(ids, clusters)
    rng = np.random.default_rng(seed)
    keyed: list[tuple[float, float, Id]] = []
    for group in members.values():
        # Systematic sampling: position k of n at (k + U) / n, one U per cluster, so that any item may come first.
        positions = (rng.permutation(len(group)) + rng.random()) / len(group)
        ties = rng.random(len(group))
        keyed.extend(zip(positions.tolist(), ties.tolist(), group, strict=True))
    return tuple(key[2] for key in sorted(keyed, key=lambda key: key[:2]))


def spread_places(count: int, wanted: int) -> list[int]:
    """`wanted` places below `count` in rising order, or all: a random one from each of as many equal stretches.

    Places at equal distances could all be of one kind, such as the first turns of dialogues.
    """
    if wanted >= count:
        return list(range(count))
    rng = np.random.default_rng(0)  # the same in every run
    edges = [count * stretch // wanted for stretch in range(wanted + 1)]
    return [int(rng.integers(low, high)) for low, high in pairwise(edges)]


def whole_cluster_order(
    ids: Sequence[Id], clusters: Mapping[Id, Hashable] | Sequence[Hashable], seed: int = 0
) -> tuple[Id, ...]:
    """Clusters in random order, the items of each next to each other. Raises DataError as `stratified_order` does."""
    groups = list(_members(ids, clusters).values())
    order = np.random.default_rng(seed).permutation(len(groups))
    return tuple(item for index in order for item in groups[index])


def _members(
    ids: Sequence[Id], clusters: Mapping[Id, Hashable] | Sequence[Hashable] | None
) -> dict[Hashable, list[Id]]:
    """Ids by cluster; without clusters, all ids are in a single cluster."""
    if len(set(ids)) < len(ids):
        raise DataError("an id occurs more than once; give every item an id of its own")
    if clusters is None:
        return {None: list(ids)} if ids else {}
    if isinstance(clusters, Mapping):
        without = [key for key in ids if key not in clusters]
        if without:
            raise DataError(f"item {without[0]!r} has no cluster; {len(without)} items lack one")
        labels: Sequence[Hashable] = [clusters[key] for key in ids]
    else:
        labels = clusters
    if len(labels) != len(ids):
        raise DataError(f"{len(labels)} clusters for {len(ids)} items; give each item a cluster")
    members: dict[Hashable, list[Id]] = {}
    for key, label in zip(ids, labels, strict=True):
        members.setdefault(label, []).append(key)
    return members
