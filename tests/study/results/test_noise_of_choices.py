"""The noise floor of a study's choices: counted against what was recorded, and said where the results are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkick.models.checkpoints.loading import load_model
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.results.noise_floor import NOISE_ITEMS, noise_of_choices
from llmkick.study.results.results import read_results
from llmkick.study.run import run_study
from llmkick.tasks import evaluate as asking
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.registry import get_task
from llmkick.tasks.task import Task
from toy import save_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, max_position_embeddings=512)
    return folder


@pytest.fixture(scope="module")
def model(toy: Path) -> TransformersModel:
    return load_model(str(toy), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def task() -> Task:
    return get_task("multiple_choice:cloze", limit=6)


def recorded_by(model: TransformersModel, task: Task) -> dict[str, Any]:
    return {
        record.item_id: {"response": record.response, "details": record.details} for record in evaluate(model, task)
    }


def test_a_changed_choice_and_a_moved_number_are_counted(model: TransformersModel, task: Task):
    recorded, items = recorded_by(model, task), task.items(model)
    same = noise_of_choices(model, task, items, "raw", recorded)
    assert same is not None
    assert (same.questions, same.flipped, same.largest_shift < 1e-4) == (6, 0, True)
    first = recorded[items[0].id]
    moved = [first["details"]["choice_logprobs"][0] - 0.5, *first["details"]["choice_logprobs"][1:]]
    recorded[items[0].id] = {"response": "D. another", "details": {"choice_logprobs": moved}}
    other = noise_of_choices(model, task, items, "raw", recorded)
    assert other is not None
    assert other.flipped == 1
    assert other.largest_shift == pytest.approx(0.5, abs=1e-4)
    assert other.mean_shift == pytest.approx(0.5 / 24, abs=1e-4)


def test_a_task_without_choices_has_none(model: TransformersModel):
    task = get_task("factoid_qa", limit=2)
    assert noise_of_choices(model, task, task.items(model), "raw", recorded_by(model, task)) is None


def test_a_spread_of_many_items_is_asked(model: TransformersModel, task: Task, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    original = asking.evaluate_item

    def counting(model: TransformersModel, task: Task, item: Any, style: Any) -> Any:
        asked.append(item.id)
        return original(model, task, item, style)

    monkeypatch.setattr("llmkick.study.results.noise_floor.evaluate_item", counting)
    many = get_task("multiple_choice:cloze", limit=NOISE_ITEMS + 3)
    noise_of_choices(model, many, many.items(model), "raw", recorded_by(model, many))
    assert len(asked) == len(set(asked)) == NOISE_ITEMS


def test_the_report_says_it_in_half_precision_only(toy: Path, tmp_path: Path):
    values = {
        "model": str(toy),
        "device": "cpu",
        "recipes": ["magnitude@0.5"],
        "tasks": [{"name": "multiple_choice:cloze", "limit": 4}, {"name": "factoid_qa", "limit": 2}],
        "calibration": {"sequences": 2, "length": 16},
    }
    half = run_study({**values, "dtype": "bfloat16"}, out=tmp_path / "half")
    assert [found["task"] for found in half.noise] == ["multiple_choice:cloze"]
    assert half.noise[0]["questions"] == 4
    assert sum("noise floor of multiple_choice:cloze in bfloat16" in warning for warning in half.warnings) == 1
    assert read_results(tmp_path / "half").noise == half.noise
    again = run_study({**values, "dtype": "bfloat16"}, out=tmp_path / "half")
    assert again.noise == half.noise
    assert run_study({**values, "dtype": "float32"}, out=tmp_path / "full").noise == ()
