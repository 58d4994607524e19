"""What a forecast starts from: the tokens of a task's requests, and the speed of a model."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkick.study import model_speed
from llmkick.study import request_tokens as request_tokens_module
from llmkick.study.model_speed import machine_speed, measured_speed
from llmkick.study.request_tokens import COUNTED_ITEMS, WRITTEN_SHARE, RequestTokens, request_tokens
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.registry import get_task
from toy import toy_model


def test_what_all_prompts_begin_with_runs_once_a_batch():
    size = RequestTokens(requests=1.0, read=90.0, written=30.0, shared=80.0)
    assert size.passed_to_read(1) == 90
    assert size.passed_to_read(64) == 90 - 80 * 63 / 64
    assert size.passed(1) == 90 + WRITTEN_SHARE * 30


@pytest.mark.parametrize("name", ["factoid_qa", "multiple_choice:cloze"])
def test_the_shared_tokens_are_those_of_the_prompts(name: str):
    model = toy_model(chat=True)
    task = get_task(name, limit=8)
    items = task.items(model)
    prompts = [model.encode(task.requests(item, "chat")[0].prompt) for item in items]
    shared = 0
    while len({tuple(prompt[: shared + 1]) for prompt in prompts}) == 1:
        shared += 1
    found = request_tokens(task, items, "chat", model)
    assert found.shared == shared > 16
    assert found.shared < found.read
    alone = request_tokens(task, items[:1], "chat", model)
    assert alone.shared == 0
    recurrent = request_tokens(task, items, "chat", toy_model("mamba", chat=True))
    assert recurrent.shared == 0  # such a network runs every prompt whole
    unknown = request_tokens(task, items, "chat", None)
    assert unknown.shared == 0


@pytest.mark.parametrize(("shots", "at_least"), [(0, 0.1), (3, 0.4)])
def test_what_passes_through_a_model_is_what_its_engine_runs(
    monkeypatch: pytest.MonkeyPatch, shots: int, at_least: float
):
    """Worked examples are those of a subject: the questions of each begin alike, those of a batch do not."""
    model = toy_model(chat=True, max_position_embeddings=2048)
    task = get_task("multiple_choice:letter", limit=40, shots=shots)
    items = task.items(model)
    found = request_tokens(task, items, "chat", model)
    network, run = model.network, list[int]()
    forward = network.forward

    @functools.wraps(forward)  # the engine reads what it takes
    def counting(*, input_ids: torch.Tensor, **named: Any) -> Any:
        run.append(input_ids.numel())
        return forward(input_ids=input_ids, **named)

    monkeypatch.setattr(network, "forward", counting)
    evaluate(model, task)
    assert found.shared > at_least * found.read
    assert found.passed_to_read(len(items)) * len(items) == pytest.approx(sum(run), rel=0.05)


def test_items_drawn_from_all_subjects_share_less(monkeypatch: pytest.MonkeyPatch):
    """With early stopping a batch is drawn from all items, so that few questions in it are of one subject."""
    monkeypatch.setattr(request_tokens_module, "BATCH_ITEMS", 12)
    model = toy_model(chat=True, max_position_embeddings=2048)
    task = get_task("multiple_choice:letter", limit=48, shots=3)
    items = task.items(model)
    alike, drawn = (request_tokens(task, items, "chat", model, in_order=in_order) for in_order in (True, False))
    assert drawn.read == alike.read
    assert drawn.shared < alike.shared / 2


@pytest.mark.parametrize("period", [2, 3, 4, 5, 8])
def test_items_of_a_kind_at_equal_distances_are_not_taken_for_all(period: int):
    """As the second turns of dialogues, whose prompts hold the first."""
    task = get_task("instruction")
    items = task.items()
    first = next(item for item in items if not item.follows)
    second = next(item for item in items if item.follows)
    many = [second if number % period == period - 1 else first for number in range(COUNTED_ITEMS * period)]
    counted = [request_tokens(task, some, "raw", None).read for some in (many, [first], [second])]
    expected = counted[1] + (counted[2] - counted[1]) / period
    assert counted[2] > 1.5 * counted[1]
    assert counted[0] == pytest.approx(expected, rel=0.08)


@pytest.mark.parametrize("name", ["factoid_qa", "multiple_choice:letter", "context_qa:open", "instruction"])
def test_the_mean_numbers_are_nearly_those_of_all_items(monkeypatch: pytest.MonkeyPatch, name: str):
    task = get_task(name)
    items = task.items()
    monkeypatch.setattr(request_tokens_module, "COUNTED_ITEMS", len(items) // 2)
    counted = request_tokens(task, items, "raw", None)
    monkeypatch.setattr(request_tokens_module, "COUNTED_ITEMS", len(items))
    every = request_tokens(task, items, "raw", None)
    assert counted.read == pytest.approx(every.read, rel=0.1)
    assert (counted.requests, counted.written) == (every.requests, every.written)


def test_the_first_pass_of_each_length_does_not_count(monkeypatch: pytest.MonkeyPatch):
    """A processor prepares its kernels in it."""
    seen: dict[int, int] = {}

    def seconds(_engine: Any, tokens: int) -> float:
        seen[tokens] = seen.get(tokens, 0) + 1
        return (0.02 + 0.001 * tokens) * (10 if seen[tokens] == 1 else 1)

    monkeypatch.setattr(model_speed, "_seconds", seconds)
    found = measured_speed(toy_model())
    assert found.token_seconds == pytest.approx(0.001, rel=0.1)
    assert found.pass_seconds == pytest.approx(0.02, rel=0.1)
    assert set(seen) == {8, 64}  # the context of the toy ends at 256


def test_a_slow_model_is_not_tried_at_length(monkeypatch: pytest.MonkeyPatch):
    tried: list[int] = []

    def seconds(_engine: Any, tokens: int) -> float:
        tried.append(tokens)
        return 9.0 if len(tried) == 1 else 3.0

    monkeypatch.setattr(model_speed, "_seconds", seconds)
    found = measured_speed(toy_model())
    assert tried == [8, 8]
    assert found.token_seconds + found.pass_seconds / 8 == pytest.approx(3 / 8)


def test_the_speed_of_products_is_that_of_the_fastest(monkeypatch: pytest.MonkeyPatch):
    ticks = iter([0.0, 5.0, 10.0, 10.5, 20.0, 21.0, 30.0, 31.0])
    monkeypatch.setattr(model_speed, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(model_speed, "MATRIX", 16)
    expected = model_speed.EFFICIENCY * model_speed.PRODUCTS * 2 * 16**3 / 0.5
    assert machine_speed.__wrapped__(torch.float32, torch.device("cpu")) == pytest.approx(expected)


def test_nothing_is_measured_without_weights():
    assert measured_speed(SimpleNamespace()) is None  # type: ignore[arg-type]
