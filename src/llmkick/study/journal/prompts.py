"""Packed prompts of a task: the journal stores each prompt as its difference from a similar prompt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from llmkick.models.language_model import GenerateRequest, ScoreRequest
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Conversational, Item, Task

# Placeholder in the prompt of a later turn for the model's answer to an earlier turn.
OWN_ANSWER = "[the model's own answer]"


class PromptPart(NamedTuple):
    """A prompt as its difference from a base prompt of the same task: `base[:head] + middle + base[-tail:]`.

    A base prompt refers to itself and has its whole text in `middle`.
    """

    item_id: str
    base: str
    head: int
    tail: int
    middle: str


def packed_prompts(task: Task, items: Sequence[Item], prompting: Prompting) -> list[PromptPart]:
    """Return the prompt of every item as its difference from the prompt of the first item in its cluster.

    The packed text is JSON: {"prompt": raw text or [[role, content], …], "continuations": …} for scored options, or
    {"prompt": …, "stops": …, "max_new_tokens": …}. Windows of running text have no prompt and are left out.
    """
    bases: dict[str, tuple[str, str]] = {}
    parts = []
    for item in items:
        text = _as_text(_requests_of(task, item, prompting))
        if text is None:
            continue
        base, whole = bases.setdefault(item.cluster, (item.id, text))
        parts.append(packed_prompt(item.id, text, base, whole))
    return parts


def unpacked(parts: Iterable[PromptPart]) -> dict[str, str]:
    """Return item id → the text that `packed_prompts` packed; `parts` must include the base of every part."""
    listed = list(parts)
    whole: Mapping[str, str] = {part.item_id: part.middle for part in listed if part.base == part.item_id}
    return {
        part.item_id: part.middle if part.base == part.item_id else _joined(part, whole[part.base]) for part in listed
    }


def _requests_of(task: Task, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
    """Return the requests of an item; in a later turn OWN_ANSWER replaces each earlier answer of the model."""
    turn = int(item.details.get("turn", 1))
    if turn > 1 and isinstance(task, Conversational):
        return task.follow_up(item, prompting, [OWN_ANSWER] * (turn - 1))
    return task.requests(item, prompting)


def _as_text(requests: Sequence[ScoreRequest | GenerateRequest]) -> str | None:
    """Return one text for all requests of an item, which differ only in the continuation; None for running text."""
    if not requests or not all(_has_text(request) for request in requests):
        return None
    first = requests[0]
    prompt = first.prompt if isinstance(first.prompt, str) else [list(message) for message in first.prompt]
    if isinstance(first, ScoreRequest):
        scored = [request.continuation for request in requests if isinstance(request, ScoreRequest)]
        rest: dict[str, object] = {"continuations": scored}
    else:
        rest = {"stops": list(first.stops), "max_new_tokens": first.max_new_tokens}
    return json.dumps({"prompt": prompt, **rest}, ensure_ascii=False)


def _has_text(request: ScoreRequest | GenerateRequest) -> bool:
    return isinstance(request, GenerateRequest) or isinstance(request.continuation, str)


def packed_prompt(item_id: str, text: str, base: str, whole: str) -> PromptPart:
    """Return a prompt as its difference from `whole`, the text of the item `base`."""
    if item_id == base:
        return PromptPart(item_id, item_id, 0, 0, text)
    head = _shared(text, whole)
    tail = _shared(text[head:][::-1], whole[head:][::-1])
    return PromptPart(item_id, base, head, tail, text[head : len(text) - tail])


def _shared(left: str, right: str) -> int:
    """Return the length of the common prefix of two texts, by bisection."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[:middle] == right[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _joined(part: PromptPart, whole: str) -> str:
    return whole[: part.head] + part.middle + whole[len(whole) - part.tail :]
