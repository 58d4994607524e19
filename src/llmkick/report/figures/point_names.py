"""Names beside the points of a figure: as many as have room, at each of a few widths of the panel."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import altair as alt
import pandas as pd

from llmkick.report.figures import charts
from llmkick.report.figures.board import Layer

# The panel widths in pixels for which names are placed; the page takes the widest that fits.
ROOMS = (240, 320, 420, 520, 620)
LETTER, LINE, POINT = 6.2, 12, 9  # pixels: a letter, a line of type, and a point with its margin
Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True, kw_only=True)
class Point:
    """A recipe, the text beside its point, and what it is placed by."""

    recipe: str
    label: str
    method: str
    kept: float
    rise: float


@dataclass(frozen=True, kw_only=True)
class RiseScale:
    """The place of a row on a panel whose horizontal axis is that of `charts.rise_axis`."""

    low: float
    high: float
    bottom: float
    top: float
    width: int
    height: int
    constant: float

    def at(self, point: Point) -> tuple[float, float]:
        """Pixels from the left and from the top."""
        low, high, value = (self._log(number) for number in (self.low, self.high, point.rise))
        x = self.width * (value - low) / (high - low)
        return x, self.height * (self.top - point.kept) / (self.top - self.bottom)

    def _log(self, value: float) -> float:
        return math.copysign(math.log1p(abs(value) / self.constant), value)


@dataclass(frozen=True, kw_only=True)
class MethodRows:
    """The place of a row on a panel with a line for each method."""

    low: float
    high: float
    width: int
    height: int
    rows: Mapping[str, float]

    def at(self, point: Point) -> tuple[float, float]:
        """Pixels from the left and from the top."""
        return self.width * (point.kept - self.low) / (self.high - self.low), self.rows[point.method]


def point_names(
    frame: pd.DataFrame, place: Mapping[int, RiseScale | MethodRows], x: alt.X, y: alt.Y, *, taken: Box
) -> list[Layer]:
    """The labels of the levels beside their points, as many as have room at each width."""
    columns = [frame[name].tolist() for name in ("recipe", "label", "method", "kept", "rise")]
    points = [
        Point(recipe=recipe, label=label, method=method, kept=kept, rise=rise)
        for recipe, label, method, kept, rise in zip(*columns, strict=True)
    ]
    placed = [
        {**vars(point), "room": room, "side": side}
        for room, scale in place.items()
        for point, side in _placed(points, scale, taken)
    ]
    names = pd.DataFrame(placed, columns=["recipe", "label", "kept", "rise", "method", "room", "side"])
    base = alt.Chart(names).transform_filter("datum.room === room")
    looks: Mapping[str, tuple[Literal["left", "center", "right"], int, int]] = {
        "right": ("left", 8, 0),
        "left": ("right", -8, 0),
        "above": ("center", 0, -11),
        "below": ("center", 0, 12),
    }
    return [
        base.transform_filter(f"datum.side === '{side}'")
        .mark_text(align=align, dx=dx, dy=dy, fontSize=10.5, color=charts.INK, opacity=0.85, baseline="middle")
        .encode(x=x, y=y, text=alt.Text("label:N"))
        for side, (align, dx, dy) in looks.items()
        if side in set(names["side"])
    ]  # fmt: skip


def _placed(points: Sequence[Point], scale: RiseScale | MethodRows, taken: Box) -> Iterator[tuple[Point, str]]:
    """The points whose labels touch no other label, no point and no edge, with the side; severe levels first."""
    places = [scale.at(point) for point in points]
    boxes: list[Box] = [taken, *((x - POINT / 2, y - POINT / 2, x + POINT / 2, y + POINT / 2) for x, y in places)]
    for point, (x, y) in reversed(list(zip(points, places, strict=True))):
        wide = LETTER * len(point.label)
        sides = {
            "right": (x + 7, y - LINE / 2, x + 8 + wide, y + LINE / 2),
            "left": (x - 8 - wide, y - LINE / 2, x - 7, y + LINE / 2),
            "above": (x - wide / 2, y - 17, x + wide / 2, y - 5),
            "below": (x - wide / 2, y + 6, x + wide / 2, y + 18),
        }
        for side, box in sides.items():
            inside = box[0] >= 0 and box[2] <= scale.width + 10 and box[3] <= scale.height
            if inside and not any(_touch(box, other) for other in boxes):
                boxes.append(box)
                yield point, side
                break


def _touch(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
