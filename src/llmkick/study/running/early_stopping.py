"""`stop = "decided"`: dense and compressed model are asked the same batches until the verdict is known.

The dense model's records are made once, batch by batch as far as any recipe needs them, and serve every recipe.
Nothing is remembered but the records: where a cell stops follows from them, so a resumed run stops at the same item.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from llmkick.statistics import EarlyStop, ItemOrder, Stopping, order_items, signal_after
from llmkick.statistics.item_order import LOOK_ITEMS
from llmkick.study.results.records import CONTROL_METRICS
from llmkick.tasks.task import Item, Task

Scores = Mapping[str, float | None]


@dataclass(kw_only=True)
class Asked:
    """The scores of a cell so far, and how to get a batch more: `ask` evaluates and journals it."""

    scores: dict[str, float | None]
    ask: Callable[[Sequence[str]], Scores] = field(repr=False)

    def need(self, batch: Sequence[str]) -> None:
        """Have a batch's records; they are asked together or not at all."""
        if not all(item in self.scores for item in batch):
            self.scores.update(self.ask(batch))


@dataclass(frozen=True, kw_only=True)
class StoppingRule:
    """How one task stops."""

    order: ItemOrder
    seed: int
    margin: float
    alpha: float
    chance: float

    @property
    def key(self) -> dict[str, object]:
        """What decides the company an item is asked in; where it stops decides nothing about a record."""
        return {"look": LOOK_ITEMS, "order": self.seed, "clusters": self.order.largest_cluster}

    def settle_signal(self, dense: Asked) -> bool:
        """Ask the dense model until it is known to be above chance, or out of items."""
        for batch in self.order.batches:
            found = self._signal(dense.scores)
            if found is not None:
                return found
            dense.need(batch)
        return bool(self._signal(dense.scores))

    def until_decided(
        self, dense: Asked, compressed: Asked, *, watch: Callable[[int], None] = lambda asked: None
    ) -> Stopping:
        """Ask both, batch by batch, until the verdict is known."""
        signal = self.settle_signal(dense)
        rule = EarlyStop(self.order, margin=self.margin, alpha=self.alpha, signal=signal)
        while rule.batch is not None:
            dense.need(rule.batch)
            compressed.need(rule.batch)
            watch(rule.feed(dense.scores, compressed.scores).items)
        return rule.state

    def is_settled(self, dense: Scores) -> bool:
        """Whether the dense records tell if there is a signal."""
        return self._signal(dense) is not None

    def is_decided(self, dense: Scores, compressed: Scores) -> bool:
        """Whether the records reach as far as the verdict."""
        try:
            self.until_decided(Asked(scores=dict(dense), ask=_nobody), Asked(scores=dict(compressed), ask=_nobody))
        except _NotAskedError:
            return False
        return True

    def _signal(self, dense: Scores) -> bool | None:
        return signal_after(self.order, dense, chance=self.chance, alpha=self.alpha)


class _NotAskedError(Exception):
    """A record is needed that is not there."""


def _nobody(batch: Sequence[str]) -> Scores:
    raise _NotAskedError


def stopping_rules(
    tasks: Sequence[Task], items: Mapping[str, Sequence[Item]], *, margin: float, alpha: float
) -> dict[str, StoppingRule]:
    """The rule of each task, in the order of its own seed; perplexity has no verdict to wait for."""
    rules = {}
    for task in tasks:
        some, seed = items[task.name], int(task.key.get("seed", 0))
        if task.metric not in CONTROL_METRICS and some:
            order = order_items(
                [item.id for item in some],
                {item.id: item.cluster for item in some},
                seed=seed,
                whole_clusters=any(getattr(item, "follows", "") for item in some),
            )
            rules[task.name] = StoppingRule(
                order=order, seed=seed, margin=margin, alpha=alpha, chance=task.chance_level
            )
    return rules
