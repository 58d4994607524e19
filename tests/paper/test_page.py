"""The page of benchmarks/paper.py: what was asked, what is left, and how long it took."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from llmkick.study.results.results import read_results
from report.synthetic import build_run

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TASKS = ("factoid_qa", "multiple_choice:letter", "perplexity")


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    # Behind the standard library: there is a statistics.py among the benchmarks.
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])
    import paper

    yield paper
    for name in ("paper", "paper_model", "paper_records"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> Path:
    """The folders of the data sets, which are not read."""
    for name in ("freebaseqa", "mmlu", "triviaqa", "cnn_dailymail", "mt_bench", "wikitext2", "c4"):
        (tmp_path / "data" / name).mkdir(parents=True)
    return tmp_path / "data"


def page(paper: ModuleType, folder: Path, *, build: bool = True) -> str:
    options = paper.parsed(["--data", str(folder / "data")])
    if build:
        build_run(folder / "knowledge", recipes=("magnitude@2:4", "rtn@8b"), tasks=TASKS, items=40)
    return str(paper.written("toy", paper.studies("toy", options), folder))


def test_every_claim_has_a_study_or_a_word(paper: ModuleType, tmp_path: Path, data: Path):
    text = page(paper, tmp_path)
    studies = paper.studies("toy", paper.parsed(["--data", str(data)]))
    assert {"knowledge", "passages", "shots", "samples", "summaries", "instructions"} == set(studies)
    assert "Claim 5 compares a large pruned model with a small dense one" in text
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE)]
    assert numbers == list(range(1, 12))


def test_what_is_left_is_told_apart_from_what_has_no_number(paper: ModuleType, tmp_path: Path):
    build_run(tmp_path / "knowledge", recipes=("magnitude@2:4", "rtn@8b"), tasks=TASKS, items=40)
    result = read_results(tmp_path / "knowledge")
    kept = tuple(e for e in result.comparisons if (e.recipe, e.task) != ("magnitude@2:4", "perplexity"))
    result.model_copy(update={"comparisons": kept}).write()
    text = page(paper, tmp_path, build=False)
    lines = [line for line in text.splitlines() if line.startswith("- knowledge, perplexity")]
    left, nameless = lines
    assert nameless == "- knowledge, perplexity: 1 of 36 without a number (magnitude@2:4)"
    assert "34 of 36 left" in left
    assert "magnitude@2:4" not in left
    assert "rtn@8b" not in left


def test_time_and_tokens_are_those_of_each_study(paper: ModuleType, tmp_path: Path):
    text = page(paper, tmp_path)
    rows = {line.split(" | ")[1]: line for line in text.splitlines() if line.startswith("| knowledge | ")}
    assert rows["compress"] == "| knowledge | compress | 0.00 | – |"
    hours, tokens = rows["evaluate"].strip("| ").split(" | ")[2:]
    assert float(hours) == pytest.approx(3 * 61.5 / 3600, abs=0.005)
    assert int(tokens.replace(",", "")) > 0


def test_without_a_run_everything_is_left(paper: ModuleType, tmp_path: Path):
    text = page(paper, tmp_path, build=False)
    assert "Nothing was run." in text
    assert "- knowledge, factoid_qa: 36 of 36 left" in text


def test_pages_of_earlier_runs_are_linked(paper: ModuleType, tmp_path: Path):
    options = paper.parsed(["--data", str(tmp_path / "data")])
    text = paper.written("toy", paper.studies("toy", options), tmp_path, ["toy-2026-11-29.md"])
    assert "[toy-2026-11-29.md](toy-2026-11-29.md)" in text
    assert "Earlier runs" not in page(paper, tmp_path, build=False)


def test_each_recipe_of_the_paper_is_listed_once(paper: ModuleType):
    levels = (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, "2:4", "4:8")
    pruned = [f"{method}@{level}" for method in ("magnitude", "wanda", "sparsegpt") for level in levels]
    rounded = [f"{method}@{bits}b" for method in ("rtn", "gptq") for bits in (8, 4, 3)]
    assert sorted(paper.RECIPES) == sorted(pruned + rounded)


def test_studies_that_asked_other_items_are_read_for_themselves(paper: ModuleType, tmp_path: Path):
    for name in ("knowledge", "passages", "samples"):
        build_run(tmp_path / name, recipes=("magnitude@2:4", "rtn@8b"), tasks=TASKS, items=40)
    assert "are read together" not in page(paper, tmp_path, build=False)
    results = tmp_path / "samples" / "results.json"
    results.write_text(results.read_text().replace('"limit": null', '"limit": 40'))
    text = page(paper, tmp_path, build=False)
    assert "Studies that asked the same items are read together: knowledge, passages; samples." in text
    assert re.findall(r"^\| (\d+) \|", text, flags=re.MULTILINE) == [str(number) for number in range(1, 12)]
    assert "| ✓ magnitude@2:4 does not match on factoid_qa" in text
