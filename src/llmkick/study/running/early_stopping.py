"""Early stopping (`stop = "decided"`): ask both models the same batches of items until the verdict is decided.

The dense model answers each batch once, only as far as a recipe needs it, and all recipes share its records. The
records are the only state. They determine where a cell stops, so a resumed run stops at the same item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from llmkick.statistics import (
    EarlyStop,
    ItemOrder,
    SignalTest,
    Stopping,
    groups_argument,
    order_items,
    signal_after,
    stopping_after,
)
from llmkick.statistics.early_stopping import cluster_codes
from llmkick.statistics.item_order import EARLY_LOOKS, LATER_LOOK_ITEMS, LOOK_ITEMS
from llmkick.study.expected_stop import StopSettings
from llmkick.study.results.records import CONTROL_METRICS
from llmkick.study.running.seen_scores import mean_score
from llmkick.tasks.task import Item, Task, groups_of

Scores = Mapping[str, float | None]
# Standard errors above chance at which a signal is expected in the end.
SIGNAL_ERRORS = 1.64


@dataclass(kw_only=True)
class Asked:
    """The scores of a cell so far, and a function `ask` that evaluates a batch and writes it to the journal."""

    scores: dict[str, float | None]
    ask: Callable[[Sequence[str]], Scores] = field(repr=False)

    def need(self, batch: Sequence[str]) -> None:
        """Ask the whole batch unless all its items already have scores."""
        if not all(item in self.scores for item in batch):
            self.scores.update(self.ask(batch))


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """The early stopping rule of one task.

    family_size: of the claims of a match that are corrected together, see `EarlyStop`.
    """

    order: ItemOrder
    seed: int
    margin: float
    alpha: float
    chance: float
    family_size: int = 1

    @property
    def key(self) -> dict[str, object]:
        """The inputs that determine the batch of an item; the stopping point does not change a record."""
        looks = [LOOK_ITEMS, EARLY_LOOKS, LATER_LOOK_ITEMS]
        return {"looks": looks, "order": self.seed, "clusters": self.order.largest_cluster}

    def at(self, alpha: float) -> StoppingRule:
        """The rule with another error rate, for one claim.

        It asks the same batches, and more of them if alpha is smaller.
        """
        return replace(self, alpha=alpha, family_size=1)

    def settle_signal(self, dense: Asked, *, watch: Callable[[int], None] = lambda asked: None) -> bool:
        """Ask the dense model until it is above chance or has no items left; return whether it is above chance.

        watch: called with the number of its answers after each batch.
        """
        test = SignalTest(self.order, chance=self.chance, alpha=self.alpha)
        for batch in self.order.batches:
            if test.outcome is not None:
                break
            dense.need(batch)
            watch(len(dense.scores))
            test.feed(dense.scores)
        return bool(test.outcome)

    def until_decided(
        self, dense: Asked, compressed: Asked, *, watch: Callable[[int], None] = lambda asked: None
    ) -> Stopping:
        """Ask both models, batch by batch, until the verdict is decided."""
        signal = self.settle_signal(dense)
        rule = EarlyStop(
            self.order,
            margin=self.margin,
            alpha=self.alpha,
            chance=self.chance,
            signal=signal,
            family_size=self.family_size,
        )
        while rule.batch is not None:
            dense.need(rule.batch)
            compressed.need(rule.batch)
            watch(rule.feed(dense.scores, compressed.scores).items)
        return rule.state

    def is_settled(self, dense: Scores) -> bool:
        """Return whether the dense scores are enough to decide if the dense model is above chance."""
        return signal_after(self.order, dense, chance=self.chance, alpha=self.alpha) is not None

    def is_decided(self, dense: Scores, compressed: Scores) -> bool:
        """Return whether the scores are enough for the verdict."""
        state = stopping_after(
            self.order,
            dense,
            compressed,
            margin=self.margin,
            alpha=self.alpha,
            chance=self.chance,
            family_size=self.family_size,
        )
        return state is not None

    @property
    def settings(self) -> StopSettings:
        """What an expectation of the stopping point needs of the rule."""
        units = len(set(self.order.clusters.values()))
        bet_items = len(self.order.clusters) / max(1, units)
        return StopSettings(
            margin=self.margin,
            alpha=self.alpha,
            chance=self.chance,
            bet_items=bet_items,
            family_size=self.family_size,
        )

    def expects_signal(self, dense: Scores) -> bool:
        """Whether the dense model is above chance, or is expected to be in the end, from its scores so far."""
        signal = self._signal(dense)
        if signal is None:
            items = len(self.order.clusters)
            error = math.sqrt(max(0.01, self.chance * (1 - self.chance)) / max(1, items))
            signal = len(dense) < items and mean_score(dense) > max(0.05, self.chance) + SIGNAL_ERRORS * error
        return bool(signal)

    def loss_so_far(self, dense: Scores, compressed: Scores) -> tuple[float, float] | None:
        """The relative loss on the items that both models were asked, with its standard error.

        None before anything can be told.
        """
        asked = [item for item, score in compressed.items() if score is not None and dense.get(item) is not None]
        left = np.array([compressed[item] for item in asked], dtype=np.float64) - self.chance
        whole = np.array([dense[item] for item in asked], dtype=np.float64) - self.chance
        if len(asked) < 2 or whole.mean() <= 0:
            return None
        loss = 1 - float(left.mean() / whole.mean())
        unexplained = left - (1 - loss) * whole
        codes = cluster_codes([self.order.clusters[item] for item in asked])
        of_clusters = np.bincount(codes, unexplained)
        error = math.sqrt(float((of_clusters**2).sum()) + 0.5) / len(asked)
        return loss, error / float(whole.mean())

    def _signal(self, dense: Scores) -> bool | None:
        return signal_after(self.order, dense, chance=self.chance, alpha=self.alpha)


def stopping_rules(
    tasks: Sequence[Task], items: Mapping[str, Sequence[Item]], *, margin: float, alpha: float, family_size: int = 1
) -> dict[str, StoppingRule]:
    """Return the stopping rule of each task by name; the seed of the task determines the order of its items.

    Control metrics such as perplexity have no verdict and therefore no rule.
    """
    rules = {}
    for task in tasks:
        some, seed = items[task.name], int(task.key.get("seed", 0))
        if task.metric not in CONTROL_METRICS and some:
            order = order_items(
                [item.id for item in some],
                **groups_argument(groups_of(task), {item.id: item.cluster for item in some}),
                seed=seed,
            )
            rules[task.name] = StoppingRule(
                order=order,
                seed=seed,
                margin=margin,
                alpha=alpha,
                chance=task.chance_level,
                family_size=family_size,
            )
    return rules
