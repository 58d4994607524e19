"""The page in a real browser, where there is one."""

import base64
import hashlib
import re
import shutil
import subprocess

import pytest

from report.synthetic import HOSTILE

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on PATH")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
    "--virtual-time-budget=30000", "--window-size=1280,900",
)  # fmt: skip

# Works the page as a reader would and leaves what it saw in a list, for --dump-dom to print.
DRIVER = """
(async () => {
  const seen = document.createElement("ul");
  seen.id = "seen";
  const see = (name, value) => {
    const line = document.createElement("li");
    line.textContent = `${name}=${value}`;
    seen.append(line);
  };
  while (!document.documentElement.hasAttribute("data-ready")) await new Promise((done) => setTimeout(done, 50));
  const $ = (id) => document.getElementById(id);
  const input = (id, value) => {
    $(id).value = value;
    $(id).dispatchEvent(new Event("input", { bubbles: true }));
  };
  const pick = (value) => {
    const radio = document.querySelector(`input[name=outcome][value=${value}]`);
    radio.checked = true;
    radio.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const tags = () => [...new Set([...document.querySelectorAll("#answers-list .tag")].map((tag) => tag.textContent))];
  const list = () => document.querySelectorAll("#answers-list > li").length;
  document.querySelector('a[data-recipe="magnitude@0.25"][data-task="factoid_qa"]').click();
  see("chosen", `${$("answers-task").selectedOptions[0].text} ${$("answers-variant").selectedOptions[0].text}`);
  pick("lost");
  see("lost", `${tags()} ${$("answers-status").textContent}`);
  pick("right");
  see("right", tags());
  pick("all");
  see("all", `${list()} ${$("answers-status").textContent} ${$("answers-page").textContent}`);
  $("answers-next").click();
  see("next", $("answers-page").textContent);
  input("answers-search", "NUMBER 17 question");
  see("search", `${list()} ${document.querySelector("#answers-list .question").textContent}`);
  input("answers-search", "no such words");
  see("nothing", `${list()} ${$("answers-status").textContent}`);
  input("answers-search", "7*7");
  see("hostile", document.querySelector("#answers-list .answer-text").textContent);
  input("answers-search", "img src");
  see("images", document.querySelectorAll("img").length);
  see("markup", document.querySelector("#answers-list .question").textContent);
  document.querySelector('a[data-recipe="wanda@0.25"][data-task="context_qa:open"]').click();
  pick("unscored");
  see("unscored", `${list()} ${document.querySelector("#answers-list .answer-text.empty").textContent}`);
  const model = $("layers-model");
  model.selectedIndex = 1;
  model.dispatchEvent(new Event("change"));
  see("title", document.title);
  see("wide", document.documentElement.scrollWidth > document.documentElement.clientWidth);
  document.body.append(seen);
})();
"""


def browse(path, profile, *flags):
    command = ["chromium", *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    drawn = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    return drawn, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def with_script(page, script):
    """The page with one more script at its end."""
    before, end, after = page.rpartition("</body>")
    return f"{before}<script>{script}</script>{end}{after}"


@pytest.fixture(scope="module")
def dom(result, tmp_path_factory):
    return browse(result.folder / "report.html", tmp_path_factory.mktemp("profile"))


def test_the_page_draws_itself_without_an_error(dom):
    text, console = dom
    assert console == []
    assert "data-ready" in text
    assert text.count('class="marks"') == 5
    assert "could not be drawn" not in text
    assert "answers-list" in text
    assert re.search(r'<ol id="answers-list" class="items"><li>', text)


def test_a_figure_can_be_saved_and_nothing_else_is_offered(dom):
    text, _ = dom
    assert text.count("Save as SVG") == text.count("Save as PNG") == 5
    assert "Open in Vega Editor" not in text
    assert "View Source" not in text


def test_hostile_text_does_not_run(dom):
    text, _ = dom
    assert "<title>What did" in text
    assert "attacked</title>" not in text


@pytest.fixture(scope="module")
def seen(result, tmp_path_factory):
    """What the driver saw; the page's policy must be told of the driver, or it would not run at all."""
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(DRIVER.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    path = tmp_path_factory.mktemp("driven") / "report.html"
    path.write_text(with_script(page, DRIVER), encoding="utf-8")
    text, console = browse(path, tmp_path_factory.mktemp("profile"))
    assert console == []
    found = re.search(r'<ul id="seen">(.*?)</ul>', text, re.DOTALL)
    assert found, text[-2000:]
    lines = re.findall(r"<li>(.*?)</li>", found[1], re.DOTALL)
    return dict(line.split("=", 1) for line in lines)


def test_filters_search_and_pages_work(seen, result):
    entry = next(e for e in result.comparisons if (e["recipe"], e["task"]) == ("magnitude@0.25", "factoid_qa"))
    assert seen["chosen"] == "factoid_qa magnitude@0.25"
    assert seen["lost"] == f"✗ lost {entry['lost']:.0f} of 60 questions"
    assert seen["right"] == "both right"
    assert seen["all"] == "10 60 of 60 questions page 1 of 6"
    assert seen["next"] == "page 2 of 6"
    assert seen["search"].startswith("1 What is the number of question 17?")
    assert seen["nothing"] == "0 No question fits these filters."
    assert seen["unscored"] == "3 the prompt is too long"


def test_hostile_answers_are_shown_as_text(seen):
    assert "{{7*7}}" in seen["hostile"]
    assert seen["images"] == "0"
    assert seen["markup"].count("&lt;") == HOSTILE[1].count("<")
    assert seen["title"].startswith("What did")


def test_the_page_is_not_wider_than_the_window(seen):
    assert seen["wide"] == "false"


def test_an_unknown_script_is_refused_by_the_policy(result, tmp_path):
    page = (result.folder / "report.html").read_text(encoding="utf-8")
    path = tmp_path / "report.html"
    path.write_text(with_script(page, "document.title = 'attacked'"), encoding="utf-8")
    text, console = browse(path, tmp_path / "profile")
    assert "attacked</title>" not in text
    assert any("Content Security Policy" in line for line in console)
