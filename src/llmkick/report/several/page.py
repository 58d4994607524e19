"""The HTML page of several studies: verdicts side by side, and paired differences of comparable tasks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import cast

import altair as alt
import pandas as pd

from llmkick.errors import DataError
from llmkick.files import write_text
from llmkick.report import formatting, matrix
from llmkick.report.claims import claim_payload, claims_of
from llmkick.report.figures import charts
from llmkick.report.figures.figures import Figure
from llmkick.report.figures.methods import OTHER_COLOURS, styles
from llmkick.report.lookup import judged_loss, ordered_tasks, task_comparisons
from llmkick.report.matrix import ControlCell, Matrix, TaskCell
from llmkick.report.page.embedding import packed
from llmkick.report.page.page import PAGE_FILE, figure_payload, page_environment, page_parts
from llmkick.report.page.provenance import sections
from llmkick.report.payload import Payload
from llmkick.report.run_folder import Run, opened_run
from llmkick.report.several.studies import Difference, Paired, labels, pair, task_refusal

SCRIPTS = ("page.js", "page_matrix.js", "page_figures.js", "page_start_studies.js")
# The palette of the methods; the first studies have a colour each, further ones a colour in another shape.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", *OTHER_COLOURS)
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right", "triangle-left")
LOOKS = styles(COLOURS, SHAPES)


def write_studies(folders: Sequence[Path], target: Path) -> Path:
    """Write one page about several run folders; returns its path.

    Raises ConfigError for a repeated folder, DataError for a folder without results to show.
    """
    names = labels(folders)
    with ExitStack() as stack:
        runs = [stack.enter_context(opened_run(folder)) for folder in folders]
        paired = [pair(runs[0], run, names=(names[0], name)) for name, run in zip(names[1:], runs[1:], strict=True)]
        if not any(run.result.comparisons for run in runs):
            raise DataError("none of the studies compares anything with its dense model; there is nothing to show")
        return write_text(target, _render(names, runs, paired, target))


def _render(names: Sequence[str], runs: Sequence[Run], paired: Sequence[Paired], target: Path) -> str:
    environment = page_environment()
    drawn, matrices = _figures(names, runs), [matrix.matrix(run.result) for run in runs]
    figure_data = {figure.name: figure_payload(figure) for figure in drawn}
    context = {
        "studies": [_study(name, run, target) for name, run in zip(names, runs, strict=True)],
        "matrix": _matrix(names, matrices, runs),
        "marks": matrix.legend(matrices),
        "gain_sign": formatting.GAIN_SIGN,
        **_claims(names, runs),
        "paired": [_texts(pairs) for pairs in paired],
        "figures": drawn,
        "data": {"figures": packed(figure_data), "tables": packed({"differences": _saved(paired)})},
        **page_parts(environment, SCRIPTS),
    }
    return environment.get_template("studies.html.jinja").render(context)


def _claims(names: Sequence[str], runs: Sequence[Run]) -> Payload:
    """The claims of the paper on all studies together, or why they are not read together."""
    alpha = formatting.setting(runs[0].result.study.alpha)
    try:
        return {"claims": claim_payload(claims_of(runs, names)), "claims_refused": "", "alpha": alpha}
    except DataError as error:
        return {"claims": [], "claims_refused": str(error), "alpha": alpha}


def _study(name: str, run: Run, target: Path) -> Payload:
    """The identity of a study, and the path of its report relative to the page."""
    result = run.result
    report = result.folder / PAGE_FILE
    relative = os.path.relpath(report.resolve(), target.resolve().parent)
    return {
        "name": name,
        "result": result,
        "missing": run.missing,
        "margin": formatting.setting(result.study.margin),
        "report": Path(relative).as_posix() if report.is_file() else None,
        "sections": sections(result),
    }


def _matrix(names: Sequence[str], matrices: Sequence[Matrix], runs: Sequence[Run]) -> Payload:
    """Recipes × tasks, one line per study; marks the tasks that cannot be paired with the first study."""
    tasks = _tasks(runs)
    recipes = list(dict.fromkeys(recipe for run in runs for recipe in run.result.labels))
    refused = {
        task: [task_refusal(runs[0].result, run.result, task) if place else "" for place, run in enumerate(runs)]
        for task in tasks
    }
    return {
        "tasks": tasks,
        "refused": refused,
        "dense": [_line(name, table, tasks, "dense") for name, table in zip(names, matrices, strict=True)],
        "rows": [
            {
                "recipe": recipe,
                "lines": [
                    _line(name, table, tasks, recipe)
                    for name, table, run in zip(names, matrices, runs, strict=True)
                    if recipe in run.result.labels
                ],
            }
            for recipe in recipes
        ],
    }


def _line(name: str, table: Matrix, tasks: Sequence[str], recipe: str) -> Payload:
    columns = [task.name for task in table.tasks]
    if recipe == "dense":
        cells: Sequence[str | ControlCell | TaskCell | None] = table.dense
        overall = None
    else:
        row = next(row for row in table.rows if row.recipe == recipe)
        cells, overall = row.cells, row.overall
    by_task = dict(zip(columns, cells, strict=True))
    return {"study": name, "overall": overall, "cells": [by_task.get(task) for task in tasks]}


def _tasks(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(task.name for run in runs for task in ordered_tasks(run.result)))


def _texts(paired: Paired) -> Payload:
    """Differences as texts."""
    rows = [
        {
            "recipe": row.recipe, "task": row.task, "n": row.n,
            "first": _number(row.first), "second": _number(row.second),
            "difference": _difference(row),
            "lost": f"{row.lost:g}", "gained": f"{row.gained:g}",
            "first_verdict": row.first_verdict or formatting.NOTHING,
            "second_verdict": row.second_verdict or formatting.NOTHING,
            "changed": row.first_verdict != row.second_verdict,
        }
        for row in paired.differences
    ]  # fmt: skip
    about = {"first": paired.first, "second": paired.second, "refusals": paired.refusals, "notes": paired.notes}
    return {**about, "rows": rows}


def _difference(row: Difference) -> str:
    return "identical" if row.identical else formatting.difference(row.difference, row.interval)


def _number(value: float | None) -> str:
    return formatting.score(value, "perplexity" if value is not None and value > 1 else "")


def _saved(paired: Sequence[Paired]) -> Payload:
    """The differences in full precision, as one table."""
    columns = ["first_study", "second_study", "recipe", "task", "n", "first", "second", "difference", "low", "high",
               "lost", "gained", "first_verdict", "second_verdict"]  # fmt: skip
    rows = [
        [
            pairs.first, pairs.second, row.recipe, row.task, row.n, row.first, row.second, row.difference,
            *(row.interval or (None, None)), row.lost, row.gained, row.first_verdict, row.second_verdict,
        ]
        for pairs in paired
        for row in pairs.differences
    ]  # fmt: skip
    return {"title": "the paired differences", "numbers": {"columns": columns, "rows": rows}}


def _figures(names: Sequence[str], runs: Sequence[Run]) -> list[Figure]:
    """Relative loss of every recipe, studies side by side, on the tasks that are identical in all of them."""
    rows = [
        {
            "study": name, "recipe": entry.recipe, "task": entry.task, "loss": judged_loss(entry).share,
            "low": (judged_loss(entry).interval or (None, None))[0],
            "high": (judged_loss(entry).interval or (None, None))[1],
            "verdict": entry.verdict, "change": formatting.loss_sentence(entry),
        }
        for name, run in zip(names, runs, strict=True)
        for entry in task_comparisons(run.result)
        if entry.verdict != "no signal" and judged_loss(entry).share is not None
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["study", "recipe", "task", "loss", "low", "high", "verdict", "change"])
    alike = [
        task
        for task in _tasks(runs)
        if not any(task_refusal(runs[0].result, run.result, task) for run in runs[1:]) and (frame["task"] == task).any()
    ]
    if not alike:
        return []
    frame[["loss", "low", "high"]] = frame[["loss", "low", "high"]].astype(float)
    shown = frame[frame["task"].isin(alike)]
    scale = charts.loss_scale(shown, "loss")
    left_out = [task for task in dict.fromkeys(frame["task"]) if task not in alike]
    said = f" Left out, because it was not asked alike: {formatting.listed(left_out)}." if left_out else ""
    return [
        Figure(
            name="studies",
            title="Relative loss in each study",
            caption=f"With its interval; the upright line is the margin of the first study.{said}"
            + charts.cut_note(shown, scale),
            chart=charts.themed([_panel(shown, task, names, runs[0], scale) for task in alike], columns=2, minimum=240),
            rows=shown,
        )
    ]


def _panel(frame: pd.DataFrame, task: str, names: Sequence[str], first: Run, scale: alt.Scale) -> alt.LayerChart:
    panel = frame[frame["task"] == task]
    recipes = list(dict.fromkeys(frame["recipe"]))
    x = alt.X("loss:Q", title=charts.LOSS_TITLE, axis=charts.loss_ticks(), scale=scale)
    low = x.copy()
    low.shorthand = "low:Q"
    y = alt.Y("recipe:N", title=None, sort=recipes, axis=alt.Axis(labelLimit=170))
    offset = alt.YOffset("study:N", sort=list(names))
    colours, shapes = zip(*(LOOKS[i % len(LOOKS)] for i in range(len(names))), strict=True)
    colour = alt.Color("study:N", title=None, scale=alt.Scale(domain=list(names), range=list(colours)))
    shape = alt.Shape("study:N", title=None, scale=alt.Scale(domain=list(names), range=list(shapes)))
    base = alt.Chart(panel).encode(y=y, yOffset=offset, color=colour)
    margin = alt.Chart(pd.DataFrame([{"loss": first.result.study.margin}]))
    tips = ["study:N", "recipe:N", "task:N", "change:N", "verdict:N"]
    layers = [
        margin.mark_rule(strokeDash=[4, 3], color=charts.GREY).encode(x=x),
        base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=1.5, clip=True).encode(x=low, x2="high:Q"),
        base.mark_point(filled=True, size=50, opacity=1, clip=True).encode(x=x, shape=shape, tooltip=tips),
    ]
    height = alt.Step(max(20, 11 * len(names)), **{"for": "position"})
    return cast(alt.LayerChart, alt.layer(*layers)).properties(title=task, width=300, height=height)
