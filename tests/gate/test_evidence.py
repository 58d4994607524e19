"""The questions of a gate to the statistics, against comparisons of whole evaluations."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmkick.gate.deadline import Deadline, TimeSpentError
from llmkick.gate.evidence import can_match, interrupted_comparison, items_to_match
from llmkick.gate.result import EXIT_CODES, overall_outcome
from llmkick.statistics import ItemOrder, compare_stopped, order_items
from llmkick.study.running.early_stopping import StoppingRule


def order_of(items: int, size: int = 1) -> ItemOrder:
    ids = [str(number) for number in range(items)]
    return order_items(ids, {text: int(text) // size for text in ids})


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("margin", [0.02, 0.05, 0.2])
def test_the_best_candidate_is_the_measure_of_a_budget(margin: float, size: int):
    few = order_of(max(8, 32 * size // 4), size)
    needed = items_to_match(few, margin=margin, alpha=0.05)
    assert needed is not None
    if not can_match(few, margin=margin, alpha=0.05):
        right = dict.fromkeys(few.ids, 1.0)
        best = compare_stopped(few, right, right, margin=margin, same_model=False)
        assert best.verdict == "undecided"
    enough = order_of(needed, size)
    right = dict.fromkeys(enough.ids, 1.0)
    assert compare_stopped(enough, right, right, margin=margin, same_model=False).verdict == "matching"


def test_what_was_asked_when_the_time_was_over_is_undecided_with_bounds():
    order, rng = order_of(400), np.random.default_rng(0)
    rule = StoppingRule(order=order, seed=0, margin=0.05, alpha=0.05, chance=0.0)
    reference: dict[str, float | None] = {item: float(rng.random() < 0.9) for item in order.ids}
    candidate = {item: score if rng.random() < 0.95 else 0.0 for item, score in reference.items()}
    some = [item for batch in order.batches[:5] for item in batch]
    comparison = interrupted_comparison(rule, reference, {item: candidate[item] for item in some[:-1]}, "t")
    assert comparison is not None
    assert (comparison.verdict, comparison.n) == ("undecided", len(some) - len(order.batches[4]))
    assert comparison.interval is not None
    assert comparison.interval[0] < comparison.relative_drop < comparison.interval[1]
    assert interrupted_comparison(rule, reference, {}, "t") is None


def test_the_overall_outcome_is_the_gravest():
    assert [overall_outcome(some) for some in (["matches"], ["matches", "undecided"])] == ["matches", "undecided"]
    assert overall_outcome(["undecided", "unmeasured", "matches"]) == "unmeasured"
    assert overall_outcome(["unmeasured", "loses", "matches"]) == "loses"
    assert EXIT_CODES == {"matches": 0, "loses": 1, "undecided": 2, "unmeasured": 3}


def test_every_turn_has_an_equal_part_of_the_time_that_is_left():
    clock: Any = SimpleNamespace(now=0.0)
    deadline = Deadline(seconds=90.0, now=lambda: clock.now)
    deadline.begin_turn(3)
    clock.now = 29.0
    deadline.check()
    clock.now = 30.0
    with pytest.raises(TimeSpentError):
        deadline.check()
    clock.now = 40.0  # the batch took longer
    deadline.begin_turn(2)
    clock.now = 50.0  # and this task less
    deadline.begin_turn(1)
    clock.now = 89.0
    deadline.check()
    clock.now = 90.0
    with pytest.raises(TimeSpentError):
        deadline.begin_turn(1)


def test_without_minutes_time_never_ends():
    deadline = Deadline(seconds=None, now=lambda: 1e12)
    deadline.begin_turn(1)
    deadline.check()
