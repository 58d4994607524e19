"""A walk whose batches run side by side: the same weights, the same errors, the same way to go on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from forwards import count_forwards
from llmkick.compression.walk import batches, finished_blocks
from llmkick.compression.walk.compress import compress
from llmkick.errors import NumericalError
from speeds import others_slow
from toy import toy_model

ARCHITECTURES = ["llama", "gemma2", "gpt2", "mixtral"]


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def windows(rows: int = 7) -> Tensor:
    return torch.randint(0, 284, (rows, 30), generator=torch.Generator().manual_seed(3))


# Each architecture, and each way with architectures of two kinds.
QUICK = [("llama", True), ("gpt2", True), ("gemma2", False), ("mixtral", False)]


@pytest.mark.parametrize(("architecture", "propagate"), others_slow(product(ARCHITECTURES, (True, False)), QUICK))
def test_workers_change_no_weight(architecture: str, propagate: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "BATCH_TOKENS_CPU", 60)
    model = toy_model(architecture)
    found = {}
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for recipe in ("wanda@0.5", "gptq@4b-g4"):
            compressed, report = compress(model, recipe, calibration=windows(), propagate=propagate)
            found.setdefault(recipe, []).append(
                (compressed.network, [(layer.name, layer.tokens) for layer in report.layers])
            )
    for (one, seen), *others in found.values():
        for other, also_seen in others:
            assert also_seen == seen
            for first, second in zip(one.parameters(), other.parameters(), strict=True):
                assert torch.allclose(first, second, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2])
def test_what_a_layer_was_given_counts_whatever_becomes_of_it_later(threads: int):
    """q changes in place what k and v are given too; their weights are such that it is the same network."""
    torch.set_num_threads(threads)
    plain, changing = toy_model(), toy_model()
    factors = 2.0 ** torch.randint(-3, 4, (16,), generator=torch.Generator().manual_seed(1))

    def changes(_module: nn.Module, given: tuple[Tensor], _output: Tensor) -> None:
        given[0].mul_(factors)

    for layer in changing.network.model.layers:
        layer.self_attn.q_proj.register_forward_hook(changes)
        for name in ("k_proj", "v_proj"):
            getattr(layer.self_attn, name).weight.data.div_(factors)
    expected, report = compress(plain, "wanda@0.5", calibration=windows())
    found, also = compress(changing, "wanda@0.5", calibration=windows())
    assert [layer.realised_sparsity for layer in report.layers] == [layer.realised_sparsity for layer in also.layers]
    for one, other in zip(expected.network.model.layers, found.network.model.layers, strict=True):
        assert torch.equal(one.self_attn.q_proj.weight, other.self_attn.q_proj.weight)
        assert torch.equal(one.self_attn.k_proj.weight, other.self_attn.k_proj.weight * factors)
        assert torch.equal(one.mlp.down_proj.weight, other.mlp.down_proj.weight)


def test_a_network_that_fails_in_a_lane_says_so_and_stays_usable():
    torch.set_num_threads(2)
    model = toy_model()
    before = model.network(windows()).logits
    norm = model.network.model.layers[1].post_attention_layernorm
    handle = norm.register_forward_hook(lambda *_: torch.full((1, 30, 16), float("nan")).expand(_[2].shape))
    with pytest.raises(NumericalError, match=r"layers\.1\.mlp"):
        compress(model, "gptq@4b", calibration=windows())
    handle.remove()
    assert torch.equal(model.network(windows()).logits, before)
    assert all("forward" not in vars(layer) for layer in model.network.model.layers)


def test_a_walk_goes_on_with_another_number_of_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "BATCH_TOKENS_CPU", 60)
    monkeypatch.setattr(finished_blocks, "STATES_SECONDS", 0)
    monkeypatch.setattr(finished_blocks, "STATES_TIMES_WRITTEN", 0)
    model = toy_model()
    expected, _ = compress(model, "wanda@0.5", calibration=windows())

    class Stopped(Exception):  # noqa: N818
        pass

    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise Stopped

    torch.set_num_threads(3)
    with pytest.raises(Stopped):
        compress(model, "wanda@0.5", calibration=windows(), keep=tmp_path, progress=stop)
    torch.set_num_threads(1)
    ran: list[int] = []
    count_forwards(monkeypatch, ran)
    found, _ = compress(model, "wanda@0.5", calibration=windows(), keep=tmp_path)
    assert set(ran) == {2}
    for one, other in zip(expected.network.parameters(), found.network.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
