"""What a model is asked: prompts that fit it, whether or not its task stops when decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from llmkick.models.language_model import LanguageModel
from llmkick.study.journal.journal import Journal
from llmkick.study.progress import Silent
from llmkick.study.run import run_study
from llmkick.study.running import evaluation
from llmkick.study.spec.study import make_study
from llmkick.tasks.suite.multiple_choice import MultipleChoice
from llmkick.tasks.task import Item, Record, Task
from toy import save_toy

TASKS = [{"name": "multiple_choice:letter", "limit": 120}]
# Tokens of the toy: all worked examples fit the dense model, and some of them the other.
DENSE, SHORT = 4096, 512


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("models")
    save_toy(folder / "dense", max_position_embeddings=DENSE)
    save_toy(folder / "short", max_position_embeddings=SHORT, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(folder / "cache"))
        yield folder


def records_of(models: Path, out: Path, stop: str, limit: int = 120) -> pd.DataFrame:
    """The records of the other model, by item."""
    tasks = [{"name": "multiple_choice:letter", "limit": limit}]
    values = {"model": str(models / "dense"), "others": [str(models / "short")], "dtype": "float32", "device": "cpu"}
    run_study(make_study({**values, "tasks": tasks, "stop": stop}), out=out)
    journal = Journal(out, read_only=True)
    try:
        records = journal.records()
    finally:
        journal.close()
    return records[records["recipe"] == "short"].set_index("item_id")


def test_a_model_with_a_shorter_context_is_asked_the_same_prompts_with_early_stopping(models: Path, tmp_path: Path):
    every = records_of(models, tmp_path / "never", "never", limit=40)
    some = records_of(models, tmp_path / "decided", "decided", limit=40)
    assert some["score"].notna().all()
    shots = {item: details.get("shots", 5) for item, details in some["details"].items()}
    assert shots == {item: every.loc[item, "details"].get("shots", 5) for item in some.index}
    assert 0 < min(shots.values()) < 5


def test_prompts_are_fitted_once_for_all_batches(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fitted: Counter[str] = Counter()
    batches: Counter[str] = Counter()
    items = MultipleChoice.items

    def counted(self: MultipleChoice, model: LanguageModel | None = None) -> Sequence[Item]:
        fitted["" if model is None else model.info.name] += 1
        return items(self, model)

    def right(model: LanguageModel, task: Task, asked: Sequence[Item], **_: Any) -> list[Record]:
        batches[model.info.name] += 1
        score = {"dense": lambda number: 1.0, "short": lambda number: float(number % 12 > 0)}[model.info.name]
        return [
            Record(item_id=item.id, cluster=item.cluster, response="", score=score(number))
            for number, item in enumerate(asked)
        ]

    monkeypatch.setattr(MultipleChoice, "items", counted)
    monkeypatch.setattr(evaluation, "evaluate_items", right)
    records_of(models, tmp_path, "decided")
    assert batches["short"] > 1
    assert fitted["short"] == 1


def test_a_dense_model_at_chance_shows_how_far_it_is(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All its items are asked before it is known to have no signal: a watcher sees every batch."""

    class Watcher(Silent):
        def __init__(self) -> None:
            self.seen: dict[str, list[int]] = {}

        def stage(self, title: str, total: int) -> None:
            self.title = title

        def advance(self, done: int) -> None:
            self.seen.setdefault(self.title, []).append(done)

    def guessing(model: LanguageModel, task: Task, asked: Sequence[Item], **_: Any) -> list[Record]:
        return [
            Record(item_id=item.id, cluster=item.cluster, response="", score=float(number % 4 == 0))
            for number, item in enumerate(asked)
        ]

    monkeypatch.setattr(evaluation, "evaluate_items", guessing)
    watcher = Watcher()
    values = {"model": str(models / "dense"), "others": [str(models / "short")], "dtype": "float32", "device": "cpu"}
    result = run_study(make_study({**values, "tasks": TASKS, "stop": "decided"}), out=tmp_path, observer=watcher)
    assert [entry.verdict for entry in result.comparisons] == ["no signal"]
    seen = watcher.seen["dense on multiple_choice:letter"]
    assert seen[-1] == 120
    assert 64 in seen
