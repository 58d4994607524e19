"""results.json: every number in it by hand from the records, and nothing in it that JSON does not have."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.errors import DataError
from llmkick.statistics import Comparison, PerplexityComparison
from llmkick.study.results import results
from llmkick.study.results.comparisons import cell_results, compare_all, overall_by_recipe
from llmkick.study.results.records import OverallVerdict, TaskSummary
from llmkick.study.results.results import RESULTS_FILE, StudyResult, read_results
from plain import as_json

FACTOID = TaskSummary(name="factoid_qa", metric="accuracy", setting="knowledge", chance_level=0.0)
CHOICE = TaskSummary(name="multiple_choice:cloze", metric="accuracy", setting="knowledge", chance_level=0.25)
TEXT = TaskSummary(name="perplexity", metric="perplexity", setting="control", chance_level=0.0)


def rows(
    task: str,
    recipe: str,
    scores: list[float | None],
    *,
    seed: int | None = None,
    tokens: list[int] | None = None,
    details: list[dict[str, Any]] | None = None,
    truncated: list[bool] | None = None,
) -> list[dict[str, Any]]:
    """Records of one cell as the journal gives them."""
    return [
        {
            "model": "toy",
            "recipe": recipe,
            "seed": seed,
            "task": task,
            "item_id": f"item-{number}",
            "cluster": f"cluster-{number // 2}",
            "score": score,
            "unscored_reason": None if score is not None else f"reason {number % 2}",
            "tokens": (tokens or [5] * len(scores))[number],
            "truncated": (truncated or [False] * len(scores))[number],
            "details": (details or [{}] * len(scores))[number],
        }
        for number, score in enumerate(scores)
    ]


def compared(frame: pd.DataFrame, task: TaskSummary, recipe: str = "wanda@0.5") -> Any:
    (found,) = compare_all(frame, [task], [recipe], margin=0.05, alpha=0.05)
    return found


# Cells


def test_a_cell_is_counted_and_averaged_from_its_records():
    cell = rows(
        "factoid_qa",
        "dense",
        [1.0, 0.0, None, 1.0, None, 1.0],
        tokens=[3, 4, 0, 5, 0, 6],
        truncated=[False, True, False, True, False, False],
        details=[
            {"f1": 1.0, "exact_match": 1.0, "text": "x"},
            {"f1": 0.25, "exact_match": 0.0, "choice_logprobs": [1, 2]},
            {},
            {"f1": 0.5, "exact_match": 0.0, "boundary_moved": True},
            {},
            {"f1": 0.5, "exact_match": 0.0},
        ],
    )
    (found,) = cell_results(pd.DataFrame(cell), [FACTOID])
    assert found.facts == {
        "model": "toy",
        "recipe": "dense",
        "seed": None,
        "task": "factoid_qa",
        "metric": "accuracy",
        "value": 3 / 4,
        "n": 4,
        "unscored": 2,
        "unscored_reasons": {"reason 0": 2},
        "truncated": 2,
        "tokens": 18,
        "details": {"f1": (1 + 0.25 + 0.5 + 0.5) / 4, "exact_match": 0.25},
    }


def test_each_model_recipe_seed_and_task_is_a_cell():
    frame = pd.DataFrame(
        rows("factoid_qa", "dense", [1.0, 1.0])
        + rows("factoid_qa", "wanda@0.5", [1.0, 0.0], seed=0)
        + rows("factoid_qa", "wanda@0.5", [0.0, 0.0], seed=1)
        + rows("perplexity", "dense", [1.0, 3.0], tokens=[10, 30])
        + rows("factoid_qa", "rtn@4b", [0.0, 1.0])
    )
    found = {(row["recipe"], row["seed"], row["task"]): row["value"] for row in cell_results(frame, [FACTOID, TEXT])}
    assert found == {
        ("dense", None, "factoid_qa"): 1.0,
        ("wanda@0.5", 0, "factoid_qa"): 0.5,
        ("wanda@0.5", 1, "factoid_qa"): 0.0,
        ("dense", None, "perplexity"): math.exp((10 * 1 + 30 * 3) / 40),
        ("rtn@4b", None, "factoid_qa"): 0.5,
    }


def test_a_study_without_seeds_has_cells_too():
    frame = pd.DataFrame(rows("factoid_qa", "dense", [1.0]) + rows("factoid_qa", "rtn@4b", [0.0]))
    assert [(row["recipe"], row["seed"]) for row in cell_results(frame, [FACTOID])] == [
        ("dense", None),
        ("rtn@4b", None),
    ]


def test_a_cell_without_any_score_has_no_value():
    (found,) = cell_results(pd.DataFrame(rows("factoid_qa", "dense", [None, None, None])), [FACTOID])
    assert (found["value"], found["n"], found["unscored"], found["details"]) == (None, 0, 3, {})
    assert found["unscored_reasons"] == {"reason 0": 2, "reason 1": 1}


# Comparisons


def test_pairs_are_made_by_item_whatever_the_order():
    dense = rows("factoid_qa", "dense", [1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    other = rows("factoid_qa", "wanda@0.5", [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0], seed=0)
    found = compared(pd.DataFrame(dense + other[::-1]), FACTOID)
    assert isinstance(found, Comparison)
    assert (found.task, found.recipe, found.seeds, found.n, found.clusters) == ("factoid_qa", "wanda@0.5", (0,), 8, 4)
    assert (found.dense, found.compressed) == (6 / 8, 5 / 8)
    assert found.relative_drop == pytest.approx(1 - 5 / 6)
    assert (found.gained, found.lost) == (1, 2)


def test_seeds_are_averaged_and_named():
    frame = pd.DataFrame(
        rows("factoid_qa", "dense", [1.0] * 8)
        + rows("factoid_qa", "wanda@0.5", [1.0] * 6 + [0.0] * 2, seed=7)
        + rows("factoid_qa", "wanda@0.5", [1.0] * 4 + [0.0] * 4, seed=3)
    )
    found = compared(frame, FACTOID)
    assert sorted(found.seeds) == [3, 7]
    assert found.compressed == (6 / 8 + 4 / 8) / 2
    assert found.lost == (2 + 4) / 2


@pytest.mark.parametrize(("same", "verdict"), [(True, "matching"), (False, "undecided"), (None, "matching")])
def test_identical_scores_match_where_the_weights_do_or_nobody_knows(same: bool | None, verdict: str):
    frame = pd.DataFrame(rows("factoid_qa", "dense", [1.0] * 10) + rows("factoid_qa", "wanda@0.5", [1.0] * 10))
    known = None if same is None else (lambda recipe: same)
    (found,) = compare_all(frame, [FACTOID], ["wanda@0.5"], margin=0.05, alpha=0.05, same_weights=known)
    assert found.verdict == verdict


def test_the_chance_level_of_the_task_is_used():
    frame = pd.DataFrame(
        rows("multiple_choice:cloze", "dense", [1.0] * 30) + rows("multiple_choice:cloze", "wanda@0.5", [1.0] * 30)
    )
    assert compared(frame, CHOICE).chance == 0.25


def test_an_unscored_item_makes_a_comparison_incomplete_not_zero():
    frame = pd.DataFrame(
        rows("factoid_qa", "dense", [1.0] * 8) + rows("factoid_qa", "wanda@0.5", [1.0] * 4 + [None] * 4)
    )
    found = compared(frame, FACTOID)
    assert found.unscored == 4
    assert found.verdict != "not matching"
    assert found.compressed in (None, 1.0)


def test_a_dense_score_of_zero_with_gaps_is_incomplete_not_a_crash():
    scores = [0.0, 0.0, 0.0, None]
    frame = pd.DataFrame(rows("factoid_qa", "dense", scores) + rows("factoid_qa", "wanda@0.5", scores))
    found = compared(frame, FACTOID)
    assert (found.verdict, found.relative_drop, found.smallest_detectable_loss) == ("incomplete", None, None)


def test_perplexity_is_compared_by_tokens():
    frame = pd.DataFrame(
        rows("perplexity", "dense", [1.0, 2.0, 3.0], tokens=[10, 20, 70])
        + rows("perplexity", "wanda@0.5", [1.5, 2.5, 3.1], tokens=[10, 20, 70])
    )
    found = compared(frame, TEXT)
    assert isinstance(found, PerplexityComparison)
    assert found.dense == pytest.approx(math.exp((10 * 1 + 20 * 2 + 70 * 3) / 100))
    assert found.compressed == pytest.approx(math.exp((10 * 1.5 + 20 * 2.5 + 70 * 3.1) / 100))
    assert found.relative_increase == pytest.approx(found.compressed / found.dense - 1)


@pytest.mark.parametrize("spoiled", [[1.0, None, 3.0], [None] * 3, [1.0, 2.0, 800.0]])
def test_a_perplexity_that_is_not_one_is_no_comparison(spoiled: list[float | None]):
    """A model that put out NaN must not take the results of all other recipes with it."""
    frame = pd.DataFrame(
        rows("perplexity", "dense", [1.0, 2.0, 3.0])
        + rows("perplexity", "wanda@0.5", spoiled)
        + rows("perplexity", "rtn@4b", [1.0, 2.0, 3.5])
    )
    found = compare_all(frame, [TEXT], ["wanda@0.5", "rtn@4b"], margin=0.05, alpha=0.05)
    assert [comparison.recipe for comparison in found] == ["rtn@4b"]
    assert [row["recipe"] for row in cell_results(frame, [TEXT])] == ["dense", "rtn@4b", "wanda@0.5"]


def test_the_overall_verdict_leaves_perplexity_out():
    frame = pd.DataFrame(
        rows("factoid_qa", "dense", [1.0] * 40)
        + rows("factoid_qa", "wanda@0.5", [1.0] * 40)
        + rows("factoid_qa", "wanda@0.9", [0.0] * 40)
        + rows("perplexity", "dense", [1.0] * 4)
        + rows("perplexity", "wanda@0.5", [9.0] * 4)
    )
    found = compare_all(frame, [FACTOID, TEXT], ["wanda@0.5", "wanda@0.9"], margin=0.05, alpha=0.05)
    assert len(found) == 3
    assert overall_by_recipe(found) == [
        OverallVerdict(recipe="wanda@0.5", verdict="matching"),
        OverallVerdict(recipe="wanda@0.9", verdict="not matching"),
    ]
    assert overall_by_recipe([one for one in found if isinstance(one, PerplexityComparison)]) == []


SCORE = st.one_of(st.none(), st.sampled_from([0.0, 1.0]))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9).flatmap(lambda n: st.lists(st.lists(SCORE, min_size=n, max_size=n), min_size=3, max_size=3)))
def test_whatever_the_scores_the_results_are_json(scores: list[list[float | None]]):
    frame = pd.DataFrame(
        rows("multiple_choice:cloze", "dense", scores[0])
        + rows("multiple_choice:cloze", "wanda@0.5", scores[1], seed=0)
        + rows("multiple_choice:cloze", "wanda@0.5", scores[2], seed=1)
        + rows("perplexity", "dense", scores[0])
        + rows("perplexity", "wanda@0.5", scores[1], seed=0)
        + rows("perplexity", "wanda@0.5", scores[2], seed=1)
    )
    found = compare_all(frame, [CHOICE, TEXT], ["wanda@0.5"], margin=0.05, alpha=0.05)
    json.dumps([as_json(comparison) for comparison in found], allow_nan=False)
    json.dumps([row.facts for row in cell_results(frame, [CHOICE, TEXT])], allow_nan=False)
    overall_by_recipe(found)


# The file


ROW = {
    "model": "toy", "recipe": "dense", "seed": None, "task": "factoid_qa", "metric": "accuracy", "value": 0.5, "n": 3,
    "unscored": 0, "unscored_reasons": {}, "truncated": 0, "tokens": 9, "details": {},
}  # fmt: skip


def result(folder: Path, **values: Any) -> StudyResult:
    empty: dict[str, Any] = {
        "study": {"name": "é", "recipes": [], "margin": 0.05, "alpha": 0.05}, "environment": {}, "timing": {},
        "model": {"name": "toy", "source_precision": "float"}, "tasks": [], "results": [],
        "comparisons": [], "overall": [], "compression": [], "warnings": [], "noise": [],
    }  # fmt: skip
    return StudyResult(folder=folder, **{**empty, **values})


def test_what_is_written_is_read_back(tmp_path: Path):
    written = result(tmp_path, results=[{**ROW, "value": None, "further": [1]}], warnings=["«note»"])
    assert written.write() == tmp_path / RESULTS_FILE
    assert read_results(tmp_path) == written
    content = json.loads((tmp_path / RESULTS_FILE).read_text(encoding="utf-8"))
    assert list(content) == [
        "schema", "study", "environment", "timing", "model", "tasks", "results", "comparisons", "overall",
        "compression", "warnings", "noise", "models", "judge", "families", "agreement",
        "failures", "recipes", "claims", "variants", "returned", "overlap",
    ]  # fmt: skip
    assert content["schema"] == 1
    assert list(tmp_path.iterdir()) == [tmp_path / RESULTS_FILE], "nothing is left beside it"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_have_are_refused(tmp_path: Path, value: float):
    result(tmp_path).write()
    before = (tmp_path / RESULTS_FILE).read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        result(tmp_path, results=[{**ROW, "value": value}]).write()
    assert (tmp_path / RESULTS_FILE).read_bytes() == before


def test_a_disk_that_is_full_is_told_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result(tmp_path).write()
    before = (tmp_path / RESULTS_FILE).read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"cannot write .*results.json: .*No space left.*Every record is safe in the"):
        result(tmp_path, warnings=["new"]).write()
    assert (tmp_path / RESULTS_FILE).read_bytes() == before
    assert list(tmp_path.iterdir()) == [tmp_path / RESULTS_FILE]


def test_a_folder_without_results(tmp_path: Path):
    with pytest.raises(DataError, match=rf"{tmp_path} holds no results.json: run `kick run` to its end first"):
        read_results(tmp_path)
    with pytest.raises(DataError, match=r"holds no results\.json"):
        read_results(tmp_path / "missing")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is damaged: Expecting value"),
        (b'{"schema": 1, "study": {', "is damaged: "),
        (b"\xff\xfe", "is damaged: .*utf-8"),
        (b"[]", "is damaged: "),
        (b"3", "is damaged: "),
        (b"{}", "is damaged: 'schema'"),
        (b'{"schema": 1}', "is damaged: study: Field required"),
        (b'{"schema": 2}', "has schema 2; this version reads 1"),
        (b'{"schema": "1"}', "has schema 1; this version reads 1"),
    ],
)
def test_damaged_results_are_told(tmp_path: Path, content: bytes, reason: str):
    (tmp_path / RESULTS_FILE).write_bytes(content)
    with pytest.raises(DataError, match=rf"results.json {reason}"):
        read_results(tmp_path)


def test_a_record_as_json_is_plain():
    comparison = compared(
        pd.DataFrame(rows("factoid_qa", "dense", [1.0] * 6) + rows("factoid_qa", "wanda@0.5", [1.0, 0.0] * 3, seed=0)),
        FACTOID,
    )
    plain = as_json(comparison)
    assert plain["seeds"] == [0]
    assert isinstance(plain["notes"], list)
    assert not any(isinstance(value, np.generic) for value in plain.values())
    assert results.StudyResult.schema_version == 1


def test_a_file_of_version_0_1_0_is_read_and_written_again_with_kinds_and_levels(tmp_path: Path):
    """It tells neither the kind of a comparison nor the method and level of a recipe."""
    frame = pd.DataFrame(
        [row for task in ("factoid_qa", "perplexity") for row in rows(task, "dense", [1.0] * 6)]
        + [row for task in ("factoid_qa", "perplexity") for row in rows(task, "gptq@4b", [1.0, 0.5] * 3)]
    )
    comparisons = compare_all(frame, [FACTOID, TEXT], ["gptq@4b"], margin=0.05, alpha=0.05)
    study = {"name": "é", "margin": 0.05, "recipes": ["gptq@4b"], "alpha": 0.05, "window": 7}
    result(tmp_path, study=study, comparisons=comparisons).write()
    path = tmp_path / RESULTS_FILE
    whole = path.read_text(encoding="utf-8")
    content = json.loads(whole)
    assert list(content["study"]) == list(study), "entries stay in their order"
    assert [entry["kind"] for entry in content["comparisons"]] == ["task", "perplexity"]
    assert content["recipes"] == [
        {
            "recipe": "gptq@4b", "method": "gptq", "kind": "bits", "label": "4b", "severity": [-4, 0.0],
            "sparsity": None, "recovery": "",
        }
    ]  # fmt: skip
    del content["recipes"]
    for entry in content["comparisons"]:
        del entry["kind"]
    path.write_text(json.dumps(content), encoding="utf-8")
    old = read_results(tmp_path)
    assert list(old.comparisons) == comparisons
    assert old.study["window"] == 7
    with pytest.raises(KeyError):
        old.study["unheard of"]
    old.write()
    assert path.read_text(encoding="utf-8") == whole
