"""What a judge is asked about one cell's answers, and the record that its judgements make of each item."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmkick.study.journal.journal import Judgement
from llmkick.study.judging.questions import Asked, orders, read_judgement
from llmkick.study.judging.reliability import mean, overall
from llmkick.study.spec.sections import JudgeSpec
from llmkick.tasks.judge.prompts import Pairs, Unreadable
from llmkick.tasks.task import Item, Record, unscored

# Points from the worst score to the best: a difference of all of them is everything or nothing.
SPAN = 9.0


@dataclass(kw_only=True)
class CellPlan:
    """What is asked about each item of a cell, or what is known of it without asking."""

    responses: dict[str, str] = field(default_factory=dict)
    settled: dict[str, tuple[float | None, str | None]] = field(default_factory=dict)
    of_item: dict[str, list[Asked]] = field(default_factory=dict)

    @property
    def asked(self) -> Iterator[Asked]:
        """Every question, item by item."""
        return itertools.chain.from_iterable(self.of_item.values())

    def record(self, item: Item, known: Mapping[str, Judgement], failed: Mapping[str, str], spec: JudgeSpec) -> Record:
        """The record of one item."""
        if item.id in self.settled:
            score, reason = self.settled[item.id]
            if score is None:
                return unscored(item, str(reason))
            return self._scored(item, score, {"judgements": 0})
        asked = self.of_item[item.id]
        points, reasons = [], []
        for one in asked:
            key = one.question.key
            found = read_judgement(one, known[key], spec) if key in known else Unreadable(failed.get(key, "not asked"))
            if isinstance(found, Unreadable):
                reply = f": {known[key].reply[:200]!r}" if key in known else ""
                reasons.append(f"{found.reason}{reply}")
            else:
                points.append((one, found))
        of_order = {first: [pair for one, pair in points if one.answer_first == first] for first in orders(spec)}
        if not all(of_order.values()):
            return unscored(item, f"judge: {reasons[0]}")
        score, details = _worth(of_order, spec)
        if reasons:
            details["unreadable"] = len(reasons)
        return self._scored(item, score, details)

    def _scored(self, item: Item, score: float, details: Mapping[str, Any]) -> Record:
        return Record(
            item_id=item.id,
            cluster=item.cluster,
            response=self.responses[item.id],
            score=score,
            details={**item.details, **details},
        )


def _worth(of_order: Mapping[bool, Sequence[Pairs]], spec: JudgeSpec) -> tuple[float, dict[str, Any]]:
    """Score of an answer from its judgements, as (answer, reference) pairs by order; each order counts the same.

    strict: ½ + (answer − reference) / 18, in [0, 1]. paper: the answer's own score over 10.
    """
    answer = mean(mean(overall(pairs, 0) for pairs in some) for some in of_order.values())
    reference = mean(mean(overall(pairs, 1) for pairs in some) for some in of_order.values())
    details: dict[str, Any] = {
        "answer_points": round(answer, 6),
        "reference_points": round(reference, 6),
        "win": 0.5 if answer == reference else float(answer > reference),
        "judgements": sum(map(len, of_order.values())),
    }
    if len(of_order) == 2:
        ahead = [mean(overall(pairs, 0) - overall(pairs, 1) for pairs in some) for some in of_order.values()]
        details["order_decided"] = ahead[0] * ahead[1] < 0
    score = answer / 10 if spec.protocol == "paper" else 0.5 + (answer - reference) / (2 * SPAN)
    return round(min(1.0, max(0.0, score)), 9), details
