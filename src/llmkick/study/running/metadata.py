"""Run metadata in the journal, written before the first answer so that unfinished runs are readable too."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from llmkick.models.language_model import LanguageModel
from llmkick.study.journal.journal import Journal
from llmkick.study.journal.prompts import packed_prompts
from llmkick.study.results.records import DenseModel, TaskSummary
from llmkick.study.running.environment import environment
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, Task


def note_run(
    journal: Journal,
    *,
    model: LanguageModel,
    tasks: Sequence[Task],
    summaries: Sequence[TaskSummary],
    items: Mapping[str, Sequence[Item]],
    prompting: Prompting,
) -> None:
    """Write the model, tasks, environment, command, items and the dense model's prompts to the journal."""
    journal.note("model", DenseModel.of(model.info).facts)
    journal.note("tasks", [summary.facts for summary in summaries])
    journal.note("environment", environment().facts)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    journal.add_command(now, importlib.metadata.version("llmkick"), command_line(sys.argv))
    for task in tasks:
        journal.add_items(task.name, items[task.name])
        journal.add_prompts(task.name, packed_prompts(task, items[task.name], task.prompting or prompting))


def note_answering(journal: Journal) -> list[str]:
    """Note the versions that answer from now on; a warning where earlier answers in the journal were made with others.

    Runs that ask nothing do not call this. The run keys leave the versions out, so that an upgrade loses no answers.
    """
    here = environment()
    # What can change an answer beyond the rounding of one machine.
    packages = {name: here.packages.get(name) for name in ("torch", "transformers", "tokenizers")}
    now: dict[str, Any] = {**packages, "accelerator": here.accelerator}
    noted = journal.notes().answered_with if journal.run_keys() else None
    earlier: list[dict[str, Any]] = [one for one in noted if isinstance(one, dict)] if isinstance(noted, list) else []
    known = [*earlier, *([now] if now not in earlier else [])]
    journal.note("answered_with", known)
    differing = [
        f"{name} {' and '.join(dict.fromkeys(str(versions.get(name)) for versions in known))}"
        for name in now
        if len({str(versions.get(name)) for versions in known}) > 1
    ]
    if not differing:
        return []
    return [
        f"the answers in this folder were made with {', '.join(differing)}: they may differ by more than the "
        "compression; to compare answers of one version only, run the study in an empty folder"
    ]


def command_line(arguments: Sequence[str]) -> str:
    """Return the command line as typed in a shell; credentials inside URLs are replaced by `…`."""
    first, *others = arguments or [""]
    name = Path(first).name
    if name == "__main__.py":
        name = "python -m llmkick.cli"
    words = [re.sub(r"(://)[^/@\s]+@", r"\1…@", word) for word in others]
    return " ".join([name or "python", *map(shlex.quote, words)])
