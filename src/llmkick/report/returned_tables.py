"""What came back as data frames: shares with their intervals, histories of items, and the overlap with texts."""

from __future__ import annotations

import pandas as pd

from llmkick.report.came_back import costs, overlap_with
from llmkick.report.lookup import task_comparisons
from llmkick.report.payload import Payload
from llmkick.statistics import CameBack, Ratio
from llmkick.study.results.results import StudyResult

SHARES = ("returned", "newly_lost", "newly_lost_control", "gained", "control", "difference", "always", "change")
RETURNED = (
    "recipe", "base", "recovery", "task", "detail", "group", "seeds", "n", "unscored", "clusters", "graded", "lost",
    "kept", *(f"{name}{end}" for name in SHARES for end in ("", "_low", "_high")), "difference_p", "change_p",
    "outcome", "against_base", "verdict", "paper_verdict", "base_verdict", "base_paper_verdict", "contaminated",
    "seconds", "tokens", "extra_bytes", "extra_bits", "notes",
)  # fmt: skip
FLOWS = ("recipe", "base", "task", "detail", "group", "dense", "compressed", "recovered", "items")


def returned_table(result: StudyResult) -> pd.DataFrame:
    """One row for each recovered recipe × task × part: every number, with the verdicts by both rules and the cost."""
    of_cost = costs(result)
    verdicts = {(one.recipe, one.task): one for one in task_comparisons(result)}
    rows = []
    for row in result.returned:
        ours, of_base = verdicts.get((row.recipe, row.task)), verdicts.get((row.base, row.task))
        overlap = overlap_with(result, row.recipe, row.task)
        rows.append(
            {
                **{name: value for name, value in vars(row).items() if name in RETURNED and name not in SHARES},
                **{key: value for name in SHARES for key, value in _numbers(name, getattr(row, name)).items()},
                **vars(of_cost[row.recipe]),
                "seeds": " ".join(map(str, row.seeds)),
                "notes": "; ".join(row.notes),
                "difference_p": row.difference.p,
                "change_p": row.change.p,
                "verdict": None if ours is None else ours.verdict,
                "paper_verdict": None if ours is None else ours.paper_verdict,
                "base_verdict": None if of_base is None else of_base.verdict,
                "base_paper_verdict": None if of_base is None else of_base.paper_verdict,
                "contaminated": None if overlap is None else overlap.answered,
            }
        )
    return pd.DataFrame(rows, columns=list(RETURNED))


def _numbers(name: str, ratio: Ratio) -> Payload:
    low, high = ratio.interval or (None, None)
    return {name: ratio.value, f"{name}_low": low, f"{name}_high": high}


def flows_table(result: StudyResult) -> pd.DataFrame:
    """One row for each history of items: what the dense, the compressed and the recovered model made of them."""
    return pd.DataFrame([row for one in result.returned for row in _flows(one)], columns=list(FLOWS))


def _flows(row: CameBack) -> list[Payload]:
    place = {name: getattr(row, name) for name in ("recipe", "base", "task", "detail", "group")}
    return [{**place, **vars(flow)} for flow in row.flow]


def overlap_table(result: StudyResult) -> pd.DataFrame:
    """One row for each text that made models, and task: the items that stand in it."""
    lists = ("recipes", "examples")
    return pd.DataFrame([{**row.facts, **{name: ", ".join(row[name]) for name in lists}} for row in result.overlap])
