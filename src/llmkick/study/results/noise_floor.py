"""The noise floor of a study's choices: how many change when a question is asked alone instead of in its batch.

In half precision the company a question is batched with moves its log-probabilities, and near-ties flip. Differences
between models below that share mean nothing, so the share stands in the report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmkick.models.language_model import LanguageModel
from llmkick.tasks.evaluate import evaluate_item
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, Task

HALF_PRECISIONS = ("bfloat16", "float16")
NOISE_ITEMS = 32  # a task: 10 seconds of a small model on CPU, and a share known to a few percent


def noise_of_choices(
    model: LanguageModel,
    task: Task,
    items: Sequence[Item],
    prompting: Prompting,
    recorded: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any] | None:
    """Ask a spread of the items again, one by one, and compare with what the study recorded of the same model.

    `recorded` is response and details of each item id. Gives task, questions, flipped, and the mean and largest shift
    of an option's log-probability in nats; None where the task has no choices or nothing was scored.
    """
    known = [item for item in items if "choice_logprobs" in recorded.get(item.id, {}).get("details", {})]
    flipped = questions = 0
    shifts: list[float] = []
    count = min(NOISE_ITEMS, len(known))
    for item in (known[index * len(known) // count] for index in range(count)):
        alone = evaluate_item(model, task, item, prompting)
        if alone.score is None:
            continue
        together = recorded[item.id]
        questions += 1
        flipped += alone.response != together["response"]
        pairs = zip(alone.details["choice_logprobs"], together["details"]["choice_logprobs"], strict=True)
        shifts += [abs(one - other) for one, other in pairs]
    if not questions:
        return None
    return {
        "task": task.name,
        "questions": questions,
        "flipped": flipped,
        "mean_shift": sum(shifts) / len(shifts),
        "largest_shift": max(shifts),
    }


def describe_noise(found: Mapping[str, Any], dtype: str) -> str:
    """The noise floor of a task in a sentence."""
    return (
        f"noise floor of {found['task']} in {dtype}: asked alone instead of in its batch, the dense model changes "
        f"{found['flipped']} of {found['questions']} choices (log-probabilities move by {found['mean_shift']:.3f} nats "
        f"on average, {found['largest_shift']:.2f} at most)"
    )
