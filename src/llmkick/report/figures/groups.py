"""Figures of scores by part of a task (discipline, story length) and of answer measures, against the level."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import altair as alt
import pandas as pd

from llmkick.compression.levels import LevelKind
from llmkick.report import formatting
from llmkick.report.breakdown import GROUPS, MEASURES
from llmkick.report.figures import charts
from llmkick.report.figures.board import Layer, Panel
from llmkick.report.figures.figure import Figure
from llmkick.report.figures.levels import LABEL_WIDTH, against_levels, against_sparsity
from llmkick.report.figures.methods import Methods
from llmkick.report.level_axes import KINDS
from llmkick.study.results.results import StudyResult

SHORT: Mapping[LevelKind, str] = {
    "sparsity": "sparsity",
    "n:m": "N:M",
    "bits": "bits",
    "combined": "both",
    "other": "other",
}


def group_figures(result: StudyResult, groups: pd.DataFrame) -> list[Figure]:
    """A figure for every task that has parts: a column for each part, a row for each kind of level."""
    return [
        _group_figure(result, frame, str(task), str(detail))
        for (task, detail), frame in groups.groupby(["task", "detail"], sort=False)
        if (frame["verdict"] != "no signal").any()
    ]


def _group_figure(result: StudyResult, frame: pd.DataFrame, task: str, detail: str) -> Figure:
    chance = next(entry.chance_level for entry in result.tasks if entry.name == task)
    above = frame["dense"].astype(float) - chance  # a loss is one of the part above chance
    cells = _placed(result, frame).assign(
        y=frame["compressed"].astype(float),
        low=chance + above * (1 - frame["loss_high"].astype(float)),
        high=chance + above * (1 - frame["loss_low"].astype(float)),
        task=task + ", " + frame["group"].astype(str),
    )
    names = list(dict.fromkeys(frame["group"]))
    y, methods = charts.score_axis(cells), Methods.of(result, cells)
    panels = []
    for kind in [kind for kind in KINDS if (cells["kind"] == kind).any()]:
        for name in names:
            panel = cells[(cells["kind"] == kind) & (cells["group"] == name) & cells["y"].notna()]
            if not panel.empty:
                dense, n = float(panel["dense"].iloc[0]), int(panel["n"].max())
                draw = against_sparsity if kind == "sparsity" else charts.bars
                title = alt.TitleParams(name, subtitle=f"{SHORT[kind]}: dense {formatting.score(dense)}, n = {n}")
                lines = [charts.level_line(dense, dotted=True)] if kind == "sparsity" else []
                layers = [*lines, *draw(panel, y, methods, dense)]
                panels.append(Panel(layers=layers, title=title, width=200, height=150))
    return Figure(
        name=f"{detail}-{task.replace(':', '-')}",
        title=f"{task} {GROUPS[detail]}",
        caption="Scores with the interval of their loss; the line across is the dense model on the same items. "
        "A part has fewer items than the whole, so its intervals are wider." + charts.cut_note(cells, y["scale"]),
        chart=charts.themed(panels, columns=len(names), minimum=max(120, min(200, LABEL_WIDTH * 3))),
        rows=frame,
    )


def measure_figures(result: StudyResult, measures: pd.DataFrame) -> list[Figure]:
    """A figure for every task whose answers were measured: a column for each measure, a row for each kind."""
    return [
        Figure(
            name=f"answers-{str(task).replace(':', '-')}",
            title=f"What the answers of {task} are like",
            caption="Means over answers with their intervals; the dotted line is the dense model. A model that loses "
            "its language repeats itself: fewer unique tokens, more repeated 4-grams, whatever the score says."
            + (charts.CUT if (frame.loc[frame["recipe"] != "dense", "low"].astype(float) < 0).any() else ""),
            chart=charts.themed(
                list(_measure_panels(result, frame)), columns=_columns(frame["measure"].nunique()), minimum=160
            ),
            rows=frame,
        )
        for task, frame in measures.groupby("task", sort=False)
        if (frame["recipe"] != "dense").any()
    ]


def _columns(measures: int) -> int:
    """The number of columns: one row per kind of level, but a single measure has the kinds side by side."""
    return measures if measures > 1 else 3


def _measure_panels(result: StudyResult, frame: pd.DataFrame) -> Iterator[Panel]:
    dense = frame[frame["recipe"] == "dense"].set_index("measure")["value"]
    compressed = frame[(frame["recipe"] != "dense") & frame["value"].notna()]
    cells = _placed(result, compressed).assign(
        y=compressed["value"].astype(float),
        value=[f"{value:.3g}" for value in compressed["value"]],
        low=compressed["low"].astype(float),
        high=compressed["high"].astype(float),
        change=[_against(dense.get(m), v) for m, v in zip(compressed["measure"], compressed["value"], strict=True)],
        verdict="",
    )
    methods = Methods.of(result, cells)
    order: Sequence[str] = [measure for measure in MEASURES if measure in set(cells["measure"])]
    for kind in [kind for kind in KINDS if (cells["kind"] == kind).any()]:
        for measure in order:
            panel = cells[(cells["kind"] == kind) & (cells["measure"] == measure)]
            if not panel.empty:
                start = float(dense.get(measure, float("nan")))
                yield _measure_panel(panel, measure, kind, start, methods)


def _measure_panel(panel: pd.DataFrame, measure: str, kind: LevelKind, start: float, methods: Methods) -> Panel:
    top = max(panel[["y", "high"]].max().max(), start if start == start else 0.0)
    y = alt.Y("y:Q", title=MEASURES[measure], scale=alt.Scale(domain=[0, top * 1.06 or 1], nice=False))
    layers: list[Layer] = [] if start != start else [charts.level_line(start, dotted=True)]
    draw = against_sparsity if kind == "sparsity" and start == start else against_levels
    title = alt.TitleParams(KINDS[kind], subtitle="" if start != start else f"dense {start:.3g}")
    layers += draw(panel, y, methods, start if start == start else 0.0)
    return Panel(layers=layers, title=title, width=240, height=charts.HEIGHT)


def _against(dense: float | None, value: float) -> str:
    return "" if not dense else f"{formatting.percent(value / dense - 1, signed=True)} against dense"


def _placed(result: StudyResult, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with the position of every recipe on the axes, and tooltip texts for losses."""
    levels = {recipe: result.level(recipe) for recipe in dict.fromkeys(frame["recipe"])}
    order = sorted(levels, key=lambda recipe: levels[recipe].severity)
    placed = frame.assign(
        method=[levels[r].method for r in frame["recipe"]],
        kind=[levels[r].kind for r in frame["recipe"]],
        label=[levels[r].label for r in frame["recipe"]],
        sparsity=pd.Series([levels[r].sparsity for r in frame["recipe"]], index=frame.index, dtype=float),
        order=[order.index(r) for r in frame["recipe"]],
    )
    if "compressed" in frame:
        placed["value"] = [formatting.score(_number(score)) for score in frame["compressed"]]
        columns = (frame[name] for name in ("verdict", "loss", "loss_low", "loss_high"))
        placed["change"] = [_change(*row) for row in zip(*columns, strict=True)]
    return placed


def _change(verdict: str, loss: float | None, low: float | None, high: float | None) -> str:
    if verdict == "no signal":
        return formatting.NOTHING
    lower, upper = _number(low), _number(high)
    bounds = None if lower is None or upper is None else (lower, upper)
    return formatting.stated_loss(_number(loss), bounds)


def _number(value: float | None) -> float | None:
    return None if pd.isna(value) else float(value)
