"""Results beyond single verdicts: multiplicity correction, agreement of choices, and early stopping."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from llmkick.report import formatting
from llmkick.statistics import Comparison
from llmkick.study.results.records import AgreementRow, Family
from llmkick.study.results.results import StudyResult

AGREEMENT = ("task", "recipe", "seed", "n", "mean_kl", "top1_agreement")
FAMILIES = ("scope", "correction", "alpha", "recipe", "p", "adjusted_p", "matching")
CORRECTIONS: Mapping[str, str] = {
    "none": "Each verdict stands for itself, without correction for their number.",
    "holm": "Each verdict stands for itself; which recipes match when all are asked about (Holm) is told below.",
    "fixed sequence": "Each verdict stands for itself; which recipes match when each method's are tested in the order "
    "listed, until the first that fails (fixed sequence; the methods share the error rate), is told below.",
}


def correction_sentence(result: StudyResult) -> str:
    """A sentence on how the study corrects for the number of verdicts."""
    return CORRECTIONS.get(result.study.correction, CORRECTIONS["none"])


def items_asked(comparison: Comparison) -> str:
    """The number of items behind a verdict: "64 of 480 (stopped)", "480 (3 unscored)"."""
    stopping = comparison.stopping
    count = f"{comparison.n}"
    if stopping is not None and stopping.stopped:
        count += f" of {stopping.of} (stopped)"
    return count + (f" ({comparison.unscored} unscored)" if comparison.unscored else "")


@dataclass(frozen=True, kw_only=True)
class AgreementText:
    """The share of the dense model's choices that a recipe kept, and the KL divergence, as texts."""

    same: str = formatting.NOTHING
    kl: str = formatting.NOTHING


def agreements(result: StudyResult) -> dict[tuple[str, str], AgreementText]:
    """For each recipe and task with choices: share of the dense model's choices kept and KL, as means over seeds."""
    by_cell: dict[tuple[str, str], list[AgreementRow]] = {}
    for row in result.agreement:
        by_cell.setdefault((row.recipe, row.task), []).append(row)
    return {
        cell: AgreementText(
            same=formatting.percent(sum(row.top1_agreement for row in rows) / len(rows)),
            kl=f"{sum(row.mean_kl for row in rows) / len(rows):.2g}",
        )
        for cell, rows in by_cell.items()
    }


def agreement_table(result: StudyResult) -> pd.DataFrame:
    """One row for each recipe × seed × task with choices."""
    frame = pd.DataFrame([row.facts for row in result.agreement], columns=list(AGREEMENT))
    return frame.astype({"seed": "Int64", "mean_kl": float, "top1_agreement": float})


def families_table(result: StudyResult) -> pd.DataFrame:
    """One row for each scope (a task, all tasks) and recipe that was judged together with others."""
    rows = [
        {"scope": family.scope, "correction": family.correction, "alpha": family.alpha, **row.facts}
        for family in result.families
        for row in family.recipes
    ]
    return pd.DataFrame(rows, columns=list(FAMILIES))


def families(result: StudyResult) -> list[dict[str, str]]:
    """The recipes that match jointly, for the page: one row for each scope."""
    return [
        {
            "scope": family.scope,
            "matching": formatting.listed(names) if (names := _matching(family)) else "none",
            "of": f"{len(family.recipes)}",
        }
        for family in result.families
    ]


def _matching(family: Family) -> list[str]:
    return [row.recipe for row in family.recipes if row.matching]
