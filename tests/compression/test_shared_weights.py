"""Blocks that share weights, and blocks that hand on more than hidden states: in memory, streamed, stopped, on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage.folder import StreamedFolder, report_of, save_folder, save_packed
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import as_calibration
from llmkick.compression.walk.compress import compress, compress_many
from llmkick.compression.walk.streaming import compress_streamed
from llmkick.compression.walk.weight import compress_weight
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.meta_model import load_meta_model
from llmkick.models.weights import weights_digest
from speeds import others_slow
from toy import save_toy, toy_model

SHARING = ("zamba", "zamba2")
HANDING_ON = ("gemma3n", "gemma4", "gemma4_moe", "inkling")


def windows() -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(0).integers(3, 284, (5, 24))


def pooled_inputs(network: nn.Module) -> dict[int, list[Tensor]]:
    """The inputs of every linear layer of the dense network by its weight, one whole forward for each sequence."""
    seen: dict[int, list[Tensor]] = {}

    def hook(module: Any, arguments: tuple[Tensor, ...]) -> None:
        seen.setdefault(id(module.weight), []).append(arguments[0].flatten(0, -2))

    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(hook) for module in linear]
    with torch.no_grad():
        for sequence in torch.from_numpy(windows()):
            network(sequence[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


# zamba2 takes three times as long as zamba.
SHARED = [
    (one, propagate, text) for one in SHARING for propagate in (True, False) for text in ("wanda@2:4", "gptq@4b-g8")
]


@pytest.mark.parametrize(
    ("architecture", "propagate", "text"),
    others_slow(SHARED, [*(case for case in SHARED if case[0] == "zamba"), ("zamba2", True, "gptq@4b-g8")]),
)
def test_a_shared_weight_is_compressed_once_on_the_inputs_of_all_its_layers(
    architecture: str, propagate: bool, text: str
):
    model, recipe = toy_model(architecture), parse_recipe(text)
    inputs = pooled_inputs(model.network)
    compressed, report = compress(model, text, calibration=windows(), propagate=propagate)
    after = dict(compressed.network.named_parameters(remove_duplicate=False))
    shared = [(block, layer) for block in decoder_blocks(model.network) for layer in block.layers if layer.twins]
    assert len(shared) >= 7
    equal: list[Tensor] = []
    for _, layer in shared:
        if id(layer.stored) in inputs:
            wanted = compress_weight(layer.weight, torch.cat(inputs[id(layer.stored)])[None], recipe)
            equal.append(torch.isclose(after[f"{layer.name}.weight"], wanted, rtol=1e-3, atol=1e-4).flatten())
        # Still one tensor, and counted once.
        assert {id(after[f"{user.name}.weight"]) for user in (layer, *layer.twins)} == {
            id(after[f"{layer.name}.weight"])
        }
        assert [entry.name for entry in report.layers].count(layer.name) == 1
        assert not {twin.name for twin in layer.twins} & {entry.name for entry in report.layers}
    assert float(torch.cat(equal).double().mean()) > 0.995
    assert weights_digest(model.network) == model.info.digest
    counts = {id(p): p.numel() for b in decoder_blocks(model.network) for n, p in b.module.named_parameters()
              if p.dim() > 1 and not n.endswith("bias")}  # fmt: skip
    layers = sum(layer.shape[0] * layer.shape[1] for layer in report.layers)
    assert report.block_share == pytest.approx(layers / sum(counts.values()))


# Each architecture with the recipe that needs most, and one of each kind with the others.
WRITTEN = [
    *((architecture, "gptq@4b-g8") for architecture in (*SHARING, *HANDING_ON)),
    *((architecture, text) for architecture in ("zamba", "gemma4") for text in ("magnitude@0.5", "wanda@2:4")),
]
WRITTEN_QUICKLY = [case for case in WRITTEN if case[0] != "zamba" or case[1] == "gptq@4b-g8"]


@pytest.mark.parametrize(("architecture", "text"), others_slow(WRITTEN, WRITTEN_QUICKLY))
def test_streamed_packed_and_written_as_in_memory(tmp_path: Path, architecture: str, text: str):
    save_toy(tmp_path / "model", architecture)
    model = load_model(str(tmp_path / "model"), dtype="float32")
    expected, report = compress(model, text, calibration=windows())
    save_folder(expected, report, tmp_path / "folder")
    meta_model = load_meta_model(str(tmp_path / "model"), dtype="float32")
    if meta_model.obstacle is None:
        recipe = parse_recipe(text)
        with StreamedFolder(meta_model, tmp_path / "streamed") as target:
            finished = compress_streamed(
                meta_model, recipe, tmp_path / "kept", calibration=as_calibration(windows()), sink=target.put
            )
            target.finish(report_of(finished))
        assert finished.report is not None
        assert (finished.report.digest, finished.report.layers) == (report.digest, report.layers)
        assert all(parameter.is_meta for parameter in meta_model.model.network.parameters())
        save_packed(meta_model, finished, tmp_path / "packed")
    for place in ("folder", "packed", "streamed"):
        if (tmp_path / place).exists():
            assert weights_digest(load_model(str(tmp_path / place), dtype="float32").network) == report.digest, place
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    assert weights_digest(plain) == report.digest


class Stopped(Exception):  # noqa: N818
    pass


STOPPED = [
    (architecture, streamed) for architecture in ("zamba", "zamba2", "gemma3n", "gemma4") for streamed in (True, False)
]


@pytest.mark.parametrize(
    ("architecture", "streamed"),
    others_slow(STOPPED, [*((one, how) for one in ("zamba", "gemma4") for how in (True, False)), ("gemma3n", True)]),
)
def test_a_stopped_walk_goes_on_to_the_same_weights(tmp_path: Path, architecture: str, streamed: bool):
    save_toy(tmp_path / "model", architecture)
    model = load_model(str(tmp_path / "model"), dtype="float32")
    meta_model = load_meta_model(str(tmp_path / "model"), dtype="float32")
    _, report = compress(model, "wanda@2:4", calibration=windows())
    blocks = len(decoder_blocks(model.network))

    def stop(done: int, _total: int) -> None:
        if done < blocks:
            raise Stopped

    for _ in range(blocks):
        try:
            if streamed:
                compress_streamed(
                    meta_model, parse_recipe("wanda@2:4"), tmp_path / "kept",
                    calibration=as_calibration(windows()), progress=stop,
                )  # fmt: skip
            else:
                compress(model, "wanda@2:4", calibration=windows(), keep=tmp_path / "kept", progress=stop)
        except Stopped:
            continue
    found, again = compress(model, "wanda@2:4", calibration=windows(), keep=tmp_path / "kept")
    assert again.digest == report.digest == weights_digest(found.network)


def test_several_recipes_in_one_pass_share_weights_too():
    model = toy_model("zamba")
    recipes = ("wanda@2:4", "gptq@4b-g8", "rtn@4b")
    together = compress_many(model, recipes, calibration=windows())
    for recipe, (_, report) in zip(recipes, together, strict=True):
        _, alone = compress(model, recipe, calibration=windows(), propagate=False)
        assert report.digest == alone.digest
