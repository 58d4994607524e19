"""Claims about generated texts: instruction following and summaries."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from llmkick.claims.answers import measure_rises, parts_of
from llmkick.claims.evidence import (
    Evidence,
    NotAskedError,
    above,
    below,
    difference_of,
    does_not_match,
    every,
    loss_of,
    matches,
    read_or_unasked,
    some,
    unasked,
)
from llmkick.claims.knowledge import bits_of
from llmkick.claims.runs import (
    JUDGED,
    Cell,
    ModelRuns,
    asked_in_full,
    base_of,
    by_method,
    judged_or_not,
    largest_between,
)
from llmkick.study.results.records import TaskSummary

INSTRUCTIONS_UP_TO = 0.25
SUMMARIES_AT = (0.25, 0.35)
LENGTHS_AT = (0.3, 0.5)


def is_instruction(task: TaskSummary) -> bool:
    """Whether a task asks open questions (the paper's MT-Bench)."""
    return base_of(task) == "instruction"


def is_summary(task: TaskSummary) -> bool:
    """Whether a task asks for summaries (the paper's CNN/DailyMail)."""
    return base_of(task) == "summarization"


def fluent_but_empty(model: ModelRuns) -> Evidence:
    """Claim 4: instruction following matches up to 25 % only; beyond, fewer unique tokens and more repetition."""
    cells = judged_or_not(model.cells(is_instruction))
    read_by_item = by_method(asked_in_full(cells))
    parts: list[Evidence] = []
    for method, levels in by_method(cells).items():
        mild, severe = largest_between(levels, 0.0, INSTRUCTIONS_UP_TO), _beyond(levels)
        if mild and severe:
            parts += [matches(cell.comparison, cell.run.name) for cell in mild]
            parts += [does_not_match(cell.comparison, cell.run.name) for cell in severe]
            parts += [part for cell in _beyond(read_by_item.get(method, [])) or severe for part in _measures(cell)]
    if not parts:
        raise NotAskedError("needs instruction following at up to 25 % sparsity and beyond")
    return every(parts)


def _beyond(levels: Sequence[Cell]) -> list[Cell]:
    return largest_between([cell for cell in levels if cell.sparsity > INSTRUCTIONS_UP_TO + 1e-9], 0.0, 1.0)


def _measures(cell: Cell) -> list[Evidence]:
    """Fewer unique tokens, more repetition: read from the answers, not from what a judge made of them."""
    task, recipe, run = cell.task.name.removesuffix(JUDGED), cell.comparison.recipe, cell.run
    wanted = {
        "unique_tokens": (-1, f"{recipe} answers with fewer unique tokens on {task}"),
        "repetition": (1, f"{recipe} repeats itself more on {task}"),
    }
    parts: list[Evidence] = []
    for measure, (sign, text) in wanted.items():
        read = functools.partial(measure_rises, run, recipe, task, measure, sign=sign, text=text)
        parts += read_or_unasked(read, text, run.name, cell.comparison.alpha)
    return parts


def summaries_hold_up(model: ModelRuns) -> Evidence:
    """Claim 7: summaries match at about 30 %; long stories lose more; rounding sometimes gains; 2:4 fails."""
    cells = judged_or_not(model.cells(is_summary))
    held = [cell for levels in by_method(cells).values() for cell in largest_between(levels, *SUMMARIES_AT)]
    if not held:
        raise NotAskedError("needs summaries with a signal at 25 to 35 % sparsity")
    read_by_item = by_method(asked_in_full(cells)).values()
    compared = [cell for levels in read_by_item for cell in largest_between(levels, *LENGTHS_AT)]
    lengths = [part for cell in compared for part in _lengths(cell)]
    rounded = [cell for cell in cells if bits_of(cell) is not None]
    gains = [some_rounding_gains(rounded)] if rounded else []
    failing = [does_not_match(cell.comparison, cell.run.name) for cell in cells if cell.level.label == "2:4"]
    missing = {
        "long stories lose more than short ones": lengths,
        "rounding gains on summaries": gains,
        "2:4 does not match on summaries": failing,
    }
    return every(
        [
            *(matches(cell.comparison, cell.run.name) for cell in held),
            *lengths,
            *gains,
            *failing,
            *(unasked(text, model.name, model.alpha) for text, parts in missing.items() if not parts),
        ]
    )


def _lengths(cell: Cell) -> Sequence[Evidence]:
    text = f"{cell.comparison.recipe} costs long stories more than short ones on {cell.task.name}"

    def difference() -> list[Evidence]:
        by_length = parts_of(cell, "bucket")
        if "long" not in by_length or "short" not in by_length:
            return []
        lost_more = difference_of(loss_of(by_length["long"]), loss_of(by_length["short"]))
        return [above(lost_more, 0.0, text, cell.run.name, "difference of losses")]

    return read_or_unasked(difference, text, cell.run.name, cell.comparison.alpha)


def some_rounding_gains(cells: Sequence[Cell]) -> Evidence:
    """That at least one of the rounded models has a score above the dense model's."""
    gains = []
    for cell in cells:
        text = f"{cell.comparison.recipe} gains on {cell.task.name}"
        gains.append(below(loss_of(cell.comparison), 0.0, text, cell.run.name, "relative loss"))
    return some(gains)
