"""What is said before a run about verdicts that will not come."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

import published
from llmkick.statistics import simulated_power
from llmkick.study.power_warnings import calibrated_seeds, design_of, warn_of_easy_questions, warn_of_low_power
from llmkick.study.spec.study import make_study
from llmkick.tasks.registry import get_task
from llmkick.tasks.task import Grouping, Item, Task

pytestmark = pytest.mark.power

Judged = tuple[Task, list[Item]]


def task(
    name: str, count: int, groups: int | None = None, *, grouping: Grouping = "clusters", chance: float = 0.0,
    metric: str = "accuracy",
) -> Judged:  # fmt: skip
    items = [Item(id=str(k), cluster=str(k % (groups or count)), question="?") for k in range(count)]
    described = SimpleNamespace(name=name, metric=metric, chance_level=chance, groups=grouping)
    return cast(Task, described), items


def told(*judged: Judged, seeds: int = 1, margin: float = 0.05) -> list[str]:
    return warn_of_low_power(judged, seeds=seeds, margin=margin, alpha=0.05)


def power_in(line: str, name: str) -> float:
    found = re.search(rf"{re.escape(name)} \(\d+ items: (\d+)%", line)
    assert found is not None, line
    return int(found[1]) / 100


def test_enough_items_need_no_warning():
    assert told(task("plenty", 900)) == []
    assert told() == []


def test_too_few_to_call_anything_matching():
    few, plenty = task("few", 100), task("plenty", 900)
    (line,) = told(few, plenty)
    truth = simulated_power(design_of(*few, seeds=1), seed=7)
    assert power_in(line, "few") == pytest.approx(truth, abs=0.05)
    assert "plenty" not in line
    needed = re.search(r"([\d,]+) would do it in 80 %", line)
    assert needed is not None
    assert 380 <= int(needed[1].replace(",", "")) <= 560


def test_a_match_that_is_to_pass_a_correction_needs_more_items():
    judged = task("some", 500)
    assert told(judged) == []
    (line,) = warn_of_low_power([judged], seeds=1, margin=0.05, alpha=0.05, family_size=12)
    truth = simulated_power(design_of(*judged, seeds=1), alpha=0.05 / 12, seed=7)
    assert power_in(line, "some") == pytest.approx(truth, abs=0.09)
    assert "at the alpha of 0.0042 at which a match passes the correction" in line


def test_the_design_counts():
    """The same items tell less in few clusters, with several seeds, where guessing scores; strata cost nothing."""
    (alone,) = told(task("items", 200))
    (clusters,) = told(task("items", 200, 12))
    (seeds,) = told(task("items", 200), seeds=2)
    (guessing,) = told(task("items", 200, chance=0.5))
    (strata,) = told(task("items", 200, 12, grouping="strata"))
    assert max(power_in(line, "items") for line in (clusters, seeds, guessing)) < power_in(alone, "items") - 0.1
    assert power_in(strata, "items") == power_in(alone, "items")


@pytest.mark.parametrize(
    "some",
    [task("hopeless", 1), task("hopeless", 2), task("hopeless", 500, 1)],
    ids=["one", "two", "one cluster"],
)
def test_nothing_can_be_decided(some: Judged):
    (line,) = told(some)
    assert line.startswith("this study cannot decide anything: hopeless: ")
    first, *_ = told(some, task("plenty", 900))
    assert first.startswith("hopeless cannot be decided: ")


def test_a_search_needs_more_items_than_a_study():
    """It confirms a match at an alpha divided by the levels that it looks at."""
    some = task("searched", 350)
    assert told(some) == []
    (line,) = warn_of_low_power([some], seeds=1, margin=0.05, alpha=0.05, searched_levels=38)
    assert "at the alpha of 0.0071 of a search's second look" in line
    truth = simulated_power(design_of(*some, seeds=1), alpha=0.05 / 7, seed=7)
    assert power_in(line, "searched") == pytest.approx(truth, abs=0.05)
    assert truth < 0.5


@pytest.mark.parametrize(
    ("recipes", "seeds", "expected"),
    [(["wanda@0.5"], (), 2), (["wanda@0.5"], (0, 1, 2), 3), (["magnitude@0.5"], (0, 1, 2), 1)],
)
def test_a_search_rests_on_its_own_seeds(recipes: list[str], seeds: tuple[int, ...], expected: int):
    study = make_study({"model": "m", "recipes": recipes, "tasks": ["factoid_qa"], "seeds": [0, 1]})
    assert calibrated_seeds(study, seeds) == expected


def test_a_large_model_is_not_asked_easy_questions_silently():
    tasks = [
        get_task("factoid_qa"),
        get_task("multiple_choice:cloze"),
        get_task("summarization"),
        get_task("perplexity"),
    ]
    (line,) = warn_of_easy_questions(tasks, 1_500_000_000)
    assert line.startswith("factoid_qa, multiple_choice:cloze ask the questions of this package")
    (line,) = warn_of_easy_questions(tasks[:1], 7_000_000_000)
    assert line.startswith("factoid_qa asks the questions")
    assert warn_of_easy_questions(tasks, 135_000_000) == warn_of_easy_questions(tasks, None) == []
    assert warn_of_easy_questions(tasks[2:], 7_000_000_000) == []


def test_published_questions_are_not_easy(tmp_path: Path):
    questions = published.freebaseqa([published.freebaseqa_question(0)])
    (tmp_path / "FreebaseQA-dev.json").write_text(questions, encoding="utf-8")
    assert warn_of_easy_questions([get_task("factoid_qa", source=str(tmp_path))], 7_000_000_000) == []


def test_a_wide_margin_needs_fewer():
    assert told(task("few", 100), margin=0.2) == []
