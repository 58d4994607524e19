"""`kick tasks`: the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from llmkick.cli.common import LISTS, app, list_table, out, print_warnings, with_origin
from llmkick.cli.options import Json
from llmkick.errors import KickError


class _Variant(NamedTuple):
    """A task as a study names it."""

    task: str
    metric: str
    chance: float
    setting: str


@app.command(rich_help_panel=LISTS)
def tasks(as_json: Json = False) -> None:
    """List the tasks: a row for each task, with its variants.

    A study names a task, or a variant of it after a colon, e.g. `multiple_choice:cloze`.

    Example:

        kick tasks
        kick tasks --json
    """
    from llmkick.tasks.registry import all_tasks

    available, problems = all_tasks()
    table = list_table("task", "variants", "metric", "chance", "what it asks")
    rows = []
    for base, entry in available.items():
        variants = _variants(entry.names(base), problems)
        if not variants:
            continue
        summary = with_origin(entry.summary, entry.plugin)
        rows += [{**variant._asdict(), "summary": summary} for variant in variants]
        suffixes = "\n".join(variant.task.removeprefix(base) for variant in variants if variant.task != base)
        table.add_row(
            base,
            suffixes,
            "\n".join(dict.fromkeys(variant.metric for variant in variants)),
            "\n".join(dict.fromkeys(f"{variant.chance:g}" for variant in variants)),
            summary,
        )
    if as_json:
        out.print_json(data=rows)
    else:
        out.print(table)
    print_warnings(problems)


def _variants(names: Sequence[str], problems: list[str]) -> list[_Variant]:
    """The variants of a task that can be made; messages about the others are added to `problems`."""
    from llmkick.paper import SETTINGS
    from llmkick.tasks.registry import get_task, has_pocket_data

    variants = []
    for name in names:
        try:
            task = get_task(name, source="pocket" if has_pocket_data(name) else "hub")
        except KickError as error:
            problems.append(str(error))
            continue
        variants.append(_Variant(name, task.metric, task.chance_level, SETTINGS[task.setting]))
    return variants
