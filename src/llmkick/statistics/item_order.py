"""The order in which items are asked where one may stop early: seeded, by cluster, in batches with a look between."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from llmkick.statistics.betting import stratified_order, whole_cluster_order

# Items between two looks: few, because what is decided between two looks is asked in vain.
LOOK_ITEMS = 32
# Many small clusters (the questions on a passage) stand for more of their kind: each is a bet of its own. Few or
# large ones (subjects) would leave too few bets: they are strata, fixed, each represented evenly from the start.
LARGEST_BET, FEWEST_BETS = 8, 30


@dataclass(frozen=True, kw_only=True)
class AskingOrder:
    """The batches in which items are asked; between two of them one may stop."""

    batches: tuple[tuple[str, ...], ...]
    clusters: Mapping[str, Hashable]
    largest_cluster: int | None  # None: a bet an item, in strata

    @property
    def ids(self) -> tuple[str, ...]:
        """Every item in its place."""
        return tuple(item for batch in self.batches for item in batch)

    @property
    def unit(self) -> Literal["item", "cluster"]:
        """What one bet is on."""
        return "item" if self.largest_cluster is None else "cluster"


def asking_order(
    ids: Sequence[str],
    clusters: Mapping[str, Hashable],
    *,
    seed: int = 0,
    look: int = LOOK_ITEMS,
    together: bool = False,
) -> AskingOrder:
    """Seeded: stratified by cluster, or small clusters whole and shuffled; batches of `look` or a little more.

    `together` keeps clusters whole whatever their number: in a conversation one turn needs the one before.
    """
    sizes = Counter(clusters[item] for item in ids)
    largest = max(sizes.values(), default=1)
    whole = largest > 1 and (together or (largest <= LARGEST_BET and len(sizes) >= FEWEST_BETS))
    order = whole_cluster_order(ids, clusters, seed) if whole else stratified_order(ids, clusters, seed)
    batches: list[list[str]] = []
    for item in order:
        full = not batches or len(batches[-1]) >= look
        if full and not (whole and batches and clusters[batches[-1][-1]] == clusters[item]):
            batches.append([])
        batches[-1].append(item)
    return AskingOrder(
        batches=tuple(map(tuple, batches)),
        clusters={item: clusters[item] for item in ids},
        largest_cluster=largest if whole else None,
    )
