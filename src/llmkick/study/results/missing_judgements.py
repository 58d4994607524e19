"""Missing judgements: whether they depend on the recipe, and the verdicts that are incomplete for this reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import pandas as pd

from llmkick.statistics import Comparison, MissingScores, as_incomplete, holm, missing_scores
from llmkick.study.results.judge_summary import MissingJudgements
from llmkick.study.results.records import AnyComparison, TaskSummary

# Recipe and calibration seed.
Variant = tuple[str, int | None]


def missing_judgements(
    records: pd.DataFrame, tasks: Sequence[TaskSummary], recipes: Sequence[str], *, alpha: float
) -> list[MissingJudgements]:
    """Compare the missing judgements of each recipe and seed with those of the dense model, on every judged task.

    A judge tends to fail on the worst answers. If judgements are missing more often for one model, the scores that are
    left are of other answers than those that are missing. Holm adjusts over the recipes and seeds of a task.
    """
    rows = []
    for task in tasks:
        of_task = records[records["task"] == task.name]
        dense = of_task[of_task["recipe"] == "dense"].set_index("item_id")
        if task.judge is None or dense.empty:
            continue
        clusters = {str(item): str(cluster) for item, cluster in dense["cluster"].items()}
        tests = {
            variant: missing_scores(_scores(dense), _scores(cell), clusters=clusters)
            for recipe in recipes
            for variant, cell in _by_seed(recipe, of_task)
        }
        adjusted = holm({_name(variant): test.p for variant, test in tests.items()}, alpha=alpha)
        rows += [_row(task.name, variant, test, *adjusted[_name(variant)]) for variant, test in tests.items()]
    return rows


def _by_seed(recipe: str, of_task: pd.DataFrame) -> Iterable[tuple[Variant, pd.DataFrame]]:
    cells = of_task[of_task["recipe"] == recipe]
    for seed, cell in cast(Iterable[tuple[float, pd.DataFrame]], cells.groupby("seed", dropna=False)):
        yield (recipe, None if pd.isna(seed) else int(seed)), cell.set_index("item_id")


def _scores(cell: pd.DataFrame) -> dict[str, float | None]:
    return {str(item): None if pd.isna(score) else float(score) for item, score in cell["score"].items()}


def _name(variant: Variant) -> str:
    recipe, seed = variant
    return recipe if seed is None else f"{recipe} (seed {seed})"


def _row(task: str, variant: Variant, test: MissingScores, adjusted_p: float, differs: bool) -> MissingJudgements:
    recipe, seed = variant
    return MissingJudgements(
        task=task,
        recipe=recipe,
        seed=seed,
        items=test.items,
        missing=test.compressed,
        share=test.compressed / test.items,
        dense_missing=test.dense,
        dense_share=test.dense / test.items,
        p=test.p,
        adjusted_p=adjusted_p,
        differs=differs,
    )


def with_missing_judgements(
    comparisons: Sequence[AnyComparison], rows: Sequence[MissingJudgements]
) -> list[AnyComparison]:
    """Return the comparisons; those whose missing judgements depend on the model are incomplete.

    A task without a signal keeps its verdict: it says nothing about the recipe.
    """
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.differs:
            reasons.setdefault((row.task, row.recipe), []).append(reason(row))
    return [_marked(comparison, reasons) for comparison in comparisons]


def _marked(comparison: AnyComparison, reasons: Mapping[tuple[str, str], Sequence[str]]) -> AnyComparison:
    of_cell = reasons.get((comparison.task, comparison.recipe))
    if of_cell is None or not isinstance(comparison, Comparison) or comparison.verdict == "no signal":
        return comparison
    return as_incomplete(comparison, "; ".join(of_cell))


def reason(row: MissingJudgements) -> str:
    """Return a sentence about judgements that are missing more often for one model."""
    p = "< 0.001" if row.adjusted_p < 0.001 else f"= {row.adjusted_p:.3f}"
    seed = "" if row.seed is None else f" with seed {row.seed}"
    return (
        f"{row.missing} of {row.items} judgements are missing{seed}, and {row.dense_missing} of the dense model's "
        f"(p {p}): what is missing depends on the model"
    )


def warnings_of_missing(rows: Sequence[MissingJudgements]) -> list[str]:
    """Return warnings about verdicts that are incomplete because of their missing judgements."""
    return [f"{row.recipe} on {row.task} is incomplete: {reason(row)}" for row in rows if row.differs]
