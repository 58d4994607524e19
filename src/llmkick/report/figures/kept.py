"""The figure of the first screen: how much of the dense scores every recipe keeps, as perplexity rises."""

from __future__ import annotations

import math

import altair as alt
import pandas as pd

from llmkick.report import formatting
from llmkick.report.figures import charts
from llmkick.report.figures.board import Layer, Panel
from llmkick.report.figures.figure import Figure
from llmkick.report.figures.methods import Methods
from llmkick.report.figures.point_names import ROOMS, MethodRows, RiseScale, point_names
from llmkick.report.lookup import control_name, judged_loss, perplexity_comparisons, task_comparisons
from llmkick.statistics import Comparison
from llmkick.study.results.results import StudyResult

KEPT = "kept"
HEIGHT = 184
WIDTH = 560
LOSS_COLOUR = "#d55e00"
COLUMNS = ("recipe", "method", "kind", "label", "kept", "rise", "tasks", "worst", "verdict")


def kept_figure(result: StudyResult) -> Figure | None:
    """Mean share of the dense scores that each recipe keeps, over the rise of its perplexity if that was measured.

    None if no recipe was compared on a task with a signal.
    """
    frame = kept_frame(result)
    if frame.empty:
        return None
    measured = frame[frame["rise"].notna()]
    against = not measured.empty
    margin, name = result.study.margin, control_name(result)
    drawn = measured if against else frame
    methods = Methods.of(result, drawn)
    panel = _against_rise(drawn, methods, margin, name) if against else _by_method(drawn, methods, margin)
    limit = formatting.setting(margin)
    caption = "Each point is a recipe: its mean over the tasks with a signal. " + (
        f"Dashed: {limit} lost, and {limit} more {name}." if against else f"Dashed: {limit} lost."
    )
    if against and len(measured) < len(frame):
        caption += f" {formatting.counted(len(frame) - len(measured), 'recipe')} without {name} left out."
    return Figure(
        name=KEPT,
        title=f"What is kept as {name} rises" if against else "What each method keeps",
        caption=caption,
        chart=charts.themed(
            [panel],
            columns=1,
            minimum=200,
            usermeta={"widest": max(ROOMS), "rooms": list(ROOMS)},
            rest={"params": [{"name": "room", "value": max(room for room in ROOMS if room <= WIDTH)}]},
        ),
        rows=drawn[list(COLUMNS)],
    )


def kept_frame(result: StudyResult) -> pd.DataFrame:
    """One row for each recipe with a loss: the share kept, the rise of perplexity, and the task that loses most."""
    control = next((task.name for task in result.tasks if task.is_control), None)
    rises = {entry.recipe: entry.relative_increase for entry in perplexity_comparisons(result) if entry.task == control}
    overall = {row.recipe: row.verdict for row in result.overall}
    by_recipe: dict[str, list[tuple[float, Comparison]]] = {}
    for entry in task_comparisons(result):
        share = judged_loss(entry).share
        if entry.verdict != "no signal" and share is not None:
            by_recipe.setdefault(entry.recipe, []).append((share, entry))
    rows = []
    for recipe, losses in by_recipe.items():
        level, (_, worst) = result.level(recipe), max(losses, key=lambda loss: loss[0])
        kept = 1 - sum(share for share, _ in losses) / len(losses)
        rows.append(
            {
                "recipe": recipe,
                "method": level.method,
                "kind": level.kind,
                "label": level.label,
                "order": level.severity,
                "kept": kept,
                "rise": rises.get(recipe),
                "tasks": len(losses),
                "worst": f"{worst.task}: {formatting.loss_sentence(worst)}",
                "verdict": overall.get(recipe, ""),
                "shown": formatting.percent(kept),
                "perplexity": "" if recipe not in rises else formatting.percent(rises[recipe], signed=True),
            }
        )
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "order", "shown", "perplexity"])
    return frame.astype({"kept": float, "rise": float}).sort_values("order", kind="stable")


def _tips(*, perplexity: bool) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("recipe:N"),
        alt.Tooltip("shown:N", title="share of the score kept"),
        *([alt.Tooltip("perplexity:N")] if perplexity else []),
        alt.Tooltip("worst:N", title="most lost"),
        alt.Tooltip("verdict:N", title="all tasks"),
    ]


def _against_rise(frame: pd.DataFrame, methods: Methods, margin: float, control: str) -> Panel:
    """Points over the rise of perplexity, each method's levels joined from the dense model on."""
    x, low, high = charts.rise_axis(frame["rise"], margin, control)
    y, bottom, top = _kept_axis(frame["kept"])
    corner = pd.DataFrame([{"rise": low, "x2": margin, "kept": 1 - margin, "y2": bottom}])
    limits = alt.Chart(corner)
    dense = pd.DataFrame(
        [{"method": method, "kind": kind, "rise": 0.0, "kept": 1.0} for method, kind in _series(frame)]
    )
    steps = pd.concat([dense, frame[["method", "kind", "rise", "kept"]]])
    steps["place"] = range(len(steps))
    base = alt.Chart(frame).encode(x=x, y=y)
    place = {
        room: RiseScale(low=low, high=high, bottom=bottom, top=top, width=room, height=HEIGHT, constant=margin)
        for room in ROOMS
    }
    layers: list[Layer] = [
        limits.mark_rect(opacity=0.1, color=LOSS_COLOUR, clip=True)
        .encode(x=x, x2=alt.X2("x2:Q"), y=y, y2=alt.Y2("y2:Q")),
        limits.mark_rule(strokeDash=[4, 3], color=charts.GREY).encode(y=y),
        alt.Chart(corner[["x2"]].rename(columns={"x2": "rise"}))
        .mark_rule(strokeDash=[4, 3], color=charts.GREY).encode(x=x),
        limits.mark_text(
            align="left", dx=6, dy=-22, fontSize=11, lineHeight=13, color=charts.INK,
            text=[f"lost, but {control}", "does not tell"],
        ).encode(x=x, y=alt.Y("y2:Q", scale=y["scale"])),
        alt.Chart(steps).mark_line(strokeWidth=1.4, opacity=0.55, clip=True)
        .encode(x=x, y=y, color=methods.colour, detail=alt.Detail("kind:N"), order=alt.Order("place:Q")),
        base.mark_point(filled=True, size=62, opacity=1)
        .encode(color=methods.colour, shape=methods.shape, tooltip=_tips(perplexity=True)),
        *point_names(frame, place, x, y, taken=(5, HEIGHT - 34, 130, HEIGHT)),
    ]  # fmt: skip
    return Panel(layers=layers, width=WIDTH, height=HEIGHT)


def _by_method(frame: pd.DataFrame, methods: Methods, margin: float) -> Panel:
    """A row for each method, its recipes by the share that they keep."""
    bottom, top = min(0.0, float(frame["kept"].min()) - 0.03), max(1.03, float(frame["kept"].max()) + 0.03)
    scale = alt.Scale(domain=[bottom, top], nice=False)
    x = alt.X("kept:Q", title="share of the score kept", scale=scale, axis=alt.Axis(format="~%", tickCount=5))
    y = alt.Y("method:N", title=None, sort=list(methods.names), axis=alt.Axis(labelLimit=150, grid=True))
    limit = alt.Chart(pd.DataFrame([{"kept": 1 - margin}])).mark_rule(strokeDash=[4, 3], color=charts.GREY)
    base = alt.Chart(frame).encode(x=x, y=y)
    # A method with one recipe is named by its row.
    several = frame[frame.groupby("method")["recipe"].transform("size") > 1]
    step = 34
    place = {
        room: MethodRows(
            low=bottom,
            high=top,
            width=room,
            height=step * len(methods.names),
            rows={name: step * (i + 0.5) for i, name in enumerate(methods.names)},
        )
        for room in ROOMS
    }
    names = point_names(several, place, x, y, taken=(0, 0, 0, 0)) if not several.empty else []
    colour = alt.Color(
        "method:N", scale=alt.Scale(domain=list(methods.names), range=list(methods.colours)), legend=None
    )
    shape = alt.Shape("method:N", scale=alt.Scale(domain=list(methods.names), range=list(methods.shapes)), legend=None)
    points = base.mark_point(filled=True, size=62, opacity=1).encode(
        color=colour, shape=shape, tooltip=_tips(perplexity=False)
    )
    layers: list[Layer] = [limit.encode(x=x), points, *names]
    return Panel(layers=layers, width=WIDTH, height=alt.Step(step))


def _kept_axis(kept: pd.Series[float]) -> tuple[alt.Y, float, float]:
    """The axis of the share kept, and its ends."""
    least, most = float(kept.min()), float(kept.max())
    bottom = min(0.0, least - 0.03) if least < 0.6 else math.floor(10 * (least - 0.05)) / 10
    top = max(1.04, most + 0.03)
    scale = alt.Scale(domain=[bottom, top], nice=False)
    axis = alt.Axis(format="~%", tickCount=5)
    return alt.Y("kept:Q", title="share of the score kept", scale=scale, axis=axis), bottom, top


def _series(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(method, kind) of every line."""
    return list(dict.fromkeys(zip(frame["method"], frame["kind"], strict=True)))
