"""The page in a real browser, opened from the disk, where there is one."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest

import browser as chromium
from llmkick.report.page import answers
from llmkick.report.page.page import write_report
from llmkick.report.several.page import write_studies
from report.synthetic import HOSTILE, build_run

pytestmark = pytest.mark.skipif(bool(chromium.missing()), reason=chromium.missing())

IDS = """
const $ = (id) => document.getElementById(id);
const input = (id, value) => { $(id).value = value; $(id).dispatchEvent(new Event("input", { bubbles: true })); };
const pick = (value) => {
  const radio = document.querySelector(`input[name=outcome][value=${value}]`);
  radio.checked = true;
  radio.dispatchEvent(new Event("input", { bubbles: true }));
};
const answersOf = (recipe, task) => {
  document.querySelector(`td[data-recipe="${recipe}"][data-task="${task}"]`).click();
  document.querySelector("#tip a").click();
};
const list = () => document.querySelectorAll("#answers-list > li").length;
const tags = () => [...new Set([...document.querySelectorAll("#answers-list .tag")].map((tag) => tag.textContent))];
const status = () => $("answers-status").textContent;
"""


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    return tmp_path_factory.mktemp("downloads")


@pytest.fixture(scope="module")
def driver(downloads):
    with chromium.open_browser(downloads=downloads) as opened:
        yield opened


@pytest.fixture
def seen(driver, result):
    """The page, drawn; whatever a test does to it, it must not complain."""
    show(driver, result.folder / "report.html")
    yield lambda script: driver.execute_script(IDS + script)
    assert complaints(driver) == []


# Text whose contrast with what is behind it is less than WCAG's 4.5.
CONTRAST = """
const numbers = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((number) => number / 255);
const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = (text) => {
  const [r, g, b] = numbers(text).map(linear);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (one) => {
  for (; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (colour !== "rgba(0, 0, 0, 0)") return colour;
  }
  return "rgb(255, 255, 255)";
};
const ratio = (one) => {
  const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
};
return [...document.querySelectorAll(".matrix td, .matrix th, p, summary, .tag, button:enabled, mark")]
  .map((one) => [ratio(one), one.className, one.tagName])
  .filter(([found]) => found < 4.5);
"""


def show(driver, page: Path, **look):
    complaints(driver)  # those of the page before
    chromium.look(driver, **look)
    driver.get(page.resolve().as_uri())
    chromium.wait_until_ready(driver)


def complaints(driver):
    return [entry["message"] for entry in driver.get_log("browser")]


def saved(downloads: Path, name: str) -> bytes:
    for _ in range(1200):
        if (downloads / name).is_file():
            return (downloads / name).read_bytes()
        chromium.time.sleep(0.05)
    raise AssertionError(f"{name} was not saved; there is {[path.name for path in downloads.iterdir()]}")


def test_the_page_draws_every_part_of_itself(seen):
    assert seen("return document.querySelectorAll('svg.marks').length") == 7
    assert seen("return list()") == 10
    assert "could not be drawn" not in seen("return document.body.innerText")


def test_filters_search_and_pages_work(seen, driver, result):
    entry = next(e for e in result.comparisons if (e.recipe, e.task) == ("magnitude@0.25", "factoid_qa"))
    seen("answersOf('magnitude@0.25', 'factoid_qa')")
    chromium.wait_for(driver, IDS + "return $('answers-task').selectedOptions[0].text === 'factoid_qa' && list()")
    assert seen("return $('answers-variant').selectedOptions[0].text") == "magnitude@0.25"
    seen("pick('lost')")
    assert seen("return [tags(), status()]") == [["✗ lost"], f"{entry.lost:.0f} of 60 questions"]
    seen("pick('all')")
    assert seen("return [list(), $('answers-page').textContent]") == [10, "page 1 of 6"]
    seen("$('answers-next').click()")
    assert seen("return $('answers-page').textContent") == "page 2 of 6"
    seen("input('answers-cluster', 'subject-3')")
    assert seen("return status()") == "5 of 60 questions"
    seen("input('answers-cluster', ''); input('answers-search', 'NUMBER 17 question')")
    assert seen("return list()") == 1
    seen("input('answers-search', 'no such words')")
    assert seen("return [list(), status()]") == [0, "No question fits these filters, of 60 questions."]
    seen("input('answers-search', '');")
    seen("answersOf('wanda@0.25', 'context_qa:open')")
    chromium.wait_for(driver, IDS + "return document.querySelector('input[value=unscored]')")
    seen("pick('unscored')")
    assert seen("return [list(), document.querySelector('.answer.right, .answer .empty').textContent]")[0] == 3


def test_hostile_answers_are_shown_as_text(seen):
    seen("input('answers-task', 0); pick('all')")
    shown = {}
    for number, word in enumerate(("attacked script", "img src", "7*7", "القاهرة")):
        seen(f"pick('all'); input('answers-search', {json.dumps(word)})")
        shown[number] = seen("return document.querySelector('#answers-list .question')?.textContent")
    for number, text in shown.items():
        assert HOSTILE[number].replace("\u202e", "").split()[0] in text
    assert seen("return [document.title, document.images.length]") == [
        "What did toy-135m-instruct forget? · LLM-KICK", 0,
    ]  # fmt: skip
    assert seen("return getComputedStyle(document.querySelector('#answers-list .question')).unicodeBidi") != "normal"


def test_what_differs_is_marked_and_the_prompt_is_shown_on_demand(seen, driver):
    seen("input('answers-task', 0); pick('lost')")
    marks = (
        "return [...document.querySelectorAll('#answers-list li:first-child .answer mark')].map((m) => m.textContent)"
    )
    found = seen(marks)
    assert any("something else" in mark for mark in found)
    seen("$('answers-marks').click()")
    assert seen(marks) == []
    seen("document.querySelector('#answers-list details.prompt summary').click()")
    chromium.wait_for(driver, "return document.querySelector('#answers-list .prompt .passage')")
    prompt = seen("return document.querySelector('#answers-list .prompt .passage').innerText")
    question = seen("return document.querySelector('#answers-list .question').textContent")
    identity = seen("return document.querySelector('#answers-list code').textContent")
    assert f"{question} 🙂 {int(identity[-3:])}" in prompt
    assert "Are you there? 🙂" in prompt
    assert 'at most 32 tokens, stopped by "\\n"' in prompt


def test_figures_and_their_numbers_can_be_saved(seen, driver, downloads, result):
    for kind in ("SVG", "PNG", "CSV"):
        seen(f"document.querySelector('[data-figure=sparsity] ~ .savers [aria-label$=\"{kind}\"]').click()")
        chromium.wait_for(driver, f"return document.documentElement.dataset.saved === 'sparsity.{kind.lower()}'")
    svg = saved(downloads, "sparsity.svg").decode()
    assert svg.startswith("<svg")
    assert "currentColor" not in svg
    assert saved(downloads, "sparsity.png").startswith(b"\x89PNG")
    rows = list(csv.DictReader(saved(downloads, "sparsity.csv").decode().splitlines()))
    entries = {(e.recipe, e.task): e for e in result.comparisons}
    for row in rows:
        entry = entries[row["recipe"], row["task"]]
        expected = 1 + entry.relative_increase if entry.kind == "perplexity" else entry.compressed
        assert float(row["y"]) == expected
    seen("document.querySelector('#verdicts details').open = true")
    seen("document.querySelector('[data-table=comparisons] button').click()")
    assert len(saved(downloads, "comparisons.csv").decode().splitlines()) == 1 + sum(
        e.kind == "task" for e in entries.values()
    )
    seen("document.querySelector('[data-figure=bits] ~ .savers .numbers summary').click()")
    chromium.wait_for(driver, "return document.querySelectorAll('.savers .numbers table tbody tr').length")


def test_hovering_a_point_shows_exact_values(seen, driver):
    from selenium.webdriver.common.action_chains import ActionChains

    points = driver.find_elements("css selector", "[data-figure=sparsity] svg .mark-symbol path")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", points[0])
    ActionChains(driver).move_to_element(points[0]).perform()
    chromium.wait_for(driver, "return document.querySelector('#vg-tooltip-element.visible')")
    text = seen("return document.querySelector('#vg-tooltip-element').innerText")
    assert "recipe" in text
    assert "@0." in text


def test_the_keyboard_reaches_everything_in_order(seen, driver):
    from selenium.webdriver.common.keys import Keys

    body = driver.find_element("tag name", "body")
    body.send_keys(Keys.TAB)
    assert seen("return document.activeElement.textContent") == "Skip to the verdicts"
    bad = """
      const able = [...document.querySelectorAll('a[href], button, select, input, summary, [tabindex="0"]')];
      return able.filter((one) => !one.checkVisibility || one.checkVisibility())
        .filter((one) => !(one.textContent.trim() || one.getAttribute('aria-label') || one.closest('label')
          || one.getAttribute('aria-labelledby') || one.cellIndex !== undefined)).map((one) => one.outerHTML);
    """
    assert seen(bad) == []
    seen("$('answers-variant').focus()")
    before = seen("return $('answers-variant').selectedIndex")
    driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert seen("return $('answers-variant').selectedIndex") == before + 1


@pytest.mark.parametrize(
    "look", [{"width": 390, "height": 844}, {"scheme": "dark"}, {"media": "print"}], ids=["phone", "dark", "print"]
)
def test_other_screens_and_paper(driver, result, look):
    show(driver, result.folder / "report.html", **look)
    wide = "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert driver.execute_script(wide) is False
    assert driver.execute_script(CONTRAST) == []
    assert complaints(driver) == []


def test_an_unknown_script_is_refused_by_the_policy(driver, result, tmp_path):
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    end = page.rindex("</body>")
    path = tmp_path / "report.html"
    path.write_text(f"{page[:end]}<script>document.title = 'attacked'</script>{page[end:]}", encoding="utf-8")
    show(driver, path)
    assert driver.title.startswith("What did")
    assert any("Content Security Policy" in line for line in complaints(driver))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A study whose answers are too many for its page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "MOST_RECORDS", 200)
        result = build_run(tmp_path_factory.mktemp("large"), recipes=["wanda@0.25", "rtn@8b"], hostile=True)
        write_report(result.folder)
    return result.folder


def test_answers_beside_the_page_are_read_when_they_are_there(driver, large):
    names = {path.stem for path in (large / "report-items").glob("*.js")}
    assert names >= {"0-items", "0-prompts", "0-0", "0-1", "0-2"}
    show(driver, large / "report.html")
    assert re.fullmatch(r"\d+ of 60 questions", driver.find_element("id", "answers-status").text)
    driver.execute_script(IDS + "pick('all'); document.querySelector('#answers-list details.prompt summary').click()")
    chromium.wait_for(driver, "return document.querySelector('#answers-list .prompt .passage')")
    assert "Are you there? 🙂" in driver.find_element("css selector", ".prompt .passage").text
    assert complaints(driver) == []


def test_without_the_files_beside_it_a_page_shows_its_sample(driver, large, tmp_path):
    page = Path(shutil.copy(large / "report.html", tmp_path / "report.html"))
    show(driver, page)
    status = driver.find_element("id", "answers-status").text
    assert re.search(r"of \d+ questions \(a sample of 60: report-items/0-.*\.js is not beside this page\)", status)
    assert driver.execute_script(IDS + "pick('all'); return list()") > 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: re.sub(r'kickItems\("\w+"', 'kickItems("other"', text), "belongs to another report"),
        (lambda text: text.replace("AA", "AB", 1) if "AA" in text else text.replace("A", "B", 1), "is damaged"),
        (lambda text: "", "report-items/0-items.js is empty"),
    ],
    ids=["stale", "damaged", "empty"],
)
def test_files_of_another_report_are_not_taken(driver, large, tmp_path, change, said):
    folder = shutil.copytree(large, tmp_path / "copy")
    for path in (folder / "report-items").glob("0-items.js"):
        path.write_text(change(path.read_text()))
    show(driver, folder / "report.html")
    assert said in driver.find_element("id", "answers-status").text


def test_a_page_of_several_studies_draws_itself(driver, result, large, tmp_path):
    page = write_studies([result.folder, large], tmp_path / "studies.html")
    show(driver, page)
    assert driver.execute_script("return document.querySelectorAll('svg.marks').length") == 1
    text = driver.find_element("tag name", "body").text
    assert "2 studies side by side" in text
    assert (
        driver.execute_script("return document.documentElement.scrollWidth > document.documentElement.clientWidth")
        is False
    )
    assert complaints(driver) == []
