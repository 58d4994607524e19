"""Checks before anything is asked: tasks without items, and budgets that can decide nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from llmkick.errors import ConfigError
from llmkick.gate.evidence import can_match, items_to_match
from llmkick.gate.policy import GatePolicy
from llmkick.study.running.early_stopping import StoppingRule, stopping_rules
from llmkick.study.spec.study import Study
from llmkick.tasks.task import Item, ReadByReference, Task


def check_tasks(policy: GatePolicy, study: Study, *, is_same: Callable[[], bool]) -> None:
    """Raise ConfigError if no candidate can be shown to match within the items of a task.

    `is_same` tells whether candidate and reference have the same weights; such a candidate matches by definition.
    """
    tasks = [spec.make() for spec in study.task_specs()]
    items = {task.name: task.items() for task in tasks}
    empty = [name for name, some in items.items() if not some]
    if empty:
        raise ConfigError(f"{empty[0]} has no items: there is nothing to ask; leave it out or give another source")
    hopeless = _hopeless(policy, tasks, items)
    if hopeless and not is_same():
        name, rule = next(iter(hopeless.items()))
        needed = items_to_match(rule.order, margin=policy.margin, alpha=policy.alpha, chance=rule.chance)
        more = "take another task" if needed is None else f"it takes about {needed:,} at least"
        there = len(rule.order.ids)
        raise ConfigError(
            f"{name} cannot be decided with its {there:,} items: even a candidate that is right on all of "
            f"them, as its reference is, is not shown to match at a margin of {100 * policy.margin:g} % "
            f"(alpha {policy.alpha:g}); {more} (budget.items, limit)"
        )


def _hopeless(
    policy: GatePolicy, tasks: Sequence[Task], items: Mapping[str, Sequence[Item]]
) -> dict[str, StoppingRule]:
    rules = stopping_rules(tasks, items, margin=policy.margin, alpha=policy.alpha)
    return {
        name: rule
        for name, rule in rules.items()
        if not can_match(rule.order, margin=policy.margin, alpha=policy.alpha, chance=rule.chance)
    }


def refuse_reading(study: Study, file: str) -> None:
    """Raise ConfigError for a task whose answers the reference has to read, which stored answers cannot."""
    reading = [spec.name for spec in study.task_specs() if isinstance(spec.make(), ReadByReference)]
    if reading:
        raise ConfigError(
            f"{reading[0]} has the reference read the answers of the candidate, which the stored answers in {file} "
            "cannot do: name the model itself as reference, or leave the task out"
        )
