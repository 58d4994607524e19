"""What a gate asks of the statistics: can these items show a match, and what do the items so far say?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llmkick.statistics import Comparison, EarlyStop, ItemOrder, compare_stopped, order_items
from llmkick.study.running.early_stopping import StoppingRule

Scores = Mapping[str, float | None]

# Above this number of items, the smallest number that can show a match is not looked for.
MOST_ITEMS = 100_000


def can_match(order: ItemOrder, *, margin: float, alpha: float, chance: float = 0.0) -> bool:
    """Return whether the best of all candidates is shown to match: it and its reference are right on every item."""
    right = dict.fromkeys(order.ids, 1.0)
    rule = EarlyStop(order, margin=margin, alpha=alpha, chance=chance)
    while rule.batch is not None:
        rule.feed(right, right)
    return rule.state.outcome == "matching"


def items_to_match(order: ItemOrder, *, margin: float, alpha: float, chance: float = 0.0) -> int | None:
    """Return about how many items like those of the order can show a match; None if there are too many.

    Clusters become more and keep their size.
    """
    count, size = len(order.clusters), order.largest_cluster
    while count <= MOST_ITEMS:
        count = max(count + 1, round(1.1 * count))
        ids = [str(number) for number in range(count)]
        clusters = None if size is None else {name: number // size for number, name in enumerate(ids)}
        if can_match(order_items(ids, clusters), margin=margin, alpha=alpha, chance=chance):
            return count
    return None


def interrupted_comparison(rule: StoppingRule, reference: Scores, candidate: Scores, task: str) -> Comparison | None:
    """Compare two models on the batches that both were asked before the time was over; None if there is no batch.

    The verdict is "undecided": the clock ended the evaluation, not the rule. The bounds hold at any time.
    """
    batches = [batch for batch in rule.order.batches if all(item in reference and item in candidate for item in batch)]
    if not batches:
        return None
    state = EarlyStop(rule.order, margin=rule.margin, alpha=rule.alpha, chance=rule.chance).state
    asked = EarlyStop(rule.order, margin=rule.margin, alpha=rule.alpha, chance=rule.chance)
    for _ in batches:
        state = asked.feed(reference, candidate)
    # All clusters stay in the order, so that the comparison does not take the last batch for the end of the items.
    so_far = replace(rule.order, batches=tuple(batches))
    comparison = compare_stopped(
        so_far, reference, candidate, margin=rule.margin, alpha=rule.alpha, chance=rule.chance, task=task
    )
    has_signal = comparison.verdict != "no signal"
    return replace(
        comparison,
        verdict="undecided",
        interval=comparison.interval if has_signal else None,
        p_matching=state.p_matching,
        p_not_matching=state.p_not_matching,
        stopping=state,
        notes=(f"the time was over after {state.items} of {state.of} items",),
    )
