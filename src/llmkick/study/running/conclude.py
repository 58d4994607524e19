"""The conclusion of a study: compute the results from its journal after every cell is filled or given up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import pandas as pd

from llmkick.claims.assess import assess
from llmkick.claims.runs import ClaimRun
from llmkick.compression.walk.checks import LEAST_SHARE
from llmkick.models.language_model import LanguageModel
from llmkick.statistics import CameBack
from llmkick.study.cells import style_of
from llmkick.study.expected_work import STATISTICS, noise_key
from llmkick.study.results.axes import summaries_of, variant_rows
from llmkick.study.results.comparisons import cell_results, compare_all, overall_by_recipe
from llmkick.study.results.judge_summary import JudgeSummary, MissingJudgements
from llmkick.study.results.missing_judgements import missing_judgements, warnings_of_missing
from llmkick.study.results.multiplicity import agreement, correction_note, families, family_size
from llmkick.study.results.noise_floor import HALF_PRECISIONS, RecordedAnswer, describe_noise, noise_of_choices
from llmkick.study.results.overlap import OverlapRow, overlap_warnings
from llmkick.study.results.records import (
    AnyComparison,
    ComparedModel,
    CompressionSummary,
    DenseModel,
    FailedCell,
    JournalledCompression,
    NoiseRow,
    ResultRow,
    StudySettings,
    TaskSummary,
    Timing,
)
from llmkick.study.results.results import StudyResult
from llmkick.study.results.returned import recovered_models, returned, unmeasured_by_stopping, unpaired
from llmkick.study.results.warnings import loops, uncalibrated, warnings_of
from llmkick.study.running.contamination import text_overlap
from llmkick.study.running.context import StudyContext
from llmkick.study.running.environment import peak_memory
from llmkick.study.running.executor import Executor
from llmkick.study.running.external_models import describe_model, describe_recipe
from llmkick.study.running.study_run import CompletedRun
from llmkick.study.spec.study import Study


def conclude(
    context: StudyContext, executor: Executor, run: CompletedRun, *, started: str, noise: bool = True
) -> StudyResult:
    """Compute the results of a run and write results.json; `started` is the start time of this session (ISO 8601).

    `noise` says whether to measure the noise floor, for which the dense model is asked again.
    """
    return _Conclusion(context=context, executor=executor, run=run, noise=noise).result(started)


@dataclass(frozen=True, kw_only=True)
class _Recovered:
    """What the results say about recoveries, and about the text that made the models."""

    returned: tuple[CameBack, ...]
    overlap: tuple[OverlapRow, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Conclusion:
    context: StudyContext
    executor: Executor
    run: CompletedRun
    noise: bool

    def result(self, started: str) -> StudyResult:
        """Compute and write the results."""
        self.context.observer.stage("statistics", 1)
        records = self._records()
        noise = self._noise(records)
        with self.context.forecast.working(STATISTICS):
            return self._result(started, records, noise)

    def _result(self, started: str, records: pd.DataFrame, noise: Sequence[NoiseRow]) -> StudyResult:
        study = self.context.study
        tasks = summaries_of(study, self.context.tasks, self.context.prompting)
        variants = variant_rows(study)
        if self.context.judging is not None:
            tasks += self.context.judging.task_summaries()
        comparisons = self._comparisons(records, tasks)
        missing = missing_judgements(records, tasks, study.labels(), alpha=study.alpha)
        recovered = self._recovered(records, tasks)
        journalled = self._compressions()
        compressions = [compression.summary for compression in journalled]
        live_models = self.context.keys.external_models.live.values()
        result = StudyResult(
            folder=self.context.folder,
            study=StudySettings.model_validate({**study.model_dump(mode="json"), "hash": study.hash()}),
            environment=self.executor.environment(),
            timing=Timing(
                started=started,
                finished=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=self.context.journal.seconds(),
                compression_seconds={compression.digest: compression.seconds for compression in journalled},
                peak_memory_bytes=peak_memory(),
            ),
            model=DenseModel.of(self.context.model.info),
            tasks=tuple(tasks),
            results=tuple(sorted(cell_results(records, tasks, variants), key=lambda row: self._order(row, tasks))),
            comparisons=tuple(comparisons),
            # A recipe with an incomplete cell gets no overall verdict.
            overall=tuple(overall_by_recipe([c for c in comparisons if c.recipe not in self._incomplete()])),
            compression=tuple(compressions),
            models=tuple(self._models(compressions)),
            warnings=(
                *map(str, self.run.schedule.failures),
                *self.context.warnings,
                *self.run.warnings,
                *self.executor.warnings,
                *warnings_of_missing(missing),
                *recovered.warnings,
                *_warnings([self.context.model, *live_models], study, records, compressions),
                *(describe_noise(row, self.context.model.info.dtype) for row in noise),
            ),
            noise=tuple(noise),
            judge=self._judge(missing),
            families=tuple(families(comparisons, study.labels(), correction=study.correction, alpha=study.alpha)),
            agreement=tuple(agreement(records, study.labels())),
            variants=variants,
            returned=recovered.returned,
            overlap=recovered.overlap,
            failures=tuple(FailedCell.model_validate(failure.as_row()) for failure in self.run.schedule.failures),
        )
        return self._written(result, records)

    def _comparisons(self, records: pd.DataFrame, tasks: Sequence[TaskSummary]) -> list[AnyComparison]:
        study = self.context.study
        with self.context.timed("statistics", "comparisons"):
            return compare_all(
                records,
                tasks,
                study.labels(),
                margin=study.margin,
                alpha=study.alpha,
                orders=self.context.orders,
                family_size=family_size(study.labels(), study.correction),
                same_weights=self.context.left_the_weights,
            )

    def _written(self, result: StudyResult, records: pd.DataFrame) -> StudyResult:
        """Write the result with what it says about the claims of the paper."""
        with self.context.timed("statistics", "claims"):
            run = ClaimRun(name=self.context.study.name, result=result, records=lambda: records)
            result = result.model_copy(update={"claims": tuple(assess([run]))})
        result.write()
        return result

    def _recovered(self, records: pd.DataFrame, tasks: Sequence[TaskSummary]) -> _Recovered:
        """Return what came back, and how much of each task stands in the text that the models were made with."""
        models, warnings = recovered_models(self.context.study.labels())
        warnings += unpaired(records, models)
        stopped = [task.name for task in tasks if task.name in self.context.orders]
        if models and stopped:
            warnings.append(unmeasured_by_stopping(stopped))
        with self.context.timed("statistics", "what came back"):
            whole = [task for task in tasks if task.name not in stopped]
            rows = returned(records, whole, models, alpha=self.context.study.alpha)
        with self.context.timed("statistics", "overlap"):
            overlap = text_overlap(self.context)
        return _Recovered(
            returned=tuple(rows), overlap=tuple(overlap), warnings=(*warnings, *overlap_warnings(overlap))
        )

    def _noise(self, records: pd.DataFrame) -> list[NoiseRow]:
        """Return the noise floor of every task with choices; float32 has no noise floor."""
        if not self.noise or self.context.model.info.dtype not in HALF_PRECISIONS:
            return []
        rows = []
        dense = records[records["recipe"] == "dense"]
        for cell in self.context.cells(next(self.context.variants())):
            row = self.context.journal.noise(cell.run_key, NoiseRow)
            of_task = dense[dense["task"] == cell.task.name].set_index("item_id")
            if row is None and not of_task.empty:
                recorded = cast(Mapping[str, RecordedAnswer], of_task[["response", "details"]].to_dict("index"))
                items, style = self.context.items[cell.task.name], style_of(cell.task, self.context.prompting)
                with self.context.forecast.working(noise_key(cell.task.name)):
                    row = noise_of_choices(self.context.model, cell.task, items, style, recorded)
                if row is not None:
                    self.context.journal.add_noise(cell.run_key, row)
            rows += [row] if row is not None else []
        return rows

    def _judge(self, missing: Sequence[MissingJudgements]) -> JudgeSummary | None:
        summary = None if self.context.judging is None else self.context.judging.summary
        return None if summary is None else summary.model_copy(update={"missing": tuple(missing)})

    def _records(self) -> pd.DataFrame:
        """Return the records of all complete cells.

        A cell that was given up half-way is excluded, because its records are a different sample of the items.
        """
        records = self.context.journal.records()
        return records[~records["run_key"].isin(self.run.schedule.given_up())]

    def _incomplete(self) -> set[str]:
        return {failure.cell.variant.label for failure in self.run.schedule.failures}

    def _order(self, row: ResultRow, tasks: Sequence[TaskSummary]) -> tuple[int, int, int]:
        labels, names = ["dense", *self.context.study.labels()], [task.name for task in tasks]
        return labels.index(row.recipe), row.seed or 0, names.index(row.task)

    def _models(self, compressions: Sequence[CompressionSummary]) -> list[ComparedModel]:
        """Return the size and kind of every model if the study includes external models, else an empty list."""
        if not self.context.study.others:
            return []
        dense = describe_model("dense", self.context.model, self.context.study.model)
        models = [dense, *(describe_recipe(dense, compression) for compression in compressions)]
        for variant in self.context.variants():
            if variant.reference:
                model = self.context.journal.artifact(self.context.keys.report_key(variant), ComparedModel)
                assert model is not None, f"{variant} was never opened"
                models.append(model)
        return models

    def _compressions(self) -> list[JournalledCompression]:
        compressions = []
        for variant in self.context.variants():
            if variant.is_recipe:
                key = self.context.keys.report_key(variant)
                compression = self.context.journal.artifact(key, JournalledCompression)
                assert compression is not None or variant.label in self._incomplete(), f"no report of {variant}"
                compressions += [] if compression is None else [compression]
        return compressions


def _warnings(
    models: Sequence[LanguageModel], study: Study, records: pd.DataFrame, compressions: Sequence[CompressionSummary]
) -> list[str]:
    """Return warnings that the tables do not show; `models` are the dense model first, then the live models."""
    warnings = []
    info = models[0].info
    if info.source_precision != "float" and any(recipe.is_rounding for recipe in study.parsed_recipes()):
        warnings.append(
            f"the dense weights of {info.name} come from a file already rounded to {info.source_precision}: "
            "rounding them again says little about rounding the original"
        )
    warnings += uncalibrated(study)
    if not study.propagate:
        warnings.append("calibration was not propagated: every statistic comes from the dense model")
    for model in models:
        warnings += model.notes
    if len(study.labels()) > 1:
        warnings.append(correction_note(study.labels(), study.correction, study.alpha))
    for compression in compressions:
        if compression.block_share is not None and compression.block_share < LEAST_SHARE:
            warnings.append(
                f"{compression.recipe}: {compression.block_share:.1%} of the block weights were compressed, "
                "the others are those of the dense model (allow_partial)"
            )
        warnings += [f"{compression.recipe}: {warning}" for warning in compression.warnings]
    warnings += loops(records)
    return list(dict.fromkeys([*warnings, *warnings_of(records)]))
