"""The result of a gate: an outcome for each task, the items that flipped, and the exit code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from llmkick.statistics import Verdict
from llmkick.study.results.result_file import ResultFile

# matches: shown to lose at most the margin. loses: shown to lose more. unmeasured: this task cannot tell.
Outcome = Literal["matches", "loses", "undecided", "unmeasured"]

MATCHES, LOSES, UNDECIDED, COULD_NOT_RUN = 0, 1, 2, 3
EXIT_CODES: dict[Outcome, int] = {
    "loses": LOSES,
    "unmeasured": COULD_NOT_RUN,
    "undecided": UNDECIDED,
    "matches": MATCHES,
}
OUTCOME_OF: dict[Verdict, Outcome] = {
    "matching": "matches",
    "not matching": "loses",
    "undecided": "undecided",
    "no signal": "unmeasured",
    "incomplete": "unmeasured",
}


class GateRecord(BaseModel):
    """A frozen record of gate.json."""

    model_config = ConfigDict(frozen=True)


class Flip(GateRecord):
    """An item that the models scored differently, with both answers."""

    item_id: str
    question: str
    reference_answer: str
    candidate_answer: str
    reference_score: float
    candidate_score: float

    @property
    def is_lost(self) -> bool:
        """Whether the candidate scored lower."""
        return self.candidate_score < self.reference_score


class TaskOutcome(GateRecord):
    """The candidate against its reference on one task. `loss` and `bounds` are relative; None is unknown.

    `asked` of the `items` were asked, and `scored` of those have a score of both models.
    """

    task: str
    outcome: Outcome
    reason: str
    items: int
    asked: int
    scored: int
    reference_score: float | None
    candidate_score: float | None
    loss: float | None
    bounds: tuple[float, float] | None
    p_matching: float | None
    p_not_matching: float | None
    flips: tuple[Flip, ...]
    notes: tuple[str, ...]


class Asked(GateRecord):
    """Questions (scores and texts) that each model was asked by this command, the recalled ones not counted."""

    reference_questions: int
    candidate_items: int


class GateResult(ResultFile):
    """The content of gate.json. `matches`, `outcome` and `exit_code` say what the gate decided.

    `error` is the reason why the gate could not run; there are no tasks then.
    """

    file_name: ClassVar[str] = "gate.json"
    schema_version: ClassVar[int] = 1
    command: ClassVar[str] = "kick gate"

    name: str
    outcome: Outcome
    exit_code: int
    candidate: str
    reference: str
    candidate_digest: str = ""
    reference_digest: str = ""
    margin: float | None = None
    alpha: float | None = None
    tasks: tuple[TaskOutcome, ...] = ()
    asked: Asked | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    error: str | None = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.exit_code != EXIT_CODES[self.outcome]:
            raise ValueError(f"exit code {self.exit_code} does not belong to the outcome {self.outcome!r}")
        return self

    @property
    def matches(self) -> bool:
        """Whether the candidate is shown to match on every task."""
        return self.exit_code == MATCHES

    def __str__(self) -> str:
        """Return a line for the gate and one for each task, as the terminal and a failed assertion show them."""
        if self.error is not None:
            return f"{self.name}: could not run: {self.error}"
        lines = [f"{entry.task}: {entry.outcome} – {entry.reason}" for entry in self.tasks]
        return "\n".join([f"{self.candidate} against {self.reference}: {self.outcome}", *lines])

    def __repr__(self) -> str:
        """Return the same in angle brackets."""
        return f"<GateResult {self}>"


def overall_outcome(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the outcome over all tasks: a shown loss first, then what could not be measured, then undecided."""
    present = set(outcomes)
    return next(outcome for outcome in EXIT_CODES if outcome in present)
