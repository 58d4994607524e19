"""Figures and table of axes: what is on them, level by level, and what is left out and said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmkick.report.figures.axes import axes_table, axis_figures
from llmkick.report.figures.figure import Figure
from llmkick.report.figures.figures import figures, figures_drawn
from llmkick.report.figures.methods import STYLES
from llmkick.report.lookup import task_comparisons
from llmkick.study.results.records import TaskSummary
from llmkick.study.results.results import StudyResult
from llmkick.study.results.variants import VariantRow
from report.synthetic import SEVERITY, build_run

COUNTS = (128, 1, 8)
SHOTS = {"factoid_qa": 0, "context_qa:open": 3}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """Invented answers: a recipe for each count, and two tasks that stand for one task with two numbers of shots."""
    labels = {f"wanda@0.25 [sequences={count}]": count for count in COUNTS}
    with pytest.MonkeyPatch.context() as patch:
        for label, count in labels.items():
            patch.setitem(SEVERITY, label, 0.5 if count == 1 else 0.02)
        made = build_run(
            tmp_path_factory.mktemp("runs") / "axes",
            recipes=("magnitude@0.25", *labels),
            tasks=("factoid_qa", "context_qa:open", "perplexity"),
            items=200,
        )
    variants = [VariantRow(label="magnitude@0.25", recipe="magnitude@0.25")]
    variants += [
        VariantRow(label=label, recipe="wanda@0.25", axes={"calibration.sequences": count})
        for label, count in labels.items()
    ]
    tasks = [
        TaskSummary.model_validate({**task.facts, "axes": {"shots": SHOTS[task.name]}}) if task.name in SHOTS else task
        for task in made.tasks
    ]
    return made.model_copy(update={"variants": tuple(variants), "tasks": tuple(tasks)})


def test_the_table_has_a_row_for_every_comparison_at_a_level(result: StudyResult):
    table = axes_table(result)
    counts = table[table["axis"] == "calibration.sequences"]
    assert len(counts) == len(COUNTS) * len(SHOTS)
    assert list(counts[counts["task"] == "factoid_qa"]["level"]) == [1, 8, 128], "by number, not as listed"
    assert set(counts["line"]) == {"wanda@0.25 [shots=0]", "wanda@0.25 [shots=3]"}
    shots = table[table["axis"] == "shots"]
    assert len(shots) == (1 + len(COUNTS)) * len(SHOTS), "a method without calibration is asked with every number too"
    assert "perplexity" not in set(table["task"]), "a control has no share to keep"


def test_shares_are_those_of_the_comparisons(result: StudyResult):
    table = axes_table(result)
    for entry in task_comparisons(result):
        rows = table[(table["recipe"] == entry.recipe) & (table["task"] == entry.task)]
        for row in rows.itertuples():
            assert entry.relative_drop is not None
            assert entry.interval is not None
            assert row.kept == pytest.approx(entry.compressed / entry.dense)
            assert (row.kept_low, row.kept_high) == pytest.approx((1 - entry.interval[1], 1 - entry.interval[0]))
            assert row.verdict == entry.verdict


def test_a_figure_for_each_axis(result: StudyResult, tmp_path: Path):
    drawn = {figure.name: figure for figure in axis_figures(result)}
    assert set(drawn) == {"axis-calibration-sequences", "axis-shots"}
    counts = drawn["axis-calibration-sequences"]
    assert [panel["title"]["text"] for panel in counts.spec["concat"]] == ["context_qa:open", "factoid_qa"]
    x = next(layer["encoding"]["x"] for layer in counts.spec["concat"][0]["layer"] if "x" in layer.get("encoding", {}))
    assert x["sort"] == ["1", "8", "128"]
    assert "A method without calibration has no level and is not drawn." in counts.caption
    assert "without calibration" not in drawn["axis-shots"].caption
    with figures_drawn(result.model_copy(update={"folder": tmp_path}), list(drawn.values())) as write:
        written = write()
    assert all(path.read_text(encoding="utf-8").startswith("<svg") for path in written)
    assert {figure.name for figure in figures(result)} >= set(drawn)


def looks(figure: Figure) -> dict[str, tuple[str, str]]:
    """Line → colour and shape, of the first panel."""
    (point,) = [layer for layer in figure.spec["concat"][0]["layer"] if "shape" in layer.get("encoding", {})]
    colour, shape = (point["encoding"][name]["scale"] for name in ("color", "shape"))
    return dict(zip(colour["domain"], zip(colour["range"], shape["range"], strict=True), strict=True))


def test_the_only_line_of_a_method_looks_like_the_method(result: StudyResult):
    drawn = {figure.name: figure for figure in axis_figures(result)}
    of_shots = looks(drawn["axis-shots"])
    assert of_shots["magnitude@0.25"] == STYLES["magnitude"]
    several = [of_shots[f"wanda@0.25 [sequences={count}]"] for count in COUNTS]
    assert len(set(several)) == len(COUNTS)
    assert STYLES["wanda"] not in several, "three lines are of wanda"
    # Without another number of shots there is one line of wanda.
    tasks = [task.model_copy(update={"axes": {}}) for task in result.tasks]
    (figure,) = axis_figures(result.model_copy(update={"tasks": tuple(tasks)}))
    assert looks(figure) == {"wanda@0.25": STYLES["wanda"]}


@pytest.mark.parametrize(
    ("loss", "interval", "domain", "cut"),
    [
        (0.2, (0.1, 0.3), (0, 1.1), False),
        (0.2, (0.1, 1.3), (0, 1.1), True),
        (0.2, (-0.2, 0.3), (0, 1.26), False),
        (0.2, (-0.5, 0.3), (0, 1.3), True),
        (1.4, (1.3, 1.44), (-0.45, 1.1), False),  # below chance, less than nothing is kept
        (-0.6, (-0.64, 0.3), (0, 1.65), False),
    ],
)
def test_every_point_is_on_the_axis_and_it_is_said_where_intervals_are_cut(
    result: StudyResult, loss: float, interval: tuple[float, float], domain: tuple[float, float], cut: bool
):
    calm = {"relative_drop": 0.0, "interval": (-0.01, 0.01), "verdict": "matching"}
    other = {"relative_drop": loss, "interval": interval, "verdict": "undecided"}
    entries = [
        replace(entry, **(other if (entry.recipe, entry.task) == ("magnitude@0.25", "factoid_qa") else calm))
        for entry in task_comparisons(result)
    ]
    figure = axis_figures(result.model_copy(update={"comparisons": tuple(entries)}))[-1]
    assert figure.name == "axis-shots"
    (panel,) = [panel for panel in figure.spec["concat"] if panel["title"]["text"] == "factoid_qa"]
    (point,) = [layer for layer in panel["layer"] if "shape" in layer.get("encoding", {})]
    assert point["encoding"]["y"]["scale"]["domain"] == pytest.approx(domain)
    assert ("Intervals are cut at the end of the axis." in figure.caption) == cut


def test_a_study_without_axes_has_neither(tmp_path: Path):
    plain = build_run(tmp_path / "plain", recipes=("magnitude@0.25",), tasks=("factoid_qa",))
    assert axes_table(plain).empty
    assert axis_figures(plain) == []
