"""Evaluation of a model on the items of a task, in batches that depend only on the task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmkick.errors import ConfigError
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    LanguageModel,
    ScoreRequest,
    Unanswered,
)
from llmkick.tasks.prompting import Prompting, resolve_prompting
from llmkick.tasks.task import Answer, Conversational, Item, ReadByReference, Record, Task, unscored

# Number of items evaluated and journalled together. In bfloat16 the other items of a batch slightly change an item's
# numbers, so a resumed run must form the same batches.
BATCH_ITEMS = 64


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The reference model, and a mapping of item id → the reference model's own answer, if available."""

    model: LanguageModel
    answers: Mapping[str, str] = field(default_factory=dict)


def refuse_unanswerable(
    model: LanguageModel, task: Task, *, prompting: str = "auto", reference: LanguageModel | None = None
) -> None:
    """Raise ConfigError, before any work, if a model does not support the requests of a task.

    A server gives no log-probabilities of running text. Few servers give those of whole options, or those of the
    answers that the `reference` model (by default the model itself) must read.
    """
    reader = reference or model
    if model.answers_all_requests and reader.answers_all_requests:
        return
    style = resolve_prompting(model, prompting, required=task.prompting)
    requests = task.requests(task.items(model)[0], style)
    reading = [ScoreRequest(request.prompt, " so far") for request in requests]
    for asked_model, asked in ((model, requests), (reader, reading if isinstance(task, ReadByReference) else [])):
        reason = asked_model.refusal(asked) if asked else ""
        if reason:
            raise ConfigError(f"{task.name} cannot be asked of {asked_model.info.name}: {reason}")


def evaluate(model: LanguageModel, task: Task, *, prompting: str = "auto") -> list[Record]:
    """Evaluate a model on all items of a task; returns one record per item, in the task's order."""
    return [record for batch in evaluate_in_batches(model, task, prompting=prompting) for record in batch]


def evaluate_in_batches(
    model: LanguageModel,
    task: Task,
    *,
    prompting: str = "auto",
    done: Collection[str] = (),
    reference: Reference | None = None,
) -> Iterator[list[Record]]:
    """Like `evaluate`, but batch by batch; batches whose items are all in `done` are skipped.

    Batches depend only on the task, so a resumed evaluation runs exactly the remaining requests. The `reference` model
    reads the answers of `ReadByReference` tasks; without a reference, the model reads its own answers.
    """
    refuse_unanswerable(model, task, prompting=prompting, reference=reference.model if reference else None)
    style = resolve_prompting(model, prompting, required=task.prompting)
    for batch in _batches(task.items(model)):
        if not all(item.id in done for item in batch):
            yield _evaluate_batch(model, task, batch, style, reference or Reference(model=model))


def evaluate_item(model: LanguageModel, task: Task, item: Item, style: Prompting) -> Record:
    """Evaluate one item in a batch of its own."""
    return _evaluate_batch(model, task, [item], style, Reference(model=model))[0]


def evaluate_items(
    model: LanguageModel,
    task: Task,
    items: Sequence[Item],
    *,
    prompting: str = "auto",
    reference: Reference | None = None,
) -> list[Record]:
    """Evaluate a model on some of the items of `task.items(model)`, in one batch."""
    style = resolve_prompting(model, prompting, required=task.prompting)
    return _evaluate_batch(model, task, items, style, reference or Reference(model=model))


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """Batches of BATCH_ITEMS items. A batch can be longer, because a conversation is never split."""
    start = 0
    while start < len(items):
        end = start + BATCH_ITEMS
        while end < len(items) and items[end].follows:
            end += 1
        yield items[start:end]
        start = end


def _evaluate_batch(
    model: LanguageModel, task: Task, items: Sequence[Item], style: Prompting, reference: Reference
) -> list[Record]:
    answers: dict[str, list[Answer]] = {}
    failed: dict[str, str] = {}
    waiting = list(items)
    while waiting:
        # One pass per turn: all first turns together, then all second turns, and so on.
        ready = [item for item in waiting if not item.follows or item.follows in answers]
        assert ready, f"{waiting[0].id} follows {waiting[0].follows}, which is not in its batch"
        asked: list[tuple[Item, Sequence[ScoreRequest | GenerateRequest]]] = []
        for item in ready:
            earlier = _said_before(item, items, answers) if item.follows else []
            if isinstance(earlier, Unanswered):
                answers[item.id], failed[item.id] = [earlier], earlier.reason
            elif item.follows and isinstance(task, Conversational):
                asked.append((item, task.follow_up(item, style, earlier)))
            else:
                asked.append((item, task.requests(item, style)))
        answers |= _answered(model, task, asked, reference)
        waiting = [item for item in waiting if item.id not in answers]
    records = [
        unscored(item, failed[item.id])
        if item.id in failed
        else _marked(task.score(item, answers[item.id]), answers[item.id])
        for item in items
    ]
    if not isinstance(task, ReadByReference):
        return records
    own_responses = {record.item_id: record.response for record in records} if reference.model is model else {}
    responses = {**own_responses, **reference.answers}
    return [
        task.beside(record, responses[record.item_id])
        if record.score is not None and record.item_id in responses
        else record
        for record in records
    ]


def _marked(record: Record, answers: Sequence[Answer]) -> Record:
    """The record with marks for a thought that was taken out of an answer, and for characters that came broken."""
    said = [answer for answer in answers if isinstance(answer, Generation)]
    marks: dict[str, object] = {}
    if any(answer.has_thought for answer in said):
        marks["thought_removed"] = True
    if replaced := sum(answer.replaced for answer in said):
        marks["replaced_characters"] = replaced
    return replace(record, details={**record.details, **marks}) if marks else record


def _said_before(item: Item, items: Sequence[Item], answers: Mapping[str, Sequence[Answer]]) -> list[str] | Unanswered:
    """The answers to the earlier items of the conversation, oldest first; Unanswered if an answer is missing."""
    by_id = {previous.id: previous for previous in items}
    said: list[str] = []
    before = item.follows
    while before:
        answer = answers[before][0]
        if not isinstance(answer, Generation):
            reason = answer.reason if isinstance(answer, Unanswered) else "it was not generated"
            return Unanswered(reason=f"{before}, which it follows, has no answer: {reason}")
        said.append(answer.text)
        before = by_id[before].follows
    return said[::-1]


def _answered(
    model: LanguageModel,
    task: Task,
    asked: Sequence[tuple[Item, Sequence[ScoreRequest | GenerateRequest]]],
    reference: Reference,
) -> dict[str, list[Answer]]:
    """The answers to each item's requests; for `ReadByReference` tasks, a score follows each generation."""
    flat = [request for _, requests in asked for request in requests]
    scored = [request for request in flat if isinstance(request, ScoreRequest)]
    generated = [request for request in flat if isinstance(request, GenerateRequest)]
    scores = iter(model.logprobs(scored) if scored else [])
    generations = model.generate(generated) if generated else []
    readings: Iterator[ContinuationScore | Unanswered] = iter(())
    if isinstance(task, ReadByReference):
        read = [
            ScoreRequest(request.prompt, answer.text)
            for request, answer in zip(generated, generations, strict=True)
            if isinstance(answer, Generation) and answer.text.strip()
        ]
        readings = iter(reference.model.logprobs(read) if read else [])
    by_item: dict[str, list[Answer]] = {}
    ordered = iter(generations)
    for item, requests in asked:
        answers_of_item = by_item[item.id] = list[Answer]()
        for request in requests:
            if isinstance(request, ScoreRequest):
                answers_of_item.append(next(scores))
                continue
            answer = next(ordered)
            answers_of_item.append(answer)
            if isinstance(task, ReadByReference) and isinstance(answer, Generation) and answer.text.strip():
                answers_of_item.append(next(readings))
    return by_item
