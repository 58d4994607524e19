"""Figures of compressed models: heat maps over their layers, and their sizes."""

from __future__ import annotations

from collections.abc import Mapping

import altair as alt
import pandas as pd

from llmkick.report import formatting
from llmkick.report.figures import charts
from llmkick.report.figures.board import Panel, Spec
from llmkick.report.figures.figure import Figure
from llmkick.report.figures.methods import Methods
from llmkick.report.tables import compression_table, layer_means, layers_table
from llmkick.study.results.results import StudyResult

FIELDS: Mapping[str, str] = {
    "relative_output_error": "Output error",
    "realised_sparsity": "Zeros",
    "damping": "Damping",
}


def layer_figure(result: StudyResult) -> Figure:
    """Output error of every layer of every compressed model: blocks as columns, layer types as rows."""
    means = layer_means(result)
    panels = [
        charts.heat_map(means[means["model"] == model], "relative_output_error", str(model))
        for model in dict.fromkeys(means["model"])
    ]
    return Figure(
        name="output-error",
        title="Output error by layer",
        caption="How far each layer's output moved on calibration text, relative to its size.",
        chart=charts.themed(panels),
        rows=layers_table(result),
    )


def model_heat_maps() -> Spec:
    """Output error, zeros and damping of one compressed model, without the data: the page has a choice of models."""
    empty = pd.DataFrame(columns=["kind", "depth", *FIELDS])
    panels = [charts.heat_map(empty, field, title) for field, title in FIELDS.items()]
    chart = charts.themed(panels, columns=3, minimum=230, shared_colour=False)
    return Figure(name="layers", title="Layers of one compressed model", caption="", chart=chart).spec


def size_figure(result: StudyResult) -> Figure:
    """Stored size of every compressed model beside that of its dense layers."""
    table = compression_table(result)
    frame = table.assign(
        method=[result.level(recipe).method for recipe in table["recipe"]],
        share=table["stored_bytes"] / table["dense_bytes"].where(table["dense_bytes"] > 0),
        stored=[formatting.size(count) for count in table["stored_bytes"]],
        dense=[formatting.size(count) for count in table["dense_bytes"]],
    ).drop_duplicates("recipe")
    frame["share"] = frame["share"].astype(float)
    methods = Methods.of(result, frame)
    y = alt.Y("recipe:N", title=None, sort=None, axis=alt.Axis(labelLimit=220))
    scale = alt.Scale(domain=[0, max(1.0, float(frame["share"].max() or 1))])
    x = alt.X("share:Q", title="stored size ÷ dense size", axis=alt.Axis(format="~%", tickCount=5), scale=scale)
    tips = (
        alt.Tooltip("recipe:N"),
        alt.Tooltip("stored:N"),
        alt.Tooltip("dense:N"),
        alt.Tooltip("share:Q", format=".1%"),
    )
    columns = ["recipe", "method", "share", "stored", "dense"]
    base = alt.Chart(frame[columns])
    bars = base.mark_bar(height={"band": 0.7}).encode(x=x, y=y, color=methods.colour, tooltip=list(tips))
    label = base.mark_text(align="left", dx=4, color=charts.INK).encode(x=x, y=y, text="stored:N")
    return Figure(
        name="sizes",
        title="Size of the compressed layers",
        caption="In compact form (packed codes, kept values and their places), over the size of the dense layers.",
        chart=charts.themed([Panel(layers=[bars, label], width=420, height=alt.Step(17))], columns=1, minimum=420),
        rows=table[["recipe", "seed", "dense_bytes", "stored_bytes", "realised_sparsity"]],
    )
