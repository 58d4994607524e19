"""Claims about generated texts: instruction following and summaries."""

from __future__ import annotations

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
    parts: list[Evidence] = []
    for levels in by_method(asked_in_full(judged_or_not(model.cells(is_instruction)))).values():
        mild = largest_between(levels, 0.0, INSTRUCTIONS_UP_TO)
        severe = largest_between([cell for cell in levels if cell.sparsity > INSTRUCTIONS_UP_TO + 1e-9], 0.0, 1.0)
        if mild and severe:
            parts += [matches(cell.comparison, cell.run.name) for cell in mild]
            parts += [does_not_match(cell.comparison, cell.run.name) for cell in severe]
            parts += [part for cell in severe for part in _measures(cell)]
    if not parts:
        raise NotAskedError("needs instruction following at up to 25 % sparsity and beyond")
    return every(parts)


def _measures(cell: Cell) -> list[Evidence]:
    """Fewer unique tokens, more repetition: read from the answers, not from what a judge made of them."""
    task, recipe = cell.task.name.removesuffix(JUDGED), cell.comparison.recipe
    fewer = measure_rises(
        cell.run, recipe, task, "unique_tokens", sign=-1, text=f"{recipe} answers with fewer unique tokens on {task}"
    )
    more = measure_rises(cell.run, recipe, task, "repetition", sign=1, text=f"{recipe} repeats itself more on {task}")
    return [fewer, more]


def summaries_hold_up(model: ModelRuns) -> Evidence:
    """Claim 7: summaries match at about 30 %; long stories lose more; rounding sometimes gains; 2:4 fails."""
    cells = asked_in_full(judged_or_not(model.cells(is_summary)))
    methods = by_method(cells).values()
    held = [cell for levels in methods for cell in largest_between(levels, *SUMMARIES_AT)]
    if not held:
        raise NotAskedError("needs summaries with a signal at 25 to 35 % sparsity")
    lengths = [part for levels in methods for cell in largest_between(levels, *LENGTHS_AT) for part in _lengths(cell)]
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
    by_length = parts_of(cell, "bucket")
    if "long" not in by_length or "short" not in by_length:
        return []
    text = f"{cell.comparison.recipe} costs long stories more than short ones on {cell.task.name}"
    difference = difference_of(loss_of(by_length["long"]), loss_of(by_length["short"]))
    return [above(difference, 0.0, text, cell.run.name, "difference of losses")]


def some_rounding_gains(cells: Sequence[Cell]) -> Evidence:
    """That at least one of the rounded models has a score above the dense model's."""
    gains = []
    for cell in cells:
        text = f"{cell.comparison.recipe} gains on {cell.task.name}"
        gains.append(below(loss_of(cell.comparison), 0.0, text, cell.run.name, "relative loss"))
    return some(gains)
