"""How far can a model be compressed? A search over each method's levels, with early stopping and confirmation.

For every method and task a bisection (`statistics.find_frontier`) looks for the strongest level that matches and the
weakest that does not. A level is judged as in a study with `stop = "decided"`; the level found is confirmed on every
item, with further calibration seeds if there are any, and propagated if the search was not. Over all tasks a level
matches when it does on each that has a signal (intersection-union). Every record goes to the journal of the run's
folder: the same command again goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

from llmkick.compression.recipe import Recipe
from llmkick.errors import ConfigError
from llmkick.models.transformers_model import TransformersModel
from llmkick.statistics import Verdict, find_frontier
from llmkick.study.cells import Cell, Variant
from llmkick.study.frontier.result import UNKNOWN, FrontierResult, Judged, frontier_row, matches, verdict_of
from llmkick.study.levels import LevelGrid, level_grid, level_text
from llmkick.study.progress import Observer, Silent
from llmkick.study.results.comparisons import compare_cell, describe_task, is_comparable
from llmkick.study.results.results import as_json
from llmkick.study.run import StudyRun
from llmkick.study.running.environment import environment, peak_memory
from llmkick.study.running.executor import LocalExecutor
from llmkick.study.spec.study import make_study
from llmkick.tasks.task import Task

# What is called safe by those who look at perplexity alone: proven within 5 %; and what "hardly moves", within 10 %.
PERPLEXITY_MARGINS = (0.05, 0.10)
# Compressed models kept in memory at most, and the share of the free memory that they may take.
MODELS_KEPT, MEMORY_SHARE = 4, 0.3


def run_frontier(
    study: Mapping[str, Any],
    methods: Sequence[str],
    *,
    out: Path | str,
    seeds: Sequence[int] = (0,),
    search_propagate: bool = True,
    observer: Observer | None = None,
) -> FrontierResult:
    """Search the levels of `methods` (see `grid.level_grid`) on the tasks of a study, or go on with a search.

    `study` has the keys of a study file but `recipes`, `seeds` and `stop`. The search uses the first seed; the level
    found is confirmed with all of them. Raises ConfigError before any work for what does not fit together.
    """
    given = [key for key in ("recipes", "seeds", "stop") if key in study]
    if given:
        raise ConfigError(f"a frontier sets {', '.join(given)} itself; leave it out")
    if not methods:
        raise ConfigError("give at least one method; see `kick methods`")
    grids = [level_grid(text) for text in methods]
    recipes = [str(recipe) for grid in grids for recipe in grid.recipes]
    if len(set(recipes)) < len(recipes):
        raise ConfigError(f"a level is in two of the grids {', '.join(methods)}; give every level once")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ConfigError(f"give distinct calibration seeds, at least one; got {list(seeds)}")
    resolved = make_study({**study, "recipes": recipes, "seeds": list(seeds)[:1], "stop": "decided"})
    make_study({**study, "recipes": recipes, "seeds": list(seeds)})  # every seed is one
    if not search_propagate and not resolved.propagate:
        raise ConfigError("propagate = false leaves nothing to confirm propagated; leave one of the two out")
    run = FrontierRun(
        study=resolved,
        folder=Path(out),
        observer=observer or Silent(),
        grids=grids,
        seeds=tuple(seeds),
        search_propagate=search_propagate and resolved.propagate,
    )
    return run.search()


@dataclass(kw_only=True)
class FrontierRun(StudyRun):
    """A search at work in its folder."""

    grids: Sequence[LevelGrid]
    seeds: tuple[int, ...]
    search_propagate: bool
    executor: LocalExecutor = field(default_factory=LocalExecutor)
    propagating: bool | None = None
    kept: dict[tuple[str, bool], TransformersModel] = field(default_factory=dict)
    asked: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # (grid, task) → run keys
    made: dict[str, set[str]] = field(default_factory=dict)  # grid → recipes

    def search(self) -> FrontierResult:
        """Search to the end, or from where it stopped."""
        self.journal = self._open_folder()
        try:
            started = datetime.now(UTC).isoformat(timespec="seconds")
            self._prepare()
            for seed in self.seeds:
                self._calibration(seed)
            searches = [(grid, task) for grid in self.grids for task in self.tasks]
            self.observer.cells(0, len(searches))
            frontiers: list[dict[str, Any]] = []
            verdicts: dict[tuple[str, str], dict[str, Judged]] = {}
            for number, (grid, task) in enumerate(searches, start=1):
                margins = PERPLEXITY_MARGINS if task.metric == "perplexity" else (self.study.margin,)
                for margin in margins:
                    found = self._search_one(grid, task, margin)
                    frontiers.append(found[0])
                    verdicts[grid.name, task.name] = found[1]
                self.observer.cells(number, len(searches))
            overall = [self._overall(grid, verdicts) for grid in self.grids]
            return self._finished(started, frontiers, overall)
        finally:
            self.journal.close()

    def _search_one(self, grid: LevelGrid, task: Task, margin: float) -> tuple[dict[str, Any], dict[str, Judged]]:
        judged: dict[str, Judged] = {}

        def evaluate(recipe: Recipe) -> Verdict:
            judged[str(recipe)] = self._judge_level(grid, recipe, task, margin=margin)
            return judged[str(recipe)].verdict

        def confirm(recipe: Recipe) -> Verdict:
            judged[str(recipe)] = self._judge_level(grid, recipe, task, margin=margin, confirming=True)
            return judged[str(recipe)].verdict

        frontier = find_frontier(grid.recipes, evaluate, confirm=confirm)
        return frontier_row(grid, task, margin, frontier, judged), judged

    def _judge_level(
        self, grid: LevelGrid, recipe: Recipe, task: Task, *, margin: float, confirming: bool = False
    ) -> Judged:
        """One level on one task: until it is decided, or, confirming, with every item, seed and propagated."""
        seeds: Sequence[int | None] = (
            (self.seeds if confirming else self.seeds[:1]) if recipe.needs_calibration else [None]
        )
        rule = self.rules.get(task.name)
        cells = []
        with self._propagating(self.study.propagate if confirming else self.search_propagate):
            for seed in seeds:
                cells.append(self._filled(Variant(recipe=recipe, seed=seed), task, every_item=confirming))
            variants = [cell.variant for cell in cells]
            dense_cell = self.evaluation.dense_cell(cells[0])
            if confirming or rule is None:
                self.evaluation.fill_every_item(self.model, dense_cell)
            dense = self.journal.cell_records(dense_cell.run_key).set_index("item_id")
            records = pd.concat([self.journal.cell_records(cell.run_key) for cell in cells], ignore_index=True)
            described = describe_task(task, self.prompting)
            comparison = None
            if is_comparable(described, dense, records):
                comparison = compare_cell(
                    described,
                    str(recipe),
                    dense,
                    records,
                    order=None if confirming or rule is None else rule.order,
                    same_weights=lambda _: self._are_the_dense(variants),
                    margin=margin,
                    alpha=self.study.alpha,
                )
        self.asked.setdefault((grid.name, task.name), set()).update(cell.run_key for cell in cells)
        self.made.setdefault(grid.name, set()).add(str(recipe))
        return Judged(
            verdict=verdict_of(comparison),
            comparison=comparison,
            items=len(records),
            of=len(self.evaluation.items[task.name]),
            confirmed=confirming,
        )

    def _filled(self, variant: Variant, task: Task, *, every_item: bool) -> Cell:
        """The cell with as many records as are needed."""
        cells = self.cells(variant)
        (cell,) = [one for one in cells if one.task.name == task.name]
        missing = not (self.evaluation.has_every_item(cell) if every_item else self.evaluation.is_complete(cell))
        if missing or self.journal.artifact(self.report_key(variant)) is None:
            model = self._kept(variant)
            if every_item:
                self.evaluation.fill_every_item(model, cell)
            else:
                self.evaluation.fill(model, cell)
        return cell

    def _kept(self, variant: Variant) -> TransformersModel:
        """The compressed model; a few of them stay in memory, since every task's search begins at the same levels."""
        key = (str(variant), self.propagates)
        if key not in self.kept:
            weights = sum(p.numel() * p.element_size() for p in self.dense.network.parameters())
            most = min(MODELS_KEPT, int(psutil.virtual_memory().available * MEMORY_SHARE / weights))
            while self.kept and len(self.kept) >= max(1, most):
                del self.kept[next(iter(self.kept))]
            self.kept[key] = self.executor.compressed(variant, self)
        return self.kept[key]

    @contextmanager
    def _propagating(self, propagate: bool) -> Iterator[None]:
        """Another way to calibrate, for as long as this lasts."""
        before, self.propagating = self.propagating, propagate
        try:
            yield
        finally:
            self.propagating = before

    @property
    def propagates(self) -> bool:
        """Whether each block is calibrated on the compressed blocks before it, at this moment."""
        return self.study.propagate if self.propagating is None else self.propagating

    def _are_the_dense(self, variants: Sequence[Variant]) -> bool:
        known = [self.journal.artifact(self.report_key(variant)) for variant in variants]
        return {one[0] for one in known if one is not None} == {self.executor.dense_digest()}

    def _overall(self, grid: LevelGrid, verdicts: Mapping[tuple[str, str], dict[str, Judged]]) -> dict[str, Any]:
        """Over all tasks with a signal: the strongest level proven to match on each, the weakest that fails on one."""
        judged = {task.name: verdicts[grid.name, task.name] for task in self.tasks if task.metric != "perplexity"}
        tasks = [
            task
            for task in self.tasks
            if task.name in judged and any(one.verdict != "no signal" for one in judged[task.name].values())
        ]
        failing = [
            recipe
            for recipe in grid.recipes
            if any(judged[task.name].get(str(recipe), UNKNOWN).verdict == "not matching" for task in tasks)
        ]
        matching = [
            max((i for i, r in enumerate(grid.recipes) if matches(judged[t.name], r)), default=-1) for t in tasks
        ]
        strongest = None
        for recipe in reversed(grid.recipes[: min(matching, default=-1) + 1]):
            for task in tasks:
                if str(recipe) not in judged[task.name]:
                    judged[task.name][str(recipe)] = self._judge_level(grid, recipe, task, margin=self.study.margin)
            if all(matches(judged[task.name], recipe) for task in tasks):
                strongest = recipe
                break
        return {
            "name": grid.name,
            "method": grid.method,
            "kind": grid.kind,
            "tasks": [task.name for task in tasks],
            "levels": [level_text(recipe) for recipe in grid.recipes],
            "strongest_matching": None if strongest is None else level_text(strongest),
            "weakest_not_matching": level_text(failing[0]) if failing else None,
        }

    def _finished(self, started: str, frontiers: list[dict[str, Any]], overall: list[dict[str, Any]]) -> FrontierResult:
        result = FrontierResult(
            folder=self.folder,
            study={**self.study.model_dump(mode="json"), "hash": self.study.hash()},
            settings={
                "search_propagate": self.search_propagate,
                "seeds": list(self.seeds),
                "perplexity_margins": list(PERPLEXITY_MARGINS),
            },
            environment=environment(self.dense),
            timing={
                "started": started,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": self.journal.seconds(),
                "peak_memory_bytes": peak_memory(),
            },
            model=as_json(self.model.info),
            tasks=[describe_task(task, self.prompting).facts for task in self.tasks],
            frontiers=frontiers,
            overall=overall,
            cost=[self._cost(grid, task) for grid in self.grids for task in self.tasks],
            warnings=list(dict.fromkeys([*self.warnings, *self._notes()])),
        )
        result.write()
        return result

    def _cost(self, grid: LevelGrid, task: Task) -> dict[str, Any]:
        """Items asked of compressed models against those of the full grid with one seed."""
        keys = self.asked.get((grid.name, task.name), set())
        return {
            "name": grid.name,
            "task": task.name,
            "metric": task.metric,
            "items": sum(len(self.journal.done(key)) for key in keys),
            "full": len(grid.recipes) * len(self.evaluation.items[task.name]),
            "models": len(self.made.get(grid.name, ())),
            "levels": len(grid.recipes),
        }

    def _notes(self) -> Iterator[str]:
        info = self.model.info
        if info.source_precision != "float" and any(grid.kind == "bits" for grid in self.grids):
            yield (
                f"the dense weights of {info.name} come from a file already rounded to {info.source_precision}: "
                "rounding them again says little about rounding the original"
            )
        if not self.search_propagate:
            how = (
                "the levels found were confirmed with propagated calibration" if self.study.propagate else "so was all"
            )
            yield f"searched without propagation (every statistic from the dense model); {how}"
        if len(self.seeds) == 1 and any(recipe.needs_calibration for grid in self.grids for recipe in grid.recipes):
            yield "one calibration seed: the frontier is that of these weights, other calibration text may move it"
