"""The section "What came back": on the page, in tables, in the terminal and in Markdown; and in a browser."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

import browser as chromium
from llmkick.report import exports, tables
from llmkick.report.came_back import came_back_table, costs, payload, points, row_texts, share, whole_tasks
from llmkick.report.figures.flows import WAYS, flow_figures
from llmkick.report.findings import find
from llmkick.report.page.page import write_report
from llmkick.report.run_folder import opened_run
from llmkick.statistics import Ratio
from llmkick.study.results.records import CompressionSummary
from llmkick.study.results.results import RESULTS_FILE, StudyResult
from report.synthetic import build_run, digest_of

RECIPES = (
    "magnitude@0.25", "magnitude@0.25+lora", "wanda@2:4", "wanda@2:4+lora", "wanda@2:4+reconstruct", "rtn@8b",
    "rtn@8b+eora-r8",
)  # fmt: skip
TASKS = ("factoid_qa", "multiple_choice:cloze", "perplexity")
RECOVERED = ("magnitude@0.25+lora", "wanda@2:4+lora", "wanda@2:4+reconstruct", "rtn@8b+eora-r8")
OVERLAP = {
    "task": "factoid_qa", "recipes": ["wanda@2:4", "wanda@2:4+lora"], "source": "notes.txt", "seed": 0,
    "digest": "c" * 64, "windows": 8, "tokens": 1024, "n": 8, "items": 120, "with_answer": 120, "exact": 3, "ngram": 5,
    "answered": 2, "passages": 0, "examples": ["factoid_qa-003"],
}  # fmt: skip


@pytest.fixture(scope="module")
def recovered(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """Three seeds, whose losses differ a little; the lora returns much, the reconstruction hardly anything."""
    result = build_run(
        tmp_path_factory.mktemp("recovered"), recipes=RECIPES, tasks=TASKS, seeds=(0, 1, 2), items=120, flips=0.15,
        overlap=[OVERLAP], hostile=True,
    )  # fmt: skip
    write_report(result.folder)
    return result


@pytest.fixture(scope="module")
def page(recovered: StudyResult) -> str:
    return (recovered.folder / "report.html").read_text(encoding="utf-8")


def test_shares_and_differences_read_as_on_every_page():
    assert share(Ratio(value=0.264, interval=(0.151, 0.398))) == "26 % [15, 40]"
    assert share(Ratio(value=None, reason="nothing was lost")) == "–"
    assert points(Ratio(value=0.081, interval=(-0.02, 0.182))) == "+8.1 [−2.0, 18]"
    assert points(Ratio(value=-0.5)) == "−50"


def test_the_page_has_a_row_for_every_recovered_recipe_and_task(recovered: StudyResult, page: str):
    section = page[page.index('<section id="came-back"') : page.index('<section id="claims"')]
    assert re.findall(r"<h3>(.*?)</h3>", section) == list(RECOVERED)
    for row in whole_tasks(recovered):
        for text in (share(row.returned), share(row.control), share(row.newly_lost)):
            assert text in section
    assert section.count('data-outcome="returned"') == len(whole_tasks(recovered)) == 8
    assert "2 of 120 questions" in section
    assert '<a href="#came-back">' in page


def test_the_overlap_is_shown_with_every_count(page: str):
    table = page[page.index("Overlap of the calibration text") : page.index("<h3>Items without a score")]
    cells = [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd][ >].*?</t[hd]>", table, re.DOTALL)][10:]
    assert cells == [
        "factoid_qa", "notes.txt, seed 0", "wanda@2:4, wanda@2:4+lora", "8", "120", "3", "5", "2 of 120", "0",
        "factoid_qa-003",
    ]  # fmt: skip
    assert "1 of 1 with questions beside their answers" in table
    assert "built-in method" not in page


def test_a_study_without_recovered_recipes_has_no_such_section(result: StudyResult):
    text = (result.folder / "report.html").read_text(encoding="utf-8")
    assert 'id="came-back"' not in text
    assert "#came-back" not in text
    assert "What came back" not in exports.markdown(result)


def test_results_of_earlier_versions_are_shown(tmp_path: Path):
    result = build_run(tmp_path / "run", recipes=("wanda@0.25", "rtn@8b"), items=20)
    path = result.folder / RESULTS_FILE
    content = json.loads(path.read_text())
    for entry in ("returned", "overlap"):
        assert content.pop(entry) == []
    path.write_text(json.dumps(content))
    with opened_run(result.folder) as run:
        assert (run.result.returned, run.result.overlap, run.missing) == ((), (), [])
    assert write_report(result.folder).is_file()


def test_the_tables_hold_every_number(recovered: StudyResult, tmp_path: Path):
    tables.write_tables(recovered, tmp_path)
    frame = pd.read_csv(tmp_path / "tables" / "returned.csv", keep_default_na=False, na_values=[""])
    assert len(frame) == len(recovered.returned)
    for row, entry in zip(frame.to_dict("records"), recovered.returned, strict=True):
        assert (row["recipe"], row["base"], row["task"]) == (entry.recipe, entry.base, entry.task)
        for name in ("returned", "newly_lost", "control", "difference"):
            ratio = getattr(entry, name)
            given = [row[name], row[f"{name}_low"], row[f"{name}_high"]]
            expected = [ratio.value, *(ratio.interval or (None, None))]
            assert [None if pd.isna(value) else value for value in given] == expected
    by_cell = {(one.recipe, one.task): one for one in recovered.comparisons}
    row = frame[(frame["recipe"] == "wanda@2:4+lora") & (frame["task"] == "factoid_qa")].iloc[0]
    assert row["verdict"] == by_cell["wanda@2:4+lora", "factoid_qa"].verdict
    assert row["base_paper_verdict"] == by_cell["wanda@2:4", "factoid_qa"].paper_verdict
    assert row["contaminated"] == 2
    flows = pd.read_csv(tmp_path / "tables" / "flows.csv", keep_default_na=False)
    whole = flows[(flows["detail"] == "") & (flows["recipe"] == "wanda@2:4+lora") & (flows["task"] == "factoid_qa")]
    assert whole["items"].sum() == pytest.approx(120)
    (overlap,) = pd.read_csv(tmp_path / "tables" / "overlap.csv").to_dict("records")
    assert (overlap["exact"], overlap["answered"], overlap["source"]) == (3, 2, "notes.txt")


def test_markdown_and_the_terminal_say_what_the_page_says(recovered: StudyResult):
    text = exports.markdown(recovered)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(came_back_table(recovered))
    for row in whole_tasks(recovered):
        texts = row_texts(recovered, row)
        line = next(
            line
            for line in text.splitlines()
            if line.startswith(f"| {row.recipe} | {row.task} |") and "outcome" not in line
        )
        for part in ("lost", "returned", "control", "difference", "newly_lost", "paper"):
            assert texts[part] in line
        assert row.outcome in line
        assert costs(recovered)[row.recipe].text in line
        shown = next(
            line
            for line in captured.get().splitlines()
            if line.startswith(f" {row.recipe} ") and f" {row.task} " in line
        )
        for part in (share(row.returned), share(row.control), row.outcome, share(row.newly_lost)):
            assert part in shown


def test_the_finding_names_a_recovery_only_if_it_is_shown(recovered: StudyResult):
    (finding,) = [finding for finding in find(recovered) if finding.topic == "came back"]
    back = [row for row in whole_tasks(recovered) if row.outcome == "brought back"]
    most = max(back, key=lambda row: row.difference.value)
    for part in (most.recipe, most.base, most.task, share(most.returned), share(most.control)):
        assert part in finding.text
    assert f"so do {len(back) - 1} of the other" in finding.text
    others = tuple(row for row in recovered.returned if row.outcome == "undecided")
    (finding,) = [f for f in find(recovered.model_copy(update={"returned": others})) if f.topic == "came back"]
    assert finding.text == "No recovery is shown to bring back more than its control."
    none = tuple(row for row in recovered.returned if row.outcome == "no control")
    assert not [f for f in find(recovered.model_copy(update={"returned": none})) if f.topic == "came back"]


def test_more_shots_cost_nothing_and_have_no_answers_of_their_own(recovered: StudyResult, tmp_path: Path):
    rows = [row for row in recovered.returned if row.recipe == "wanda@2:4+lora"]
    shots = tuple(replace(row, recipe="wanda@2:4+shots-5", recovery="shots-5") for row in rows)
    result = recovered.model_copy(update={"returned": shots, "folder": tmp_path})
    (entry,) = payload(result)
    assert entry["cost"] == ""
    assert [row["has_answers"] for row in entry["rows"]] == [False, False]
    assert {row["contaminated"] for row in entry["rows"]} == {"no text was read"}
    lora = {one.task: one for one in recovered.comparisons if one.recipe == "wanda@2:4+lora"}
    for row in entry["rows"]:
        assert row["scores"].endswith(f"→ {lora[row['task']].compressed:.2f}")
    result.write()
    page = write_report(tmp_path).read_text(encoding="utf-8")
    section = page[page.index('<section id="came-back"') : page.index('<section id="claims"')]
    assert "no weights change" in section
    assert 'data-outcome="returned"' not in section


def test_the_cost_is_that_of_the_report_or_the_difference_to_the_base(recovered: StudyResult):
    def changed(report: CompressionSummary) -> CompressionSummary:
        facts = report.facts
        if report.recipe == "wanda@2:4+lora":
            said = {"seconds": 40.0 + report.seed, "tokens": 4096, "extra_bytes": 0, "extra_bits_per_weight": 0.0}
            facts |= {"recovery": {"recovery": "lora", **said}}
        if report.recipe == "wanda@2:4+reconstruct":
            facts |= {"stored_bytes": facts["stored_bytes"] + 3000}
        return CompressionSummary.model_validate(facts)

    seconds = {
        digest_of(recipe, seed): 10.0 if "+" in recipe else 4.0 for recipe in RECIPES for seed in (None, 0, 1, 2)
    }
    result = recovered.model_copy(
        update={
            "compression": tuple(map(changed, recovered.compression)),
            "timing": recovered.timing.model_copy(update={"compression_seconds": seconds}),
        }
    )
    of = costs(result)
    assert vars(of["wanda@2:4+lora"]) == {"seconds": 41.0, "tokens": 4096.0, "extra_bytes": 0.0, "extra_bits": 0.0}
    weights = sum(layer.shape[0] * layer.shape[1] for layer in recovered.compression[0].layers)
    reconstruct = of["wanda@2:4+reconstruct"]
    assert (reconstruct.seconds, reconstruct.tokens, reconstruct.extra_bytes) == (6.0, None, 3000.0)
    assert reconstruct.extra_bits == pytest.approx(8 * 3000 / weights)
    assert of["wanda@2:4+lora"].text == "41.0 s, 4,096 tokens, no more bytes"
    assert of["wanda@2:4+reconstruct"].text.startswith("6.0 s, 3 kB more (")


def test_the_ribbons_of_a_figure_are_as_high_as_their_items(recovered: StudyResult):
    figures = {figure.title.removeprefix("What came back with "): figure for figure in flow_figures(recovered)}
    assert list(figures) == list(RECOVERED)
    rows = {(row.recipe, row.task): row for row in whole_tasks(recovered)}
    for recipe, figure in figures.items():
        panels = [panel["title"]["text"] for panel in figure.spec["concat"]]
        assert panels == ["factoid_qa", "multiple_choice:cloze"]
        for task, panel in zip(panels, figure.spec["concat"], strict=True):
            points_of = figure.spec["datasets"][panel["layer"][0]["data"]["name"]]
            row = rows[recipe, task]
            heights = {point["way"]: point["y"] - point["y2"] for point in points_of}
            assert set(heights) <= set(WAYS)
            back = heights.get("returned", 0.0)
            assert back + heights.get("still lost", 0.0) == pytest.approx(row.lost, abs=1e-3)
            if row.returned.value is not None:
                assert back == pytest.approx(row.returned.value * row.lost, abs=1e-3)
            labels = figure.spec["datasets"][panel["layer"][2]["data"]["name"]]
            last = [label["y"] for label in labels if label["x"] > 0.6]
            assert last == sorted(last, reverse=True)


# In a browser

needs_browser = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())


@pytest.fixture(scope="module")
def driver():
    with chromium.open_browser() as opened:
        yield opened


OVERLAPPING = """
const texts = [...document.querySelectorAll('#came-back svg text')].filter((one) => one.textContent.trim());
const boxes = texts.map((one) => [one.textContent, one.getBoundingClientRect(), one.closest('svg')]);
const found = [];
boxes.forEach(([a, one, svg], i) => boxes.slice(i + 1).forEach(([b, other, its]) => {
  const wide = Math.min(one.right, other.right) - Math.max(one.left, other.left);
  const high = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
  if (svg === its && wide > 1 && high > 3) found.push([a, b]);
}));
return found;
"""


@needs_browser
@pytest.mark.parametrize(
    "look",
    [
        {"width": 1280},
        {"width": 390},
        pytest.param({"scheme": "dark"}, marks=pytest.mark.slow),  # the whole page: test_browser.py
        {"media": "print"},
    ],
    ids=["laptop", "phone", "dark", "print"],
)
def test_the_section_reads_well_on_every_screen(driver, recovered: StudyResult, look: dict[str, object]):
    driver.get_log("browser")
    chromium.look(driver, **look)
    driver.get((recovered.folder / "report.html").as_uri())
    chromium.wait_until_ready(driver)
    wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert driver.execute_script(wide) is False
    assert driver.execute_script("return document.querySelectorAll('#came-back svg.marks').length") == len(RECOVERED)
    assert driver.execute_script(OVERLAPPING) == []
    assert driver.get_log("browser") == []


@needs_browser
def test_returned_and_newly_lost_items_can_be_browsed(driver, recovered: StudyResult):
    chromium.look(driver, width=1280)
    driver.get((recovered.folder / "report.html").as_uri())
    chromium.wait_until_ready(driver)
    link = "a[data-recipe='wanda@2:4+lora'][data-task='factoid_qa'][data-outcome='returned']"
    driver.execute_script(f'document.querySelector("{link}").click()')
    chromium.wait_for(driver, "return document.querySelector('#answers-list .tag.returned')")
    boxes = [box.text for box in driver.find_elements("css selector", "#answers-list > li:first-child .answer h4")]
    heads = [re.sub(r"\s+", " ", box) for box in boxes]
    assert heads == ["dense ✓ right", "wanda@2:4, seed 0 ✗ wrong", "wanda@2:4+lora, seed 0 ✓ right"]
    with opened_run(recovered.folder) as run:
        scores = {
            cell.recipe: dict(run.journal.scores(cell.run_key))
            for cell in run.cells
            if cell.task == "factoid_qa" and cell.seed in (None, 0)
        }
    dense, base, lora = (scores[recipe] for recipe in ("dense", "wanda@2:4", "wanda@2:4+lora"))
    back = sum(dense[item] > base[item] and lora[item] > base[item] for item in dense)
    assert driver.find_element("id", "answers-status").text.startswith(f"{back} of 120 questions")
    # A model that recovers nothing has the usual filters.
    choose = "const s = document.getElementById('answers-variant'); s.value = arguments[0];"
    number = "return [...document.getElementById('answers-variant').options].find((o) => o.text === 'rtn@8b').value"
    driver.execute_script(
        choose + "s.dispatchEvent(new Event('input', {bubbles: true}))", driver.execute_script(number)
    )
    chromium.wait_for(driver, "return !document.querySelector('input[value=returned]')")
    assert len(driver.find_elements("css selector", "#answers-list > li:first-child .answer")) == 2
