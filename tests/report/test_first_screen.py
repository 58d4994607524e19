"""The first screen of the page: its sentence, its figure, and the matrix in a real browser."""

from __future__ import annotations

from dataclasses import replace

import pytest

import browser as chromium
from llmkick.report.figures.kept import KEPT, kept_figure
from llmkick.report.findings import Finding
from llmkick.report.matrix import loss_step, matrix
from llmkick.report.page.first_screen import density, headline, methods, page_rows, tally
from llmkick.report.page.page import write_report
from report.specs import layers, points, validate, write_figures
from report.synthetic import SEVERITY, build_run

MANY = [
    f"{method}@{level}"
    for method in ("wanda", "magnitude", "sparsegpt")
    for level in ("0.05", "0.1", "0.15", "0.2", "0.25", "0.3", "0.35", "0.4", "0.45", "0.5", "2:4", "4:8")
] + ["rtn@8b", "rtn@4b-g64", "gptq@8b", "gptq@4b-g64"]
TASKS = (
    "factoid_qa", "multiple_choice:letter", "multiple_choice:cloze", "context_qa:closed", "context_qa:open",
    "summarization", "instruction", "perplexity",
)  # fmt: skip


def test_the_figure_shows_means_of_the_losses_over_the_rise(result):
    figure = kept_figure(result)
    assert figure.name == KEPT
    validate(figure.spec)
    rows = {row["recipe"]: row for row in points(figure.spec)}
    assert set(rows) == set(result.labels)
    for recipe, row in rows.items():
        entries = [
            e for e in result.comparisons if e.recipe == recipe and e.kind == "task" and e.verdict != "no signal"
        ]
        (control,) = (e for e in result.comparisons if e.recipe == recipe and e.kind == "perplexity")
        assert row["kept"] == pytest.approx(1 - sum(e.relative_drop for e in entries) / len(entries))
        assert row["rise"] == pytest.approx(control.relative_increase)


def test_names_of_points_touch_nothing(result):
    spec = kept_figure(result).spec
    rooms = spec["usermeta"]["rooms"]
    named = [row for layer, rows in layers(spec) if layer["mark"]["type"] == "text" for row in rows if "room" in row]
    assert {row["room"] for row in named} <= set(rooms)
    for room in rooms:
        shown = [(row["recipe"], row["side"]) for row in named if row["room"] == room]
        assert len({recipe for recipe, _ in shown}) == len(set(shown))
    assert {row["recipe"] for row in named if row["room"] == max(rooms)} >= {"magnitude@0.25", "gptq@3b-g64"}


def test_without_perplexity_the_figure_has_a_row_for_each_method(folder):
    result = build_run(folder, tasks=("factoid_qa",), items=60)
    figure = kept_figure(result)
    validate(figure.spec)
    assert figure.title == "What each method keeps"
    assert {row["recipe"] for row in points(figure.spec)} == set(result.labels)
    assert write_figures(result)


@pytest.mark.parametrize("options", [{"tasks": ("perplexity",)}, {"recipes": []}], ids=str)
def test_without_a_loss_there_is_no_figure_and_still_a_page(folder, options):
    result = build_run(folder, items=12, **options)
    assert kept_figure(result) is None
    assert 'class="hero alone"' in write_report(folder).read_text(encoding="utf-8")


def test_a_recipe_without_perplexity_is_left_out_and_that_is_said(result):
    some = [e for e in result.comparisons if (e.recipe, e.task) != ("rtn@8b", "perplexity")]
    figure = kept_figure(result.model_copy(update={"comparisons": tuple(some)}))
    assert "rtn@8b" not in {row["recipe"] for row in points(figure.spec)}
    assert "1 recipe without perplexity left out." in figure.caption


def test_more_than_the_dense_score_can_be_kept(result):
    gained = [
        replace(e, relative_drop=-0.2) if e.kind == "task" and e.recipe == "rtn@8b" else e for e in result.comparisons
    ]
    figure = kept_figure(result.model_copy(update={"comparisons": tuple(gained)}))
    (row,) = (row for row in points(figure.spec) if row["recipe"] == "rtn@8b")
    assert row["kept"] == pytest.approx(1.2)
    (domain,) = {
        tuple(layer["encoding"]["y"]["scale"]["domain"])
        for layer, _ in layers(figure.spec)
        if layer["mark"]["type"] == "point"
    }
    assert domain[1] > 1.2


@pytest.mark.parametrize("tasks", [("factoid_qa", "perplexity"), ("factoid_qa",)], ids=["rise", "rows"])
def test_a_model_below_chance_keeps_less_than_nothing(folder, tasks):
    result = build_run(folder, recipes=["rtn@8b", "wanda@0.25"], tasks=tasks, items=12)
    lost = [
        replace(e, relative_drop=1.4) if e.kind == "task" and e.recipe == "rtn@8b" else e for e in result.comparisons
    ]
    figure = kept_figure(result.model_copy(update={"comparisons": tuple(lost)}))
    (row,) = (row for row in points(figure.spec) if row["recipe"] == "rtn@8b")
    assert (row["kept"], row["shown"]) == (pytest.approx(-0.4), "−40 %")
    assert figure.rows.set_index("recipe").loc["rtn@8b", "kept"] == pytest.approx(-0.4)
    axis = "y" if "perplexity" in tasks else "x"
    (domain,) = {
        tuple(layer["encoding"][axis]["scale"]["domain"])
        for layer, _ in layers(figure.spec)
        if layer["mark"]["type"] == "point"
    }
    assert domain[0] == pytest.approx(-0.43)


def test_the_headline_is_the_loss_that_perplexity_hides():
    overall, silent, method = (Finding(topic=topic, text=topic) for topic in ("overall", "perplexity", "method"))
    assert headline([overall, silent, method], recipes=9) == (silent, [overall, method])
    assert headline([overall, method], recipes=9) == (overall, [method])
    assert headline([overall, method], recipes=1) == (method, [overall])


def test_verdicts_are_counted_and_rows_go_by_method_from_mild_to_severe(folder):
    result = build_run(folder, recipes=["wanda@2:4", "rtn@8b", "wanda@0.25", "magnitude@0.25", "wanda@0.1"], items=60)
    assert sum(part.count for part in tally(result)) == 5
    assert [row.recipe for row, _ in page_rows(result, matrix(result))] == [
        "magnitude@0.25", "wanda@0.1", "wanda@0.25", "wanda@2:4", "rtn@8b",
    ]  # fmt: skip
    assert [mark.name for mark in methods(result)] == ["magnitude", "wanda", "rtn"]
    assert [density(rows) for rows in (3, 17, 40)] == ["roomy", "normal", "compact"]


@pytest.mark.parametrize(
    ("share", "step"),
    [(None, ""), (-0.3, "gain"), (-0.02, "loss-0"), (0.025, "loss-0"), (0.04, "loss-1"), (0.06, "loss-2"),
     (0.15, "loss-3"), (0.35, "loss-4"), (0.5, "loss-5"), (0.7, "loss-6"), (1.0, "loss-7")],
)  # fmt: skip
def test_colours_are_steps_of_the_margin(share, step):
    assert loss_step(share, 0.05) == step


# ---- In a browser.

browsed = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())
ROWS = """
const lines = () => [...document.querySelectorAll("#matrices tr.row")];
const rows = () => lines().map((row) => row.cells[0].title);
const values = (column) => lines().map((row) => row.cells[column + 2].dataset.value);
const sort = (by) => document.querySelector(`.sort[data-sort="${by}"]`);
const chip = (method) => document.querySelector(`.chip[data-method="${method}"]`);
const tip = () => { const one = document.getElementById("tip"); return one.hidden ? "" : one.innerText; };
const cell = (recipe, task) => document.querySelector(`td[data-recipe="${recipe}"][data-task="${task}"]`);
"""


@pytest.fixture(scope="module")
def driver():
    with chromium.open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Forty recipes on eight tasks."""
    with pytest.MonkeyPatch.context() as patch:
        for number, recipe in enumerate(MANY):
            patch.setitem(SEVERITY, recipe, SEVERITY.get(recipe, (number % 12) / 12))
        result = build_run(tmp_path_factory.mktemp("many"), recipes=MANY, tasks=TASKS, items=12)
    write_report(result.folder)
    return result


def show(driver, folder, **look):
    driver.get_log("browser")
    chromium.look(driver, **{"width": 1440, **look})
    driver.get((folder / "report.html").resolve().as_uri())
    chromium.wait_until_ready(driver)
    return lambda script: driver.execute_script(ROWS + script)


@browsed
def test_forty_recipes_on_eight_tasks_fit_one_screen(driver, many):
    run = show(driver, many.folder, height=900)
    assert len(MANY) == 40
    assert run("return rows().length") == 40
    assert run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    box = run("const box = document.getElementById('matrices').getBoundingClientRect(); return [box.top, box.bottom]")
    assert box[1] - box[0] < 900
    boxes = """return [...document.querySelectorAll('#matrices .scroll')].filter((one) => !one.hidden)
      .map((one) => one.scrollWidth <= one.clientWidth)"""
    assert set(run(boxes)) == {True}
    tall = "return Math.max(...[...document.querySelectorAll('#matrices tr.row')].map((row) => row.offsetHeight))"
    assert run(tall) <= 20
    assert driver.get_log("browser") == []


@browsed
def test_no_laptop_scrolls_sideways(driver, many):
    run = show(driver, many.folder, width=1024)
    for width in (1024, 1280, 1440, 1920):
        chromium.look(driver, width=width)
        chromium.wait_for(driver, f"return document.documentElement.clientWidth === {width}")
        assert run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth"), width
        inside = """return [...document.querySelectorAll('#matrices .scroll')].filter((one) => !one.hidden)
          .every((one) => one.scrollWidth <= one.clientWidth)"""
        assert run(inside), width


@browsed
def test_a_title_sorts_and_sorts_the_other_way(driver, many):
    run = show(driver, many.folder)
    first = run("return rows()")
    run("sort(0).click()")
    values = [float(value) for value in run("return values(0)") if value is not None]
    assert len(values) == 40
    assert values == sorted(values, reverse=True)
    assert run("return sort(0).closest('th').getAttribute('aria-sort')") == "descending"
    run("sort(0).click()")
    again = [float(value) for value in run("return values(0)")]
    assert again == sorted(values)
    run("sort('all').click()")
    marks = run(
        "return [...document.querySelectorAll('#matrices tr.row .overall .mark')].map((one) => one.textContent)"
    )
    assert marks == sorted(marks, key="✗…?∅✓".index)
    run("sort('method').click()")
    assert run("return rows()") == first


@browsed
def test_a_method_is_shown_alone_and_with_another(driver, many):
    run = show(driver, many.folder)
    run("chip('gptq').click()")
    assert set(run("return rows()")) == {"gptq@8b", "gptq@4b-g64"}
    assert run("return [chip('gptq'), chip('rtn')].map((one) => one.getAttribute('aria-pressed'))") == ["true", "false"]
    run("chip('rtn').click()")
    assert {recipe.partition("@")[0] for recipe in run("return rows()")} == {"gptq", "rtn"}
    run("chip('rtn').click(); chip('gptq').click()")
    assert len(run("return rows()")) == 40


@browsed
def test_a_cell_says_its_bounds_on_hover_focus_and_tap(driver, result):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    run = show(driver, result.folder)
    assert run("return tip()") == ""
    target = run("return cell('magnitude@0.25', 'factoid_qa')")
    ActionChains(driver).move_to_element(target).perform()
    entry = next(e for e in result.comparisons if (e.recipe, e.task) == ("magnitude@0.25", "factoid_qa"))
    said = run("return tip()")
    assert "magnitude@0.25 on factoid_qa" in said
    assert "95 % bounds: a loss of" in said
    assert f"The paper's rule, without bounds: {entry.paper_verdict}" in said
    ActionChains(driver).move_to_element(driver.find_element("tag name", "h1")).perform()
    assert run("return tip()") == ""
    # The keyboard: one stop for the whole matrix, arrows inside it, Escape closes, Enter leads to the answers.
    assert run("return document.querySelectorAll('#matrices td[tabindex=\"0\"]').length") == 1
    run("document.querySelector('#matrices td[tabindex=\"0\"]').focus()")
    before = run("return document.activeElement.dataset.tip")
    driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert run("return document.activeElement.dataset.tip") not in ("", before)
    assert run("return document.activeElement.getAttribute('aria-describedby')") == "tip"
    driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert run("return tip()") == ""
    run("cell('wanda@0.25', 'factoid_qa').focus()")
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    chosen = "return document.getElementById('answers-variant').selectedOptions[0].text"
    assert chromium.wait_for(driver, chosen).startswith("wanda@0.25")


@browsed
def test_on_a_phone_a_tap_opens_the_details_at_the_lower_edge(driver, many):
    run = show(driver, many.folder, width=390, height=844)
    assert run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    run("cell('wanda@0.25', 'factoid_qa').scrollIntoView({block: 'center'}); cell('wanda@0.25', 'factoid_qa').click()")
    assert "wanda@0.25 on factoid_qa" in run("return tip()")
    box = run(
        "const box = document.getElementById('tip').getBoundingClientRect(); return [box.left, box.right, box.bottom]"
    )
    assert box[0] >= 0
    assert box[1] <= 390
    assert box[2] <= 844
    run("document.querySelector('h1').dispatchEvent(new PointerEvent('pointerdown', { bubbles: true }))")
    assert run("return tip()") == ""
