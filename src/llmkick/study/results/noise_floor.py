"""The noise floor of choices: the share of choices that change with the batch of a question.

In float32 batches change log-probabilities by about 1e-6 nats and no choice. In half precision a matrix product rounds
differently for every batch shape, and near-ties flip. Differences between models below that share are meaningless, so
the report shows the share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from llmkick.errors import DataError
from llmkick.models.language_model import ContinuationScore, LanguageModel, ScoreRequest, Unanswered
from llmkick.study.results.multiplicity import chosen_option
from llmkick.study.results.records import Details, NoiseRow
from llmkick.tasks.evaluate import evaluate_item
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, Task

HALF_PRECISIONS = ("bfloat16", "float16")
NOISE_ITEMS = 32  # per task; gives the share to within a few percent

Answers = Sequence[ContinuationScore | Unanswered]
# Whether the choice of a question differs between two runs, and the shifts of its options' log-probabilities in nats.
Change = tuple[bool, Sequence[float]]


class RecordedAnswer(TypedDict):
    """The response and the details of an item in the journal."""

    response: str
    details: Details


@dataclass(frozen=True, kw_only=True)
class NoiseFloor:
    """The difference between two runs of the same questions with the same model. Shifts are in nats."""

    questions: int
    flipped: int
    mean_shift: float
    largest_shift: float

    @property
    def share(self) -> float:
        """The share of questions whose choice changed."""
        return self.flipped / self.questions


def noise_floor(model: LanguageModel, requests: Sequence[ScoreRequest]) -> NoiseFloor:
    """Score the questions in full batches and one by one; adjacent requests with the same prompt form one question.

    Questions with an unanswered option are left out. Raises DataError if no question with two options is left.
    """
    questions: list[list[int]] = []
    for index, request in enumerate(requests):
        if index and request.prompt == requests[index - 1].prompt:
            questions[-1].append(index)
        else:
            questions.append([index])
    in_batches = model.logprobs(requests)
    alone: list[ContinuationScore | Unanswered] = []
    for question in questions:
        alone += model.logprobs([requests[index] for index in question])
    return compare_runs([question for question in questions if len(question) > 1], in_batches, alone)


def compare_runs(questions: Sequence[Sequence[int]], first: Answers, second: Answers) -> NoiseFloor:
    """Return the difference between two runs; `questions` has the indices of each question's options.

    Raises DataError if no question has two scored options.
    """
    changes: list[Change] = []
    for question in questions:
        pairs = [
            (left.logprob, right.logprob)
            for left, right in ((first[index], second[index]) for index in question)
            if isinstance(left, ContinuationScore) and isinstance(right, ContinuationScore)
        ]
        if len(pairs) == len(question):
            left, right = zip(*pairs, strict=True)
            flipped = left.index(max(left)) != right.index(max(right))
            changes.append((flipped, [abs(a - b) for a, b in pairs]))
    floor = _floor(changes)
    if floor is None:
        raise DataError("no question with at least two scored options: there is nothing whose choice could change")
    return floor


def noise_of_choices(
    model: LanguageModel,
    task: Task,
    items: Sequence[Item],
    prompting: Prompting,
    recorded: Mapping[str, RecordedAnswer],
) -> NoiseRow | None:
    """Ask evenly spaced items again, one by one, and compare the answers with the records of the same model.

    `recorded` has the response and details by item id. Returns None if the task has no choices or no scored item.
    """
    with_choices = [item for item in items if item.id in recorded and "choice_logprobs" in recorded[item.id]["details"]]
    count = min(NOISE_ITEMS, len(with_choices))
    changes: list[Change] = []
    for item in (with_choices[index * len(with_choices) // count] for index in range(count)):
        alone = evaluate_item(model, task, item, prompting)
        if alone.score is not None:
            in_batch = recorded[item.id]
            pairs = zip(alone.details["choice_logprobs"], in_batch["details"]["choice_logprobs"], strict=True)
            flipped = chosen_option(alone.response) != chosen_option(in_batch["response"])
            changes.append((flipped, [abs(a - b) for a, b in pairs]))
    floor = _floor(changes)
    return None if floor is None else NoiseRow(task=task.name, **vars(floor))


def _floor(changes: Iterable[Change]) -> NoiseFloor | None:
    counted = list(changes)
    shifts = [shift for _, of_question in counted for shift in of_question]
    if not counted:
        return None
    return NoiseFloor(
        questions=len(counted),
        flipped=sum(flipped for flipped, _ in counted),
        mean_shift=sum(shifts) / len(shifts),
        largest_shift=max(shifts),
    )


def describe_noise(noise: NoiseRow, dtype: str) -> str:
    """Return a sentence about the noise floor of a task."""
    return (
        f"noise floor of {noise.task} in {dtype}: asked alone instead of in its batch, the dense model changes "
        f"{noise.flipped} of {noise.questions} choices (log-probabilities move by {noise.mean_shift:.3f} nats "
        f"on average, {noise.largest_shift:.2f} at most)"
    )
