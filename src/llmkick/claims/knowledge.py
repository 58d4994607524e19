"""Claims about knowledge: what pruning and rounding cost without and with the passage in the prompt."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Sequence
from dataclasses import replace

from llmkick.claims.answers import parts_of, task_settings
from llmkick.claims.evidence import (
    Estimate,
    Evidence,
    NotAskedError,
    above,
    below,
    difference_of,
    does_not_match,
    every,
    every_read,
    evidence_of,
    loss_of,
    matches,
    percent,
    read_or_unasked,
    rise_of,
    unasked,
)
from llmkick.claims.runs import (
    Cell,
    ClaimRun,
    ModelRuns,
    asked_in_full,
    by_method,
    is_choice,
    is_closed_book,
    is_factoid,
    is_knowledge,
    is_open_book,
    largest_between,
    shots_of,
)
from llmkick.statistics import PerplexityComparison

# The paper's figures, as shares.
STOPS_FROM, STOPS_BY, PERPLEXITY_RISE, FACTS_LOST = 0.25, 0.35, 0.10, 0.50
HALF = 0.5  # the sparsity at which pruned weights take the bytes of 8-bit ones
OPEN_BOOK = {False: (0.3, 0.4), True: (0.4, 0.5)}  # sparsities up to which open book matches: 7B, 13B
BITS = {False: 8, True: 4}  # bits that match: 7B, 13B


def facts_go_first(model: ModelRuns) -> Evidence:
    """Claim 1: every pruning method stops matching at 25 to 35 % sparsity while perplexity hardly rises."""
    parts: list[Evidence] = []
    is_whole = False  # a method was asked everything
    for method, levels in by_method(model.cells(is_factoid)).items():
        failing = largest_between(levels, STOPS_FROM, STOPS_BY)
        mild = largest_between([cell for cell in levels if cell.sparsity < STOPS_FROM - 1e-9], 0.0, STOPS_FROM)
        if not failing:
            continue
        control = model.perplexity(failing[0])
        parts += [matches(cell.comparison, cell.run.name) for cell in mild]
        parts += [does_not_match(cell.comparison, cell.run.name) for cell in failing]
        parts += [_rises_less(*control)] if control else []
        missing = [*([] if mild else ["a level below 25 %"]), *([] if control else ["perplexity"])]
        parts += [unasked(f"{method}: {what}", model.name, model.alpha) for what in missing]
        is_whole = is_whole or not missing
    return every_read(
        parts if is_whole else [],
        "needs factoid QA with a signal at 25 to 35 % sparsity and below, and perplexity",
    )


def _rises_less(run: ClaimRun, comparison: PerplexityComparison) -> Evidence:
    text = f"{comparison.recipe} raises perplexity by less than {percent(PERPLEXITY_RISE)}"
    evidence = below(rise_of(comparison), math.log1p(PERPLEXITY_RISE), text, run.name, "rise of perplexity")
    shown = Estimate(value=comparison.relative_increase, interval=comparison.interval, alpha=comparison.alpha)
    return evidence_of(replace(evidence.statements[0], estimate=shown))


def n_m_keeps_nothing(model: ModelRuns) -> Evidence:
    """Claim 2: no N:M pattern that keeps half of the weights or less matches; half of factoid QA is lost."""
    parts: list[Evidence] = []
    for cell in n_m_cells(model.cells(is_knowledge)):
        parts.append(does_not_match(cell.comparison, cell.run.name))
        if is_factoid(cell.task):
            text = f"{cell.comparison.recipe} loses at least {percent(FACTS_LOST)} of {cell.comparison.task}"
            parts.append(above(loss_of(cell.comparison), FACTS_LOST, text, cell.run.name, "relative loss"))
    if parts and not n_m_cells(model.cells(is_factoid)):
        parts.append(unasked("an N:M pattern loses half of factoid QA", model.name, model.alpha))
    return every_read(parts, "needs N:M patterns that keep half or less on a knowledge task with a signal")


def n_m_cells(cells: Sequence[Cell]) -> list[Cell]:
    """The cells of N:M patterns that keep half of the weights or less, as the paper's."""
    return [cell for cell in cells if cell.level.kind == "n:m" and cell.level.severity[0] >= HALF - 1e-9]


def rounding_keeps_more(model: ModelRuns) -> Evidence:
    """Claim 3: rounding matches on MMLU and loses less than pruning of equal size; 8 bits lose factoid QA."""
    bits = BITS[model.is_large]
    choice = model.cells(is_choice)
    rounded = [cell for cell in choice if bits_of(cell) == bits]
    facts = [cell for cell in model.cells(is_factoid) if bits_of(cell) == 8]
    if not rounded or not facts:
        raise NotAskedError(f"needs {bits} bits on multiple choice and 8 bits on factoid QA, with a signal")
    parts = [matches(cell.comparison, cell.run.name) for cell in rounded]
    parts += [does_not_match(cell.comparison, cell.run.name) for cell in facts]
    halved = [cell for cell in choice if cell.level.kind == "sparsity" and abs(cell.sparsity - HALF) < 1e-9]
    pairs = [(cell, other) for other in halved for cell in rounded if cell.task.name == other.task.name]
    parts += [_loses_less(cell, other) for cell, other in pairs]
    if not pairs:
        parts.append(unasked("rounding loses less than 50 % sparsity on multiple choice", model.name, model.alpha))
    return every(parts)


def bits_of(cell: Cell) -> int | None:
    """The bits of a rounded model, of a recipe or as an external model states them; None for others."""
    if cell.level.kind == "bits":
        return int(-cell.level.severity[0])
    models = {model.label: model.source_precision for model in cell.run.result.models}
    if models.get(cell.comparison.recipe) == cell.run.result.model.source_precision:
        return None  # both come from weights that were rounded before
    stated = re.search(r"(?:^|\s)(\d)b$|^Q(\d)_|^int(\d)$", models.get(cell.comparison.recipe, ""))
    return next((int(digit) for digit in stated.groups() if digit), None) if stated else None


def _loses_less(first: Cell, second: Cell) -> Evidence:
    """That one model loses less than another on the same task."""
    a, b = first.comparison, second.comparison
    text = f"{a.recipe} loses less than {b.recipe} on {a.task}"
    difference = difference_of(loss_of(a), loss_of(b))
    return below(difference, 0.0, text, first.run.name, "difference of losses")


def open_book_lasts(model: ModelRuns) -> Evidence:
    """Claim 6: open book matches up to 40 % (7B) or 50 % (13B), loses less than closed book; N:M does not match."""
    opened, closed = model.cells(is_open_book), model.cells(is_closed_book, every_run=True)
    parts: list[Evidence] = []
    is_whole = False  # a method was asked with and without the passage
    for method, levels in by_method(opened).items():
        for cell in largest_between(levels, *OPEN_BOOK[model.is_large]):
            without = _of_same_weights(closed, cell)
            parts.append(matches(cell.comparison, cell.run.name))
            parts += [_loses_less_open(cell, other) for other in without]
            if not without:
                parts.append(unasked(f"{method}: closed book", model.name, model.alpha))
            is_whole = is_whole or bool(without)
    if not is_whole:
        low, high = OPEN_BOOK[model.is_large]
        raise NotAskedError(f"needs open and closed book with a signal at {100 * low:g} to {100 * high:g} % sparsity")
    patterns = n_m_cells(opened)
    parts += [does_not_match(cell.comparison, cell.run.name) for cell in patterns]
    if not patterns:
        parts.append(unasked("N:M patterns do not match with the passage", model.name, model.alpha))
    return every(parts)


def _of_same_weights(cells: Sequence[Cell], of: Cell) -> list[Cell]:
    """The cells of the model of another cell, one for each task: that of the same run, or else the first."""
    same = sorted((cell for cell in cells if cell.weights == of.weights), key=lambda cell: cell.run is not of.run)
    return list({cell.task.name: cell for cell in reversed(same)}.values())


def _loses_less_open(opened: Cell, closed: Cell) -> Evidence:
    text = f"{opened.comparison.recipe} loses less on {opened.task.name} than on {closed.task.name}"
    difference = difference_of(loss_of(opened.comparison), loss_of(closed.comparison))
    return below(difference, 0.0, text, opened.run.name, "difference of losses")


def humanities_lose_more(model: ModelRuns) -> Evidence:
    """Claim 8: the humanities and the social sciences lose a larger share than STEM.

    Where a study varies the worked examples, it is read with the fewest: the same items count once.
    """
    parts: list[Evidence] = []
    cells = sorted(asked_in_full(model.cells(is_choice)), key=lambda cell: shots_of(cell.task))
    fewest: dict[str, int] = {}
    for cell in cells:
        fewest.setdefault(repr(task_settings(cell.task)), shots_of(cell.task))
    plain = [cell for cell in cells if shots_of(cell.task) == fewest[repr(task_settings(cell.task))]]
    for levels in by_method(plain).values():
        for cell in largest_between(levels, 0.3, HALF):
            what = f"{cell.comparison.recipe} by discipline"
            read = functools.partial(_by_discipline, cell)
            parts += read_or_unasked(read, what, cell.run.name, cell.comparison.alpha)
    return every_read(parts, "needs multiple choice at 30 to 50 % sparsity, with a signal in the disciplines")


def _by_discipline(cell: Cell) -> list[Evidence]:
    by_name = {name.replace("_", " "): part for name, part in parts_of(cell, "discipline").items()}
    parts = []
    for name in ("humanities", "social sciences"):
        if name in by_name and "stem" in by_name:
            difference = difference_of(loss_of(by_name[name]), loss_of(by_name["stem"]))
            text = f"{cell.comparison.recipe} costs {name} a larger share of {cell.task.name} than STEM"
            parts.append(above(difference, 0.0, text, cell.run.name, "difference of losses"))
    return parts


def magnitude_is_as_good(model: ModelRuns) -> Evidence:
    """Claim 9: below 25 % sparsity magnitude pruning loses no more than Wanda and SparseGPT, within the margin."""
    methods = by_method(model.cells(is_knowledge))
    parts: dict[str, list[Evidence]] = {"wanda": [], "sparsegpt": []}
    for cell in methods.get("magnitude", []):
        for method, of_method in parts.items():
            for other in methods.get(method, []):
                alike = other.task.name == cell.task.name and abs(other.sparsity - cell.sparsity) < 1e-9
                if alike and cell.sparsity < STOPS_FROM - 1e-9:
                    of_method.append(_loses_no_more(cell, other))
    if not any(parts.values()):
        raise NotAskedError("needs a knowledge task with a signal, magnitude and another method below 25 % sparsity")
    missing = [unasked(f"{method} beside magnitude", model.name, model.alpha) for method in parts if not parts[method]]
    return every([*(part for of_method in parts.values() for part in of_method), *missing])


def _loses_no_more(cell: Cell, other: Cell) -> Evidence:
    a, b, margin = cell.comparison, other.comparison, cell.comparison.margin
    text = f"{a.recipe} loses at most {percent(margin)} of the dense score more than {b.recipe} on {a.task}"
    difference = difference_of(loss_of(a), loss_of(b))
    return below(difference, margin, text, cell.run.name, "difference of losses")
