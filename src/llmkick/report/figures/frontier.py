"""Figure and table of the frontier: the strongest matching level by method and task, next to perplexity's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import altair as alt
import pandas as pd
import vl_convert
from rich import box
from rich.table import Table
from rich.text import Text

from llmkick.files import write_text
from llmkick.report import formatting
from llmkick.report.figures.board import Board
from llmkick.report.figures.charts import GREY, INK, themed
from llmkick.report.figures.figure import VEGA_LITE
from llmkick.report.level_axes import KINDS
from llmkick.study.frontier.result import FrontierEnds, FrontierResult, FrontierRow, LevelRow
from llmkick.study.results.records import CONTROL_METRICS

OVERALL = "all tasks"
NARROWEST, WIDEST = 260, 390  # pixels of a panel: two of the widest and their labels fit a laptop's window
# Colour and shape both distinguish the marks.
MARKS = {
    "matching": ("#0072b2", "circle"),
    "undecided": ("#e69f00", "triangle-up"),
    "not matching": ("#d55e00", "cross"),
    "no signal": (GREY, "square"),
    "incomplete": ("#cc79a7", "diamond"),
}


def row_name(row: FrontierRow) -> str:
    """The task name; for perplexity also the rise that is within its margin."""
    if row.metric not in CONTROL_METRICS:
        return row.task
    return f"{row.task} ≤ +{formatting.setting(row.margin)}"


def answer(row: FrontierEnds) -> str:
    """The frontier as an interval: the strongest level proven to match … the weakest proven not to."""
    if isinstance(row, FrontierRow) and row.verdicts and all(level.verdict == "no signal" for level in row.verdicts):
        return "no signal"
    matching, failing = row.strongest_matching, row.weakest_not_matching
    return f"{matching or formatting.NOTHING} … {failing or formatting.NOTHING}"


def frontier_table(result: FrontierResult) -> Table:
    """Tasks × methods for a terminal."""
    names = list(dict.fromkeys(row.name for row in result.frontiers))
    table = Table(
        "task",
        *names,
        title=f"How far {result.model.name} goes: strongest level that matches … weakest that does not",
        caption=f"Matching: a loss of at most {formatting.setting(result.study.margin)} is shown on every item. "
        "Perplexity: its rise is shown to be within the margin; it has no say in the last line.",
        box=box.SIMPLE_HEAD,
    )
    judged = dict.fromkeys(row_name(row) for row in result.frontiers if row.metric not in CONTROL_METRICS)
    control = dict.fromkeys(row_name(row) for row in result.frontiers if row.metric in CONTROL_METRICS)
    by_cell = {(row_name(row), row.name): answer(row) for row in result.frontiers}
    for name in (*judged, *control):
        table.add_row(name, *(by_cell.get((name, method), formatting.NOTHING) for method in names))
    table.add_section()
    overall = {row.name: answer(row) for row in result.overall}
    table.add_row(OVERALL, *(Text(overall[name], style="bold") for name in names))
    spent = [_share(result, name) for name in names]
    table.add_row("items asked, of the full grid", *spent, style="dim")
    return table


def _share(result: FrontierResult, name: str) -> str:
    costs = [row for row in result.cost if row.name == name and row.metric not in CONTROL_METRICS]
    asked, full = sum(row.items for row in costs), sum(row.full for row in costs)
    return f"{asked:,} of {full:,} ({formatting.percent(asked / full)})" if full else formatting.NOTHING


def frontier_chart(result: FrontierResult) -> Board:
    """One panel per method: tasks as rows, levels from mild to severe as columns; a bar shows an unknown range."""
    panels = [_panel(result, name) for name in dict.fromkeys(row.name for row in result.frontiers)]
    # The reader's font may be wider than the font used for the layout, so task names get extra room.
    room = {"left": 28, "right": 8, "top": 8, "bottom": 8}
    return themed(panels, columns=2, rest={"padding": room})


def _panel(result: FrontierResult, name: str) -> alt.LayerChart:
    rows = [row for row in result.frontiers if row.name == name]
    (overall,) = [row for row in result.overall if row.name == name]
    levels, kind = list(rows[0].levels), rows[0].kind
    tasks = [row_name(row) for row in rows if row.metric not in CONTROL_METRICS]
    control = [row_name(row) for row in rows if row.metric in CONTROL_METRICS]
    order = [*tasks, OVERALL, *control]
    bars = pd.DataFrame([_bar(row_name(row), row, levels) for row in rows] + [_bar(OVERALL, overall, levels)])
    points = pd.DataFrame([_point(row, level) for row in rows for level in row.verdicts])
    x = alt.X(
        "level:O",
        sort=levels,
        scale=alt.Scale(domain=levels),
        title=f"{KINDS[kind].lower()}, mild → severe",
        axis=alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=8),
    )
    y = alt.Y("task:N", sort=order, scale=alt.Scale(domain=order), title=None, axis=alt.Axis(labelLimit=200))
    tips = [alt.Tooltip("task:N"), alt.Tooltip("answer:N", title="matching … not matching")]
    base = alt.Chart(bars.dropna(subset=["start", "end"]))
    unknown = base.mark_bar(height=13, color=GREY, opacity=0.25).encode(
        x=alt.X("start:O", sort=levels), x2="end:O", y=y, tooltip=tips
    )
    ends = [
        alt.Chart(bars.dropna(subset=[column]))
        .mark_tick(thickness=4, size=17, color=colour)
        .encode(x=alt.X(f"{column}:O", sort=levels), y=y, tooltip=tips)
        for column, colour in (("matching", MARKS["matching"][0]), ("failing", MARKS["not matching"][0]))
    ]
    colour = alt.Color(
        "verdict:N",
        title=None,
        scale=alt.Scale(domain=list(MARKS), range=[colour for colour, _ in MARKS.values()]),
    )
    shape = alt.Shape(
        "verdict:N", title=None, scale=alt.Scale(domain=list(MARKS), range=[s for _, s in MARKS.values()])
    )
    seen = (
        alt.Chart(points)
        .mark_point(size=45, strokeWidth=1.6, stroke=INK)
        .encode(x=x, y=y, stroke=colour, shape=shape, tooltip=_TIPS)
    )
    layers = alt.layer(seen, unknown, *ends)
    width = min(WIDEST, max(NARROWEST, 19 * len(levels)))
    return cast(alt.LayerChart, layers.properties(title=name, width=width, height=alt.Step(24)))


_TIPS = [
    alt.Tooltip("task:N"),
    alt.Tooltip("recipe:N"),
    alt.Tooltip("verdict:N"),
    alt.Tooltip("loss:N"),
    alt.Tooltip("asked:N", title="items asked"),
]


def _bar(name: str, row: FrontierEnds, levels: Sequence[str]) -> dict[str, str | None]:
    """The unknown range between the two ends; a missing end is replaced by the end of the grid."""
    silent = answer(row) == "no signal" or (row.strongest_matching is None and row.weakest_not_matching is None)
    return {
        "task": name,
        "matching": row.strongest_matching,
        "failing": row.weakest_not_matching,
        "start": None if silent else row.strongest_matching or levels[0],
        "end": None if silent else row.weakest_not_matching or levels[-1],
        "answer": answer(row),
    }


def _point(row: FrontierRow, level: LevelRow) -> dict[str, str]:
    sure = " (confirmed)" if level.confirmed else ""
    return {
        "task": row_name(row),
        "level": level.level,
        "recipe": level.recipe,
        "verdict": level.verdict,
        "loss": str(_change(row, level)),
        "asked": f"{level.items} of {level.of}{sure}",
    }


def _change(row: FrontierRow, level: LevelRow) -> formatting.Change:
    """The loss at a level, or the rise of perplexity."""
    if row.metric not in CONTROL_METRICS:
        return formatting.relative_loss(level.loss, level.interval)
    return formatting.Change(value=formatting.percent(level.loss), interval=formatting.interval(level.interval))


def write_frontier_figure(result: FrontierResult) -> list[Path]:
    """figures/frontier.svg and frontier.html, a page that needs nothing else, into the run's folder."""
    spec = json.dumps(frontier_chart(result).to_dict())
    return [
        write_text(result.folder / "figures" / "frontier.svg", vl_convert.vegalite_to_svg(spec, vl_version=VEGA_LITE)),
        write_text(
            result.folder / "frontier.html", vl_convert.vegalite_to_html(spec, vl_version=VEGA_LITE, bundle=True)
        ),
    ]
