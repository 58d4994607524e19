"""The frontier search: find the strongest matching compression level of each method, with early stopping.

For every method and task a bisection (`statistics.find_frontier`) looks for the strongest level that matches and the
weakest level that does not match. A level is judged as in a study with `stop = "decided"`. The resulting level is
confirmed on every item with all calibration seeds; the confirmation propagates calibration if the study does. A level
matches over all tasks if it matches on each task with a signal (intersection-union). Every record goes to the journal
of the run's folder, so the same command resumes an interrupted search.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from llmkick.compression.recipe import Recipe, Recovered, with_training
from llmkick.errors import ConfigError
from llmkick.statistics import Verdict, find_frontier
from llmkick.statistics.frontier import looks
from llmkick.study.expected_work import cell_key, compression_key
from llmkick.study.frontier.levels import JudgedWithOtherWeightsError, LevelJudge
from llmkick.study.frontier.result import (
    UNKNOWN,
    FrontierResult,
    FrontierRow,
    Judged,
    OverallFrontier,
    SearchCost,
    SearchedStudy,
    SearchSettings,
    fails,
    frontier_row,
    matches,
)
from llmkick.study.levels import LevelGrid, level_grid, level_text
from llmkick.study.progress import Observer, Silent
from llmkick.study.results.comparisons import describe_task
from llmkick.study.results.records import CONTROL_METRICS, DenseModel, Timing
from llmkick.study.results.returned import unmeasured_by_stopping
from llmkick.study.running.context import StudyContext
from llmkick.study.running.environment import environment, peak_memory
from llmkick.study.running.executor import LocalExecutor
from llmkick.study.running.preparation import open_journal, prepare
from llmkick.study.spec.axes import calibration_settings
from llmkick.study.spec.study import make_study
from llmkick.tasks.task import Task

# Common thresholds for perplexity alone: an increase within 5 % counts as safe, within 10 % as a small change.
PERPLEXITY_MARGINS = (0.05, 0.10)


def run_frontier(
    study: Mapping[str, object],
    methods: Sequence[str],
    *,
    out: Path | str,
    seeds: Sequence[int] = (0,),
    search_propagate: bool = True,
    observer: Observer | None = None,
) -> FrontierResult:
    """Search the levels of `methods` (see `levels.level_grid`) on the tasks of a study, or resume a search.

    `study` has the keys of a study file except `recipes`, `seeds` and `stop`. The search uses the first seed, and
    the confirmation of the resulting level uses all seeds. Raises ConfigError before any work if the study, the
    methods, the seeds and the folder do not fit together.
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
    make_study({**study, "recipes": recipes, "seeds": list(seeds)})  # validates every seed
    if len(calibration_settings(resolved.calibration)) > 1:
        raise ConfigError("a frontier is searched with one calibration: no lists of source, sequences or length")
    if not search_propagate and not resolved.propagate:
        raise ConfigError("propagate = false leaves nothing to confirm propagated; leave one of the two out")
    training = resolved.recovery.training()
    grids = [replace(grid, recipes=tuple(with_training(r, training) for r in grid.recipes)) for grid in grids]
    folder, watcher, executor = Path(out), observer or Silent(), LocalExecutor()
    journal = open_journal(resolved, folder)
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        context = prepare(
            resolved, folder=folder, journal=journal, observer=watcher, source=executor,
            seeds=tuple(seeds), visited_share=_visited_share(grids),
            searched_levels=max(len(grid.recipes) for grid in grids),
        )  # fmt: skip
        judge = LevelJudge(
            context=context,
            executor=executor,
            seeds=tuple(seeds),
            search_propagate=search_propagate and resolved.propagate,
        )
        return FrontierSearch(context=context, judge=judge, grids=grids).search(started)
    finally:
        journal.close()


def _visited_share(grids: Sequence[LevelGrid]) -> float:
    """The share of all levels that bisections are expected to visit, with a confirmation of each result."""
    levels = [len(grid.recipes) for grid in grids]
    return min(1.0, sum(math.ceil(math.log2(count + 1)) + 1 for count in levels) / sum(levels))


@dataclass(frozen=True, kw_only=True)
class FrontierSearch:
    """A search over the levels of several methods on the tasks of one study."""

    context: StudyContext
    judge: LevelJudge
    grids: Sequence[LevelGrid]

    def search(self, started: str) -> FrontierResult:
        """Run or resume the search to its end; `started` is the start time of this session (ISO 8601).

        A search that goes on may find a level's weights changed after it was judged by earlier records. Those are
        dropped, and the search begins again: all that is still valid is in the journal.
        """
        while True:
            with suppress(JudgedWithOtherWeightsError):
                return self._result(started, *self._searched())

    def _searched(self) -> tuple[list[FrontierRow], list[OverallFrontier]]:
        """What the search finds for each method and task, and for each method over all tasks."""
        observer, tasks = self.context.observer, self.context.tasks
        searches = [(grid, task) for grid in self.grids for task in tasks]
        observer.cells(0, len(searches))
        rows: list[FrontierRow] = []
        verdicts: dict[tuple[str, str], dict[str, Judged]] = {}
        for number, (grid, task) in enumerate(searches, start=1):
            margins = PERPLEXITY_MARGINS if task.metric == "perplexity" else (self.context.study.margin,)
            for margin in margins:
                row, verdicts[grid.name, task.name] = self._search_task(grid, task, margin)
                rows.append(row)
            self._end_forecast(grid, task)
            observer.cells(number, len(searches))
        return rows, [self._overall(grid, verdicts) for grid in self.grids]

    def _end_forecast(self, grid: LevelGrid, task: Task) -> None:
        """Nothing is left of the levels of a method on a task; after the last task, of its models."""
        forecast, is_last = self.context.forecast, task is self.context.tasks[-1]
        recipes = {str(recipe) for recipe in grid.recipes}
        for variant in self.context.variants():
            if variant.label in recipes:
                forecast.end(cell_key(variant, task.name))
                if is_last:
                    forecast.end(compression_key(variant))

    def _search_task(self, grid: LevelGrid, task: Task, margin: float) -> tuple[FrontierRow, dict[str, Judged]]:
        judged: dict[str, Judged] = {}

        def evaluate(recipe: Recipe) -> Verdict:
            judged[str(recipe)] = self.judge.judge(grid, recipe, task, margin=margin)
            return judged[str(recipe)].verdict

        def confirm(recipe: Recipe) -> Verdict:
            judged[str(recipe)] = self.judge.confirm(grid, recipe, task, margin=margin)
            return judged[str(recipe)].verdict

        def refute(recipe: Recipe) -> Verdict:
            judged[str(recipe)] = self.judge.refute(grid, recipe, task, margin=margin)
            return judged[str(recipe)].verdict

        frontier = find_frontier(grid.recipes, evaluate, confirm=confirm, refute=refute)
        return frontier_row(grid, task, margin, frontier, judged), judged

    def _overall(self, grid: LevelGrid, verdicts: Mapping[tuple[str, str], dict[str, Judged]]) -> OverallFrontier:
        """Return the frontier over all tasks with a signal.

        It has the strongest level that matches on every task and the weakest level that does not match on some task.
        """
        judged = {
            task.name: verdicts[grid.name, task.name]
            for task in self.context.tasks
            if task.metric not in CONTROL_METRICS
        }
        tasks = [
            task
            for task in self.context.tasks
            if task.name in judged and any(level.verdict != "no signal" for level in judged[task.name].values())
        ]
        failing = [recipe for recipe in grid.recipes if any(fails(judged[task.name], recipe) for task in tasks)]
        matching = [
            max((i for i, r in enumerate(grid.recipes) if matches(judged[t.name], r)), default=-1) for t in tasks
        ]
        strongest = None
        mildest = min(matching, default=-1)
        # As many confirmations as the divided alpha allows for.
        for recipe in reversed(grid.recipes[max(0, mildest + 1 - looks(len(grid.recipes))) : mildest + 1]):
            for task in tasks:
                level = judged[task.name].get(str(recipe), UNKNOWN)
                if not level.confirmed and level.verdict in ("matching", UNKNOWN.verdict):
                    judged[task.name][str(recipe)] = self.judge.confirm(
                        grid, recipe, task, margin=self.context.study.margin
                    )
            if all(matches(judged[task.name], recipe) for task in tasks):
                strongest = recipe
                break
        return OverallFrontier(
            name=grid.name,
            method=grid.method,
            kind=grid.kind,
            tasks=tuple(task.name for task in tasks),
            levels=tuple(level_text(recipe) for recipe in grid.recipes),
            strongest_matching=None if strongest is None else level_text(strongest),
            weakest_not_matching=level_text(failing[0]) if failing else None,
        )

    def _result(self, started: str, rows: Sequence[FrontierRow], overall: Sequence[OverallFrontier]) -> FrontierResult:
        context, study = self.context, self.context.study
        result = FrontierResult(
            folder=context.folder,
            study=SearchedStudy.model_validate({**study.model_dump(mode="json"), "hash": study.hash()}),
            settings=SearchSettings(
                search_propagate=self.judge.search_propagate,
                seeds=self.judge.seeds,
                perplexity_margins=PERPLEXITY_MARGINS,
            ),
            environment=environment(context.dense),
            timing=Timing(
                started=started,
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=context.journal.seconds(),
                peak_memory_bytes=peak_memory(),
            ),
            model=DenseModel.of(context.model.info),
            tasks=tuple(describe_task(task, context.prompting) for task in context.tasks),
            frontiers=tuple(rows),
            overall=tuple(overall),
            cost=tuple(self._cost(grid, task) for grid in self.grids for task in context.tasks),
            warnings=tuple(dict.fromkeys([*context.warnings, *self.judge.writer.warnings, *self._notes()])),
        )
        result.write()
        return result

    def _cost(self, grid: LevelGrid, task: Task) -> SearchCost:
        keys = self.judge.run_keys.get((grid.name, task.name), set())
        return SearchCost(
            name=grid.name,
            task=task.name,
            metric=task.metric,
            items=sum(len(self.context.journal.done(key)) for key in keys),
            full=len(grid.recipes) * len(self.context.items[task.name]),
            models=len(self.judge.recipes.get(grid.name, ())),
            levels=len(grid.recipes),
        )

    def _notes(self) -> Iterator[str]:
        info, recipes = self.context.model.info, [recipe for grid in self.grids for recipe in grid.recipes]
        if info.source_precision != "float" and any(grid.kind == "bits" for grid in self.grids):
            yield (
                f"the dense weights of {info.name} come from a file already rounded to {info.source_precision}: "
                "rounding them again says little about rounding the original"
            )
        if any(isinstance(recipe, Recovered) for recipe in recipes):
            yield unmeasured_by_stopping(
                [task.name for task in self.context.tasks if task.metric not in CONTROL_METRICS]
            )
        if not self.judge.search_propagate:
            propagates = self.context.study.propagate
            how = "the levels found were confirmed with propagated calibration" if propagates else "so was all"
            yield f"searched without propagation (every statistic from the dense model); {how}"
        if len(self.judge.seeds) == 1 and any(recipe.needs_calibration for recipe in recipes):
            yield "one calibration seed: the frontier is that of these weights, other calibration text may move it"
