"""Claims about the count of calibration samples and about worked examples in the prompt."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from llmkick.claims.answers import DENSE, answers_to, task_settings
from llmkick.claims.evidence import (
    Evidence,
    NotAskedError,
    above,
    below,
    difference_of,
    every,
    every_read,
    loss_of,
    opposite,
    percent,
    read_or_unasked,
    unasked,
)
from llmkick.claims.gains import gains_more_than_margin
from llmkick.claims.runs import Cell, ClaimRun, ModelRuns, by_method, calibration_of, is_choice, largest_between
from llmkick.study.results.records import TaskSummary

EXAMPLES_AT = (0.3, 0.6)
# Whether a method is said to need many calibration samples.
NEEDS_SAMPLES: Mapping[str, bool] = {"sparsegpt": True, "wanda": False}


def sparsegpt_needs_samples(model: ModelRuns) -> Evidence:
    """Claim 10: from few to many samples SparseGPT gains more than the margin, and Wanda does not."""
    parts: dict[str, list[Evidence]] = {method: [] for method in NEEDS_SAMPLES}
    levels: dict[tuple[str, float, str, str], dict[int, Cell]] = {}
    for cell in model.cells(is_choice, every_run=True):
        count = cell.samples
        if cell.level.kind == "sparsity" and cell.level.method in NEEDS_SAMPLES and count is not None:
            key = (cell.level.method, cell.sparsity, cell.task.name, _text_of(cell))
            by_count = levels.setdefault(key, {})
            if count not in by_count or (by_count[count].comparison.stopping and not cell.comparison.stopping):
                by_count[count] = cell  # a cell that was asked everything says more
    for (method, *_), by_count in levels.items():
        if len(by_count) > 1:
            parts[method].append(_gains_from_samples(by_count, needed=NEEDS_SAMPLES[method]))
    if not any(parts.values()):
        raise NotAskedError("needs multiple choice with a signal and two counts of calibration samples")
    missing = [unasked(f"{method} with two counts", model.name, model.alpha) for method in parts if not parts[method]]
    return every([*(part for of_method in parts.values() for part in of_method), *missing])


def _text_of(cell: Cell) -> str:
    """What the calibration text of a cell is, apart from the number of its windows."""
    settings = calibration_of(cell.run, cell.comparison.recipe, cell.task.name)
    return repr(sorted({**settings, "sequences": None}.items()))


def _gains_from_samples(by_count: Mapping[int, Cell], *, needed: bool) -> Evidence:
    """That the loss with the fewest samples is, or is not, more than the margin above that with the most."""
    few, many = min(by_count), max(by_count)
    first, last = by_count[few].comparison, by_count[many].comparison
    gain, margin = difference_of(loss_of(first), loss_of(last)), first.margin
    less = "more than" if needed else "at most"
    text = f"{last.recipe} gains {less} {percent(margin)} on {last.task} from {few} to {many} samples"
    side = above if needed else below
    return side(gain, margin, text, by_count[many].run.name, "difference of losses")


def examples_help_sparse(model: ModelRuns) -> Evidence:
    """Claim 11: worked examples raise a sparse model's score by more than the margin, the dense model's not."""
    parts: list[Evidence] = []
    for run in model.runs:
        for none, most in _with_and_without_examples(run):
            cells = model.cells(lambda task, wanted=none: task.name == wanted.name)  # type: ignore[misc]
            sparse = [
                cell
                for of_method in by_method(cells).values()
                for cell in largest_between(of_method, *EXAMPLES_AT)
                if cell.run is run
            ]
            for recipe in [DENSE, *(cell.comparison.recipe for cell in sparse)] if sparse else []:
                read = functools.partial(_gain, run, recipe, none, most)
                parts += read_or_unasked(read, f"{recipe} {_from(none, most)}", run.name, model.alpha)
    return every_read(
        parts, "needs multiple choice with a signal, with and without worked examples at 30 to 60 % sparsity"
    )


def _with_and_without_examples(run: ClaimRun) -> list[tuple[TaskSummary, TaskSummary]]:
    """Pairs of tasks that differ only in their worked examples: the fewest, the most."""
    groups: dict[str, dict[int, TaskSummary]] = {}
    for task in run.result.tasks:
        shots = task.facts.get("shots")
        if is_choice(task) and isinstance(shots, int):
            groups.setdefault(repr(task_settings(task)), {})[shots] = task
    return [(by_shots[min(by_shots)], by_shots[max(by_shots)]) for by_shots in groups.values() if len(by_shots) > 1]


def _gain(run: ClaimRun, recipe: str, none: TaskSummary, most: TaskSummary) -> list[Evidence]:
    """That a sparse model gains more than the margin, or that the dense model does not."""
    margin = percent(run.result.study.margin)
    gain = gains_more_than_margin(
        answers_to(run, recipe, none.name), answers_to(run, recipe, most.name), answers_to(run, DENSE, none.name)[0],
        task=none, run=run, text=f"{recipe} gains more than {margin} {_from(none, most)}",
    )  # fmt: skip
    return [opposite(gain, f"{DENSE}: gains at most {margin} {_from(none, most)}") if recipe == DENSE else gain]


def _from(none: TaskSummary, most: TaskSummary) -> str:
    return f"from {none.facts['shots']} to {most.facts['shots']} worked examples on {none.name}"
