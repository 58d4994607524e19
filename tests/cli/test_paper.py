"""`kick paper`: the list of experiments, and the study file of one."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from commands import Kick
from llmkick.paper.experiments import EXPERIMENTS
from llmkick.study.spec.study import load_study


def test_the_list_has_every_experiment_and_its_claims(kick: Kick):
    code, out, _ = kick("paper")
    assert code == 0
    assert all(name in out for name in EXPERIMENTS)
    rows = json.loads(kick("paper", "--json").out)
    assert {row["name"]: row["claims"] for row in rows} == {e.name: list(e.claims) for e in EXPERIMENTS.values()}
    assert {claim for row in rows for claim in row["claims"]} == set(range(1, 12))


def test_an_experiment_becomes_a_study_that_loads(kick: Kick, tmp_path: Path):
    target = tmp_path / "figure-7.toml"
    outcome = kick("paper", "figure-7", "-m", "toy", "--scale", "small", "--limit", 7, "-o", target)
    assert (outcome.code, outcome.out.strip()) == (0, f"study: {target}")
    study = load_study(target)
    assert study.model == "toy"
    assert isinstance(study.calibration.sequences, list)
    assert {task.limit for task in study.tasks} == {7}
    printed = kick("paper", "figure-7", "-m", "toy", "--scale", "small", "--limit", 7).out
    assert tomllib.loads(printed) == tomllib.loads(target.read_text(encoding="utf-8"))


def test_the_small_dense_model_and_the_sparsity_are_given(kick: Kick, tmp_path: Path):
    target = tmp_path / "sizes.toml"
    outcome = kick("paper", "section-4", "-m", "large", "--other", "small=./small", "--sparsity", 0.61, "-o", target)
    assert outcome.code == 0, outcome.said
    study = load_study(target)
    assert study.others == ("small=./small",)
    assert {recipe.rpartition("@")[2] for recipe in study.recipes} == {"0.61"}


def test_the_judge_and_the_answers_it_compares_with_are_given(kick: Kick, tmp_path: Path):
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"question_id": 81, "turns": ["x", "y"]}\n')
    target = tmp_path / "judged.toml"
    outcome = kick(
        "paper", "figure-6", "-m", "toy", "--judge", "openai:http://127.0.0.1:1/v1#judge",
        "--reference", f"instruction={answers}", "-o", target,
    )  # fmt: skip
    assert outcome.code == 0, outcome.said
    judge = tomllib.loads(target.read_text(encoding="utf-8"))["judge"]
    assert judge["model"] == "openai:http://127.0.0.1:1/v1#judge"
    assert str(answers) in json.dumps(judge)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["figure-99"], "figure-99"),
        (["--scale", "small"], "--scale is of one experiment"),
        (["--out", "x.toml"], "--out is of one experiment"),
        (["figure-7", "--json"], "--json is for the list"),
        (["figure-6", "--reference", "poems=x.jsonl"], "--reference 'poems=x.jsonl' is not TASK=FILE"),
        (["figure-7", "--limit", "0"], "--limit"),
        (["section-4", "--sparsity", "1.5"], "--sparsity"),
        (["figure-7", "-m", "toy", "-o", "."], "is a folder"),
    ],
)
def test_what_cannot_be_written_is_refused(kick: Kick, arguments: list[str], message: str):
    outcome = kick("paper", *arguments)
    assert outcome.code == 2
    assert message in outcome.said
