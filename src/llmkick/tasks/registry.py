"""The registry of built-in and plug-in tasks: makes a task from its name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import llmkick.plugins as plugins
from llmkick.errors import ConfigError
from llmkick.paper import SETTINGS
from llmkick.tasks.renaming import registry_name
from llmkick.tasks.task import PROTOCOLS, Task, TaskEntry, is_whole

TASKS: Mapping[str, TaskEntry] = {
    "factoid_qa": TaskEntry(
        module="llmkick.tasks.suite.factoid_qa",
        factory="FactoidQA",
        summary="short questions about facts; popqa (hub or folder): of known popularity",
        data=("popqa",),
    ),
    "multiple_choice": TaskEntry(
        module="llmkick.tasks.suite.multiple_choice",
        factory="MultipleChoice",
        summary="four options, by letter (5-shot) or by the likelihood of the option's text (cloze)",
        variants=("letter", "cloze"),
    ),
    "context_qa": TaskEntry(
        module="llmkick.tasks.suite.context_qa",
        factory="ContextQA",
        summary="questions about a passage, without it (closed book) or with it (open book)",
        variants=("closed", "open"),
    ),
    "summarization": TaskEntry(
        module="llmkick.tasks.suite.summarization",
        factory="Summarization",
        summary="short, medium and long stories to summarise, held against a reference and the dense model's summary",
    ),
    "instruction": TaskEntry(
        module="llmkick.tasks.suite.instruction",
        factory="Instruction",
        summary="open questions, the second turn after the model's own first answer; vicuna (hub or folder): one turn",
        data=("vicuna",),
    ),
    "perplexity": TaskEntry(
        module="llmkick.tasks.suite.perplexity",
        factory="Perplexity",
        summary="running text in windows; the control that the other tasks are held against",
        data=("c4",),
    ),
}


def entry_of(name: str) -> TaskEntry:
    """The registry entry of a built-in or plug-in task.

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
    """Base name → entry for all tasks that can be loaded, and error messages for the plug-ins that cannot."""
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
    missing = {"limit", "protocol", "seed", "source"} - {field.name for field in _fields(factory)}
    if missing:
        raise plugin.broken(f"needs a dataclass as factory; {entry.factory} has no field {', '.join(sorted(missing))}")
    return replace(entry, plugin=plugin)


def _fields(factory: Any) -> tuple[Any, ...]:
    return fields(factory) if is_dataclass(factory) else ()


def task_names() -> list[str]:
    """The full names of all tasks and variants, without broken plug-ins."""
    return [name for base, entry in all_tasks()[0].items() for name in entry.names(base)]


def has_pocket_data(name: str) -> bool:
    """Whether a task has a data set in its package; other tasks need the source hub or a folder."""
    return name.partition(":")[2] not in entry_of(name).data


# The members that a plug-in's task must have, see `Task`.
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
       `summarization`, `instruction[:vicuna]`, `perplexity[:c4]`, or a plug-in's task.

       `source` is "pocket" (this package), "hub" (the published data sets) or a folder with their files; for
       perplexity it can be a text file. `protocol` is "strict", or "paper" for the paper's prompts and metrics. `limit`
       is the size of a seeded sample, stratified by cluster. Further options: `split`, `revision` and
       `sha256` of published data; `answer_line` of factoid_qa; `shots` of multiple_choice; `evidence_tokens` of
       context_qa:open; `words`, `bucket_words` and `per_bucket` of summarization; `max_new_tokens` of summarization and
       instruction; `window` and `unit` (tokens, bytes) of perplexity.
    Raises ConfigError for an unknown name, variant, protocol, source or option, and for a limit below 1.
    """
    entry, variant = entry_of(name), name.partition(":")[2]
    if limit is not None and not (is_whole(limit) and limit >= 1):
        raise ConfigError(f"limit of {name} must be a whole number of at least 1; got {limit!r}")
    if not is_whole(seed):
        raise ConfigError(f"seed of {name} must be a whole number; got {seed!r}")
    if protocol not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {protocol!r} for {name}; choose from: {', '.join(PROTOCOLS)}")
    factory: Any = getattr(importlib.import_module(entry.module), entry.factory)
    accepted = [field.name for field in fields(factory) if field.name not in _COMMON_FIELDS]
    for option in options:
        if option not in accepted:
            raise ConfigError(f"unknown option {option!r} of {name}; choose from: {', '.join(accepted) or 'none'}")
    if entry.variants:
        options["variant"] = variant or entry.variants[0]
    if entry.data:
        options["data"] = variant
    given = {"source": source, "protocol": protocol, "limit": limit, "seed": seed, **options}
    task: Task = factory(**given) if entry.plugin is None else _from_plugin(entry.plugin, factory, given)
    return task


def _from_plugin(plugin: plugins.Plugin, factory: Any, given: Mapping[str, Any]) -> Any:
    """The task of a plug-in. Its members are checked here, because a missing member would otherwise fail a run late."""
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
    """The key of a task; for a renamed task, also its own name; for a plug-in's task, the package and its version."""
    name = registry_name(task)
    plugin = plugins.usable(plugins.TASKS, TASKS).get(name.partition(":")[0])
    return {
        **task.key,
        **({} if name == task.name else {"name": task.name, "task": name}),
        **({} if plugin is None else {"plugin": plugin.origin}),
    }
