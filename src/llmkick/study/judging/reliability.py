"""The reliability of a judge: effect of the order, agreement of replicates, and variation of the scores."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmkick.study.judging.questions import PlacedQuestion
from llmkick.tasks.judge.prompts import HIGHEST_ASKED, LOWEST_ASKED, Pairs, Unreadable

# Fewer judgements are not enough to show that a judge always gives the same scores.
FEW = 10
# A judge that prefers the same place in this share of its judgements ignores the answers.
ALWAYS = 0.95


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """The reliability of a judge on one task. A share is None if it has no cases.

    `unreadable`: reason → number of replies without scores. `order_decided`: share of the pairs of answers, among
    those judged in both orders, whose winner changes with the order. `first_preferred`: share of the judgements with
    a winner in which the winner stood first (0.5 for a judge without place preference). `agreement`:
    share of the pairs of replicates that name the same winner. `most_common_scores`: share of the readable judgements
    that give the most frequent scores. `zeros`: number of readable judgements with a score of 0, which is below the
    scale of the prompts (1 to 10).
    """

    judgements: int
    unreadable: Mapping[str, int]
    pairs_in_both_orders: int
    order_decided: float | None
    first_preferred: float | None
    agreement: float | None
    most_common_scores: float | None
    zeros: int


# The two texts of a judgement, independent of their order in the prompt: (item, reference, answer).
Texts = tuple[str, str, str]


def reliability(questions: Mapping[str, PlacedQuestion], scores: Mapping[str, Pairs | Unreadable]) -> Reliability:
    """Return the reliability of a judge from its questions and its scores (answer, reference), both by key."""
    answered = {key: pairs for key, pairs in scores.items() if key in questions}
    readable = {key: pairs for key, pairs in answered.items() if not isinstance(pairs, Unreadable)}
    reasons = Counter(pairs.reason for pairs in answered.values() if isinstance(pairs, Unreadable))
    # Texts → whether the answer stood first → the winner in each replicate: 1 the answer, -1 the reference, 0 neither.
    winners: dict[Texts, dict[bool, list[int]]] = {}
    scores_as_shown, winner_was_first = Counter[Pairs](), list[bool]()
    for key, pairs in readable.items():
        question = questions[key]
        winner = _sign(overall(pairs, 0) - overall(pairs, 1))
        by_order = winners.setdefault(_texts_of(question), {})
        by_order.setdefault(question.answer_first, []).append(winner)
        scores_as_shown[pairs if question.answer_first else tuple((b, a) for a, b in pairs)] += 1
        if winner:
            winner_was_first.append((winner > 0) == question.answer_first)
    in_both_orders = [by_order for by_order in winners.values() if len(by_order) == 2]
    flips = [_sign(sum(by_order[False])) * _sign(sum(by_order[True])) < 0 for by_order in in_both_orders]
    replicates = [winners_ for by_order in winners.values() for winners_ in by_order.values()]
    agreements = [a == b for winners_ in replicates for a, b in itertools.combinations(winners_, 2)]
    return Reliability(
        judgements=len(answered),
        unreadable=dict(sorted(reasons.items())),
        pairs_in_both_orders=len(in_both_orders),
        order_decided=_share(flips),
        first_preferred=_share(winner_was_first),
        agreement=_share(agreements),
        most_common_scores=_share_of_most_common(scores_as_shown),
        zeros=sum(map(has_zero, readable.values())),
    )


def _texts_of(question: PlacedQuestion) -> Texts:
    first, second = question.contest.first, question.contest.second
    return (question.item_id, second, first) if question.answer_first else (question.item_id, first, second)


def doubts(judge: Reliability) -> list[str]:
    """Return sentences with what speaks against a judge, or is unusual; the list is empty for a reliable judge."""
    unreadable = sum(judge.unreadable.values())
    readable = judge.judgements - unreadable
    sentences = []
    if judge.unreadable:
        reasons = ", ".join(f"{count} × {reason}" for reason, count in judge.unreadable.items())
        sentences.append(f"{unreadable} of {judge.judgements} replies are unreadable ({reasons})")
    if judge.zeros:
        sentences.append(
            f"{judge.zeros} of {judge.judgements} replies give a 0, below the scale of {LOWEST_ASKED} to "
            f"{HIGHEST_ASKED} that was asked for; it counts as 0"
        )
    if judge.order_decided:
        sentences.append(
            f"the order decided the winner in {judge.order_decided:.0%} of "
            f"{judge.pairs_in_both_orders} pairs of answers"
        )
    if judge.agreement is not None and judge.agreement < 1:
        sentences.append(f"replicates agree on the winner in {judge.agreement:.0%} of their pairs")
    if readable >= FEW and judge.most_common_scores == 1:
        sentences.append(f"the judge gave the same scores in all {readable} judgements: its score means nothing")
    if readable >= FEW and judge.pairs_in_both_orders:
        sentences += _preferred_place(judge.first_preferred)
    return sentences


def _preferred_place(share: float | None) -> list[str]:
    """Return a sentence if the judge nearly always prefers one place; `share` is the share of first-place wins."""
    if share is None or 1 - ALWAYS < share < ALWAYS:
        return []
    place, times = ("first", share) if share >= ALWAYS else ("second", 1 - share)
    return [f"the judge prefers whatever stands {place} ({times:.0%}): its score means nothing"]


def has_zero(pairs: Pairs) -> bool:
    """Return whether a judgement gives a 0 to an answer or an aspect of it."""
    return any(score == 0 for pair in pairs for score in pair)


def overall(pairs: Pairs, side: int) -> float:
    """Return the score of the answer (0) or of the reference (1) as the mean over the aspects."""
    return mean(pair[side] for pair in pairs)


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean."""
    numbers = list(values)
    return float(sum(numbers)) / len(numbers)


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _share_of_most_common(scores: Counter[Pairs]) -> float | None:
    return scores.most_common(1)[0][1] / scores.total() if scores else None
