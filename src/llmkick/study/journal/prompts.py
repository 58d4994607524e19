"""How each question was put to the model, kept small: prompts of a task share most of their text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from llmkick.models.language_model import GenerateRequest, ScoreRequest
from llmkick.study.journal.journal import PromptPart
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, Task

OWN_ANSWER = "[the model's own answer]"


def packed_prompts(task: Task, items: Sequence[Item], prompting: Prompting) -> list[PromptPart]:
    """The prompt of every item, each as what differs from the first of its cluster.

    A text is JSON: {"prompt": raw text or [[role, content], …], "continuations": …} for scored options, or
    {"prompt": …, "stops": …, "max_new_tokens": …}. Windows of running text have no prompt and are left out.
    """
    bases: dict[str, tuple[str, str]] = {}
    parts = []
    for item in items:
        text = _described(_asked(task, item, prompting))
        if text is None:
            continue
        base, whole = bases.setdefault(item.cluster, (item.id, text))
        parts.append(packed_prompt(item.id, text, base, whole))
    return parts


def unpacked(parts: Iterable[PromptPart]) -> dict[str, str]:
    """Item id → the text that was packed."""
    listed = list(parts)
    whole: Mapping[str, str] = {part.item_id: part.middle for part in listed if part.base == part.item_id}
    return {
        part.item_id: part.middle if part.base == part.item_id else _joined(part, whole[part.base]) for part in listed
    }


def _asked(task: Task, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
    """The requests of an item; in those of a later turn a placeholder stands for the model's own first answer."""
    turn = int(item.details.get("turn", 1))
    follow_up = getattr(task, "follow_up", None)
    if turn > 1 and follow_up is not None:
        requests: Sequence[ScoreRequest | GenerateRequest] = follow_up(item, prompting, [OWN_ANSWER] * (turn - 1))
        return requests
    return task.requests(item, prompting)


def _described(requests: Sequence[ScoreRequest | GenerateRequest]) -> str | None:
    """One text for all requests of an item, which differ in what is scored at most."""
    if not requests or not all(isinstance(getattr(one, "continuation", ""), str) for one in requests):
        return None
    first = requests[0]
    prompt = first.prompt if isinstance(first.prompt, str) else [list(message) for message in first.prompt]
    if isinstance(first, ScoreRequest):
        scored = [one.continuation for one in requests if isinstance(one, ScoreRequest)]
        rest: dict[str, object] = {"continuations": scored}
    else:
        rest = {"stops": list(first.stops), "max_new_tokens": first.max_new_tokens}
    return json.dumps({"prompt": prompt, **rest}, ensure_ascii=False)


def packed_prompt(item_id: str, text: str, base: str, whole: str) -> PromptPart:
    """What differs from the text of item `base`, which is `whole`."""
    if item_id == base:
        return PromptPart(item_id, item_id, 0, 0, text)
    head = _shared(text, whole)
    tail = _shared(text[head:][::-1], whole[head:][::-1])
    return PromptPart(item_id, base, head, tail, text[head : len(text) - tail])


def _shared(one: str, other: str) -> int:
    """How many characters two texts begin with alike, by halving."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _joined(part: PromptPart, whole: str) -> str:
    return whole[: part.head] + part.middle + whole[len(whole) - part.tail :]
