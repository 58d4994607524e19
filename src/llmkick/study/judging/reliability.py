"""Whether a judge can be believed: does the order decide, do replicates agree, does it always say the same?"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from llmkick.study.judging.questions import Asked
from llmkick.tasks.judge.prompts import Pairs, Unreadable

# Fewer judgements than this cannot show that a judge always says the same.
FEW = 10
# A judge that prefers one place in so many judgements does not read the answers.
ALWAYS = 0.95


def reliability(asked: Mapping[str, Asked], read: Mapping[str, Pairs | Unreadable]) -> dict[str, Any]:
    """How far a judge can be believed, from its readable judgements: {…: count, share or None where there are none}.

    `order_decided`: pairs of answers whose winner is another one in the other order. `first_preferred`: judgements
    with a winner in which it stood first (two different answers in both orders: half, without a bias of place).
    `agreement`: pairs of replicates that name the same winner.
    """
    scores = {key: pairs for key, pairs in read.items() if key in asked and not isinstance(pairs, Unreadable)}
    reasons = Counter(pairs.reason for key, pairs in read.items() if key in asked and isinstance(pairs, Unreadable))
    contests: dict[Any, dict[bool, list[int]]] = {}
    shown, first = Counter[Any](), list[bool]()
    for key, pairs in scores.items():
        one = asked[key]
        winner = _sign(overall(pairs, 0) - overall(pairs, 1))
        texts = (one.contest.first, one.contest.second)
        same = one.item_id, texts[::-1] if one.answer_first else texts
        contests.setdefault(same, {}).setdefault(one.answer_first, []).append(winner)
        shown[pairs if one.answer_first else tuple((b, a) for a, b in pairs)] += 1
        if winner:
            first.append((winner > 0) == one.answer_first)
    both = [orders_ for orders_ in contests.values() if len(orders_) == 2]
    flips = [_sign(sum(one[False])) * _sign(sum(one[True])) < 0 for one in both]
    repeats = [a == b for one in contests.values() for some in one.values() for a, b in itertools.combinations(some, 2)]
    return {
        "judgements": len(scores) + sum(reasons.values()),
        "unreadable": dict(sorted(reasons.items())),
        "pairs_in_both_orders": len(both),
        "order_decided": _share(flips),
        "first_preferred": _share(first),
        "agreement": _share(repeats),
        "most_common_scores": _share_of_commonest(shown),
    }


def doubts(facts: Mapping[str, Any]) -> list[str]:
    """What speaks against a judge, in words."""
    readable = facts["judgements"] - sum(facts["unreadable"].values())
    found = []
    if facts["unreadable"]:
        told = ", ".join(f"{count} × {reason}" for reason, count in facts["unreadable"].items())
        found.append(f"{sum(facts['unreadable'].values())} of {facts['judgements']} replies are unreadable ({told})")
    if facts["order_decided"]:
        found.append(
            f"the order decided the winner in {facts['order_decided']:.0%} of "
            f"{facts['pairs_in_both_orders']} pairs of answers"
        )
    if facts["agreement"] is not None and facts["agreement"] < 1:
        found.append(f"replicates agree on the winner in {facts['agreement']:.0%} of their pairs")
    if readable >= FEW and facts["most_common_scores"] == 1:
        found.append(f"the judge gave the same scores in all {readable} judgements: its score means nothing")
    preferred = facts["first_preferred"]
    if readable >= FEW and preferred is not None and facts["pairs_in_both_orders"]:
        if preferred >= ALWAYS:
            found.append(f"the judge prefers whatever stands first ({preferred:.0%}): its score means nothing")
        elif preferred <= 1 - ALWAYS:
            found.append(f"the judge prefers whatever stands second ({1 - preferred:.0%}): its score means nothing")
    return found


def overall(pairs: Pairs, whose: int) -> float:
    """One assistant's score: the mean over the aspects."""
    return mean(pair[whose] for pair in pairs)


def mean(values: Iterable[float]) -> float:
    """Their mean."""
    numbers = list(values)
    return float(sum(numbers)) / len(numbers)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _share_of_commonest(shown: Counter[Any]) -> float | None:
    total = sum(shown.values())
    return shown.most_common(1)[0][1] / total if total else None
