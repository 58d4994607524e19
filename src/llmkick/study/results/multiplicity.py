"""Results beyond single verdicts: families of recipes that are tested together, and agreement of choices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
import pandas as pd

from llmkick.statistics import Comparison, choice_agreement, fixed_sequence, holm
from llmkick.study.levels import level_of_text
from llmkick.study.results.records import AgreementRow, AnyComparison, Family, FamilyRow

ALL_TASKS = "all tasks"


def families(
    comparisons: Sequence[AnyComparison],
    recipes: Sequence[str],
    *,
    correction: str,
    alpha: float,
) -> list[Family]:
    """Return which recipes match after the correction for multiple tests, on each task and on all tasks.

    For all tasks the p-value of a recipe is its largest p-value (intersection-union) over the tasks with a signal. Holm
    adjusts over the recipes. The fixed sequence tests the recipes of each method in the listed order, which must be
    from mild to severe, until the first failure. Several methods share alpha evenly.
    """
    if correction == "none":
        return []
    tasks = [comparison for comparison in comparisons if isinstance(comparison, Comparison)]
    scopes: dict[str, dict[str, float | None]] = {}
    for task in dict.fromkeys(comparison.task for comparison in tasks):
        scopes[task] = {comparison.recipe: _p(comparison) for comparison in tasks if comparison.task == task}
    scopes[ALL_TASKS] = {}
    for recipe in recipes:
        of_recipe = [_p(item) for item in tasks if item.recipe == recipe and item.verdict != "no signal"]
        if of_recipe:
            defined = [p for p in of_recipe if p is not None]
            scopes[ALL_TASKS][recipe] = max(defined) if len(defined) == len(of_recipe) else None
    return [
        Family(
            scope=scope,
            correction=correction,
            alpha=alpha,
            recipes=tuple(_holm(p_values, alpha) if correction == "holm" else _in_sequence(p_values, recipes, alpha)),
        )
        for scope, p_values in scopes.items()
        if p_values
    ]


def family_size(recipes: Sequence[str], correction: str) -> int:
    """Return by how much alpha has to be divided so that a match surely passes the correction.

    Holm asks at most this of any p-value, of the smallest. In a fixed sequence only the methods share alpha, and the
    milder recipes of a method have to pass first.
    """
    if correction == "holm":
        return max(1, len(recipes))
    return max(1, len(set(map(_method, recipes)))) if correction == "fixed sequence" else 1


def _p(comparison: Comparison) -> float | None:
    """Return the p-value of the claim "matches", or None if the claim is not possible."""
    if comparison.verdict in ("no signal", "incomplete"):
        return None
    by_definition = comparison.verdict == "matching" and not (comparison.p_matching or 0.0) < comparison.alpha
    if comparison.verdict == "not matching" and (comparison.p_matching or 0.0) < comparison.alpha:
        return 1.0  # the bets of a cell that did not stop at its first match came to reject both claims
    return 0.0 if by_definition else comparison.p_matching


def _holm(p_values: Mapping[str, float | None], alpha: float) -> list[FamilyRow]:
    return [
        FamilyRow(recipe=recipe, p=p_values[recipe], adjusted_p=adjusted, matching=matching)
        for recipe, (adjusted, matching) in holm(p_values, alpha=alpha).items()
    ]


def _in_sequence(p_values: Mapping[str, float | None], recipes: Sequence[str], alpha: float) -> list[FamilyRow]:
    methods: dict[str, list[str]] = {}
    for recipe in recipes:
        if recipe in p_values:
            methods.setdefault(_method(recipe), []).append(recipe)
    matching: dict[str, bool] = {}
    for members in methods.values():
        matching |= fixed_sequence([(name, p_values[name]) for name in members], alpha=alpha / len(methods))
    return [
        FamilyRow(recipe=recipe, p=p_values[recipe], adjusted_p=None, matching=matching[recipe])
        for recipe in recipes
        if recipe in matching
    ]


def _method(recipe: str) -> str:
    level = level_of_text(recipe)
    return recipe if level.kind == "other" else level.method  # an external model is a separate method under its label


def correction_note(recipes: Sequence[str], correction: str, alpha: float) -> str:
    """Return a sentence about the correction for multiple verdicts."""
    if correction == "holm":
        return f"`families` in results.json says which of the {len(recipes)} recipes match together (Holm, {alpha:.0%})"
    if correction == "fixed sequence":
        return (
            f"`families` in results.json says which of the {len(recipes)} recipes match together (fixed sequence, each "
            f"method's recipes as listed, {alpha:.0%} shared by the methods)"
        )
    return (
        f'every one of {len(recipes)} recipes is judged on its own, each at {alpha:.0%}; correction = "holm" or '
        '"fixed sequence" judges them together'
    )


def agreement(records: pd.DataFrame, recipes: Sequence[str]) -> list[AgreementRow]:
    """Return KL divergence and agreement of choices with the dense model for each recipe × seed × task with choices.

    The values cover the items that both models have scored. The distribution follows from the options'
    log-likelihoods. The choice of a model is that of the response in its record; for cloze this is the option with the
    largest length-normalised likelihood.
    """
    # With `loc`, the mask of no records at all selects no rows instead of no columns.
    with_choices = records.loc[[_finite(details.get("choice_logprobs")) for details in records["details"]]]
    rows = []
    for task, of_task in with_choices.groupby("task", sort=False):
        dense = of_task[of_task["recipe"] == "dense"].set_index("item_id")
        for recipe in recipes:
            cells = of_task[of_task["recipe"] == recipe]
            for seed, cell in cast(Iterable[tuple[float, pd.DataFrame]], cells.groupby("seed", dropna=False)):
                compressed = cell.set_index("item_id")
                common = [item for item in dense.index if item in compressed.index]
                if common:
                    agreed = choice_agreement(
                        _logprobs(dense, common),
                        _logprobs(compressed, common),
                        chosen=(_choices(dense), _choices(compressed)),
                    )
                    seed_or_none = None if pd.isna(seed) else int(seed)
                    rows.append(AgreementRow(task=str(task), recipe=recipe, seed=seed_or_none, **vars(agreed)))
    return rows


def chosen_option(response: str) -> str:
    """The choice that a response to a question with options states: the letter that it begins with, or all of it."""
    letter = re.match(r"[A-Z]\.(?= |$)", response)
    return letter.group() if letter else response


def _choices(cell: pd.DataFrame) -> dict[str, str]:
    return {str(item): chosen_option(response) for item, response in cell["response"].items()}


def _finite(values: object) -> bool:
    return isinstance(values, list) and len(values) > 1 and bool(np.isfinite(values).all())


def _logprobs(cell: pd.DataFrame, items: Sequence[str]) -> dict[str, list[float]]:
    details = cast(dict[str, dict[str, list[float]]], cell["details"].to_dict())
    return {item: details[item]["choice_logprobs"] for item in items}
