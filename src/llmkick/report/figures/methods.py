"""The methods of a study, each with a colour and a shape of its own in all figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import altair as alt
import pandas as pd

from llmkick.study.results.results import StudyResult

Style = tuple[str, str]  # colour, shape

# Okabe & Ito's palette (jfly.uni-koeln.de/color) for colour-blind readers; shapes repeat the distinction.
STYLES: Mapping[str, Style] = {
    "magnitude": ("#e69f00", "square"),
    "wanda": ("#0072b2", "circle"),
    "sparsegpt": ("#009e73", "triangle-up"),
    "rtn": ("#d55e00", "diamond"),
    "gptq": ("#cc79a7", "triangle-down"),
}
# Blue of the same palette, two that are no part of it, and five that are farthest from all others for readers with and
# without each kind of colour blindness, among those that stand out from a white and from a dark page.
OTHER_COLOURS = ("#56b4e9", "#8c6d31", "#7f7f7f", "#c300a5", "#694bd2", "#a54b4b", "#8787f0", "#9600ff")
OTHER_SHAPES = (
    "cross", "triangle-right", "triangle-left", "square", "circle", "triangle-up", "diamond", "triangle-down",
)  # fmt: skip
# The same shapes as signs of a text.
GLYPHS: Mapping[str, str] = {
    "square": "■", "circle": "●", "triangle-up": "▲", "diamond": "◆", "triangle-down": "▼", "cross": "✚",
    "triangle-right": "▶", "triangle-left": "◀",
}  # fmt: skip


def styles(colours: Sequence[str], shapes: Sequence[str]) -> tuple[Style, ...]:
    """Every colour with every shape: first each colour with the shape at its place, then with the next shapes."""
    return tuple(
        (colour, shapes[(place + turn) % len(shapes)])
        for turn in range(len(shapes))
        for place, colour in enumerate(colours)
    )


OTHER_STYLES = styles(OTHER_COLOURS, OTHER_SHAPES)


@dataclass(frozen=True, kw_only=True)
class Methods:
    """The methods of a figure, each with the colour and the shape it has in every figure of the study."""

    names: tuple[str, ...]
    colours: tuple[str, ...]
    shapes: tuple[str, ...]

    @classmethod
    def of_study(cls, result: StudyResult) -> Self:
        """The methods of a study's recipes, with those of STYLES first."""
        return cls.named(result.level(recipe).method for recipe in result.labels)

    @classmethod
    def of(cls, result: StudyResult, frame: pd.DataFrame) -> Self:
        """The methods of a study that occur in a frame, with those of STYLES first."""
        return cls.of_study(result).looking_like({name: name for name in frame["method"]})

    @classmethod
    def named(cls, present: Iterable[str]) -> Self:
        """The methods of these names, with those of STYLES first."""
        present = list(dict.fromkeys(present))
        others = [method for method in present if method not in STYLES]
        names = (*(method for method in STYLES if method in present), *others)
        style = {**STYLES, **{method: OTHER_STYLES[i % len(OTHER_STYLES)] for i, method in enumerate(others)}}
        return cls(
            names=names,
            colours=tuple(style[method][0] for method in names),
            shapes=tuple(style[method][1] for method in names),
        )

    def looking_like(self, lines: Mapping[str, str]) -> Self:
        """The lines of a figure, each with the look of the name that it maps to.

        A name that is none of these methods gets a look that none of them has.
        """
        known = self.named([*self.names, *lines.values()])
        order = {name: place for place, name in enumerate(known.names)}
        names = tuple(sorted(lines, key=lambda line: order[lines[line]]))
        places = [order[lines[line]] for line in names]
        return type(self)(
            names=names,
            colours=tuple(known.colours[place] for place in places),
            shapes=tuple(known.shapes[place] for place in places),
        )

    @property
    def share_colours(self) -> bool:
        """Whether two of these methods have the same colour, so that only their shapes tell them apart."""
        return len(set(self.colours)) < len(self.colours)

    @property
    def colour(self) -> alt.Color:
        """Encodes the method as a colour."""
        scale = alt.Scale(domain=list(self.names), range=list(self.colours))
        return alt.Color("method:N", title=None, scale=scale, legend=alt.Legend(symbolOpacity=1))

    @property
    def shape(self) -> alt.Shape:
        """Encodes the method as a shape."""
        scale = alt.Scale(domain=list(self.names), range=list(self.shapes))
        return alt.Shape("method:N", title=None, scale=scale, legend=alt.Legend(symbolOpacity=1))
