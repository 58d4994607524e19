"""What a task is: items to ask, requests to a model, and a score for each item."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import llmkick.plugins as plugins
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    LanguageModel,
    ScoreRequest,
    Unanswered,
)
from llmkick.tasks.prompting import Prompting

# exp of more is no double.
LARGEST_NATS = 700.0

# "strict": prompts and metrics of this package. "paper": those of the paper.
TaskProtocol = Literal["strict", "paper"]
PROTOCOLS: tuple[TaskProtocol, ...] = get_args(TaskProtocol)

Answer = ContinuationScore | Generation | Unanswered


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question. `cluster` is what it shares with others: a subject, a passage, a story, a domain.

    `details` is what a table may group by (discipline, popularity) and how the prompt was made to fit (shots,
    evidence tokens); a task copies them into the record. `follows` is the id of the item before it in the same
    conversation, whose answer the model has to give first.
    """

    id: str
    cluster: str
    question: str
    context: str = ""
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answer: int | None = None
    tokens: tuple[int, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    follows: str = ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a model did on one item: a score, or the reason why there is none."""

    item_id: str
    cluster: str
    response: str
    score: float | None
    unscored_reason: str | None = None
    tokens: int = 0
    truncated: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A named, versioned set of items with a way to ask and a way to score."""

    @property
    def name(self) -> str:
        """Name with its variant, e.g. `context_qa:open`."""
        ...

    @property
    def version(self) -> int:
        """Raised whenever a score could change."""
        ...

    @property
    def metric(self) -> str:
        """What the mean score is called in a table."""
        ...

    @property
    def chance_level(self) -> float:
        """Score of a model that guesses."""
        ...

    @property
    def setting(self) -> str:
        """Which of the paper's settings it belongs to."""
        ...

    @property
    def prompting(self) -> Prompting | None:
        """The only style it may be asked in (protocol `paper` asks in raw text); None for the model's own."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What was left out of its data, with counts; may read the data."""
        ...

    @property
    def key(self) -> Mapping[str, Any]:
        """Everything about the task that can change a score: data hash, protocol, sample, version."""
        ...

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The sampled items in a fixed order, cut to fit the model; running text needs the model that cuts it."""
        ...

    def requests(self, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
        """What to ask a model about one item: all scored or all generated."""
        ...

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """Score the answers to `requests(item)`."""
        ...


@runtime_checkable
class Conversational(Protocol):
    """A task some of whose items follow others: their requests hold what the model itself answered before."""

    def follow_up(
        self, item: Item, prompting: Prompting, earlier: Sequence[str]
    ) -> Sequence[ScoreRequest | GenerateRequest]:
        """What to ask about an item after its model gave these answers to the items before it, first to last."""
        ...


@runtime_checkable
class ReadByReference(Protocol):
    """A task whose generated answers a reference model reads: the dense one, or the model itself when it is alone.

    Its `score` gets after each generation that is not empty the reference model's ContinuationScore of it (or why
    there is none).
    """

    def beside(self, record: Record, reference_answer: str) -> Record:
        """A scored record with what the reference model's own answer to the item adds to it."""
        ...


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """A task as it can be asked for: where it is made, its variants (the first is the default).

    `data` names further published data sets, asked for like variants; they have no pocket version. `plugin` is
    filled in for tasks that an entry point brings.
    """

    module: str
    factory: str
    summary: str
    variants: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    plugin: plugins.Plugin | None = None

    def names(self, base: str) -> list[str]:
        """The task's names, spelled out."""
        return [f"{base}:{v}" for v in self.variants] or [base, *(f"{base}:{name}" for name in self.data)]


def is_whole(value: object) -> bool:
    """Whether a value is an integer; True and False are not meant as numbers."""
    return isinstance(value, int) and not isinstance(value, bool)


def summary_value(metric: str, records: Sequence[Record]) -> float | None:
    """The metric over the scored records: their mean, over bytes for bits per byte, for perplexity exp of that over
    tokens.

    None when no record has a score, or the perplexity is beyond what a number can hold.
    """
    scored = [(record.score, record.tokens) for record in records if record.score is not None]
    if not scored:
        return None
    if metric == "perplexity":
        mean = sum(score * tokens for score, tokens in scored) / sum(tokens for _, tokens in scored)
        return math.exp(mean) if mean < LARGEST_NATS else None
    if metric == "bits_per_byte":
        sizes = [(record.score, int(record.details["bytes"])) for record in records if record.score is not None]
        return sum(score * size for score, size in sizes) / sum(size for _, size in sizes)
    return sum(score for score, _ in scored) / len(scored)


def unscored(item: Item, reason: str) -> Record:
    """A record without a score."""
    return Record(item_id=item.id, cluster=item.cluster, response="", score=None, unscored_reason=reason)


def task_key(task: Any, data: str) -> dict[str, Any]:
    """The part of a task's key that all tasks share; `data` is the hash of its whole data set.

    Of published data it also says which, and what was left out.
    """
    key = {
        "name": task.name,
        "version": task.version,
        "protocol": task.protocol,
        "source": task.source,
        "data": data,
        "limit": task.limit,
        "seed": task.seed,
    }
    if task.origin is not None:
        key |= {"origin": task.origin.described(), "notes": list(task.notes)}
    return key


def content_hash(items: Sequence[Item]) -> str:
    """sha256 over everything in the items."""
    # Fields that came later count only where they are used: data without them keep their hash.
    rows = [
        {name: value for name, value in vars(item).items() if value or name not in ("details", "follows")}
        for item in items
    ]
    text = json.dumps(rows, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
