"""Comparison of several studies: paired differences, and the reasons why other results cannot be paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from llmkick.errors import ConfigError
from llmkick.report.lookup import comparisons_by_cell, verdict_or_outcome
from llmkick.report.run_folder import Run
from llmkick.statistics.ratio import ratio_of_sums
from llmkick.study.results.records import TaskSummary
from llmkick.study.results.results import StudyResult
from llmkick.study.results.task_settings import EARLIER, differing_settings, short_value

# Settings that may differ but are reported: the difference is often the purpose of the comparison.
STUDY_FACTS = ("seeds", "calibration", "propagate", "dtype", "thinking")


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A result that is not paired, and the reason."""

    what: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One recipe on one task in two studies, paired by item: `difference` is second − first.

    `interval` is two-sided, at the level 1 − alpha; `no_interval` says why there is none.
    """

    recipe: str
    task: str
    n: int
    first: float | None
    second: float | None
    difference: float | None
    interval: tuple[float, float] | None
    gained: float
    lost: float
    first_verdict: str | None
    second_verdict: str | None
    identical: bool
    no_interval: str = ""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Two studies: the paired differences, the refusals, and notes on other differences."""

    first: str
    second: str
    differences: Sequence[Difference]
    refusals: Sequence[Refusal]
    notes: Sequence[str]


def labels(folders: Sequence[Path]) -> list[str]:
    """A short label for each folder: its name, or its full path if the names are not unique."""
    names = [folder.resolve().name for folder in folders]
    whole = [str(folder) for folder in folders]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"a folder is given twice: {', '.join(whole)}")
    return [name if names.count(name) == 1 else path for name, path in zip(names, whole, strict=True)]


def task_refusal(first: StudyResult, second: StudyResult, name: str) -> str:
    """Why the scores of a task cannot be paired; empty when they can."""
    tasks = [_task(result, name) for result in (first, second)]
    if tasks[0] is None or tasks[1] is None:
        return "only one of the studies has it"
    differing = differing_settings(tasks[0], tasks[1])
    if differing:
        return f"different {', '.join(differing)}"
    if tasks[0].is_control and first.model.name != second.model.name:
        return "perplexities of different models count different tokens"
    return ""


def pair(first: Run, second: Run, *, names: Sequence[str]) -> Paired:
    """Pair every (recipe, task) that both studies asked, including the dense model."""
    refusals, differences = [], []
    a, b = first.result, second.result
    tasks = list(dict.fromkeys(task.name for task in (*a.tasks, *b.tasks)))
    recipes = list(dict.fromkeys(("dense", *a.labels, *b.labels)))
    both = {r for r in recipes if r in ("dense", *a.labels) and r in ("dense", *b.labels)}
    refusals += [Refusal(what=r, reason="only one of the studies has it") for r in recipes if r not in both]
    for task in tasks:
        reason = task_refusal(a, b, task)
        if reason:
            refusals.append(Refusal(what=task, reason=reason))
            continue
        for recipe in (r for r in recipes if r in both):
            difference = _difference(first, second, recipe, task)
            if isinstance(difference, Refusal):
                refusals.append(difference)
            else:
                differences.append(difference)
    without = dict.fromkeys(each.no_interval for each in differences if each.no_interval)
    notes = [*_notes(a, b), *(f"differences without an interval: {reason}" for reason in without)]
    return Paired(first=names[0], second=names[1], differences=differences, refusals=refusals, notes=notes)


def _difference(first: Run, second: Run, recipe: str, task: str) -> Difference | Refusal:
    by_seed = [_scores(run, recipe, task) for run in (first, second)]
    ours, theirs = (_means(scores) for scores in by_seed)
    what = f"{recipe} on {task}"
    if not ours or not theirs:
        return Refusal(what=what, reason="one of the studies has no answers to it")
    if ours.keys() != theirs.keys():
        return Refusal(what=what, reason=f"{len(ours.keys() ^ theirs.keys())} items were asked in one study only")
    verdicts = [_verdict(run.result, recipe, task) for run in (first, second)]
    summary = _task(first.result, task)
    if summary is not None and summary.is_control:
        return _of_perplexity(first.result, second.result, recipe, task, len(ours), verdicts, ours == theirs)
    scored = [item for item in ours if ours[item] is not None and theirs[item] is not None]
    means = [_mean([scores[item] for item in scored]) if scored else None for scores in (ours, theirs)]
    changes = [cast(float, theirs[item]) - cast(float, ours[item]) for item in scored]
    grouping = "clusters" if summary is None else summary.groups
    interval, reason = _interval(by_seed, scored, _groups(first, task) if grouping == "clusters" else {}, first, second)
    return Difference(
        recipe=recipe, task=task, n=len(scored), first=means[0], second=means[1],
        difference=sum(changes) / len(changes) if changes else None, interval=interval, no_interval=reason,
        gained=_changed(by_seed, scored, 1), lost=_changed(by_seed, scored, -1),
        first_verdict=verdicts[0], second_verdict=verdicts[1], identical=ours == theirs,
    )  # fmt: skip


# Calibration seed → item → score.
_BySeed = Mapping[int | None, Mapping[str, float | None]]


def _interval(
    by_seed: Sequence[_BySeed], items: Sequence[str], clusters: Mapping[str, str], first: Run, second: Run
) -> tuple[tuple[float, float] | None, str]:
    """The two-sided interval of the mean change, over items or clusters and calibration seeds; or why there is none.

    Each seed of a study is paired with the same seed of the other.
    """
    ours, theirs = by_seed
    if any(run.result.study.facts.get("stop") == "decided" for run in (first, second)):
        return None, 'what was asked depends on verdicts (stop = "decided")'
    if set(ours) != set(theirs):
        return None, "other calibration seeds"
    if len(items) < 2:
        return None, "fewer than two items"
    rows = [[cast(float, theirs[seed][item]) - cast(float, ours[seed][item]) for item in items] for seed in ours]
    change = np.asarray(rows)
    codes = np.unique([clusters.get(item, item) for item in items], return_inverse=True)[1]
    found = ratio_of_sums(
        change, np.ones_like(change), codes, reach=(-1.0, 1.0), alpha=first.result.study.alpha, nothing=""
    )
    return found.interval, found.reason


def _changed(by_seed: Sequence[_BySeed], items: Sequence[str], sign: int) -> float:
    """The number of items that rose (1) or fell (−1): the mean over seeds, or of mean scores where seeds differ."""
    ours, theirs = by_seed
    pairs = (
        [(ours[seed], theirs[seed]) for seed in ours] if set(ours) == set(theirs) else [(_means(ours), _means(theirs))]
    )
    changes = [cast(float, b[item]) - cast(float, a[item]) for a, b in pairs for item in items]
    return sum(sign * change > 0 for change in changes) / len(pairs)


def _of_perplexity(
    a: StudyResult, b: StudyResult, recipe: str, task: str, n: int, verdicts: Sequence[str | None], identical: bool
) -> Difference:
    """The two values; an interval of their difference would need the tokens of both."""
    first, second = (_value(result, recipe, task) for result in (a, b))
    change = None if first is None or second is None else second - first
    return Difference(
        recipe=recipe, task=task, n=n, first=first, second=second, difference=change, interval=None,
        gained=0.0, lost=0.0,
        first_verdict=verdicts[0], second_verdict=verdicts[1], identical=identical,
    )  # fmt: skip


def _scores(run: Run, recipe: str, task: str) -> _BySeed:
    """The scores of a model by calibration seed and item."""
    cells = [cell for cell in run.cells if (cell.recipe, cell.task) == (recipe, task)]
    if run.journal is None:
        return {}
    return {cell.seed: {row[0]: row[2] for row in run.journal.answers(cell.run_key)} for cell in cells}


def _means(by_seed: _BySeed) -> dict[str, float | None]:
    """Item → mean over seeds; None if the score of any seed is missing."""
    if not by_seed:
        return {}
    return {item: _mean([scores.get(item) for scores in by_seed.values()]) for item in next(iter(by_seed.values()))}


def _mean(values: Sequence[float | None]) -> float | None:
    values_given = [value for value in values if value is not None]
    return sum(values_given) / len(values_given) if len(values_given) == len(values) else None


def _groups(run: Run, task: str) -> dict[str, str]:
    items = run.items[run.items["task"] == task]
    return dict(zip(items["item_id"], items["cluster"], strict=True))


def _task(result: StudyResult, name: str) -> TaskSummary | None:
    return next((task for task in result.tasks if task.name == name), None)


def _value(result: StudyResult, recipe: str, task: str) -> float | None:
    rows = [row.value for row in result.results if (row.recipe, row.task) == (recipe, task)]
    return _mean(rows) if rows else None


def _verdict(result: StudyResult, recipe: str, task: str) -> str | None:
    comparison = comparisons_by_cell(result).get((recipe, task))
    return None if comparison is None else verdict_or_outcome(comparison)


def _notes(a: StudyResult, b: StudyResult) -> list[str]:
    """Differences between the studies other than their tasks."""
    notes = []
    for key in ("name", "digest"):
        models = [result.model.facts.get(key) for result in (a, b)]
        if models[0] != models[1]:
            notes.append(f"other models: {short_value(models[0])}, {short_value(models[1])}")
            break
    settings, others = a.study.facts, b.study.facts
    notes += [
        f"verdicts rest on another {key}: {settings[key]}, {others[key]}; they must not be compared"
        for key in ("margin", "alpha")
        if settings[key] != others[key]
    ]
    notes += [
        f"other {key}: {', '.join(short_value(facts.get(key, EARLIER.get(key))) for facts in (settings, others))}"
        for key in STUDY_FACTS
        if settings.get(key) != others.get(key)
    ]
    versions = [result.environment.packages.get("llmkick") for result in (a, b)]
    if versions[0] != versions[1]:
        notes.append(f"other versions of llmkick: {versions[0]}, {versions[1]}")
    return notes
