"""The figure of the first screen: how much of the dense scores every recipe keeps, as perplexity rises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import altair as alt
import pandas as pd

from llmkick.report import formatting
from llmkick.report.figures import charts
from llmkick.report.figures.figure import Figure
from llmkick.report.lookup import judged_loss, perplexity_comparisons, task_comparisons
from llmkick.statistics import Comparison
from llmkick.study.results.results import StudyResult

KEPT = "kept"
HEIGHT = 184
WIDTH = 560
# The panel widths in pixels for which names are placed; the page takes the widest that fits.
ROOMS = (240, 320, 420, 520, 620)
LETTER, LINE, POINT = 6.2, 12, 9  # pixels: a letter, a line of type, and a point with its margin
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
    margin = result.study.margin
    drawn = measured if against else frame
    panel = _against_rise(drawn, margin) if against else _by_method(drawn, margin)
    chart = charts.themed([panel], columns=1, minimum=200)
    chart.usermeta = {"minimum": 200, "widest": max(ROOMS), "rooms": list(ROOMS)}
    limit = formatting.setting(margin)
    caption = "Each point is a recipe: its mean over the tasks with a signal. " + (
        f"Dashed: {limit} lost, and {limit} more perplexity." if against else f"Dashed: {limit} lost."
    )
    if against and len(measured) < len(frame):
        caption += f" {formatting.counted(len(frame) - len(measured), 'recipe')} without a perplexity left out."
    return Figure(
        name=KEPT,
        title="What is kept as perplexity rises" if against else "What each method keeps",
        caption=caption,
        chart=chart.add_params(alt.param(name="room", value=max(room for room in ROOMS if room <= WIDTH))),
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
        rows.append(
            {
                "recipe": recipe,
                "method": level.method,
                "kind": level.kind,
                "label": level.label,
                "order": level.severity,
                "kept": max(0.0, 1 - sum(share for share, _ in losses) / len(losses)),
                "rise": rises.get(recipe),
                "tasks": len(losses),
                "worst": f"{worst.task}: {formatting.loss_sentence(worst)}",
                "verdict": overall.get(recipe, ""),
                "shown": formatting.percent(1 - sum(share for share, _ in losses) / len(losses)),
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


def _against_rise(frame: pd.DataFrame, margin: float) -> alt.LayerChart:
    """Points over the rise of perplexity, each method's levels joined from the dense model on."""
    methods = charts.Methods.of(frame)
    x, low, high = charts.rise_axis(frame["rise"], margin)
    y, bottom, top = _kept_axis(frame["kept"])
    corner = pd.DataFrame([{"rise": low, "x2": margin, "kept": 1 - margin, "y2": bottom}])
    limits = alt.Chart(corner)
    dashed = {"strokeDash": [4, 3], "color": charts.GREY}
    dense = pd.DataFrame(
        [{"method": method, "kind": kind, "rise": 0.0, "kept": 1.0} for method, kind in _series(frame)]
    )
    steps = pd.concat([dense, frame[["method", "kind", "rise", "kept"]]])
    steps["place"] = range(len(steps))
    base = alt.Chart(frame).encode(x=x, y=y)
    place = {
        room: _Scale(low=low, high=high, bottom=bottom, top=top, width=room, height=HEIGHT, constant=margin)
        for room in ROOMS
    }
    layers: list[charts.Layer] = [
        limits.mark_rect(opacity=0.1, color=LOSS_COLOUR, clip=True).encode(x=x, x2="x2:Q", y=y, y2="y2:Q"),
        limits.mark_rule(**dashed).encode(y=y),
        alt.Chart(corner[["x2"]].rename(columns={"x2": "rise"})).mark_rule(**dashed).encode(x=x),
        limits.mark_text(
            align="left", dx=6, dy=-22, fontSize=11, lineHeight=13, color=charts.INK, text=["lost, but perplexity", "does not tell"]
        ).encode(x=x, y=alt.Y("y2:Q", scale=y["scale"])),
        alt.Chart(steps).mark_line(strokeWidth=1.4, opacity=0.55, clip=True)
        .encode(x=x, y=y, color=methods.colour, detail="kind:N", order="place:Q"),
        base.mark_point(filled=True, size=62, opacity=1)
        .encode(color=methods.colour, shape=methods.shape, tooltip=_tips(perplexity=True)),
        *_names(frame, place, x, y, taken=(5, HEIGHT - 34, 5 + 20 * LETTER, HEIGHT)),
    ]  # fmt: skip
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def _by_method(frame: pd.DataFrame, margin: float) -> alt.LayerChart:
    """A row for each method, its recipes by the share that they keep."""
    methods = charts.Methods.of(frame)
    bottom, top = min(0.0, float(frame["kept"].min())), max(1.03, float(frame["kept"].max()) + 0.03)
    scale = alt.Scale(domain=[bottom, top], nice=False)
    x = alt.X("kept:Q", title="share of the score kept", scale=scale, axis=alt.Axis(format="~%", tickCount=5))
    y = alt.Y("method:N", title=None, sort=list(methods.names), axis=alt.Axis(labelLimit=150, grid=True))
    limit = alt.Chart(pd.DataFrame([{"kept": 1 - margin}])).mark_rule(strokeDash=[4, 3], color=charts.GREY)
    base = alt.Chart(frame).encode(x=x, y=y)
    # A method with one recipe is named by its row.
    several = frame[frame.groupby("method")["recipe"].transform("size") > 1]
    step = 34
    place = {
        room: _Rows(
            low=bottom,
            high=top,
            width=room,
            height=step * len(methods.names),
            rows={name: step * (i + 0.5) for i, name in enumerate(methods.names)},
        )
        for room in ROOMS
    }
    names = _names(several, place, x, y, taken=(0, 0, 0, 0)) if not several.empty else []
    colour = alt.Color(
        "method:N", scale=alt.Scale(domain=list(methods.names), range=list(methods.colours)), legend=None
    )
    shape = alt.Shape("method:N", scale=alt.Scale(domain=list(methods.names), range=list(methods.shapes)), legend=None)
    points = base.mark_point(filled=True, size=62, opacity=1).encode(
        color=colour, shape=shape, tooltip=_tips(perplexity=False)
    )
    layers: list[charts.Layer] = [limit.encode(x=x), points, *names]
    return alt.layer(*layers).properties(width=WIDTH, height=alt.Step(step))


def _kept_axis(kept: pd.Series[float]) -> tuple[alt.Y, float, float]:
    """The axis of the share kept, and its ends."""
    least, most = float(kept.min()), float(kept.max())
    bottom = 0.0 if least < 0.6 else math.floor(10 * (least - 0.05)) / 10
    top = max(1.04, most + 0.03)
    scale = alt.Scale(domain=[bottom, top], nice=False)
    axis = alt.Axis(format="~%", tickCount=5)
    return alt.Y("kept:Q", title="share of the score kept", scale=scale, axis=axis), bottom, top


def _series(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """(method, kind) of every line."""
    return list(dict.fromkeys(zip(frame["method"], frame["kind"], strict=True)))


Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True, kw_only=True)
class _Scale:
    """The place of a row on a panel whose horizontal axis is that of `charts.rise_axis`."""

    low: float
    high: float
    bottom: float
    top: float
    width: int
    height: int
    constant: float

    def at(self, row: Mapping[str, float]) -> tuple[float, float]:
        """Pixels from the left and from the top."""
        low, high, value = (self._log(number) for number in (self.low, self.high, row["rise"]))
        x = self.width * (value - low) / (high - low)
        return x, self.height * (self.top - row["kept"]) / (self.top - self.bottom)

    def _log(self, value: float) -> float:
        return math.copysign(math.log1p(abs(value) / self.constant), value)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The place of a row on a panel with a line for each method."""

    low: float
    high: float
    width: int
    height: int
    rows: Mapping[str, float]

    def at(self, row: Mapping[str, float]) -> tuple[float, float]:
        """Pixels from the left and from the top."""
        return self.width * (row["kept"] - self.low) / (self.high - self.low), self.rows[str(row["method"])]


def _names(
    frame: pd.DataFrame, place: Mapping[int, _Scale | _Rows], x: alt.X, y: alt.Y, *, taken: Box
) -> list[charts.Layer]:
    """The labels of the levels beside their points, as many as have room at each width."""
    rows = frame.to_dict("records")
    placed = [
        {"recipe": row["recipe"], "label": row["label"], "kept": row["kept"], "rise": row["rise"],
         "method": row["method"], "room": room, "side": side}
        for room, scale in place.items()
        for row, side in _placed(rows, [scale.at(row) for row in rows], scale.width, scale.height, taken)
    ]  # fmt: skip
    names = pd.DataFrame(placed, columns=["recipe", "label", "kept", "rise", "method", "room", "side"])
    base = alt.Chart(names).transform_filter("datum.room === room")
    looks = {"right": ("left", 8, 0), "left": ("right", -8, 0), "above": ("center", 0, -11), "below": ("center", 0, 12)}
    return [
        base.transform_filter(f"datum.side === '{side}'")
        .mark_text(align=align, dx=dx, dy=dy, fontSize=10.5, color=charts.INK, opacity=0.85, baseline="middle")
        .encode(x=x, y=y, text="label:N")
        for side, (align, dx, dy) in looks.items()
        if side in set(names["side"])
    ]  # fmt: skip


def _placed(
    rows: Sequence[Mapping[str, str]], points: Sequence[tuple[float, float]], width: int, height: int, taken: Box
) -> Iterable[tuple[Mapping[str, str], str]]:
    """The rows whose labels touch no other label, no point and no edge, with the side; severe levels first."""
    boxes: list[Box] = [taken, *((x - POINT / 2, y - POINT / 2, x + POINT / 2, y + POINT / 2) for x, y in points)]
    for row, (x, y) in reversed(list(zip(rows, points, strict=True))):
        wide = LETTER * len(row["label"])
        sides = {
            "right": (x + 7, y - LINE / 2, x + 8 + wide, y + LINE / 2),
            "left": (x - 8 - wide, y - LINE / 2, x - 7, y + LINE / 2),
            "above": (x - wide / 2, y - 17, x + wide / 2, y - 5),
            "below": (x - wide / 2, y + 6, x + wide / 2, y + 18),
        }
        for side, box in sides.items():
            if (
                box[0] >= 0
                and box[2] <= width + 10
                and box[3] <= height
                and not any(_touch(box, other) for other in boxes)
            ):
                boxes.append(box)
                yield row, side
                break


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
