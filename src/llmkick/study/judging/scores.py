"""Scores from judgements: the questions about one cell and the records that follow from the replies."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llmkick.study.journal.journal import Judgement
from llmkick.study.judging.questions import PlacedQuestion, orders, read_judgement
from llmkick.study.judging.reliability import has_zero, mean, overall
from llmkick.study.spec.sections import JudgeSpec
from llmkick.tasks.judge.prompts import Pairs, Unreadable
from llmkick.tasks.task import Item, Record, unscored

# Points between the worst score that a judge is asked for (1) and the best (10). A difference of SPAN points gives a
# score of 0 or 1. So does a larger one, to which a judge comes that gives a 0 for the worst answers.
SPAN = 9.0


@dataclass(kw_only=True)
class CellPlan:
    """The questions about each item of a cell, and the scores of items that need no judge.

    All three mappings are by item id. `settled` holds (score, None), or (None, the reason for a missing score).
    """

    responses: dict[str, str] = field(default_factory=dict)
    settled: dict[str, tuple[float | None, str | None]] = field(default_factory=dict)
    questions_by_item: dict[str, list[PlacedQuestion]] = field(default_factory=dict)

    @property
    def questions(self) -> Iterator[PlacedQuestion]:
        """All questions, item by item."""
        return itertools.chain.from_iterable(self.questions_by_item.values())

    def record(
        self, item: Item, judgements: Mapping[str, Judgement], failed: Mapping[str, str], spec: JudgeSpec
    ) -> Record:
        """Return the record of an item from the judgements by key; `failed` gives the reasons for missing replies.

        An item without a readable judgement in every order has no score.
        """
        if item.id in self.settled:
            score, reason = self.settled[item.id]
            if score is None:
                return unscored(item, str(reason))
            return self._scored(item, score, {"judgements": 0})
        by_order: dict[bool, list[Pairs]] = {answer_first: [] for answer_first in orders(spec)}
        reasons = []
        for question in self.questions_by_item[item.id]:
            judgement = judgements.get(question.question.key)
            if judgement is None:
                reasons.append(failed.get(question.question.key, "not asked"))
                continue
            pairs = read_judgement(question, judgement, spec)
            if isinstance(pairs, Unreadable):
                reasons.append(f"{pairs.reason}: {judgement.reply[:200]!r}")
            else:
                by_order[question.answer_first].append(pairs)
        if not all(by_order.values()):
            return unscored(item, f"judge: {reasons[0]}")
        score, details = _score_of(by_order, spec)
        if any(has_zero(pairs) for judgements in by_order.values() for pairs in judgements):
            details["below_scale"] = True
        if reasons:
            details["unreadable"] = len(reasons)
        return self._scored(item, score, details)

    def _scored(self, item: Item, score: float, details: Mapping[str, object]) -> Record:
        return Record(
            item_id=item.id,
            cluster=item.cluster,
            response=self.responses[item.id],
            score=score,
            details={**item.details, **details},
        )


def _score_of(by_order: Mapping[bool, Sequence[Pairs]], spec: JudgeSpec) -> tuple[float, dict[str, object]]:
    """Return (score, details) of an answer from its judgements: pairs (answer, reference) by order, equally weighted.

    strict: ½ + (answer − reference) / 18, limited to [0, 1]. paper: the answer's own score over 10.
    """
    answer = mean(mean(overall(pairs, 0) for pairs in judgements) for judgements in by_order.values())
    reference = mean(mean(overall(pairs, 1) for pairs in judgements) for judgements in by_order.values())
    details: dict[str, object] = {
        "answer_points": round(answer, 6),
        "reference_points": round(reference, 6),
        "win": 0.5 if answer == reference else float(answer > reference),
        "judgements": sum(map(len, by_order.values())),
    }
    if len(by_order) == 2:
        ahead = [
            mean(overall(pairs, 0) - overall(pairs, 1) for pairs in judgements) for judgements in by_order.values()
        ]
        details["order_decided"] = ahead[0] * ahead[1] < 0
    score = answer / 10 if spec.protocol == "paper" else 0.5 + (answer - reference) / (2 * SPAN)
    return round(min(1.0, max(0.0, score)), 9), details
