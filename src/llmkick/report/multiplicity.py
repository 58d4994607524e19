"""What goes beyond single verdicts: recipes judged together, agreement of choices, where the asking stopped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from llmkick.report import formatting
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
    """How the number of verdicts is dealt with."""
    return CORRECTIONS.get(result.study.get("correction", "none"), CORRECTIONS["none"])


def asked(entry: Mapping[str, Any]) -> str:
    """How many items a verdict rests on: "64 of 480 (stopped)", "480 (3 unscored)"."""
    stopping = entry.get("stopping")
    count = f"{entry['n']} of {stopping['of']} (stopped)" if stopping and stopping["stopped"] else f"{entry['n']}"
    return count + (f" ({entry['unscored']} unscored)" if entry["unscored"] else "")


def agreements(result: StudyResult) -> dict[tuple[str, str], dict[str, str]]:
    """For each recipe and task with choices: share of the dense model's choices kept, KL; means over seeds."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in result.agreement:
        found.setdefault((row["recipe"], row["task"]), []).append(row)
    return {
        place: {
            "same": formatting.percent(sum(row["top1_agreement"] for row in rows) / len(rows)),
            "kl": f"{sum(row['mean_kl'] for row in rows) / len(rows):.2g}",
        }
        for place, rows in found.items()
    }


def agreement_table(result: StudyResult) -> pd.DataFrame:
    """One row for each recipe × seed × task with choices."""
    frame = pd.DataFrame([dict(row) for row in result.agreement], columns=list(AGREEMENT))
    return frame.astype({"seed": "Int64", "mean_kl": float, "top1_agreement": float})


def families_table(result: StudyResult) -> pd.DataFrame:
    """One row for each scope (a task, all tasks) and recipe that was judged together with others."""
    rows = [
        {**{key: family[key] for key in ("scope", "correction", "alpha")}, **row}
        for family in result.families
        for row in family["recipes"]
    ]
    return pd.DataFrame(rows, columns=list(FAMILIES))


def families(result: StudyResult) -> list[dict[str, str]]:
    """For a page: which recipes match together, a row for each scope."""
    return [
        {
            "scope": family["scope"],
            "matching": formatting.listed(names) if (names := _matching(family)) else "none",
            "of": f"{len(family['recipes'])}",
        }
        for family in result.families
    ]


def _matching(family: Mapping[str, Any]) -> list[str]:
    return [row["recipe"] for row in family["recipes"] if row["matching"]]
