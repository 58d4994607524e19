"""Decoding in steps of a fixed shape, without a GPU: the same tokens as ordinary steps, and a way back."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from llmkick.models.engine import fixed_steps, generation, runner
from llmkick.models.engine.fixed_steps import FixedSteps
from llmkick.models.engine.kv_cache import PreallocatedLayer
from llmkick.models.engine.network import attends_to_all_tokens
from llmkick.models.engine.runner import Runner
from llmkick.models.language_model import GenerateRequest
from llmkick.models.transformers_model import TransformersModel
from toy import toy_model

Made = list[FixedSteps | None]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """What was made of the batches that could be decoded in fixed steps; here a CPU decodes them so."""
    every: Made = []
    of = FixedSteps.of

    def noted(*arguments: Any) -> FixedSteps | None:
        every.append(of(*arguments))
        return every[-1]

    monkeypatch.setattr(FixedSteps, "of", noted)
    monkeypatch.setattr(generation, "end_tokens_of", lambda *_: frozenset())  # all answers have their full length
    monkeypatch.setattr(runner, "can_fix_steps", lambda network, _: attends_to_all_tokens(network))
    return every


def requests_of(most: int = 90) -> list[GenerateRequest]:
    """Prompts of different length with and without a shared beginning; short and long answers."""
    draw = random.Random(1)
    return [
        GenerateRequest("the and 12 " * draw.randint(0, 3) + "Q" * draw.randint(1, 9), max_new_tokens=tokens)
        for tokens in (3, most, 40, most, 24, 7, most, 60)
    ]


def ordinary(model: TransformersModel, requests: list[GenerateRequest]) -> list[Any]:
    """The answers of ordinary steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generation, "WORTHWHILE_STEPS", 10**9)
        return model.generate(requests)


@pytest.mark.parametrize(
    "architecture", ["llama", "qwen2", "gemma", "opt", "gpt_neox", "gpt2", "mixtral", "deepseek_v3"]
)
def test_the_tokens_are_those_of_ordinary_steps(made: Made, architecture: str):
    model, requests = toy_model(architecture, chat=True), requests_of()
    expected = ordinary(model, requests)
    assert made == []
    assert model.generate(requests) == expected
    assert len(made) >= 2  # rows left, or came
    assert None not in made


def test_rows_that_wait_take_places_between_fixed_steps(made: Made, monkeypatch: pytest.MonkeyPatch):
    model, requests = toy_model(chat=True), requests_of() * 3
    monkeypatch.setattr(generation, "MAX_ROWS", 5)
    expected = ordinary(model, requests)
    assert model.generate(requests) == expected
    assert len(made) >= 3  # five long answers, four, and the next ones


def test_full_buffers_grow(made: Made, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(generation, "MOST_ROOM", 33)
    model, requests = toy_model(chat=True), requests_of()
    expected = ordinary(model, requests)
    ended: list[bool] = []
    monkeypatch.setattr(generation._Decoder, "_unfix", watched(ended, generation._Decoder._unfix))
    assert model.generate(requests) == expected
    assert any(ended)


def watched(full: list[bool], unfix: Callable[[Any], None]) -> Callable[[Any], None]:
    def noting(decoder: Any) -> None:
        full.append(decoder.fixed is not None and decoder.fixed.is_full)
        unfix(decoder)

    return noting


def test_networks_with_windows_and_other_devices_decode_as_ever(made: Made):
    model = toy_model("mistral", chat=True, sliding_window=12)
    requests = requests_of()
    assert model.generate(requests) == ordinary(model, requests)
    assert made == []
    assert not fixed_steps.can_fix_steps(toy_model().network, torch.device("cpu"))
    assert fixed_steps.can_fix_steps(toy_model().network, torch.device("cuda"))
    assert not fixed_steps.can_fix_steps(model.network, torch.device("cuda"))


def ignoring_the_mask(forward: Callable[..., Any], options: dict[str, Any]) -> Any:
    if options["attention_mask"].dim() == 4:
        options["attention_mask"] = torch.zeros_like(options["attention_mask"])
    return forward(**options)


def failing(forward: Callable[..., Any], options: dict[str, Any]) -> Any:
    if options["attention_mask"].dim() == 4:
        raise RuntimeError("operation not permitted when stream is capturing")
    return forward(**options)


def short_of_memory(forward: Callable[..., Any], options: dict[str, Any]) -> Any:
    if options["attention_mask"].dim() == 4:
        raise torch.OutOfMemoryError("the graph has no room")
    return forward(**options)


@pytest.mark.parametrize("change", [ignoring_the_mask, failing, short_of_memory])
def test_a_network_that_cannot_decode_so_goes_on_with_ordinary_steps(
    made: Made, monkeypatch: pytest.MonkeyPatch, change: Callable[..., Any]
):
    model, requests = toy_model(chat=True), requests_of()
    expected = ordinary(model, requests)
    forward = model.network.forward

    def changed(
        *, input_ids: Any, attention_mask: Any, position_ids: Any, past_key_values: Any = None,
        logits_to_keep: Any = 0, use_cache: bool = True,
    ) -> Any:  # fmt: skip
        options = {
            "input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids,
            "past_key_values": past_key_values, "logits_to_keep": logits_to_keep, "use_cache": use_cache,
        }  # fmt: skip
        return change(forward, options)

    monkeypatch.setattr(model.network, "forward", changed)
    assert model.generate(requests) == expected
    assert made == [None]  # tried once


def test_hidden_columns_are_finite():
    """A mask of -inf does not hide a NaN, which memory that was not written may hold."""
    layer = PreallocatedLayer()
    keys = torch.full((2, 1, 8, 4), torch.nan)
    keys[:, :, :3] = 1.0
    layer.fill(keys, keys.clone(), 3)
    column = torch.tensor([3])
    layer.pin(column)
    found, _ = layer.update(torch.full((2, 1, 1, 4), 2.0), torch.full((2, 1, 1, 4), 3.0))
    assert found.shape[2] == layer.capacity == 8
    assert found[0, 0, :, 0].tolist() == [1, 1, 1, 2, 0, 0, 0, 0]
    layer.unpin(4)
    assert layer.keys[0, 0, :, 0].tolist() == [1, 1, 1, 2]
    assert layer.values[0, 0, 3, 0] == 3
    again, _ = layer.update(torch.full((2, 1, 1, 4), 5.0), torch.full((2, 1, 1, 4), 5.0))
    assert again[0, 0, :, 0].tolist() == [1, 1, 1, 2, 5]


def test_the_graph_is_recorded_and_replayed(monkeypatch: pytest.MonkeyPatch):
    """The calls of a GPU, on a stand-in: what is recorded runs once, and again at each replay."""
    model = toy_model(chat=True)
    prompts = [tuple(model.encode(text)) for text in ("the cat", "12 and 12 and the", "Q")]
    with torch.inference_mode():
        reference, state = (Runner(model.network, model.device, reusable=True).prefill(prompts) for _ in range(2))
        run = Runner(model.network, model.device, reusable=True)
        for one in (reference, state):
            one.reserve(40)
        last = reference.next_logits.argmax(-1)[:, None]
        run.step(reference, last)
        run.step(state, last)
        steps = FixedSteps(run, state, last)
        for layer in steps._layers:
            layer.pin(steps._column)
        assert steps._record(state.next_logits)
        buffer = torch.zeros_like(state.next_logits)

        class Graph:
            replays = 0

            def replay(self) -> None:
                self.replays += 1
                buffer.copy_(steps._forward())  # into the same memory, as a graph does

        steps._graph, steps._logits = Graph(), buffer
        for _ in range(5):
            tokens = reference.next_logits.argmax(-1)[:, None]
            run.step(reference, tokens)
            steps.step(state, tokens)
            assert torch.allclose(state.next_logits, reference.next_logits, atol=1e-5)
        assert steps._graph.replays == 5
        steps.end()
        tokens = reference.next_logits.argmax(-1)[:, None]
        run.step(reference, tokens)
        run.step(state, tokens)
        assert torch.allclose(state.next_logits, reference.next_logits, atol=1e-5)
        assert torch.equal(state.mask, reference.mask)
