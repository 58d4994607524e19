"""Studies with early stopping whose answers are drawn, told to a forecast as a run tells them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from llmkick.compression.registry import parse_recipe
from llmkick.statistics import order_items
from llmkick.study.expected_stop import expected_rise
from llmkick.study.parts import Part
from llmkick.study.running.early_stopping import Asked, StoppingRule
from llmkick.study.running.seen_scores import mean_score
from timelines import Timeline

PARAMETERS = 135_000_000


@dataclass(frozen=True)
class DrawnTask:
    """A task: its items, the dense accuracy, the chance level, and how its losses follow the rise of perplexity."""

    items: int
    accuracy: float
    chance: float = 0.0
    cluster: int = 1
    sensitivity: float = 1.8
    cost: float = 0.1


class DrawnStudy:
    """A study whose recipes raise the perplexity as told, and whose cells lose what that makes likely.

    rises: the true rise of each recipe by its text. Perplexity is measured before the other tasks.
    """

    def __init__(self, tasks: Mapping[str, DrawnTask], rises: Mapping[str, float], *, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.tasks, self.rises = tasks, rises
        self.now, self.events = 0.0, list[tuple[float, str, list[Any]]]()
        self.rules = {name: self._rule(task, seed) for name, task in tasks.items()}
        self.dense = {
            name: dict(
                zip(self.rules[name].order.ids, (self.rng.random(task.items) < task.accuracy) * 1.0, strict=True)
            )
            for name, task in tasks.items()
        }
        self.seen: dict[str, dict[str, float | None]] = {name: {} for name in tasks}
        self.parts = self._parts()

    @staticmethod
    def _rule(task: DrawnTask, seed: int) -> StoppingRule:
        ids = [f"{place}" for place in range(task.items)]
        clusters = {item: f"c{int(item) // task.cluster}" for item in ids} if task.cluster > 1 else None
        return StoppingRule(
            order=order_items(ids, clusters, seed=seed), seed=seed, margin=0.05, alpha=0.05, chance=task.chance
        )

    def _parts(self) -> list[Part]:
        parts = []
        for recipe in ("dense", *self.rises):
            kind = "dense" if recipe == "dense" else "compared"
            if recipe != "dense":
                parts.append(Part(key=f"model {recipe}", pool=("compress", recipe.split("@")[0]), steps=30, cost=0.2))
            rise = expected_rise(parse_recipe(recipe), PARAMETERS)
            of_recipe = Part(key="", pool=(), steps=0, cost=0, recipe=recipe, severity=rise)
            text = {"key": f"{recipe} on perplexity", "pool": ("ask", "perplexity", kind)}
            parts.append(replace(of_recipe, **text, steps=4, cost=0.3))
            for name, task in self.tasks.items():
                cell = {"key": f"{recipe} on {name}", "pool": ("ask", name, kind), "is_reference": kind == "dense"}
                stop = self.rules[name].settings
                parts.append(replace(of_recipe, **cell, steps=task.items, cost=task.cost, stop=stop))
        return parts

    def timeline(self) -> Timeline:
        """Run the study."""
        self._fixed("dense on perplexity", 4, 0.3)
        for name in self.tasks:
            self._tell("begin", f"dense on {name}")
            self._ask_dense(name, self.rules[name].order.batches[0])
        for name in self.tasks:
            self._tell("begin", f"dense on {name}")
            self.rules[name].settle_signal(self._asked_dense(name))
            self._tell("end", f"dense on {name}")
        for recipe, rise in self.rises.items():
            self._fixed(f"model {recipe}", 30, 0.2)
            self._fixed(f"{recipe} on perplexity", 4, 0.3, end=False)
            self._tell("see_rise", f"{recipe} on perplexity", rise)
            self._tell("end", f"{recipe} on perplexity")
            for name in self.tasks:
                self._compare(recipe, name)
        return Timeline(self.parts, self.events, self.now)

    def _tell(self, name: str, key: str, *rest: Any) -> None:
        self.events.append((self.now, name, [key, *rest]))

    def _fixed(self, key: str, steps: int, seconds: float, *, end: bool = True) -> None:
        self._tell("begin", key)
        self._work(key, steps, seconds)
        if end:
            self._tell("end", key)

    def _work(self, key: str, steps: int, seconds: float) -> None:
        self.now += steps * seconds
        self._tell("work", key, steps, steps * seconds)

    def _asked_dense(self, name: str) -> Asked:
        return Asked(scores=self.seen[name], ask=lambda batch: self._ask_dense(name, batch))

    def _ask_dense(self, name: str, batch: Sequence[str]) -> dict[str, float | None]:
        self.seen[name].update({item: self.dense[name][item] for item in batch})
        self._work(f"dense on {name}", len(batch), self.tasks[name].cost)
        signal = self.rules[name].expects_signal(self.seen[name])
        self._tell("see_accuracy", f"dense on {name}", mean_score(self.seen[name]), signal)
        return self.seen[name]

    def _compare(self, recipe: str, name: str) -> None:
        task, rule, key = self.tasks[name], self.rules[name], f"{recipe} on {name}"
        loss = 1 - np.exp(-task.sensitivity * self.rises[recipe] * np.exp(self.rng.normal(0, 0.35)))
        answers = self.answers(name, float(loss))

        def ask(batch: Sequence[str]) -> dict[str, float | None]:
            self._work(key, len(batch), task.cost)
            return {item: answers[item] for item in batch}

        compressed = Asked(scores={}, ask=ask)

        def watch(items: int) -> None:
            lost = rule.loss_so_far(self.seen[name], compressed.scores)
            if lost is not None:
                self._tell("see_loss", key, *lost)

        self._tell("begin", key)
        rule.until_decided(self._asked_dense(name), compressed, watch=watch)
        self._tell("end", key)

    def answers(self, name: str, loss: float) -> dict[str, float]:
        """Answers with a share of the right ones lost, and a few that change both ways."""
        task, dense = self.tasks[name], self.dense[name]
        net = loss * (task.accuracy - task.chance)
        gained = min((0.02 + 0.1 * loss**0.5) * (1 - loss), 1 - task.accuracy)
        lost = min(task.accuracy, net + gained)
        draws = self.rng.random(len(dense))
        return {
            item: float(draw >= lost / task.accuracy if right else draw < gained / (1 - task.accuracy))
            for (item, right), draw in zip(dense.items(), draws, strict=True)
        }
