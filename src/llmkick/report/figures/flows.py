"""Figures of what came back: the right answers of the dense model, through compression and recovery."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import numpy as np
import pandas as pd

from llmkick.report import formatting
from llmkick.report.came_back import OUTCOMES, share, whole_tasks
from llmkick.report.figures import charts
from llmkick.report.figures.board import Layer, Panel
from llmkick.report.figures.figure import Figure
from llmkick.report.returned_tables import flows_table
from llmkick.statistics import CameBack
from llmkick.study.results.results import StudyResult

# Each way of an item: its words, and its colour; words and places repeat what the colours say.
WAYS: Mapping[str, tuple[str, str]] = {
    "kept": ("still right", "#56b4e9"),
    "returned": ("returned", "#009e73"),
    "newly lost": ("newly lost", "#cc79a7"),
    "still lost": ("still lost", "#d55e00"),
}
COLUMNS = (0.0, 0.3, 0.6)  # where the bars of the three models stand, as shares of the panel's width
BAR = 0.022
INSET = 0.012  # between a bar and its words
GAP = 0.07  # between items that are right and items that are wrong, as a share of all
STEPS = 24  # of the curve of a ribbon
HEIGHT = 132
LEAST = 13.0  # pixels between two labels


@dataclass(frozen=True, kw_only=True)
class Block:
    """Items that stand together in a column, from `low` to `high`."""

    column: int
    low: float
    high: float


def flow_figures(result: StudyResult) -> list[Figure]:
    """A figure for each recovered recipe, with a panel for each task of which the dense model knew something."""
    rows = whole_tasks(result)
    table = flows_table(result)
    figures = []
    for recipe in dict.fromkeys(row.recipe for row in rows):
        panels = [_panel(row) for row in rows if row.recipe == recipe and sum(_ways(row).values()) > 0]
        if panels:
            figures.append(
                Figure(
                    name=flow_name(recipe),
                    title=f"What came back with {recipe}",
                    caption="The items that the dense model had right: kept or lost by compression, then returned, "
                    "newly lost or still lost after the recovery. A graded answer is right from the dense score on. "
                    "Numbers are means over seeds.",
                    chart=charts.themed(panels, columns=4, minimum=250, usermeta={"axes": 12, "widest": 340}),
                    rows=table[(table["recipe"] == recipe) & (table["detail"] == "")],
                )
            )
    return figures


def flow_name(recipe: str) -> str:
    """The name of the figure of a recovered recipe, and of its files."""
    return "came-back-" + re.sub(r"[^\w.+-]+", "-", recipe).strip("-")


def _ways(row: CameBack) -> dict[str, float]:
    """Way → number of items, of those that the dense model had right."""
    ways = dict.fromkeys(WAYS, 0.0)
    for flow in row.flow:
        if flow.dense in ("right", "held"):
            is_kept, is_right = (state in ("right", "held") for state in (flow.compressed, flow.recovered))
            way = ("kept" if is_right else "newly lost") if is_kept else ("returned" if is_right else "still lost")
            ways[way] += flow.items
    return ways


def _panel(row: CameBack) -> Panel:
    ways = _ways(row)
    total = sum(ways.values())
    mark = OUTCOMES[row.outcome]
    control = f", control {formatting.percent(row.control.value)}" if row.control.value is not None else ""
    title = alt.TitleParams(
        row.task,
        subtitle=[f"returned {share(row.returned)}{control}", f"{mark.symbol} {row.outcome}"],
    )
    return Panel(layers=list(_layers(ways, total, graded=row.graded)), width=320, height=HEIGHT, title=title)


def _layers(ways: Mapping[str, float], total: float, *, graded: bool) -> Iterator[Layer]:
    top = total * (1 + GAP)
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, 1], nice=False), axis=None)
    y = alt.Y("y:Q", scale=alt.Scale(domain=[0, top * 1.14], nice=False), axis=None)
    scale = alt.Scale(domain=list(WAYS), range=[colour for _, colour in WAYS.values()])
    colour = alt.Color("way:N", scale=scale, legend=None)
    ribbons = pd.DataFrame([point for ribbon in _ribbons(ways, total) for point in ribbon])
    tips = [alt.Tooltip("way:N", title="items"), alt.Tooltip("items:Q", title="number", format=".4~g")]
    area: alt.Chart = alt.Chart(ribbons).mark_area(opacity=0.5).encode(
        x=x, y=y, y2=alt.Y2("y2:Q"), color=colour, detail="ribbon:N", tooltip=tips
    )  # fmt: skip
    bars = pd.DataFrame(
        [
            {"x": COLUMNS[block.column], "x2": COLUMNS[block.column] + BAR, "y": block.low, "y2": block.high}
            for block in _blocks(ways, total)
        ]
    )
    bar: alt.Chart = alt.Chart(bars).mark_rect(color=charts.GREY).encode(x=x, x2=alt.X2("x2:Q"), y=y, y2=alt.Y2("y2:Q"))
    texts = pd.DataFrame(_labels(ways, total, top, graded=graded))
    label: alt.Chart = (
        alt.Chart(texts)
        .mark_text(align="left", baseline="middle", fontSize=11, color=charts.INK)
        .encode(x=x, y=y, text="text:N")
    )
    yield from (area, bar, label)


def _ribbons(ways: Mapping[str, float], total: float) -> Iterator[list[dict[str, float | str]]]:
    """The points of each ribbon: from the dense model to the compressed one, and on to the recovered one."""
    places = _places(ways, total)
    for way, count in ways.items():
        if count > 0:
            for step in (0, 1):
                yield _curve(way, count, step, places[way][step], places[way][step + 1])


def _places(ways: Mapping[str, float], total: float) -> dict[str, tuple[float, float, float]]:
    """The upper end of each way in the three columns. In the last one, what is right stands above what is wrong."""
    gap = GAP * total
    upper = [total + gap / 2, total + gap, total + gap]
    places: dict[str, list[float]] = {way: [0.0, 0.0, 0.0] for way in WAYS}
    orders = (
        ("kept", "newly lost", "returned", "still lost"),
        ("kept", "newly lost", "", "returned", "still lost"),
        ("kept", "returned", "", "newly lost", "still lost"),
    )
    for column, order in enumerate(orders):
        for way in order:
            if way:
                places[way][column] = upper[column]
            upper[column] -= ways[way] if way else gap
    return {way: (first, second, third) for way, (first, second, third) in places.items()}


def _curve(way: str, count: float, step: int, start: float, end: float) -> list[dict[str, float | str]]:
    """The points of a smooth ribbon between two columns."""
    share_of_way = np.linspace(0, 1, STEPS)
    smooth = share_of_way**2 * (3 - 2 * share_of_way)
    left, right = COLUMNS[step] + BAR, COLUMNS[step + 1]
    return [
        {
            "ribbon": f"{way} {step}", "way": way, "items": count, "x": round(left + along * (right - left), 4),
            "y": round(start + rise * (end - start), 4), "y2": round(start + rise * (end - start) - count, 4),
        }
        for along, rise in zip(share_of_way.tolist(), smooth.tolist(), strict=True)
    ]  # fmt: skip


def _blocks(ways: Mapping[str, float], total: float) -> Iterator[Block]:
    """The bars of each column."""
    places = _places(ways, total)
    yield Block(column=0, low=places["kept"][0] - total, high=places["kept"][0])
    for column, pairs in ((1, (("kept", "newly lost"), ("returned", "still lost"))),
                          (2, (("kept",), ("returned",), ("newly lost",), ("still lost",)))):  # fmt: skip
        for pair in pairs:
            count = sum(ways[way] for way in pair)
            if count > 0:
                yield Block(column=column, low=places[pair[0]][column] - count, high=places[pair[0]][column])


def _labels(ways: Mapping[str, float], total: float, top: float, *, graded: bool) -> list[dict[str, float | str]]:
    """The words beside the bars, far enough apart to be read."""
    head = top * 1.1
    right = "" if graded else " right"
    rows: list[dict[str, float | str]] = [
        {"x": COLUMNS[0], "y": head, "text": "dense"},
        {"x": COLUMNS[1], "y": head, "text": "compressed"},
        {"x": COLUMNS[2], "y": head, "text": "recovered"},
    ]
    places = _places(ways, total)
    middle = places["kept"][0] - total / 2
    rows.append({"x": COLUMNS[0] + BAR + INSET, "y": middle, "text": f"{_count(total)}{right}"})
    lost, kept = ways["returned"] + ways["still lost"], ways["kept"] + ways["newly lost"]
    second = [("kept", kept, places["kept"][1]), ("lost", lost, places["returned"][1])]
    last = [(WAYS[way][0], ways[way], places[way][2]) for way in ("kept", "returned", "newly lost", "still lost")]
    for column, labels in ((1, second), (2, last)):
        shown = [(words, count, upper - count / 2) for words, count, upper in labels if count > 0]
        heights = _spread([middle for _, _, middle in shown], LEAST / HEIGHT * top * 1.14, 0.0, top)
        for (words, count, _), height in zip(shown, heights, strict=True):
            rows.append({"x": COLUMNS[column] + BAR + INSET, "y": height, "text": f"{_count(count)} {words}"})
    return rows


def _spread(heights: Sequence[float], least: float, low: float, high: float) -> list[float]:
    """Falling heights moved apart until they are `least` from each other, inside low … high."""
    moved = list(heights)
    for i in range(len(moved)):
        ceiling = high - least / 2 if i == 0 else moved[i - 1] - least
        moved[i] = min(moved[i], ceiling)
    floor = low + least / 2
    for i in reversed(range(len(moved))):
        moved[i] = max(moved[i], floor)
        floor = moved[i] + least
    return moved


def _count(number: float) -> str:
    """A number of items, a mean over seeds with one decimal."""
    return f"{number:,.0f}" if number == round(number) else f"{number:,.1f}"
