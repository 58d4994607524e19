"""Figures of the axes of a study: the share of the dense score that is kept, against calibration or shots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import altair as alt
import pandas as pd

from llmkick.report import formatting
from llmkick.report.figures import charts
from llmkick.report.figures.board import Panel
from llmkick.report.figures.figure import Figure
from llmkick.report.figures.methods import Methods
from llmkick.report.lookup import judged_loss, task_comparisons, verdict_or_outcome
from llmkick.statistics import Comparison
from llmkick.study.results.results import StudyResult

# One row for each comparison at a level of an axis. `line` has what stays the same along the axis but the task: the
# recipe, and the levels of the other axes. Shares are of the dense model's score above chance, asked alike.
AXIS_COLUMNS = (
    "axis", "level", "line", "recipe", "task", "base_task", "other_axes", "dense", "compressed",
    "kept", "kept_low", "kept_high", "loss", "loss_low", "loss_high", "verdict",
)  # fmt: skip
TITLES = {
    "calibration.sequences": "calibration windows",
    "calibration.length": "tokens in a calibration window",
    "calibration.source": "calibration text",
    "shots": "worked examples in the prompt",
}
LOWEST, LEAST_HIGH, HIGHEST = 0.0, 1.1, 1.3  # intervals extend the axis between the last two


def axes_table(result: StudyResult) -> pd.DataFrame:
    """One row for each axis × comparison that is at a level of the axis, sorted by axis, line and level.

    A method without calibration has no level of a calibration axis, so it has no row there.
    """
    rows = []
    for comparison in task_comparisons(result):
        axes = result.axes_of(comparison.recipe, comparison.task)
        for axis, level in axes.items():
            others = {other: value for other, value in axes.items() if other != axis}
            rows.append({"axis": axis, "level": level, **_numbers(result, comparison, axis, others)})
    frame = pd.DataFrame(rows, columns=list(AXIS_COLUMNS))
    order = {axis: list(dict.fromkeys(of["level"])) for axis, of in frame.groupby("axis", sort=False)}
    place = [_place(level, order[axis]) for axis, level in zip(frame["axis"], frame["level"], strict=True)]
    return frame.assign(place=place).sort_values(["axis", "base_task", "line", "place"]).drop(columns="place")


def _place(level: int | str, levels: Sequence[int | str]) -> float:
    """The place of a level on its axis: its number, or the order in which the study lists a text."""
    return float(level) if isinstance(level, int) else float(levels.index(level))


def _numbers(result: StudyResult, comparison: Comparison, axis: str, others: dict[str, int | str]) -> dict[str, object]:
    recipe = _without_axes(result, comparison.recipe)
    base = comparison.task.partition(" [")[0]
    told = ", ".join(f"{name.rpartition('.')[2]}={value}" for name, value in others.items())
    silent, judged = comparison.verdict == "no signal", judged_loss(comparison)
    drop = None if silent else judged.share
    low, high = (None, None) if silent or judged.interval is None else judged.interval
    return {
        "line": f"{recipe} [{told}]" if told else recipe,
        "recipe": comparison.recipe,
        "task": comparison.task,
        "base_task": base if axis == "shots" or "shots" in others else comparison.task,
        "other_axes": told,
        "dense": comparison.dense,
        "compressed": comparison.compressed,
        "kept": None if drop is None else 1 - drop,
        "kept_low": None if high is None else 1 - high,
        "kept_high": None if low is None else 1 - low,
        "loss": drop,
        "loss_low": low,
        "loss_high": high,
        "verdict": verdict_or_outcome(comparison),
    }


def _without_axes(result: StudyResult, label: str) -> str:
    """The recipe of a model, without its levels of axes."""
    return next((row.recipe for row in result.variants if row.label == label), label)


def axis_figures(result: StudyResult, table: pd.DataFrame | None = None) -> list[Figure]:
    """One figure for each axis of the study: a panel for each task, a line for each recipe."""
    table = axes_table(result) if table is None else table
    return [_figure(result, str(axis), frame) for axis, frame in table.groupby("axis", sort=False)]


def _figure(result: StudyResult, axis: str, frame: pd.DataFrame) -> Figure:
    drawn = frame.assign(
        method=frame["line"], y=frame["kept"].astype(float),
        low=frame["kept_low"].astype(float), high=frame["kept_high"].astype(float),
        value=[formatting.score(value) for value in frame["compressed"]],
        change=[formatting.percent(loss) for loss in frame["loss"].astype(object).where(frame["loss"].notna(), None)],
        level=frame["level"].astype(str),
    )  # fmt: skip
    methods, by_task = _methods(result, frame), dict(list(drawn.groupby("base_task", sort=False)))
    order = list(dict.fromkeys(str(level) for level in sorted(frame["level"], key=_sort_key)))
    panels = [_panel(panel, str(task), axis, order, methods, result.study.margin) for task, panel in by_task.items()]
    cut = any(charts.cut_note(panel, _scale(panel)) for panel in by_task.values())
    silent = sorted(set(frame.loc[frame["verdict"] == "no signal", "task"]))
    margin = formatting.setting(result.study.margin)
    return Figure(
        name=f"axis-{axis.replace('.', '-')}",
        title=f"Kept against {TITLES.get(axis, axis)}",
        caption="The share of the dense score above chance that is kept, with its "
        f"{formatting.interval_name(result.study.alpha)}. Every level is compared with the dense model asked alike; "
        f"the dashed line is a loss of {margin}."
        + (f" Without a signal, so nothing can be lost: {formatting.listed(silent)}." if silent else "")
        + (charts.CUT if cut else "")
        + (" A method without calibration has no level and is not drawn." if _left_out(result, axis) else ""),
        chart=charts.themed(panels, columns=3, minimum=200),
        rows=frame,
    )


def _methods(result: StudyResult, frame: pd.DataFrame) -> Methods:
    """The lines of a figure. One that is the only line of its method has the look that the method has elsewhere."""
    of_line = {
        line: result.level(_without_axes(result, label)).method
        for line, label in zip(frame["line"], frame["recipe"], strict=True)
    }
    lines_of = Counter(of_line.values())
    looks = {line: line if lines_of[method] > 1 else method for line, method in of_line.items()}
    return Methods.of_study(result).looking_like(looks)


def _sort_key(level: int | str) -> tuple[bool, float, str]:
    """Numbers by size, then texts by name."""
    return (False, float(level), "") if isinstance(level, int) else (True, 0.0, level)


def _left_out(result: StudyResult, axis: str) -> bool:
    return axis.startswith("calibration.") and any(axis not in row.axes for row in result.variants)


def _panel(frame: pd.DataFrame, task: str, axis: str, order: Sequence[str], methods: Methods, margin: float) -> Panel:
    x = alt.X("level:N", title=TITLES.get(axis, axis), sort=list(order), axis=alt.Axis(labelAngle=0))
    y = alt.Y(
        "y:Q",
        title="share kept of the dense score above chance",
        axis=alt.Axis(format="~%", tickCount=5),
        scale=_scale(frame),
    )
    known = frame[frame["y"].notna()]
    base = alt.Chart(known).encode(x=x, color=methods.colour)
    line = base.mark_line(strokeWidth=1.5, clip=True).encode(y=y)
    dense = sorted({formatting.score(value) for value in frame["dense"].dropna()})
    said = "no signal" if known.empty else f"dense {', '.join(dense)}"
    layers = [charts.level_line(1.0), line, *charts.with_intervals(base, y, methods)]
    return charts.with_margin(layers, 1 - margin, title=alt.TitleParams(task, subtitle=said))


def _scale(frame: pd.DataFrame) -> alt.Scale:
    """The scale of the shares kept: it contains every point, but intervals extend it only to HIGHEST.

    A model that is below chance keeps less than nothing of what is above chance.
    """
    known = frame.loc[frame["y"].notna(), ["y", "high"]]
    lowest = min([LOWEST, *(known["y"] - charts.ROOM)])
    highest = max([LEAST_HIGH, *(known["y"] + charts.ROOM), *(known["high"].dropna() * 1.05).clip(upper=HIGHEST)])
    return alt.Scale(domain=[lowest, highest], nice=False)
