"""From the records of a gate's study to the outcome of each task."""

from __future__ import annotations

from dataclasses import dataclass

from llmkick.gate.evidence import interrupted_comparison
from llmkick.gate.executor import OUT_OF_TIME
from llmkick.gate.result import OUTCOME_OF, Flip, Outcome, TaskOutcome
from llmkick.report import formatting
from llmkick.report.lookup import task_comparisons
from llmkick.statistics import Comparison
from llmkick.study.cells import Cell, Variant
from llmkick.study.journal.journal import Journal
from llmkick.study.results.results import StudyResult
from llmkick.study.running.context import StudyContext

SAME_WEIGHTS = "the weights are the reference's and so is every score: it matches by definition"


def task_outcomes(context: StudyContext, result: StudyResult) -> list[TaskOutcome]:
    """Return the outcome of every task of a study with one external model, the candidate."""
    candidate = next(variant for variant in context.variants() if variant.reference)
    pairs = zip(context.cells(Variant()), context.cells(candidate), strict=True)
    records = [_TaskRecords(context=context, reference_cell=before, candidate_cell=after) for before, after in pairs]
    return [of_task.outcome(result) for of_task in records]


@dataclass(frozen=True, kw_only=True)
class _TaskRecords:
    """The records of both models on one task."""

    context: StudyContext
    reference_cell: Cell
    candidate_cell: Cell

    @property
    def journal(self) -> Journal:
        return self.context.journal

    def outcome(self, result: StudyResult) -> TaskOutcome:
        task = self.candidate_cell.task.name
        reference, candidate = (
            self.journal.scores(cell.run_key) for cell in (self.reference_cell, self.candidate_cell)
        )
        comparison = next((entry for entry in task_comparisons(result) if entry.task == task), None)
        is_whole = comparison is not None  # what was given up half-way shows nothing, however equal
        if comparison is None:
            comparison = interrupted_comparison(self.context.rules[task], reference, candidate, task)
        outcome: Outcome = "undecided" if comparison is None else OUTCOME_OF[comparison.verdict]
        reason = OUT_OF_TIME if comparison is None else _reason(comparison)
        if outcome != "loses" and is_whole and self._is_same(reference, candidate):
            outcome, reason = "matches", SAME_WEIGHTS
        return TaskOutcome(
            task=task,
            outcome=outcome,
            reason=reason,
            items=len(self.context.items[task]),
            asked=len(candidate),
            scored=0 if comparison is None else comparison.n,
            reference_score=None if comparison is None else comparison.dense,
            candidate_score=None if comparison is None else comparison.compressed,
            loss=None if comparison is None else comparison.relative_drop,
            bounds=None if comparison is None else comparison.interval,
            p_matching=None if comparison is None else comparison.p_matching,
            p_not_matching=None if comparison is None else comparison.p_not_matching,
            flips=tuple(self._flips()),
            notes=() if comparison is None else comparison.notes,
        )

    def _is_same(self, reference: dict[str, float | None], candidate: dict[str, float | None]) -> bool:
        identical = all(reference.get(item, score) == score for item, score in candidate.items())
        return identical and self.context.left_the_weights(self.candidate_cell.variant.label)

    def _flips(self) -> list[Flip]:
        """Return the items with different scores: the greatest losses first, in the order of the items."""
        task = self.candidate_cell.task.name
        reference, candidate = (
            {item: (response, score) for item, response, score, *_ in self.journal.answers(cell.run_key)}
            for cell in (self.reference_cell, self.candidate_cell)
        )
        flips = []
        for item in self.context.items[task]:
            before, after = reference.get(item.id), candidate.get(item.id)
            if before is None or after is None or before[1] is None or after[1] is None or before[1] == after[1]:
                continue
            flips.append(
                Flip(
                    item_id=item.id,
                    question=item.question,
                    reference_answer=before[0],
                    candidate_answer=after[0],
                    reference_score=before[1],
                    candidate_score=after[1],
                )
            )
        return sorted(flips, key=lambda flip: flip.candidate_score - flip.reference_score)


def _reason(comparison: Comparison) -> str:
    """Return one sentence that says what the verdict means, in numbers."""
    margin = formatting.setting(comparison.margin)
    asked = f"{comparison.n:,} items"
    change = formatting.loss_sentence(comparison) or "loss unknown"
    if comparison.verdict == "matching":
        return f"shown to lose at most {margin}: {change} on {asked}"
    if comparison.verdict == "not matching":
        return f"shown to lose more than {margin}: {change} on {asked}"
    if comparison.verdict == "no signal":
        return (
            f"the reference is not shown to be above chance ({comparison.chance:g}), so there is nothing to lose: "
            "take the task out of the policy"
        )
    if comparison.verdict == "incomplete":
        if comparison.p_matching is None and comparison.notes:  # nothing could be tested, for a reason of its own
            return comparison.notes[0]
        return f"{comparison.unscored:,} items have no score, which could change the verdict"
    ended = OUT_OF_TIME if _was_interrupted(comparison) else "the items ran out"
    return f"{ended} before it was decided: {change} on {asked}, margin {margin}"


def _was_interrupted(comparison: Comparison) -> bool:
    stopping = comparison.stopping
    return stopping is not None and stopping.items < stopping.of
