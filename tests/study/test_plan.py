"""The plan of a study: counted without weights, and honest about what it cannot know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkick.errors import ConfigError
from llmkick.study.plan import plan_study
from llmkick.study.spec.study import load_study, make_study
from toy import save_toy

PAPER = sorted((Path(__file__).resolve().parents[2] / "examples" / "paper").glob("*.toml"))


def study(model: str, **changes: Any) -> Any:
    values = {
        "model": model,
        "recipes": ["magnitude@0.5", "wanda@0.5", "gptq@4b"],
        "seeds": [0, 1, 2],
        "tasks": [{"name": "factoid_qa", "limit": 10}, {"name": "multiple_choice:cloze", "limit": 6}],
        "calibration": {"sequences": 4, "length": 32},
    }
    return make_study({**values, **changes})


@pytest.fixture
def toy(tmp_path: Path) -> str:
    folder = tmp_path / "toy"
    save_toy(folder)
    for weights in folder.glob("*.safetensors"):
        weights.unlink()  # a plan never loads them
    return str(folder)


def test_cells_requests_and_tokens_are_counted(toy: str):
    plan = plan_study(study(toy))
    assert plan.models == 1 + 1 + 3 + 3
    assert plan.cells == 16
    assert [(task.items, task.requests) for task in plan.tasks] == [(10, 10), (6, 24)]
    assert plan.total("requests") == 8 * 34
    assert plan.unknown == ()
    assert plan.calibration_tokens == 128
    assert plan.parameters is not None
    assert all(task.tokens is not None and task.hours is not None and task.hours > 0 for task in plan.tasks)
    # At least the 32 tokens of each answer and some of its question.
    assert plan.tasks[0].tokens > 10 * 50  # type: ignore[operator]
    assert plan.memory_bytes is not None
    assert any("8 models" in line and "16 cells" in line for line in plan.lines())


def test_running_text_is_counted_in_windows(toy: str):
    plan = plan_study(study(toy, tasks=[{"name": "perplexity", "window": 100, "limit": 7}]))
    (task,) = plan.tasks
    assert (task.items, task.requests, task.tokens) == (7, 7, 700)


def test_what_cannot_be_had_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    plan = plan_study(study("owner/some-7b-chat", tasks=[{"name": "multiple_choice", "source": "hub", "limit": 50}]))
    assert (plan.tasks[0].items, plan.tasks[0].requests, plan.tasks[0].tokens) == (50, None, None)
    assert plan.total("tokens") is None
    assert plan.parameters == 7_000_000_000
    assert plan.compression_hours is not None
    text = "\n".join(plan.lines())
    assert "taken from its name" in text
    assert "cannot get MMLU" in text
    assert "tokenizer and configuration of owner/some-7b-chat: no network" in text


def unreachable(*_: object, **__: object) -> str:
    raise OSError("no network")


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.stem)
def test_the_papers_studies_can_be_planned(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("LLMKICK_GITHUB", "http://127.0.0.1:9")
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    loaded = load_study(path)
    assert loaded.prompting == ("auto" if any(task.name == "instruction" for task in loaded.tasks) else "raw")
    assert loaded.seeds == (0, 1, 2)
    plan, levels = plan_study(loaded), loaded.recipe_levels()
    calibrated = sum(level.recipe.needs_calibration for level in levels)
    compressed = len(loaded.seeds) * calibrated + len(levels) - calibrated
    assert plan.models == 1 + compressed + len(loaded.others)
    assert plan.memory_bytes is not None


def test_the_protocols_never_share_a_study():
    tasks = [{"name": "factoid_qa"}, {"name": "multiple_choice", "protocol": "paper"}]
    with pytest.raises(ConfigError, match=r"tasks.1.protocol: 'paper' beside 'strict': .* write two studies"):
        study("toy", tasks=tasks)


def test_a_study_of_the_papers_protocol_is_asked_in_raw_text():
    tasks = [{"name": "factoid_qa", "protocol": "paper"}]
    assert study("toy", tasks=tasks).prompting == "raw"
    assert study("toy").prompting == "auto"
    with pytest.raises(ConfigError, match="prompting: prompting 'chat' contradicts protocol \"paper\""):
        study("toy", tasks=tasks, prompting="chat")


def test_other_models_are_counted_and_servers_are_not_asked(tmp_path: Path):
    save_toy(tmp_path / "toy")
    tasks = [{"name": "factoid_qa", "limit": 3}]
    plan = plan_study(make_study({"model": str(tmp_path / "toy"), "others": ["a=x/y", "b=x/z"], "tasks": tasks}))
    assert (plan.models, plan.cells, plan.calibration_tokens) == (3, 3, 0)
    assert any("the sizes of a, b: counted as large as the dense model" in line for line in plan.lines())
    server = "openai:http://127.0.0.1:9/v1#m"
    plan = plan_study(make_study({"model": server, "others": ["x/y"], "tasks": tasks}))
    assert any(f"the tokens of {server}: only the server knows them" in line for line in plan.lines())
    assert plan.total("requests") == 6
