"""A network on several devices: what passes between them is carried by hooks, which nothing of ours may undo or go by.

Two precisions stand for two devices: mixing them in one operation fails as mixing devices does, and hooks of
accelerate's carry what passes, as they do between GPUs.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from transformers import LlamaForCausalLM

from llmkick.compression.walk.compress import compress, compress_many
from llmkick.errors import ConfigError, ModelError
from llmkick.models.checkpoints import loading
from llmkick.models.checkpoints.loading import load_model, refuse_offloaded
from llmkick.models.engine import batch_budget
from llmkick.models.engine.batch_budget import devices_of, is_spread, token_budget
from llmkick.models.engine.runner import Runner
from llmkick.models.language_model import ContinuationScore, GenerateRequest, ScoreRequest
from llmkick.models.memory import free_bytes
from llmkick.models.precision import resolve_device
from llmkick.models.transformers_model import TransformersModel
from speeds import others_slow
from toy import save_toy, toy_model

REQUESTS = [
    ScoreRequest("The wanderer asks the owl: where is the sea?", " Over the hills"),
    ScoreRequest("The wanderer asks the owl: where is the sea?", " In the song of the shell"),
    ScoreRequest("The wanderer asks the owl: where is the sea, and what is in it?", " A"),
    ScoreRequest("", tuple(range(4, 60))),
]
GENERATIONS = [GenerateRequest("the cat and", max_new_tokens=12), GenerateRequest("on the", max_new_tokens=5)]


class Carrying(ModelHook):
    """Brings inputs into a module's precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        return self._carried(args), self._carried(kwargs)

    def _carried(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self.dtype) if value.is_floating_point() else value
        if isinstance(value, dict):
            return {key: self._carried(one) for key, one in value.items()}
        return type(value)(map(self._carried, value)) if isinstance(value, tuple | list) else value


def spread(model: TransformersModel) -> TransformersModel:
    """The same model with its first block in float32, and everything behind it in float64."""
    inner = model.network.model
    for module in (*inner.layers[1:], inner.norm, model.network.lm_head):
        module.double()
        add_hook_to_module(module, Carrying(torch.float64))
    model.network.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": 0, "model.layers.1": 1}
    return model


@pytest.fixture(params=["llama", "gemma2"])
def pair(request: pytest.FixtureRequest) -> tuple[TransformersModel, TransformersModel]:
    return toy_model(request.param), spread(toy_model(request.param))


def assert_same_answers(plain: TransformersModel, other: TransformersModel) -> None:
    for left, right in zip(plain.logprobs(REQUESTS), other.logprobs(REQUESTS), strict=True):
        assert isinstance(left, ContinuationScore)
        assert isinstance(right, ContinuationScore)
        assert right.logprob == pytest.approx(left.logprob, abs=1e-3)
    assert [g.text for g in other.generate(GENERATIONS)] == [g.text for g in plain.generate(GENERATIONS)]  # type: ignore[union-attr]


def test_a_spread_network_answers_like_one_in_one_place(pair: tuple[TransformersModel, TransformersModel]):
    assert_same_answers(*pair)


WALKS = [(recipe, propagate) for recipe in ("wanda@2:4", "gptq@4b", "magnitude@0.5") for propagate in (True, False)]


@pytest.mark.parametrize(
    ("recipe", "propagate"), others_slow(WALKS, [("wanda@2:4", True), ("gptq@4b", False), ("magnitude@0.5", True)])
)
def test_a_spread_network_is_compressed_like_one_in_one_place(
    pair: tuple[TransformersModel, TransformersModel], recipe: str, *, propagate: bool
):
    ids = np.random.default_rng(0).integers(4, 280, (6, 40))
    plain, report = compress(pair[0], recipe, calibration=ids, propagate=propagate)
    other, same = compress(pair[1], recipe, calibration=ids, propagate=propagate)
    assert [layer.realised_sparsity for layer in same.layers] == [layer.realised_sparsity for layer in report.layers]
    weights = dict(plain.network.named_parameters())
    for name, weight in other.network.named_parameters():
        assert torch.allclose(weight.float(), weights[name], atol=1e-5), name
    assert_same_answers(plain, other)
    assert_same_answers(*pair)  # the dense one is as it was, hooks included
    hooked = [type(module).__name__ for module in other.network.modules() if hasattr(module, "_hf_hook")]
    assert len(hooked) == len(pair[1].network.model.layers) + 1


def test_one_pass_for_several_recipes_crosses_devices_too():
    model, ids = spread(toy_model()), np.random.default_rng(0).integers(4, 280, (4, 32))
    compressed = compress_many(model, ["wanda@0.5", "gptq@4b"], calibration=ids)
    assert len({report.digest for _, report in compressed}) == 2
    for other, _ in compressed:
        other.logprobs(REQUESTS)


def test_without_hooks_the_two_precisions_do_not_mix():
    """What makes the tests above able to fail."""
    model = toy_model()
    model.network.model.layers[1].double()
    with pytest.raises(RuntimeError, match=r"same dtype|same type|expected"):
        model.logprobs(REQUESTS)


@pytest.mark.parametrize("propagate", [True, False])
def test_hooks_of_accelerate_itself_survive_a_compression(*, propagate: bool):
    model, ids = toy_model(), np.arange(4, 164).reshape(4, 40)
    parts = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    parts += [f"model.layers.{index}" for index in range(3)]
    dispatch_model(model.network, dict.fromkeys(parts, "cpu"), main_device="cpu", force_hooks=True)
    compressed, report = compress(model, "wanda@2:4", calibration=ids, propagate=propagate)
    for network in (model.network, compressed.network):
        assert all("forward" in vars(block) for block in network.model.layers)
    assert report.digest == compress(toy_model(), "wanda@2:4", calibration=ids, propagate=propagate)[1].digest
    compressed.logprobs(REQUESTS)


def test_the_output_head_is_told_a_number_where_indices_would_lie_on_another_device():
    model = toy_model()
    seen: list[Any] = []
    forward = model.network.forward

    def watching(*args: Any, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
        seen.append(logits_to_keep)
        return forward(*args, logits_to_keep=logits_to_keep, **kwargs)

    model.network.forward = watching
    ids = torch.tensor([[5, 6, 7]])
    plain = Runner(model.network, model.device).next_logits(ids)
    model.network.hf_device_map = {"a": 0, "b": 1}
    assert torch.equal(Runner(model.network, model.device).next_logits(ids), plain)
    assert torch.equal(seen[0], torch.tensor([2]))
    assert seen[1] == 1


# Memory of several devices


def test_the_budget_counts_the_memory_of_all_devices(monkeypatch: pytest.MonkeyPatch):
    cards = [torch.device("cuda:0"), torch.device("cuda:1")]
    each = 30_000_000_000
    parameters = [SimpleNamespace(device=card, numel=lambda: 10_000_000_000, element_size=lambda: 2) for card in cards]
    network: Any = SimpleNamespace(
        parameters=lambda: iter(parameters),
        hf_device_map={"a": 0, "b": 1},
        dtype=torch.bfloat16,
    )
    monkeypatch.setattr(batch_budget, "cache_bytes_a_token", lambda _network: 2 * 2 * 2 * 8 * 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: ({0: 5, 1: 3}[card.index], each))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _card: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _card: 0)
    assert is_spread(network)
    assert devices_of(network, cards[0]) == cards
    assert free_bytes(*cards) == 6  # twice what the fuller one has left
    assert free_bytes(*cards, torch.device("meta")) is None
    # One card alone would leave nothing beside 40 GB of weights.
    assert token_budget(network, cards[0]) == 65536
    network.hf_device_map = {"": 0}
    assert token_budget(network, cards[0]) == 1024


# What cannot be


def test_balanced_without_a_gpu_is_refused_before_anything_is_read(tmp_path: Any):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(ConfigError, match="device 'balanced' spreads a model over CUDA devices, and there is none"):
        load_model(str(tmp_path / "nothing"), device="balanced")


def test_balanced_begins_at_the_first_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("balanced") == torch.device("cuda:0")


def test_the_device_map_reaches_transformers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    toy = save_toy(tmp_path / "toy")
    original, seen = LlamaForCausalLM.from_pretrained, []

    def reading(*args: Any, device_map: Any = None, **kwargs: Any) -> Any:
        seen.append(device_map)
        return original(*args, device_map={"": "cpu"}, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", reading)
    monkeypatch.setattr(loading, "resolve_device", lambda _device: torch.device("cpu"))
    loaded = load_model(str(tmp_path / "toy"), dtype="float32", device="balanced")
    assert loaded.logprobs(REQUESTS) == toy.logprobs(REQUESTS)
    load_model(str(tmp_path / "toy"), dtype="float32", device="cpu")
    assert seen == ["balanced", None]


def test_a_network_that_found_no_room_on_the_gpus_is_refused():
    network = SimpleNamespace(hf_device_map={"model.layers.0": 0, "model.layers.1": "cpu", "lm_head": "disk"})
    with pytest.raises(ModelError, match=r"do not hold toy: 2 of its 3 parts found no room, lm_head first"):
        refuse_offloaded("toy", network)
    for fine in ({"": "cpu"}, {"model": 0, "lm_head": 1}):
        refuse_offloaded("toy", SimpleNamespace(hf_device_map=fine))
    refuse_offloaded("toy", SimpleNamespace())


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.\nSee the documentation")
MORE_ROOM = r'use a smaller dtype, several GPUs \(device = "balanced"\), or device = "cpu"'


@pytest.mark.parametrize(("free", "said"), [(2 * 10**9, r"2\.0 GB"), (None, "less")])
def test_a_device_that_does_not_hold_a_network_is_said(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, free: int | None, said: str
):
    save_toy(tmp_path / "toy")
    monkeypatch.setattr(LlamaForCausalLM, "to", failing(OUT_OF_MEMORY))
    monkeypatch.setattr(loading, "free_bytes", lambda _device: free)
    # A network of 74 KB and a buffer of 2.5 GB.
    buffer = torch.empty(625 * 10**6, device="meta")
    monkeypatch.setattr(LlamaForCausalLM, "buffers", lambda _self, recurse=True: [buffer])
    with pytest.raises(
        ModelError, match=rf"toy needs 2\.5 GB on cpu, of which {said} is free; {MORE_ROOM} \(CUDA out of .*2 MiB\. See"
    ):
        load_model(str(tmp_path / "toy"), dtype="float32", device="cpu")


def test_memory_that_runs_out_while_a_model_is_read_is_said(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    save_toy(tmp_path / "toy")
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", failing(OUT_OF_MEMORY))
    with pytest.raises(ModelError, match=rf"cannot load toy from .*2 MiB\. See the documentation; {MORE_ROOM}$"):
        load_model(str(tmp_path / "toy"), dtype="float32", device="cpu")


def test_other_errors_of_a_device_are_not_taken_for_a_shortage(tmp_path: Any, monkeypatch: pytest.MonkeyPatch):
    save_toy(tmp_path / "toy")
    monkeypatch.setattr(LlamaForCausalLM, "to", failing(RuntimeError("device-side assert")))
    with pytest.raises(RuntimeError, match="device-side assert"):
        load_model(str(tmp_path / "toy"), dtype="float32", device="cpu")


def failing(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def test_send_to_device_leaves_numbers_alone():
    """What `Runner` counts on when it gives a number to keep: accelerate moves tensors only."""
    assert send_to_device({"logits_to_keep": 3}, "cpu") == {"logits_to_keep": 3}
