"""Runs as the claims read them: grouped by model, searched by task, recipe and level."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from llmkick.claims.evidence import NotAskedError
from llmkick.compression.levels import Level
from llmkick.compression.registry import parse_recipe
from llmkick.errors import ConfigError, DataError
from llmkick.statistics import Comparison, PerplexityComparison
from llmkick.study.results.records import TaskSummary
from llmkick.study.results.results import StudyResult
from llmkick.study.results.task_settings import differing_settings

JUDGED = ":judge"
# A model of so many parameters counts as the paper's 13B and not as its 7B.
LARGE = 10_000_000_000


@dataclass(frozen=True, kw_only=True)
class ClaimRun:
    """A run for the claims. `records` reads every answer of the run; it returns None if only its numbers are left."""

    name: str
    result: StudyResult
    records: Callable[[], pd.DataFrame | None]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What compressed weights are made of: recipe, calibration text of each seed, and whether it is propagated.

    The text is that of the compression reports, or where a run has none that of its settings.
    """

    recipe: str
    texts: tuple[str, ...] = ()
    propagate: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A comparison with the place that it comes from."""

    run: ClaimRun
    task: TaskSummary
    level: Level
    comparison: Comparison

    @property
    def samples(self) -> int | None:
        """The number of calibration windows; None if the run does not say it."""
        count = calibration_of(self.run, self.comparison.recipe, self.task.name).get("sequences")
        return count if isinstance(count, int) else None

    @property
    def weights(self) -> Weights:
        """What the compressed weights are made of."""
        return weights_of(self.run, self.comparison.recipe, self.task.name)

    @property
    def awaits_judge(self) -> bool:
        """Whether a judge scores the same answers, once all of them are there."""
        is_judged = base_of(self.task) in ("summarization", "instruction") and self.task.judge is None
        return is_judged and self.run.result.study.facts.get("judge") is not None

    @property
    def sparsity(self) -> float:
        """The share of zeros of an unstructured recipe."""
        assert self.level.sparsity is not None, self.level
        return self.level.sparsity


@dataclass(frozen=True, kw_only=True)
class ModelRuns:
    """All runs about one dense model."""

    name: str
    parameters: int | None
    runs: tuple[ClaimRun, ...]

    @property
    def is_large(self) -> bool:
        """Whether the model counts as the paper's 13B."""
        return (self.parameters or 0) >= LARGE

    @property
    def alpha(self) -> float:
        """The level of the runs' intervals, the same in all of them."""
        return self.runs[0].result.study.alpha

    def cells(self, wanted: Callable[[TaskSummary], bool], *, every_run: bool = False) -> list[Cell]:
        """The comparisons with a verdict on the wanted tasks; without tasks that have no signal and recovered recipes.

        Of several cells of a recipe on a task one that no judge is still to score counts, then the one with the most
        calibration samples, then one that did not stop early, then the first; with `every_run`, all of them.
        """
        found: dict[tuple[str, str, str], Cell] = {}
        for run in self.runs:
            tasks = {task.name: task for task in run.result.tasks if wanted(task)}
            recipes = {variant.label: variant.recipe for variant in run.result.variants}
            for comparison in run.result.comparisons:
                if isinstance(comparison, Comparison) and comparison.task in tasks:
                    cell = Cell(
                        run=run,
                        task=tasks[comparison.task],
                        level=run.result.level(recipes.get(comparison.recipe, comparison.recipe)),
                        comparison=comparison,
                    )
                    place = f"{run.name} {comparison.recipe}" if every_run else ""
                    if cell.level.recovery:
                        continue  # the claims are about compressed models, none of which was recovered
                    key = (cell.level.recipe, comparison.task, place)
                    if key not in found or _preference(cell) > _preference(found[key]):
                        found[key] = cell
        return [cell for cell in found.values() if cell.comparison.verdict != "no signal"]

    def perplexity(self, cell: Cell) -> tuple[ClaimRun, PerplexityComparison] | None:
        """The comparison of the perplexity of a cell's model with its run; of several texts the first.

        The cell's own run counts first, then others that made the same weights. Bits per byte are none.
        """
        for run in sorted(self.runs, key=lambda run: run is not cell.run):
            texts = {task.name for task in run.result.tasks if task.metric == "perplexity"}
            for comparison in run.result.comparisons:
                if not isinstance(comparison, PerplexityComparison) or comparison.task not in texts:
                    continue
                if weights_of(run, comparison.recipe, comparison.task) == cell.weights:
                    return run, comparison
        return None


def _preference(cell: Cell) -> tuple[bool, int, bool]:
    return not cell.awaits_judge, cell.samples or 0, cell.comparison.stopping is None


def models_of(runs: Sequence[ClaimRun]) -> list[ModelRuns]:
    """The runs grouped by their dense model. Raises DataError for runs that must not be read together."""
    _refuse_incomparable(runs)
    grouped: dict[str, list[ClaimRun]] = {}
    for run in runs:
        model = run.result.model
        grouped.setdefault(model.digest or model.name, []).append(run)
    return [
        ModelRuns(
            name=of_model[0].result.model.name, parameters=of_model[0].result.model.parameters, runs=tuple(of_model)
        )
        for of_model in grouped.values()
    ]


def _refuse_incomparable(runs: Sequence[ClaimRun]) -> None:
    """Raise DataError, with every reason, if two runs differ in what all claims rest on or asked a task otherwise."""
    for first, second in combinations(runs, 2):
        a, b = first.result, second.result
        reasons = [
            f"their verdicts rest on another {key} ({getattr(a.study, key):g}, {getattr(b.study, key):g})"
            for key in ("margin", "alpha")
            if getattr(a.study, key) != getattr(b.study, key)
        ]
        thinking = [result.study.facts.get("thinking", "off") for result in (a, b)]
        if thinking[0] != thinking[1]:
            reasons.append(f"one was asked with thinking = {thinking[0]!r}, the other with {thinking[1]!r}")
        protocols = [_protocols(result) for result in (a, b)]
        if all(protocols) and protocols[0] != protocols[1]:
            reasons.append(f"other protocols ({', '.join(protocols[0])}; {', '.join(protocols[1])})")
        by_name = {task.name: task for task in b.tasks}
        for task in a.tasks:
            if task.name in by_name and not reasons:
                differing = differing_settings(task, by_name[task.name])
                reasons += [f"{task.name} was asked with different {', '.join(differing)}"] if differing else []
        if reasons:
            raise DataError(
                f"{first.name} and {second.name} cannot be assessed together: {'; '.join(reasons)}. "
                "Give runs that asked alike, or each on its own"
            )


def _protocols(result: StudyResult) -> list[str]:
    """The protocols of the tasks; judged ones are named by the task that they score."""
    return sorted({str(task.facts["protocol"]) for task in result.tasks if "protocol" in task.facts})


def calibration_of(run: ClaimRun, label: str, task: str) -> dict[str, object]:
    """The calibration settings of a model, with its levels of the axes; those that the run states."""
    stated = run.result.study.facts.get("calibration")
    axes = run.result.axes_of(label, task)
    levels = {axis.partition(".")[2]: level for axis, level in axes.items() if axis.startswith("calibration.")}
    return {**(stated if isinstance(stated, dict) else {}), **levels}


def weights_of(run: ClaimRun, label: str, task: str) -> Weights:
    """What the weights of a model are made of; two runs in which it is the same ask the same model."""
    recipe = next((variant.recipe for variant in run.result.variants if variant.label == label), label)
    reports = [report for report in run.result.compression if report.recipe == label]
    if all(report.calibration is None for report in reports) if reports else not _is_calibrated(recipe):
        return Weights(recipe=recipe)
    facts = run.result.study.facts
    settings = [repr(facts.get("seeds")), *map(repr, sorted(calibration_of(run, label, task).items()))]
    texts = [str(report.calibration) for report in reports] or settings
    return Weights(recipe=recipe, texts=tuple(sorted(texts)), propagate=facts.get("propagate") is not False)


def _is_calibrated(recipe: str) -> bool:
    """Whether a recipe reads calibration text; an external model is no recipe."""
    try:
        return parse_recipe(recipe).needs_calibration
    except ConfigError:
        return False


def base_of(task: TaskSummary) -> str:
    """The name of the task in the registry without its variant; studies can name a task otherwise."""
    return (task.task or task.name).partition(":")[0]


def shots_of(task: TaskSummary) -> int:
    """The number of worked examples in the prompts of a task."""
    shots = task.facts.get("shots")
    return shots if isinstance(shots, int) else 0


def is_factoid(task: TaskSummary) -> bool:
    """Whether a task asks for facts without choices or passages (the paper's FreebaseQA)."""
    return base_of(task) == "factoid_qa" and not (task.task or task.name).startswith("factoid_qa:popqa")


def is_choice(task: TaskSummary) -> bool:
    """Whether a task is multiple choice (the paper's MMLU)."""
    return base_of(task) == "multiple_choice"


def is_knowledge(task: TaskSummary) -> bool:
    """Whether a task asks for knowledge that the model must have."""
    return task.setting == "knowledge"


def is_open_book(task: TaskSummary) -> bool:
    """Whether the passage is in the prompt."""
    return base_of(task) == "context_qa" and task.setting == "synthesis"


def is_closed_book(task: TaskSummary) -> bool:
    """Whether the same questions are asked without the passage."""
    return base_of(task) == "context_qa" and task.setting == "knowledge"


def judged_or_not(cells: Sequence[Cell]) -> list[Cell]:
    """The judged cells if there are any, as in the paper; otherwise those that no judge is still to score.

    Raises NotAskedError if there are no others.
    """
    judged = [cell for cell in cells if cell.task.judge is not None]
    final = [cell for cell in cells if not cell.awaits_judge]
    if cells and not final:
        raise NotAskedError(f"the judge of {cells[0].run.name} has not been asked yet")
    return judged or final


def asked_in_full(cells: Sequence[Cell]) -> list[Cell]:
    """The cells that did not stop early, which can be read item by item; if all of them stopped, all cells."""
    return [cell for cell in cells if cell.comparison.stopping is None] or list(cells)


def by_method(cells: Iterable[Cell]) -> Mapping[str, list[Cell]]:
    """Method → cells of its unstructured recipes, from mild to severe."""
    methods: dict[str, list[Cell]] = {}
    for cell in sorted((cell for cell in cells if cell.level.kind == "sparsity"), key=lambda cell: cell.sparsity):
        methods.setdefault(cell.level.method, []).append(cell)
    return methods


def largest_between(cells: Sequence[Cell], low: float, high: float) -> list[Cell]:
    """The cells at the largest sparsity from low to high, one for each task; empty if no level lies there."""
    inside = [cell for cell in cells if low - 1e-9 <= cell.sparsity <= high + 1e-9]
    return [cell for cell in inside if cell.sparsity == inside[-1].sparsity]
