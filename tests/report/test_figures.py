import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pandas as pd
import pytest

from llmkick.report.figures import book, figures, groups
from llmkick.report.figures.charts import score_axis
from llmkick.report.figures.levels import cells_frame
from llmkick.report.figures.methods import STYLES, Methods
from report.specs import layers, points, validate, write_figures
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
    assert list(drawn) == ["kept", "perplexity-against-loss", "sparsity", "n-m", "bits"]


def test_svg_files_are_valid_and_name_the_recipes(result):
    (folder,) = {path.parent for path in write_figures(result, aside=True)}
    names = {path.stem for path in folder.glob("*.svg")}
    assert names == {
        "kept", "perplexity-against-loss", "sparsity", "n-m", "bits", "output-error", "sizes",
    }  # fmt: skip
    assert {path.stem for path in folder.glob("*.csv")} == names
    everywhere = {path.stem: "\n".join(texts(path)) for path in folder.glob("*.svg")}
    for recipe in RECIPES:
        assert recipe in everywhere["perplexity-against-loss"]
        assert recipe in everywhere["output-error"]
        assert sum(recipe in everywhere[name] for name in ("sparsity", "n-m", "bits")) == 1
    for task in ("factoid_qa", "context_qa:open", "perplexity"):
        assert task in everywhere["sparsity"]


def test_the_specs_are_valid_vega_lite_and_load_nothing(result, drawn):
    for figure in [*drawn.values(), figures.layer_figure(result), figures.size_figure(result)]:
        validate(figure.spec)
        text = json.dumps(figure.spec, allow_nan=False)
        assert '"url"' not in text


def test_figures_show_the_numbers_of_the_comparisons(result, drawn):
    by_cell = {(entry.recipe, entry.task): entry for entry in result.comparisons}
    shown = [row for name in ("sparsity", "n-m", "bits") for row in points(drawn[name].spec)]
    assert {(row["recipe"], row["task"]) for row in shown} == set(by_cell)
    for row in shown:
        entry = by_cell[row["recipe"], row["task"]]
        if entry.kind == "perplexity":
            assert row["y"] == pytest.approx(1 + entry.relative_increase)
            assert [row["low"], row["high"]] == pytest.approx([1 + bound for bound in entry.interval])
        else:
            if entry.verdict == "no signal":
                assert row["y"] == pytest.approx(entry.compressed)
                continue
            assert row["y"] == pytest.approx(entry.compressed)
            bounds = [entry.dense * (1 - bound) for bound in reversed(entry.interval)]
            assert [row["low"], row["high"]] == pytest.approx(bounds)


def test_the_control_shows_the_losses(result, drawn):
    by_cell = {(entry.recipe, entry.task): entry for entry in result.comparisons}
    rows = list(points(drawn["perplexity-against-loss"].spec))
    assert rows
    for row in rows:
        entry, rise = by_cell[row["recipe"], row["task"]], by_cell[row["recipe"], "perplexity"]
        assert row["y"] == pytest.approx(entry.relative_drop)
        assert [row["low"], row["high"]] == pytest.approx(entry.interval)
        assert row["rise"] == pytest.approx(rise.relative_increase)


def test_tasks_without_signal_are_drawn_without_interval_and_that_is_said(drawn):
    silent = [row for row in points(drawn["sparsity"].spec) if row["task"] == "multiple_choice:letter"]
    assert silent
    assert all(row["low"] is None for row in silent)
    assert "Without a signal, so nothing can be lost: multiple_choice:letter." in drawn["sparsity"].caption
    assert not [row for row in points(drawn["perplexity-against-loss"].spec) if "letter" in row["task"]]


def test_every_point_is_on_its_axis_and_bars_begin_at_nothing(drawn):
    for name in ("sparsity", "bits"):
        for layer, rows in layers(drawn[name].spec):
            kind = layer["mark"].get("type") if isinstance(layer["mark"], dict) else ""
            if kind in ("point", "bar"):
                low, high = layer["encoding"]["y"]["scale"]["domain"]
                assert rows
                assert all(low <= row["y"] <= high for row in rows)
                assert kind != "bar" or low == 0


def with_loss(folder, loss, interval):
    """A study in which one recipe has a loss."""
    result = build_run(folder, recipes=["rtn@8b"], tasks=("factoid_qa", "perplexity"), items=12)
    changed = [
        replace(entry, relative_drop=loss, interval=interval, verdict="not matching") if entry.kind == "task" else entry
        for entry in result.comparisons
    ]
    return result.model_copy(update={"comparisons": tuple(changed)})


@pytest.mark.parametrize(
    ("loss", "interval", "domain", "cut"),
    [
        (0.5, (0.2, 0.8), (-0.05, 1.05), False),
        (0.5, (0.2, 1.2), (-0.05, 1.05), True),  # an interval alone does not extend the axis upwards
        (0.5, (-0.2, 0.8), (-0.2, 1.05), False),
        (0.5, (-0.5, 0.8), (-0.3, 1.05), True),
        (1.4, (1.1, 1.44), (-0.05, 1.45), False),  # below chance, more than everything is lost
        (1.4, (1.1, 1.9), (-0.05, 1.45), True),
        (-0.6, (-0.9, 0.1), (-0.65, 1.05), True),
    ],
)
def test_the_axis_of_losses_contains_every_point_and_says_where_intervals_are_cut(folder, loss, interval, domain, cut):
    drawn = figures.figures(with_loss(folder, loss, interval))
    figure = {figure.name: figure for figure in drawn}["perplexity-against-loss"]
    axes = {
        layer["mark"]["type"]: layer["encoding"]["y"]["scale"]["domain"]
        for layer, rows in layers(figure.spec)
        if "scale" in layer["encoding"].get("y", {}) and layer["mark"]["type"] in ("point", "rect")
    }
    assert axes["point"] == pytest.approx(domain)
    assert ("Intervals are cut at the end of the axis." in figure.caption) == cut
    (corner,) = (row for layer, rows in layers(figure.spec) for row in rows if layer["mark"]["type"] == "rect")
    assert corner["y2"] == pytest.approx(domain[1])


@pytest.mark.parametrize(
    ("interval", "cut"), [((0.1, 0.8), False), ((0.1, 1.3), True), ((-0.9, 0.8), True)], ids=["no", "low", "high"]
)
def test_figures_of_scores_say_that_intervals_are_cut_at_either_end(folder, interval, cut):
    (figure,) = [figure for figure in figures.figures(with_loss(folder, 0.4, interval)) if figure.name == "bits"]
    assert ("Intervals are cut at the end of the axis." in figure.caption) == cut


def test_an_interval_of_perplexity_within_its_axis_is_not_called_cut(folder):
    """Its axis contains it, whatever the perplexity of the dense model is."""
    made = build_run(folder, recipes=["rtn@8b"], tasks=("perplexity",), items=12)
    steep = [replace(entry, relative_increase=80.0, interval=(60.0, 99.0), dense=20.0) for entry in made.comparisons]
    (figure,) = [
        figure
        for figure in figures.figures(made.model_copy(update={"comparisons": tuple(steep)}))
        if figure.name == "bits"
    ]
    assert "cut" not in figure.caption


def test_closed_and_open_book_are_drawn_together(folder):
    result = build_run(folder, recipes=["wanda@0.25", "rtn@3b-g64"], tasks=("context_qa:closed", "context_qa:open"))
    figure = {figure.name: figure for figure in figures.figures(result)}["closed-open-context_qa"]
    validate(figure.spec)
    shown = {(row["recipe"], row["task"]) for row in points(figure.spec)}
    assert shown == {(r, t) for r in ("wanda@0.25", "rtn@3b-g64") for t in ("context_qa:closed", "context_qa:open")}
    assert len(figure.spec["concat"]) == 2


def test_the_two_books_are_found_under_any_name(folder):
    result = build_run(folder, recipes=["wanda@0.25"], tasks=("context_qa:closed", "context_qa:open"))
    names = {"context_qa:closed": "by heart", "context_qa:open": "with text [evidence 192]"}
    cells = cells_frame(result)
    renamed = result.model_copy(
        update={"tasks": tuple(t.model_copy(update={"name": names[t.name], "task": t.name}) for t in result.tasks)}
    )
    figure = book.book_figures(renamed, cells.replace({"task": names}))[0]
    assert figure.name == "closed-open-by-heart-and-with-text-evidence-192"
    validate(figure.spec)
    assert {row["task"] for row in points(figure.spec)} == set(names.values())
    # Other questions are no pair, and neither are other levels of an axis.
    closed, opened = renamed.tasks
    assert book.book_pairs([closed, opened]) == [(closed, opened)]
    assert book.book_pairs([closed, opened.model_copy(update={"limit": 7})]) == []
    assert book.book_pairs([closed, opened.model_copy(update={"axes": {"shots": 1}})]) == []
    three = [task.model_copy(update={"axes": {"shots": 1}}) for task in (closed, opened)]
    assert book.book_pairs([closed, three[0], three[1], opened]) == [(closed, opened), (three[0], three[1])]
    assert book.book_pairs([opened, opened]) == []


def test_numbers_of_a_figure_are_saved_in_full(result, drawn):
    rows = drawn["sparsity"].rows
    assert set(rows["recipe"]) == {recipe for recipe in RECIPES if "0." in recipe}
    read = pd.read_csv(io.StringIO(drawn["sparsity"].csv))
    assert read["y"].tolist() == rows["y"].tolist()


def test_named_methods_come_first_and_keep_their_looks(result):
    methods = Methods.of(result, pd.DataFrame({"method": ["wanda+gptq", "gptq", "wanda"]}))
    assert methods.names == ("wanda", "gptq", "wanda+gptq")
    assert list(zip(methods.colours, methods.shapes, strict=True))[:2] == [STYLES["wanda"], STYLES["gptq"]]


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
    for path in write_figures(result):
        texts(path)


def test_a_loss_that_is_undefined_has_no_interval(folder):
    result = build_run(folder, recipes=["rtn@8b"], tasks=("factoid_qa", "context_qa:closed"), items=20)
    silent = {"relative_drop": None, "interval": None, "verdict": "no signal"}
    changed = [
        replace(entry, **(silent if entry.task == "factoid_qa" else {"interval": None})) for entry in result.comparisons
    ]
    result = result.model_copy(update={"comparisons": tuple(changed)})
    *_, figure = figures.figures(result)
    assert {row["low"] for row in points(figure.spec)} == {None}
    write_figures(result)


def test_layers_whose_error_was_never_measured_can_be_drawn(folder):
    """Magnitude and rounding need no calibration, and without any there is nothing to measure on."""
    result = build_run(folder, recipes=["magnitude@0.5"], items=20)
    (report,) = result.compression
    unmeasured = tuple(replace(layer, relative_output_error=None) for layer in report.layers)
    result = result.model_copy(update={"compression": (report.model_copy(update={"layers": unmeasured}),)})
    spec = figures.layer_figure(result).spec
    (_, rows), *_ = layers(json.loads(json.dumps(spec, allow_nan=False)))
    assert rows[0]["relative_output_error"] is None
    write_figures(result)


def test_the_interval_of_a_part_is_of_the_score_above_chance(tmp_path):
    """Guessing scores 0.25: with 0.40 dense, losing 20 to 40 % of what is above it leaves 0.34 to 0.37."""
    result = build_run(tmp_path, tasks=("multiple_choice:cloze",), items=12)
    frame = pd.DataFrame([
        {"task": "multiple_choice:cloze", "detail": "discipline", "group": "stem", "recipe": "wanda@0.25", "n": 100,
         "dense": 0.40, "compressed": 0.355, "loss": 0.3, "loss_low": 0.2, "loss_high": 0.4,
         "verdict": "not matching"},
    ])  # fmt: skip
    (figure,) = groups.group_figures(result, frame)
    (point,) = [row for row in points(figure.spec) if "low" in row]
    assert [point["low"], point["y"], point["high"]] == pytest.approx([0.34, 0.355, 0.37])
    assert "cut" not in figure.caption
    (beyond,) = groups.group_figures(result, frame.assign(loss_high=2.9))  # 0.25 + 0.15 × −1.9 < 0
    assert "Intervals are cut at the end of the axis." in beyond.caption


def test_a_model_asked_less_is_on_the_axis_below_nothing_too():
    """Guessing scores 0.25: 0 right of questions of which the dense model has 0.5 is a loss of 200 %; of 0.7, −0.2."""
    frame = pd.DataFrame([{"y": 0.25 + 0.45 * (1 - 2.0), "dense": 0.7}])
    assert score_axis(frame)["scale"]["domain"] == pytest.approx([-0.2, 0.805])


def test_bits_per_byte_are_not_called_perplexity(result):
    tasks = tuple(
        task.model_copy(update={"metric": "bits_per_byte"}) if task.is_control else task for task in result.tasks
    )
    found = {figure.name: figure for figure in figures.figures(result.model_copy(update={"tasks": tasks}))}
    assert found["kept"].title == "What is kept as bits per byte rises"
    for name in ("kept", "perplexity-against-loss", "sparsity", "n-m", "bits"):
        axes = re.findall(r'"title": "([^"]*)"', json.dumps(found[name].spec, ensure_ascii=False))
        words = {found[name].title, found[name].caption, *axes}
        assert not [text for text in words if "perplexity" in text.lower() and text != "perplexity"], name
        assert any("its per byte" in text for text in words), name


def test_models_asked_fewer_items_start_from_the_same_dense_score(tmp_path):
    """Early stopping: 0.20 on items where dense has 0.25 is a loss of 20 %, 0.24 of the 0.30 on all items."""
    result = build_run(tmp_path, tasks=("factoid_qa",), recipes=("wanda@0.1", "wanda@0.25"), items=12)
    rows = [row.model_copy(update={"value": 0.30}) if row.recipe == "dense" else row for row in result.results]
    stopped = replace(
        next(e for e in result.comparisons if e.recipe == "wanda@0.25"), n=8, dense=0.25, compressed=0.20,
        relative_drop=0.2, interval=(0.1, 0.4), verdict="not matching",
    )  # fmt: skip
    whole = replace(
        stopped, recipe="wanda@0.1", n=12, dense=0.30, compressed=0.30, relative_drop=0.0, interval=(-0.1, 0.1)
    )
    changed = result.model_copy(update={"results": tuple(rows), "comparisons": (whole, stopped)})
    frame = cells_frame(changed).set_index("recipe")
    assert frame.loc["wanda@0.25", ["y", "low", "high", "dense"]].tolist() == pytest.approx([0.24, 0.18, 0.27, 0.30])
    assert frame.loc["wanda@0.1", ["y", "low", "high", "dense"]].tolist() == pytest.approx([0.30, 0.27, 0.33, 0.30])
    (figure,) = [figure for figure in figures.figures(changed) if figure.name == "sparsity"]
    assert "asked fewer questions is placed by its loss" in figure.caption
    # A mean that another sum rounds in its last bit, and an item without a score, are no fewer questions.
    nearly = replace(whole, recipe="wanda@0.25", dense=0.30000000000000004, n=11, unscored=1)
    same = changed.model_copy(update={"comparisons": (whole, nearly)})
    (figure,) = [figure for figure in figures.figures(same) if figure.name == "sparsity"]
    assert "asked fewer" not in figure.caption
