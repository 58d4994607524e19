"""`kick claims`, on one run and on several."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from commands import Kick
from llmkick.study.results.results import read_results
from report.synthetic import build_run

RECIPES = ["wanda@0.1", "wanda@0.25", "magnitude@0.1", "magnitude@0.25", "wanda@2:4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "first", recipes=RECIPES, items=400).folder


def test_every_claim_has_a_row(kick: Kick, run: Path) -> None:
    code, out, _ = kick("claims", run)
    assert code == 0
    for outcome in ("contradicted", "supported", "not asked"):
        assert outcome in out
    numbered = [int(line[:3]) for line in out.splitlines() if line[:3].strip().isdigit()]
    assert numbered == list(range(1, 12))


def test_json_has_outcome_rule_numbers_and_the_papers_numbers(kick: Kick, run: Path) -> None:
    rows = json.loads(kick("claims", run, "--json")[1])["claims"]
    assert [row["id"] for row in rows] == list(range(1, 12))
    second = rows[1]
    assert second["outcome"] == "supported"
    assert {line["statement"] for line in second["statements"]} >= {"wanda@2:4 does not match on factoid_qa"}
    assert all(line["low"] <= line["value"] <= line["high"] for line in second["statements"])
    assert second["rule"]
    assert second["paper"]


def test_one_claim_in_full(kick: Kick, run: Path) -> None:
    code, out, _ = kick("claims", run, "--claim", "9")
    assert code == 0
    assert "magnitude@0.1 loses at most 5 % of the dense score more than wanda@0.1 on factoid_qa" in out
    assert "Table 3, factoid QA, magnitude" in out
    assert kick("claims", run, "--claim", "12")[0] == 2


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("data", "b" * 64, "factoid_qa was asked with different questions"),
        ("protocol", "paper", "other protocols (strict; paper, strict)"),
        ("shots", 3, "different numbers of worked examples (None, 3)"),
        ("limit", 7, "different samples (limit) (None, 7)"),
    ],
)
def test_runs_that_asked_otherwise_are_refused_with_the_reason(
    kick: Kick, run: Path, tmp_path: Path, key: str, value: object, reason: str
) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    content = json.loads((other / "results.json").read_text())
    content["tasks"][0][key] = value
    (other / "results.json").write_text(json.dumps(content))
    code, _, err = kick("claims", run, other)
    assert code == 1
    assert reason in " ".join(err.split())


def test_verdicts_of_another_margin_are_refused(kick: Kick, run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    content = json.loads((other / "results.json").read_text())
    content["study"]["margin"] = 0.1
    (other / "results.json").write_text(json.dumps(content))
    code, _, err = kick("claims", run, other)
    assert code == 1
    assert "another margin (0.05, 0.1)" in " ".join(err.split())


def test_several_runs_of_a_model_are_read_together(kick: Kick, run: Path, tmp_path: Path) -> None:
    """Two runs, each with half of the recipes, say what one run with all of them says."""
    parts = [
        build_run(tmp_path / name, recipes=recipes, items=400).folder
        for name, recipes in (("wanda", RECIPES[:2]), ("others", RECIPES[2:]))
    ]
    together = json.loads(kick("claims", *parts, "--json")[1])["claims"]
    whole = json.loads(kick("claims", run, "--json")[1])["claims"]
    assert [row["outcome"] for row in together] == [row["outcome"] for row in whole]
    assert kick("claims", run, run)[0] == 2


def test_results_of_earlier_versions_are_read_and_assessed(kick: Kick, run: Path) -> None:
    """The files of build_run have no entry `claims`."""
    assert read_results(run).claims == ()
    assert len(json.loads(kick("claims", run, "--json")[1])["claims"]) == 11
