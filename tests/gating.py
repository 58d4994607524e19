"""Servers that know the answers of factoid_qa, but for a share of them, and policies that gate them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from loopback import Server, chat, completion, serving

QUESTIONS: dict[str, str] = {
    row["question"]: row["answers"][0]
    for row in map(
        json.loads,
        resources.files("llmkick.tasks.pocket").joinpath("factoid_qa.jsonl").read_text(encoding="utf-8").splitlines(),
    )
}
WRONG = "xylophone | <b>bold</b> [link](http://example.com)"


def share(*words: str) -> float:
    """A number in [0, 1) that belongs to the words."""
    return int(hashlib.sha256("/".join(words).encode()).hexdigest()[:8], 16) / 2**32


@dataclass
class Knowing:
    """Knows 90 % of the answers, and forgot the share `loss` of those."""

    loss: float = 0.0
    asked: list[str] = field(default_factory=list)  # questions
    lives: int = 10**9  # answers until it gives errors only

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        question = next(
            (text for text in reversed(prompt.splitlines()) if text.removeprefix("Question: ") in QUESTIONS), ""
        )
        question = question.removeprefix("Question: ")
        text = QUESTIONS.get(question, "Hello")
        if question:
            self.asked.append(question)
            if share("knows", question) > 0.9 or share("lost", question) < self.loss:
                text = WRONG
        return chat(text) if "messages" in body else completion(" " + text)


@contextmanager
def served(loss: float = 0.0) -> Iterator[tuple[Server, Knowing]]:
    """A server that forgot a share of its answers, and what it was asked."""
    knowing = Knowing(loss=loss)
    with serving(knowing) as server:
        yield server, knowing


def policy_of(model: str, reference: str, **changes: Any) -> dict[str, Any]:
    values = {"name": "nightly", "model": f"built={model}", "reference": reference, "tasks": ["factoid_qa"]}
    return {**values, "server": {"attempts": 1}, **changes}
