"""Decoding in steps of a fixed shape, without a GPU: the same tokens as ordinary steps, and a way back."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkick.models.engine import fixed_steps, generation
from llmkick.models.engine.fixed_steps import FixedSteps
from llmkick.models.engine.kv_cache import PreallocatedLayer
from llmkick.models.engine.network import attends_to_all_tokens
from llmkick.models.engine.runner import Runner
from llmkick.models.language_model import GenerateRequest
from llmkick.models.transformers_model import TransformersModel
from speeds import others_slow
from toy import toy_model

Made = list[FixedSteps | None]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """What was made of the batches that could be decoded in fixed steps; here a CPU decodes them so."""
    every: Made = []
    of = FixedSteps.of

    def noted(*arguments: Any, **options: Any) -> FixedSteps | None:
        every.append(of(*arguments, **options))
        return every[-1]

    monkeypatch.setattr(FixedSteps, "of", noted)
    monkeypatch.setattr(generation, "end_tokens_of", lambda *_: frozenset())  # all answers have their full length
    monkeypatch.setattr(generation, "SETTLED_STEPS", 1)
    monkeypatch.setattr(
        generation, "can_fix_steps", lambda net, _: attends_to_all_tokens(net) and net not in fixed_steps._refused
    )
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


FIXED = ("llama", "qwen2", "gemma", "opt", "gpt_neox", "gpt2", "mixtral", "deepseek_v3")


@pytest.mark.parametrize("architecture", others_slow(FIXED, ["llama", "opt", "gpt2", "mixtral", "deepseek_v3"]))
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
    assert not fixed_steps.can_fix_steps(toy_model("gpt_neo").network, torch.device("cuda"))  # windows of its own


def ignoring_the_mask(forward: Callable[..., Any], options: dict[str, Any]) -> Any:
    if options["attention_mask"].dim() == 4:
        options["attention_mask"] = torch.zeros_like(options["attention_mask"])
    return forward(**options)


def lacking(forward: Callable[..., Any], options: dict[str, Any]) -> Any:
    if options["attention_mask"].dim() == 4:
        raise AttributeError("alibi")
    return forward(**options)


def failing(forward: Callable[..., Any], options: dict[str, Any]) -> Any:
    if options["attention_mask"].dim() == 4:
        raise RuntimeError("operation not permitted when stream is capturing")
    return forward(**options)


def short_of_memory(forward: Callable[..., Any], options: dict[str, Any]) -> Any:
    if options["attention_mask"].dim() == 4:
        raise torch.OutOfMemoryError("the graph has no room")
    return forward(**options)


@pytest.mark.parametrize("change", [ignoring_the_mask, failing, lacking, short_of_memory])
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
    assert model.generate(requests) == expected
    assert made == [None]
    assert [note for note in model.notes if "CUDA graph" in note] == (
        ["memory ran short on cpu for a CUDA graph: decoding goes on without"] if change is short_of_memory else []
    )


@pytest.mark.parametrize("remembers", [True, False])
def test_a_refusal_is_remembered_where_the_caller_says_so(monkeypatch: pytest.MonkeyPatch, remembers: bool):
    model = toy_model(chat=True)
    monkeypatch.setattr(FixedSteps, "_record", lambda *_: False)
    with torch.inference_mode():
        run = Runner(model.network, model.device, reusable=True)
        state = run.prefill([tuple(model.encode("the cat"))])
        last = state.next_logits.argmax(-1)[:, None]
        run.step(state, last)
        assert FixedSteps.of(run, state, last, [], remembers=remembers) is None
    assert fixed_steps.can_fix_steps(model.network, torch.device("cuda")) is not remembers
    assert fixed_steps.suits_fixed_steps(model.network, torch.device("cuda"))


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


class StandIn:
    """What `_record` uses of torch.cuda. replayed: what a replay does to the logits of the recording."""

    def __init__(self, replayed: Callable[[], None]) -> None:
        self.calls: list[str] = []
        self._replayed = replayed

    def replay(self) -> None:
        self.calls.append("replay")
        self._replayed()

    def note(self, call: str) -> Callable[..., Any]:
        def noted(*arguments: object, **_: object) -> Any:
            self.calls.append(f"{call} {arguments[0]}" if call == "waiting is" else call)
            return nullcontext() if call in ("device", "stream", "graph") else self

        return noted

    def wait_stream(self, _: object) -> None:
        self.calls.append("wait")


@pytest.mark.parametrize("case", ["alike", "an empty graph"])
def test_a_graph_is_recorded_after_a_trial_and_tried_itself(monkeypatch: pytest.MonkeyPatch, case: str):
    """The calls of a GPU, on a stand-in."""
    model = toy_model(chat=True)
    prompts = [tuple(model.encode(text)) for text in ("the cat", "12 and 12 and the", "Q")]
    with torch.inference_mode():
        run = Runner(model.network, model.device, reusable=True)
        reference, state = run.prefill(prompts), run.prefill(prompts)
        last = reference.next_logits.argmax(-1)[:, None]
        for one in (reference, state):
            one.reserve(40)
            run.step(one, last)
        steps = FixedSteps(run, state, last)
        for layer in steps._layers:
            layer.pin(steps._column)
        on_gpu = SimpleNamespace(device=torch.device("cuda"), last_logits=run.last_logits)
        monkeypatch.setattr(steps, "_runner", on_gpu)

        def replayed() -> None:  # into the same memory
            steps._logits.copy_(steps._forward() if case == "alike" else torch.zeros(()))

        stand_in = StandIn(replayed)
        for name in ("device", "current_stream", "Stream", "stream", "graph", "set_stream"):
            monkeypatch.setattr(torch.cuda, name, stand_in.note(name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: stand_in)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", stand_in.note("waiting is"))
        assert steps._record(state.next_logits) is (case == "alike")
        assert stand_in.calls == [
            "device", "current_stream", "Stream", "wait", "stream", "waiting is error", "waiting is 0", "wait", "graph",
            "set_stream", "replay",
        ]  # fmt: skip
        if case == "alike":
            for _ in range(5):
                tokens = reference.next_logits.argmax(-1)[:, None]
                run.step(reference, tokens)
                steps.step(state, tokens)
                assert torch.allclose(state.next_logits, reference.next_logits, atol=1e-5)
            assert stand_in.calls.count("replay") == 6
            steps.end()
            tokens = reference.next_logits.argmax(-1)[:, None]
            run.step(reference, tokens)
            run.step(state, tokens)
            assert torch.allclose(state.next_logits, reference.next_logits, atol=1e-5)
            assert torch.equal(state.mask, reference.mask)


def test_a_recording_that_fails_leaves_no_stream_behind(monkeypatch: pytest.MonkeyPatch):
    model = toy_model(chat=True)
    with torch.inference_mode():
        run = Runner(model.network, model.device, reusable=True)
        state = run.prefill([tuple(model.encode("the cat"))])
        last = state.next_logits.argmax(-1)[:, None]
        run.step(state, last)
        steps = FixedSteps(run, state, last)
        for layer in steps._layers:
            layer.pin(steps._column)
        forwards: list[int] = []

        def failing_once_recorded(*arguments: Any, **options: Any) -> Any:
            forwards.append(1)
            if len(forwards) == 2:
                raise RuntimeError("operation not permitted when stream is capturing")
            return run.last_logits(*arguments, **options)

        on_gpu = SimpleNamespace(device=torch.device("cuda"), last_logits=failing_once_recorded)
        monkeypatch.setattr(steps, "_runner", on_gpu)
        stand_in = StandIn(lambda: None)
        for name in ("device", "current_stream", "Stream", "stream", "graph", "set_stream"):
            monkeypatch.setattr(torch.cuda, name, stand_in.note(name))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: stand_in)
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda _: None)
        with pytest.raises(RuntimeError, match="capturing"):
            steps._record(state.next_logits)
        assert stand_in.calls[-1] == "set_stream"
