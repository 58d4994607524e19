"""Policies: what a file may say, and one clear line for what it may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkick.errors import ConfigError
from llmkick.gate.policy import load_policy, make_policy

WHOLE = """
name = "nightly"
model = "./build"
reference = "./dense"
margin = 0.04
alpha = 0.1
prompting = "chat"
dtype = "bfloat16"

[[tasks]]
name = "factoid_qa"
limit = 400

[[tasks]]
name = "multiple_choice:cloze"

[budget]
items = 200
minutes = 30

[server]
timeout = 30
"""


def written(folder: Path, text: str = WHOLE) -> Path:
    path = folder / "gate.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_policy_is_a_study_of_two_models_that_stops_when_decided(tmp_path: Path):
    study = load_policy(written(tmp_path)).study()
    assert (study.model, study.others, study.stop, study.recipes) == ("./dense", ("./build",), "decided", ())
    assert (study.margin, study.alpha, study.prompting, study.dtype) == (0.04, 0.1, "chat", "bfloat16")
    assert [(task.name, task.limit) for task in study.tasks] == [("factoid_qa", 200), ("multiple_choice:cloze", 200)]
    assert study.server.timeout == 30


def test_options_replace_what_the_file_says_and_the_rest_stays(tmp_path: Path):
    overrides = {"model": "./tonight", "reference": None, "budget": {"items": None, "minutes": 5.0}}
    policy = load_policy(written(tmp_path), overrides)
    assert (policy.model, policy.reference) == ("./tonight", "./dense")
    assert (policy.budget.items, policy.budget.minutes) == (200, 5.0)
    small = load_policy(written(tmp_path, 'reference = "a"\ntasks = ["factoid_qa"]'), {**overrides, "model": "b"})
    assert (small.name, small.budget.items, small.budget.minutes, small.margin) == ("gate", None, 5.0, 0.05)


def test_a_candidate_in_a_folder_called_dense_has_another_name(tmp_path: Path):
    folder = tmp_path / "dense"
    folder.mkdir()
    policy = make_policy({"model": str(folder), "reference": str(folder), "tasks": ["factoid_qa"]})
    assert policy.study().labels() == [policy.label] == ["candidate"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("colour = 1", r"line 2: colour: unknown key; choose from: name, model, reference, tasks"),
        ("margin = 1.5", r"line 2: margin: Input should be less than 1, got 1.5"),
        ("margin = 0", r"line 2: margin: Input should be greater than 0, got 0"),
        ('margin = "5 %"', r"line 2: margin: Input should be a valid number, got '5 %'"),
        ("alpha = 0.5", r"line 2: alpha: Input should be less than 0.5"),
        ('prompting = "talk"', r"line 2: prompting: unknown prompting 'talk'; choose from: auto, chat, raw"),
        ('dtype = "int3"', r"line 2: dtype: unknown dtype 'int3'; choose from: auto, float32"),
        ("budget.items = 0", r"line 2: budget.items: Input should be greater than or equal to 1"),
        ("budget.minutes = -1", r"line 2: budget.minutes: Input should be greater than 0"),
        ("budget.minutes = inf", r"line 2: budget.minutes: Input should be a finite number"),
        ("budget = 5", r"line 2: budget: Input should be a valid dictionary"),
        ("budget.hours = 1", r"line 2: budget.hours: unknown key; choose from: items, minutes"),
        ("server.tries = 1", r"line 2: server.tries: unknown key; choose from: timeout, concurrency, attempts"),
    ],
)
def test_a_wrong_value_is_named_with_its_line(tmp_path: Path, line: str, said: str):
    path = written(tmp_path, f'model = "a"\n{line}\nreference = "b"\ntasks = ["factoid_qa"]\n')
    with pytest.raises(ConfigError, match=said) as error:
        load_policy(path, {"model": "c", "budget": {"items": None, "minutes": None}})
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ("[]", "tasks: a study needs at least one task"),
        ('["factoid"]', "tasks.0.name: unknown task 'factoid'"),
        ('["factoid_qa", "factoid_qa"]', "factoid_qa is listed twice"),
        ('[{name = "factoid_qa", limit = 0}]', "limit of factoid_qa must be a whole number of at least 1"),
        ('[{name = "factoid_qa", items = 3}]', "tasks.0.items: unknown key; choose from: name, source"),
        ('["perplexity"]', "tasks.0: perplexity has no verdict, so a gate cannot ask it"),
    ],
)
def test_wrong_tasks_are_named(tmp_path: Path, tasks: str, said: str):
    path = written(tmp_path, f'model = "a"\nreference = "b"\ntasks = {tasks}\n')
    with pytest.raises(ConfigError, match=said):
        load_policy(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"model": "a"}, "policy: reference: is missing"),
        ({"reference": "a"}, "policy: model is missing: name the candidate in the policy or with --model"),
        ({"model": "a", "reference": " "}, "reference: is empty"),
        ({"model": "openai:nowhere", "reference": "a"}, "model: cannot read the server"),
        ({"model": "a", "reference": "openai:nowhere"}, "reference: cannot read the server"),
        ({"model": "a.jsonl", "reference": "a"}, "model: a.jsonl is a file of stored answers"),
        ({"model": "a", "reference": "gone.jsonl"}, "reference: there is no file gone.jsonl"),
    ],
)
def test_models_are_checked_before_anything_is_looked_for(values: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        make_policy({**values, "tasks": ["factoid_qa"]})


def test_a_file_that_is_no_policy_is_an_error(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"cannot read the policy .*nowhere\.toml"):
        load_policy(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_policy(written(tmp_path, "model = "))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read the policy"):
        load_policy(tmp_path / "binary.toml")
