import json
import xml.etree.ElementTree as ET

import pytest

from llmkick.report import figures
from llmkick.report.charts import OTHER_STYLES, STYLES, Methods
from report.synthetic import RECIPES, build_run


@pytest.fixture(scope="module")
def drawn(result):
    return {figure.name: figure for figure in figures.figures(result)}


def texts(path):
    """Every text and label of an SVG file; parsing it proves that it is well-formed."""
    root = ET.fromstring(path.read_text(encoding="utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return [*(node.text or "" for node in root.iter()), *(node.get("aria-label", "") for node in root.iter())]


def test_every_kind_of_level_has_its_figure(drawn):
    assert list(drawn) == ["perplexity-against-loss", "sparsity", "n-m", "bits"]


def test_svg_files_are_valid_and_name_the_recipes(result):
    folder = result.folder / "figures"
    names = {path.stem for path in folder.glob("*.svg")}
    assert names == {"perplexity-against-loss", "sparsity", "n-m", "bits", "output-error"}
    everywhere = {path.stem: "\n".join(texts(path)) for path in folder.glob("*.svg")}
    for recipe in RECIPES:
        assert recipe in everywhere["perplexity-against-loss"]
        assert recipe in everywhere["output-error"]
        assert sum(recipe in everywhere[name] for name in ("sparsity", "n-m", "bits")) == 1
    for task in ("factoid_qa", "context_qa:open", "perplexity"):
        assert task in everywhere["sparsity"]


def test_the_specs_are_valid_vega_lite_and_load_nothing(result, drawn):
    for figure in [*drawn.values(), figures.layer_figure(result)]:
        figure.chart.to_dict(validate=True)
        text = json.dumps(figure.spec, allow_nan=False)
        assert '"url"' not in text


def points(spec):
    """The rows of data that a figure shows as points."""
    for panel in spec["concat"]:
        for layer in panel["layer"]:
            if layer["mark"] != "rule" and layer["mark"].get("type") == "point":
                yield from layer.get("data", panel.get("data", {})).get("values", [])


def test_figures_show_the_numbers_of_the_comparisons(result, drawn):
    by_cell = {(entry["recipe"], entry["task"]): entry for entry in result.comparisons}
    shown = [row for name in ("sparsity", "n-m", "bits") for row in points(drawn[name].spec)]
    silent = {cell for cell, entry in by_cell.items() if entry.get("verdict") == "no signal"}
    assert silent
    assert {(row["recipe"], row["task"]) for row in shown} == set(by_cell) - silent
    for row in shown:
        entry = by_cell[row["recipe"], row["task"]]
        if "outcome" in entry:
            assert row["y"] == pytest.approx(1 + entry["relative_increase"])
            assert [row["low"], row["high"]] == pytest.approx([1 + bound for bound in entry["interval"]])
        else:
            assert row["y"] == pytest.approx(entry["relative_drop"])
            assert [row["low"], row["high"]] == pytest.approx(entry["interval"])


def test_tasks_without_signal_are_left_out_and_that_is_said(drawn):
    for figure in drawn.values():
        assert {row["task"] for row in points(figure.spec)} - {"perplexity"} == {"factoid_qa", "context_qa:open"}
    assert "Left out, for want of a signal: multiple_choice:letter." in drawn["sparsity"].caption


def test_every_point_is_on_its_axis(folder):
    result = build_run(folder, recipes=["wanda@0.1", "wanda@0.25"], tasks=("factoid_qa",), items=20)
    for entry, drop in zip(result.comparisons, (-0.8, 0.3), strict=True):
        entry.update(relative_drop=drop, interval=[drop - 3, drop + 0.1], verdict="undecided")
    (figure,) = figures.figures(result)
    low, high = figure.spec["concat"][0]["layer"][1]["encoding"]["y"]["scale"]["domain"]
    assert low < -0.8
    assert low > -1
    assert high > 1
    assert "Intervals are cut" in figure.caption


def test_colours_and_shapes_are_distinct_and_stay_with_their_method():
    styles = [*STYLES.values(), *OTHER_STYLES]
    assert len({colour for colour, _ in styles}) == len({shape for _, shape in styles}) == len(styles)
    import pandas as pd

    methods = Methods.of(pd.DataFrame({"method": ["wanda+gptq", "gptq", "wanda"]}))
    assert methods.names == ("wanda", "gptq", "wanda+gptq")
    assert methods.colours[:2] == (STYLES["wanda"][0], STYLES["gptq"][0])


@pytest.mark.parametrize(
    "options",
    [
        {"tasks": ("perplexity",)},
        {"tasks": ("factoid_qa",)},
        {"recipes": []},
        {"recipes": ["wanda@0.5+gptq@4b"]},
        {"items": 1},
        {"unscored": {"factoid_qa": 60, "context_qa:open": 60}},
    ],
    ids=lambda options: str(next(iter(options.items()))),
)
def test_sparse_studies_can_be_drawn(folder, options):
    result = build_run(folder, **{"items": 60, **options})
    for path in figures.write_figures(result, folder):
        texts(path)


def test_a_loss_that_is_undefined_is_not_drawn(folder):
    result = build_run(folder, recipes=["rtn@8b"], tasks=("factoid_qa", "context_qa:closed"), items=20)
    for entry in result.comparisons:
        if entry["task"] == "factoid_qa":
            entry.update(relative_drop=None, interval=None, verdict="no signal")
        else:
            entry.update(interval=None)
    (figure,) = figures.figures(result)
    assert {row["task"] for row in points(figure.spec)} == {"context_qa:closed"}
    figures.write_figures(result, folder)


def test_layers_whose_error_was_never_measured_can_be_drawn(folder):
    """Magnitude and rounding need no calibration, and without any there is nothing to measure on."""
    result = build_run(folder, recipes=["magnitude@0.5"], items=20)
    for report in result.compression:
        for layer in report["layers"]:
            layer["relative_output_error"] = None
    spec = figures.layer_figure(result).spec
    assert json.loads(json.dumps(spec, allow_nan=False))["data"]["values"][0]["relative_output_error"] is None
    figures.write_figures(result, folder)
