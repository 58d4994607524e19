"""What a task is: items to ask, requests to a model, and a score for each item."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any, Protocol, runtime_checkable

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
class Reference:
    """The model that answers are held against, and its own answers by item id, where they are known."""

    model: LanguageModel
    answers: Mapping[str, str] = field(default_factory=dict)


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
    "summarization": TaskEntry(
        module="llmkick.tasks.summarization",
        factory="Summarization",
        summary="short, medium and long stories to summarise, held against a reference and the dense model's summary",
    ),
    "instruction": TaskEntry(
        module="llmkick.tasks.instruction",
        factory="Instruction",
        summary="open questions, the second turn after the model's own first answer; vicuna (hub or folder): one turn",
        data=("vicuna",),
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
       `summarization`, `instruction[:vicuna]`, `perplexity[:c4]`, or one of a plug-in.

       `source` is "pocket" (this package), "hub" (the published data sets) or a folder that holds their files, and
       for perplexity a text file. `protocol` is "strict", or "paper" for the paper's prompts and metrics. `limit`
       takes a seeded sample of that many items, stratified by cluster. Further options: `split`, `revision` and
       `sha256` of published data; `shots` of multiple_choice:letter; `evidence_tokens` of context_qa:open; `words`
       and `bucket_words` of summarization; `max_new_tokens` of summarization and instruction; `window`
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


def refuse_unanswerable(
    model: LanguageModel, task: Task, *, prompting: str = "auto", reference: LanguageModel | None = None
) -> None:
    """Raise ConfigError, before any work, when a model cannot be asked what a task asks.

    A server gives no log-probabilities of running text, and few give those of whole options, or of the answers that
    the `reference` model (by default the model itself) is to read.
    """
    reader = reference or model
    if not any(hasattr(one, "refusal") for one in (model, reader)):
        return
    style = resolve_prompting(model, prompting, required=task.prompting)
    requests = task.requests(task.items(model)[0], style)
    reading = [ScoreRequest(request.prompt, " so far") for request in requests]
    for one, asked in ((model, requests), (reader, reading if isinstance(task, ReadByReference) else [])):
        reason = one.refusal(asked) if asked and hasattr(one, "refusal") else ""
        if reason:
            raise ConfigError(f"{task.name} cannot be asked of {one.info.name}: {reason}")


def evaluate(model: LanguageModel, task: Task, *, prompting: str = "auto") -> list[Record]:
    """Ask a model every item of a task; one record an item, in the task's order."""
    return [record for batch in evaluate_in_batches(model, task, prompting=prompting) for record in batch]


def evaluate_in_batches(
    model: LanguageModel,
    task: Task,
    *,
    prompting: str = "auto",
    done: Collection[str] = (),
    reference: Reference | None = None,
) -> Iterator[list[Record]]:
    """Like `evaluate`, batch by batch; batches whose items are all in `done` are passed over.

    Batches depend only on the task, so that a resumed evaluation asks exactly what was left to ask. `reference`
    reads the answers of tasks that ask for it (`ReadByReference`); without one, the model reads its own.
    """
    refuse_unanswerable(model, task, prompting=prompting, reference=reference.model if reference else None)
    style = resolve_prompting(model, prompting, required=task.prompting)
    for batch in _batches(task.items(model)):
        if not all(item.id in done for item in batch):
            yield _evaluate_batch(model, task, batch, style, reference or Reference(model=model))


def evaluate_item(model: LanguageModel, task: Task, item: Item, style: Prompting) -> Record:
    """Ask one item on its own."""
    return _evaluate_batch(model, task, [item], style, Reference(model=model))[0]


def evaluate_items(
    model: LanguageModel,
    task: Task,
    items: Sequence[Item],
    *,
    prompting: str = "auto",
    reference: Reference | None = None,
) -> list[Record]:
    """Ask a model some of a task's items, as `task.items(model)` gives them, in one batch."""
    style = resolve_prompting(model, prompting, required=task.prompting)
    return _evaluate_batch(model, task, items, style, reference or Reference(model=model))


def _batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """BATCH_ITEMS each, and those beyond that follow one of them."""
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
        # First those that follow nothing, then those that follow them, …: each time all at once.
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
        unscored(item, failed[item.id]) if item.id in failed else task.score(item, answers[item.id]) for item in items
    ]
    if not isinstance(task, ReadByReference):
        return records
    own = {record.item_id: record.response for record in records} if reference.model is model else {}
    known = {**own, **reference.answers}
    return [
        task.beside(record, known[record.item_id]) if record.score is not None and record.item_id in known else record
        for record in records
    ]


def _said_before(item: Item, items: Sequence[Item], answers: Mapping[str, Sequence[Answer]]) -> list[str] | Unanswered:
    """The answers to the items that it follows, first to last; or that there is none."""
    by_id = {one.id: one for one in items}
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
    """The answers to each item's requests; after each generation, where the task wants it, how likely it is."""
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
    found: dict[str, list[Answer]] = {}
    ordered = iter(generations)
    for item, requests in asked:
        own = found[item.id] = list[Answer]()
        for request in requests:
            if isinstance(request, ScoreRequest):
                own.append(next(scores))
                continue
            answer = next(ordered)
            own.append(answer)
            if isinstance(task, ReadByReference) and isinstance(answer, Generation) and answer.text.strip():
                own.append(next(readings))
    return found


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
