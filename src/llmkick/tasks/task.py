"""What a task is: items to ask, requests to a model, and a score for each item."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, Protocol

import llmkick.plugins as plugins
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

# Items asked and journalled together. Part of the engine's behaviour: in bfloat16 the company an item is
# batched with moves its numbers a little, so a resumed run must form the same batches.
BATCH_ITEMS = 64

# exp of more is no double.
LARGEST_NATS = 700.0

Answer = ContinuationScore | Generation | Unanswered


@dataclass(frozen=True, kw_only=True)
class Item:
    """One question. `cluster` is what it shares with others: a subject, a passage, a story, a domain.

    `details` is what a table may group by (discipline, popularity) and how the prompt was made to fit (shots,
    evidence tokens); a task copies them into the record.
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


# Settings in the paper's order; perplexity stands apart as the control.
SETTINGS = {
    "knowledge": "Access to remaining knowledge",
    "synthesis": "Synthesis of given knowledge",
    "instruction": "Instruction following",
    "control": "Control",
}


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


TASKS: Mapping[str, TaskEntry] = {
    "factoid_qa": TaskEntry(
        module="llmkick.tasks.factoid_qa",
        factory="FactoidQA",
        summary="short questions about facts; popqa (hub or folder): of known popularity",
        data=("popqa",),
    ),
    "multiple_choice": TaskEntry(
        module="llmkick.tasks.multiple_choice",
        factory="MultipleChoice",
        summary="four options, by letter (5-shot) or by the likelihood of the option's text (cloze)",
        variants=("letter", "cloze"),
    ),
    "context_qa": TaskEntry(
        module="llmkick.tasks.context_qa",
        factory="ContextQA",
        summary="questions about a passage, without it (closed book) or with it (open book)",
        variants=("closed", "open"),
    ),
    "perplexity": TaskEntry(
        module="llmkick.tasks.perplexity",
        factory="Perplexity",
        summary="running text in windows; the control that the other tasks are held against",
        data=("c4",),
    ),
}


def entry_of(name: str) -> TaskEntry:
    """The entry behind a task's name, of this package or of a plug-in.

    Raises ConfigError for an unknown name or variant, and for a broken plug-in.
    """
    base, _, variant = name.partition(":")
    if base not in TASKS:
        plugins.refuse_clash(plugins.TASKS, base, TASKS)
    added = plugins.usable(plugins.TASKS, TASKS)
    entry = TASKS.get(base) or (_plugin_entry(added[base]) if base in added else None)
    if entry is None or (":" in name and variant not in entry.variants + entry.data):
        raise ConfigError(f"unknown task {name!r}; choose from: {', '.join(task_names())}")
    return entry


def all_tasks() -> tuple[dict[str, TaskEntry], list[str]]:
    """Every entry that works, by base name, and what is wrong with the plug-ins that do not."""
    entries, problems = dict(TASKS), plugins.problems(plugins.TASKS, TASKS)
    for base, plugin in plugins.usable(plugins.TASKS, TASKS).items():
        try:
            entries[base] = _plugin_entry(plugin)
        except ConfigError as error:
            problems.append(str(error))
    return entries, problems


@cache
def _plugin_entry(plugin: plugins.Plugin) -> TaskEntry:
    entry = plugin.load()
    if not isinstance(entry, TaskEntry):
        raise plugin.broken(f"is {type(entry).__name__}, not a llmkick.tasks.task.TaskEntry")
    try:
        factory = getattr(importlib.import_module(entry.module), entry.factory)
    except Exception as error:
        raise plugin.broken(f"names {entry.module}.{entry.factory}: {plugins.describe(error)}") from error
    missing = {"limit", "protocol", "seed", "source"} - {one.name for one in _fields(factory)}
    if missing:
        raise plugin.broken(f"needs a dataclass as factory; {entry.factory} has no field {', '.join(sorted(missing))}")
    return replace(entry, plugin=plugin)


def _fields(factory: Any) -> tuple[Any, ...]:
    return fields(factory) if is_dataclass(factory) else ()


def task_names() -> list[str]:
    """Every task name with its variants spelled out; broken plug-ins are left out."""
    return [name for base, entry in all_tasks()[0].items() for name in entry.names(base)]


def has_pocket_data(name: str) -> bool:
    """Whether a task runs on the data sets in its package; the others need source hub or a folder."""
    return name.partition(":")[2] not in entry_of(name).data


def task_summary(name: str) -> str:
    """One line on what a task asks."""
    return entry_of(name).summary


PROTOCOLS = ("strict", "paper")
# What a plug-in's task must have, see `Task`.
TASK_MEMBERS = (
    "name", "version", "metric", "chance_level", "setting", "prompting", "notes", "key", "items", "requests", "score",
)  # fmt: skip
_COMMON_FIELDS = ("variant", "data", "source", "protocol", "limit", "seed")


def get_task(
    name: str,
    *,
    source: str = "pocket",
    protocol: str = "strict",
    limit: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Task:
    """Make a task: `factoid_qa[:popqa]`, `multiple_choice[:letter|:cloze]`, `context_qa[:closed|:open]`,
       `perplexity[:c4]`, or one of a plug-in.

       `source` is "pocket" (this package), "hub" (the published data sets) or a folder that holds their files, and
       for perplexity a text file. `protocol` is "strict", or "paper" for the paper's prompts and metrics. `limit`
       takes a seeded sample of that many items, stratified by cluster. Further options: `split`, `revision` and
       `sha256` of published data; `shots` of multiple_choice:letter; `evidence_tokens` of context_qa:open; `window`
       and `unit` (tokens, bytes) of perplexity.
    ConfigError for an unknown name, variant, protocol, source or option, and for a limit below 1.
    """
    entry, variant = entry_of(name), name.partition(":")[2]
    if limit is not None and not (is_whole(limit) and limit >= 1):
        raise ConfigError(f"limit of {name} must be a whole number of at least 1; got {limit!r}")
    if not is_whole(seed):
        raise ConfigError(f"seed of {name} must be a whole number; got {seed!r}")
    if protocol not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {protocol!r} for {name}; choose from: {', '.join(PROTOCOLS)}")
    factory: Any = getattr(importlib.import_module(entry.module), entry.factory)
    known = [one.name for one in fields(factory) if one.name not in _COMMON_FIELDS]
    for option in options:
        if option not in known:
            raise ConfigError(f"unknown option {option!r} of {name}; choose from: {', '.join(known) or 'none'}")
    if entry.variants:
        options["variant"] = variant or entry.variants[0]
    if entry.data:
        options["data"] = variant
    given = {"source": source, "protocol": protocol, "limit": limit, "seed": seed, **options}
    task: Task = factory(**given) if entry.plugin is None else _from_plugin(entry.plugin, factory, given)
    return task


def _from_plugin(plugin: plugins.Plugin, factory: Any, given: Mapping[str, Any]) -> Any:
    """A plug-in's task, refused when it lacks something that would be missed only after hours."""
    try:
        task = factory(**given)
    except Exception as error:
        raise plugin.failed("to make the task", error) from error
    missing = [name for name in TASK_MEMBERS if not hasattr(type(task), name) and name not in vars(task)]
    if missing:
        raise plugin.broken(f"made a {type(task).__name__} without {', '.join(missing)}; see the Task protocol")
    if task.name.partition(":")[0] != plugin.name or task.setting not in SETTINGS:
        raise plugin.broken(
            f"made a task named {task.name!r} of setting {task.setting!r}; its name must begin with {plugin.name!r}, "
            f"its setting be one of {', '.join(SETTINGS)}"
        )
    return task


def full_key(task: Task) -> dict[str, Any]:
    """A task's key; of a plug-in's task also package and version."""
    plugin = plugins.usable(plugins.TASKS, TASKS).get(task.name.partition(":")[0])
    return {**task.key, **({} if plugin is None else {"plugin": plugin.origin})}


def is_whole(value: object) -> bool:
    """Whether a value is an integer; True and False are not meant as numbers."""
    return isinstance(value, int) and not isinstance(value, bool)


def refuse_unanswerable(model: LanguageModel, task: Task, *, prompting: str = "auto") -> None:
    """Raise ConfigError, before any work, when a model cannot be asked what a task asks.

    A server gives no log-probabilities of running text, and few give those of whole options.
    """
    refusal = getattr(model, "refusal", None)
    if refusal is None:
        return
    style = resolve_prompting(model, prompting, required=task.prompting)
    items = task.items(model)
    reason = refusal(task.requests(items[0], style)) if items else ""
    if reason:
        raise ConfigError(f"{task.name} cannot be asked of {model.info.name}: {reason}")


def evaluate(model: LanguageModel, task: Task, *, prompting: str = "auto") -> list[Record]:
    """Ask a model every item of a task; one record an item, in the task's order."""
    return [record for batch in evaluate_in_batches(model, task, prompting=prompting) for record in batch]


def evaluate_in_batches(
    model: LanguageModel, task: Task, *, prompting: str = "auto", done: Collection[str] = ()
) -> Iterator[list[Record]]:
    """Like `evaluate`, batch by batch; batches whose items are all in `done` are passed over.

    Batches depend only on the task, so that a resumed evaluation asks exactly what was left to ask.
    """
    refuse_unanswerable(model, task, prompting=prompting)
    style = resolve_prompting(model, prompting, required=task.prompting)
    items = task.items(model)
    for start in range(0, len(items), BATCH_ITEMS):
        batch = items[start : start + BATCH_ITEMS]
        if not all(item.id in done for item in batch):
            yield _evaluate_batch(model, task, batch, style)


def evaluate_item(model: LanguageModel, task: Task, item: Item, style: Prompting) -> Record:
    """Ask one item on its own."""
    return _evaluate_batch(model, task, [item], style)[0]


def _evaluate_batch(model: LanguageModel, task: Task, items: Sequence[Item], style: Prompting) -> list[Record]:
    requests = [task.requests(item, style) for item in items]
    flat = [request for some in requests for request in some]
    scored = [request for request in flat if isinstance(request, ScoreRequest)]
    generated = [request for request in flat if isinstance(request, GenerateRequest)]
    scores = iter(model.logprobs(scored) if scored else [])
    generations = iter(model.generate(generated) if generated else [])
    records = []
    for item, some in zip(items, requests, strict=True):
        answers: list[Answer] = [
            next(scores) if isinstance(request, ScoreRequest) else next(generations) for request in some
        ]
        records.append(task.score(item, answers))
    return records


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
    rows = [{name: value for name, value in vars(item).items() if name != "details" or value} for item in items]
    text = json.dumps(rows, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
