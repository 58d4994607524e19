"""Warnings before a run about tasks whose items tell too little: too few by simulation of the design, or too easy."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from llmkick.compression.registry import parse_recipe
from llmkick.errors import KickError
from llmkick.statistics import Design, detectable_loss, items_for_power, simulated_power
from llmkick.statistics.design import cluster_sizes
from llmkick.statistics.frontier import looks
from llmkick.study.spec.study import Study
from llmkick.tasks.task import Item, Task, groups_of

# The dense score is not known before the run. A high score and few changed answers are favourable assumptions. A task
# that is undecided under these assumptions cannot be decided at all.
ACCURACY, DISCORDANCE = 0.75, 0.1
# Warn if a model without any loss gets the verdict "matching" with a lower probability.
LEAST_POWER = 0.5
# Draws of a simulated study: the standard error of a share is 3 points at most; at the 80 % of a search, 4 points.
_DRAWS, _SEARCH_DRAWS = 300, 120
# From so many parameters on a model answers nearly all questions of the package: what it loses first, they do not ask.
EASY_FROM = 1_000_000_000


def warn_of_low_power(
    judged: Sequence[tuple[Task, Sequence[Item]]],
    *,
    seeds: int,
    margin: float,
    alpha: float,
    searched_levels: int | None = None,
    family_size: int = 1,
) -> list[str]:
    """Return warnings about tasks whose items never or rarely give a verdict.

    `judged` holds every task that has a verdict with its items, `seeds` is the number of calibration seeds.
    searched_levels: the levels of a search, which confirms a match at an alpha that allows for its looks.
    family_size: of the claims of a match that are corrected together: a match passes at alpha / family_size.
    """
    searching = ""
    if searched_levels is not None:
        alpha /= looks(searched_levels)
        searching = f", at the alpha of {alpha:.2g} of a search's second look"
    elif family_size > 1:
        searching = f", at the alpha of {alpha / family_size:.2g} at which a match passes the correction"
    designs = {task.name: design_of(task, items, seeds) for task, items in judged if items}
    if not designs:
        return []
    hopeless = {name: _hopeless(design, margin, alpha) for name, design in designs.items()}
    if all(hopeless.values()):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in hopeless.items())
        return [f"this study cannot decide anything: {reasons}"]
    warnings = [f"{name} cannot be decided: {reason}" for name, reason in hopeless.items() if reason]
    few = [_few(name, design, margin, alpha, family_size) for name, design in designs.items() if not hopeless[name]]
    if any(few):
        warnings.append(
            f"too few items to call a model that lost nothing matching in most runs, even at a dense score of "
            f"{ACCURACY}{searching}: {', '.join(filter(None, few))} (see `kick power`)"
        )
    return warnings


def warn_of_easy_questions(tasks: Sequence[Task], parameters: int | None) -> list[str]:
    """Return a warning about tasks that ask a large model the questions of the package, which are made for small ones.

    A model of unknown size, such as a server's, counts as small.
    """
    easy = [task.name for task in tasks if task.metric == "accuracy" and _is_of_the_package(task)]
    if not easy or (parameters or 0) < EASY_FROM:
        return []
    asked = f"{', '.join(easy)} {'ask' if len(easy) > 1 else 'asks'}"
    return [
        f"{asked} the questions of this package, which are made for models of well under a billion parameters: "
        "a larger one knows nearly all answers, so that a match says little. Take published data "
        '(source = "hub", or a folder)'
    ]


def _is_of_the_package(task: Task) -> bool:
    try:
        return task.key.get("source") == "pocket"
    except KickError:  # published data that is not here yet
        return False


def calibrated_seeds(study: Study, seeds: Sequence[int] = ()) -> int:
    """The number of calibration seeds that a verdict of the study rests on; `seeds` are those of a search."""
    calibrated = any(parse_recipe(recipe).needs_calibration for recipe in study.recipes)
    return max(len(study.seeds), len(seeds)) if calibrated else 1


def design_of(task: Task, items: Sequence[Item], seeds: int) -> Design:
    """The design of a task, with favourable assumptions about its scores."""
    clusters = [item.cluster if groups_of(task) == "clusters" else item.id for item in items]
    return Design(
        cluster_sizes=cluster_sizes(clusters),
        accuracy=max(ACCURACY, (1 + task.chance_level) / 2),
        discordance=DISCORDANCE,
        chance=task.chance_level,
        seeds=seeds,
        graded=task.metric != "accuracy",
    )


def _few(name: str, design: Design, margin: float, alpha: float, family_size: int) -> str:
    """What the items of a task can show, or an empty string if a model without a loss usually matches."""
    ability = _ability(design, margin, alpha, family_size, _DRAWS, _SEARCH_DRAWS)
    if ability is None:
        return ""
    power, smallest, needed = ability
    remedy = "no number of items would do it in 80 %" if needed is None else f"{needed:,} would do it in 80 %"
    losses = f"losses under {smallest or 1:.0%} stay undecided"
    return f"{name} ({design.items} items: {power:.0%}; {remedy}; {losses})"


@functools.lru_cache(maxsize=64)
def _ability(
    design: Design, margin: float, alpha: float, family_size: int, draws: int, search_draws: int
) -> tuple[float, float | None, int | None] | None:
    """Power, smallest loss that shows, items that suffice; None if a model without a loss usually matches.

    A process that prepares several studies of the same design simulates it once.
    """
    of_a_match = alpha / family_size  # a loss is shown at alpha
    power = simulated_power(design, margin=margin, alpha=of_a_match, draws=draws)
    if power >= LEAST_POWER:
        return None
    smallest = detectable_loss(design, margin=margin, alpha=alpha, draws=search_draws)
    return power, smallest, items_for_power(design, margin=margin, alpha=of_a_match, draws=search_draws)


def _hopeless(design: Design, margin: float, alpha: float) -> str:
    """Return the reason why the items cannot even show a total loss, or an empty string if they can."""
    if len(design.cluster_sizes) < 2:
        return f"{design.items} items in one cluster do not tell how clusters differ"
    if simulated_power(design, loss=1.0, margin=margin, alpha=alpha, draws=50) < LEAST_POWER:
        return f"with {design.items} items not even a loss of everything would show"
    return ""
