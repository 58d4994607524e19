"""Every figure of a study, in the order of the page."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pandas as pd

from llmkick.report.figures.axes import axis_figures
from llmkick.report.figures.book import book_figures
from llmkick.report.figures.figure import VEGA_LITE, Figure, drawn_meanwhile
from llmkick.report.figures.flows import flow_figures
from llmkick.report.figures.frontier import frontier_chart
from llmkick.report.figures.groups import group_figures, measure_figures
from llmkick.report.figures.kept import kept_figure
from llmkick.report.figures.layers import layer_figure, size_figure
from llmkick.report.figures.levels import cells_frame, control_figure, level_figures
from llmkick.study.frontier.result import FRONTIER_FILE, read_frontier
from llmkick.study.results.results import StudyResult

__all__ = ["VEGA_LITE", "Figure", "figures", "figures_drawn", "frontier_figures", "layer_figure", "size_figure"]


def figures(
    result: StudyResult, *, groups: pd.DataFrame | None = None, measures: pd.DataFrame | None = None
) -> list[Figure]:
    """Every figure that the study has data for; `groups` and `measures` are the tables of `report.breakdown`."""
    cells = cells_frame(result)
    kept = kept_figure(result)
    both = {"score", "perplexity"} <= set(cells["metric"])
    return [
        *([kept] if kept is not None else []),
        *flow_figures(result),
        *([control_figure(result, cells)] if both else []),
        *axis_figures(result),
        *level_figures(result, cells),
        *book_figures(result, cells),
        *(group_figures(result, groups) if groups is not None else []),
        *(measure_figures(result, measures) if measures is not None else []),
        *frontier_figures(result.folder),
    ]


def frontier_figures(folder: Path) -> list[Figure]:
    """The figures of `kick frontier`, if it was run in the same folder."""
    if not (folder / FRONTIER_FILE).is_file():
        return []
    result = read_frontier(folder)
    rows = [
        {"task": row["task"], "method": row["name"], "strongest_matching": row["strongest_matching"],
         "weakest_not_matching": row["weakest_not_matching"]}
        for row in result.frontiers
    ]  # fmt: skip
    return [
        Figure(
            name="frontier",
            title="How far each method goes",
            caption="From the strongest level that is shown to match to the weakest that is shown not to; in the grey "
            "between them it is not known. The control's own limits stand beside them and have no say.",
            chart=frontier_chart(result),
            rows=pd.DataFrame(rows),
        )
    ]


@contextlib.contextmanager
def figures_drawn(result: StudyResult, drawn: Sequence[Figure]) -> Iterator[Callable[[], list[Path]]]:
    """Begin to draw figures and those of the compressed models; what is yielded writes them to `figures/`."""
    of_layers = [layer_figure(result), size_figure(result)] if result.compression else []
    with drawn_meanwhile([*drawn, *of_layers], result.folder / "figures") as write:
        yield write
