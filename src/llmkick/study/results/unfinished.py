"""What is left of an unfinished run, by its journal."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from llmkick.study.announcement import duration
from llmkick.study.cells import variants_of
from llmkick.study.journal.journal import CellEntry
from llmkick.study.spec.study import Study


def what_is_left(
    study: Study,
    cells: Sequence[CellEntry],
    items: Mapping[str, int],
    seconds: Mapping[str, Mapping[str, float]],
    *,
    compressed: int,
    over: Collection[CellEntry] = (),
) -> str:
    """Part of a sentence: how many cells are done, what is left, and about how long it takes at the speed so far.

    cells: those with records. items: of each task that was begun. seconds: by stage and detail. compressed: the number
    of models that were compressed. over: the complete cells, with early stopping those whose verdict is known.
    """
    variants = list(variants_of(study))
    tasks = list(items) or [spec.make().name for spec in study.task_specs()]
    total = len(variants) * max(len(tasks), len(study.task_specs()))
    begun = [cell for cell in cells if cell.task in tasks]
    over = [cell for cell in begun if cell in over]
    sentence = f"{len(over)} of {total} cells are done"
    asked = {task: sum(cell.records for cell in begun if cell.task == task) for task in tasks}
    left = {task: sum(items.get(task, 0) for _ in variants) - asked[task] for task in tasks}
    if study.stop == "decided":
        left = {task: left[task] - _spared(task, over, items.get(task, 0), len(variants)) for task in tasks}
    most = "at most " if study.stop == "decided" else ""
    models = sum(variant.is_recipe for variant in variants) - compressed
    parts = [f"{most}{sum(left.values()):,} items"] * (sum(left.values()) > 0)
    parts += [f"{models} compression{'s' * (models > 1)}"] * (models > 0)
    if parts:
        sentence += f"; left are {' and '.join(parts)}"
    took = _seconds_left(left, asked, seconds, models=models, compressed=compressed)
    return sentence if took is None or not parts else f"{sentence}, {most}about {duration(took)} at the speed so far"


def _spared(task: str, over: Sequence[CellEntry], items: int, variants: int) -> int:
    """The items of a task that nobody asks because verdicts are known; those of the dense model once all are."""
    of_task = [cell for cell in over if cell.task == task]
    are_all = len(of_task) == variants
    return sum(items - cell.records for cell in of_task if cell.recipe != "dense" or are_all)


def _seconds_left(
    left: Mapping[str, int],
    asked: Mapping[str, int],
    seconds: Mapping[str, Mapping[str, float]],
    *,
    models: int,
    compressed: int,
) -> float | None:
    """The seconds that the items and compressions will take; None where nothing like them was measured."""
    evaluated, compressing = seconds.get("evaluate", {}), seconds.get("compress", {})
    total = 0.0
    for task, count in left.items():
        if count and not (asked[task] and task in evaluated):
            return None
        total += count * evaluated[task] / asked[task] if count else 0.0
    if models > 0:
        if not compressed or not compressing:
            return None
        total += models * sum(compressing.values()) / compressed
    return total
