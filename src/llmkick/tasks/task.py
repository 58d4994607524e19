"""The protocol of a task: items, the requests to a model for each item, and a score for each item."""

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

# exp of a larger mean would overflow a double.
LARGEST_NATS = 700.0

# "strict": prompts and metrics of this package. "paper": prompts and metrics of the paper.
TaskProtocol = Literal["strict", "paper"]
PROTOCOLS: tuple[TaskProtocol, ...] = get_args(TaskProtocol)

# What the groups of a task's items are. Strata are fixed: the claim is about these (the subjects of MMLU, the topics of
# the pocket questions). Clusters are drawn: the claim is about others like them (passages, stories, dialogues).
Grouping = Literal["strata", "clusters"]

Answer = ContinuationScore | Generation | Unanswered


@dataclass(frozen=True, kw_only=True)
class Item:
    """A question. Items of the same `cluster` share a subject, a passage, a story or a domain (see `Grouping`).

    `details` holds values that tables group by (discipline, popularity) and how the prompt was made to fit (shots,
    evidence tokens); a task copies them into the record. `follows` is the id of the previous item of the same
    conversation, which the model has to answer first.
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
    """The result of a model on one item: its response and a score, or the reason why there is no score."""

    item_id: str
    cluster: str
    response: str
    score: float | None
    unscored_reason: str | None = None
    tokens: int = 0
    truncated: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """A named, versioned set of items, their requests to a model, and the rule that scores the answers."""

    @property
    def name(self) -> str:
        """The task name with its variant, e.g. `context_qa:open`."""
        ...

    @property
    def version(self) -> int:
        """The version, which increases with every change that can affect a score."""
        ...

    @property
    def metric(self) -> str:
        """The name of the mean score in tables."""
        ...

    @property
    def chance_level(self) -> float:
        """The expected score of a model that guesses."""
        ...

    @property
    def setting(self) -> str:
        """The key of the task's setting in the paper, see `SETTINGS`."""
        ...

    @property
    def prompting(self) -> Prompting | None:
        """The prompt style that the task requires (protocol `paper` uses raw text); None for the model's default."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """Notes on the data, e.g. the number of rows left out. Access can load the data."""
        ...

    @property
    def key(self) -> Mapping[str, Any]:
        """All properties of the task that can change a score: data hash, protocol, sample, version."""
        ...

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The sampled items in a fixed order, fitted to the model's context; windows of running text need a model."""
        ...

    def requests(self, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
        """The requests of an item: either all ScoreRequest or all GenerateRequest."""
        ...

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """Score the answers to `requests(item)`."""
        ...


@runtime_checkable
class Conversational(Protocol):
    """A task with conversations: the requests of a later turn contain the model's answers to the earlier turns."""

    def follow_up(
        self, item: Item, prompting: Prompting, earlier: Sequence[str]
    ) -> Sequence[ScoreRequest | GenerateRequest]:
        """The requests of an item; `earlier` has the model's answers to the preceding items, oldest first."""
        ...


@runtime_checkable
class Grouped(Protocol):
    """A task that declares what the groups of its items are."""

    @property
    def groups(self) -> Grouping:
        """Whether the items' `cluster` names a stratum or a cluster."""
        ...


def groups_of(task: Task) -> Grouping:
    """What the groups of a task's items are; clusters, which claim less, unless the task declares otherwise."""
    return task.groups if isinstance(task, Grouped) else "clusters"


@runtime_checkable
class ReadByReference(Protocol):
    """A task whose generated answers are also scored by a reference model.

    The reference is the dense model, or the model itself when no other is given. After each non-empty generation,
    `score` gets the reference model's ContinuationScore of it, or Unanswered.
    """

    def beside(self, record: Record, reference_answer: str) -> Record:
        """A scored record, extended by measures against the reference model's own answer to the item."""
        ...


@dataclass(frozen=True, kw_only=True)
class TaskEntry:
    """An entry of the registry: the module and the factory of a task, and its variants (the first is the default).

    `data` names further published data sets, which are chosen like variants and have no pocket version. `plugin` is
    set for a task that an entry point provides.
    """

    module: str
    factory: str
    summary: str
    variants: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    plugin: plugins.Plugin | None = None

    def names(self, base: str) -> list[str]:
        """The full names of the task under its base name, e.g. `context_qa:closed`, `context_qa:open`."""
        return [f"{base}:{v}" for v in self.variants] or [base, *(f"{base}:{name}" for name in self.data)]


def is_whole(value: object) -> bool:
    """Whether a value is an integer; True and False do not count."""
    return isinstance(value, int) and not isinstance(value, bool)


def summary_value(metric: str, records: Sequence[Record]) -> float | None:
    """The metric over the scored records.

    Bits per byte is the mean weighted by bytes; perplexity is exp of the mean weighted by tokens; other metrics are the
    plain mean. The result is None if no record has a score, or if the perplexity overflows a double.
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

    For published data the key also has the origin of the data and the notes on omitted rows.
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
    """The sha256 of the contents of all items."""
    # Empty values of these two fields are omitted, so that hashes of data sets without the fields stay valid.
    rows = [
        {name: value for name, value in vars(item).items() if value or name not in ("details", "follows")}
        for item in items
    ]
    text = json.dumps(rows, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
