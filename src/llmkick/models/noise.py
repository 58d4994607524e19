"""How much the engine's own arithmetic moves answers: the floor below which a difference means nothing.

In float32 batches change log-probabilities by about 1e-6 nats and no choice. In half precision a matrix product
rounds differently for every batch shape; on questions that a model cannot answer, that is enough to flip some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmkick.errors import DataError
from llmkick.models.language_model import ContinuationScore, ScoreRequest, Unanswered
from llmkick.models.transformers_model import TransformersModel

Answers = Sequence[ContinuationScore | Unanswered]


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """Two runs of the same questions by the same model: in full batches, and one question at a time.

    largest_shift, mean_shift: of an option's log-probability, nats.
    """

    questions: int
    flipped: int
    largest_shift: float
    mean_shift: float

    @property
    def share(self) -> float:
        """Share of questions whose likeliest option changed."""
        return self.flipped / self.questions


def noise_floor(model: TransformersModel, requests: Sequence[ScoreRequest]) -> NoiseFloor:
    """Score the questions in two batch sizes; neighbours with the same prompt are the options of one question.

    Questions with an unanswered option are left out. Raises DataError when none with two options is left.
    """
    questions: list[list[int]] = []
    for index, request in enumerate(requests):
        if index and request.prompt == requests[index - 1].prompt:
            questions[-1].append(index)
        else:
            questions.append([index])
    together = model.logprobs(requests)
    alone: list[ContinuationScore | Unanswered] = []
    for question in questions:
        alone += model.logprobs([requests[index] for index in question])
    return compare_runs([question for question in questions if len(question) > 1], together, alone)


def compare_runs(questions: Sequence[Sequence[int]], one: Answers, other: Answers) -> NoiseFloor:
    """How two runs differ; `questions` holds the indices of each question's options."""
    flipped = counted = 0
    shifts: list[float] = []
    for question in questions:
        pairs = [(one[index], other[index]) for index in question]
        values = [
            (left.logprob, right.logprob)
            for left, right in pairs
            if isinstance(left, ContinuationScore) and isinstance(right, ContinuationScore)
        ]
        if len(values) < len(pairs):
            continue
        counted += 1
        left, right = zip(*values, strict=True)
        flipped += left.index(max(left)) != right.index(max(right))
        shifts += [abs(a - b) for a, b in values]
    if not counted:
        raise DataError("no question with at least two scored options: there is nothing whose choice could change")
    return NoiseFloor(
        questions=counted, flipped=flipped, largest_shift=max(shifts), mean_shift=sum(shifts) / len(shifts)
    )
