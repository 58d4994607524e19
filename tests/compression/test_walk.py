"""The walk over the blocks against the obvious procedure: whole forwards, one sequence at a time, block after block."""

from __future__ import annotations

import copy
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy import toy_model
from transformers.pytorch_utils import Conv1D

from llmkick.compression import walk
from llmkick.compression.calibration import Calibration
from llmkick.compression.hessian import InputStatistics
from llmkick.compression.recipe import Recipe, parse_recipe
from llmkick.compression.size import compact_bytes
from llmkick.compression.walk import CompressionReport, compress
from llmkick.compression.weight import compress_weight
from llmkick.errors import ConfigError, KickError, NumericalError
from llmkick.models.batching import Runner
from llmkick.models.language_model import TransformersModel, load_model, weights_digest

ARCHITECTURES = ("llama", "qwen2", "gemma", "gemma3", "mistral", "opt", "gpt_neox", "gpt2", "mixtral")
RECIPES = ("wanda@0.5", "wanda@2:4", "magnitude@0.25", "rtn@4b", "rtn@3b-g8", "sparsegpt@0.5", "gptq@4b")
BLOCKS = {
    "opt": "model.decoder.layers",
    "gpt_neox": "gpt_neox.layers",
    "gpt2": "transformer.h",
}
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def windows(sequences: int = 7, length: int = 30, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, 284, (sequences, length))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "BATCH_TOKENS", 65)  # batches of 2, 2, 2 and 1 sequences


# The obvious procedure

Weights = dict[str, Tensor]  # name as in the report → (out, in)


def block_modules(network: nn.Module, architecture: str) -> dict[str, nn.Module]:
    blocks = network.get_submodule(BLOCKS.get(architecture, "model.layers"))
    return {f"{BLOCKS.get(architecture, 'model.layers')}.{name}": block for name, block in blocks.named_children()}


def weights_of(prefix: str, block: nn.Module) -> Weights:
    found: Weights = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            found[f"{prefix}.{name}"] = module.weight.detach()
        elif isinstance(module, Conv1D):
            found[f"{prefix}.{name}"] = module.weight.detach().t()
        elif name.endswith("experts"):
            for key in ("gate_up_proj", "down_proj"):
                for expert, matrix in enumerate(getattr(module, key).detach()):
                    found[f"{prefix}.{name}.{key}.{expert}"] = matrix
    return found


def inputs_of(network: nn.Module, prefix: str, block: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """(sequences, tokens, in) of each layer, or (1, tokens, in) of an expert: one whole forward a sequence."""
    seen: dict[str, list[Tensor]] = {}

    def plain(name: str) -> Any:
        return lambda _module, arguments: seen.setdefault(name, []).append(arguments[0].clone())

    def experts(name: str) -> Any:
        def hook(module: Any, arguments: tuple[Tensor, ...]) -> None:
            states, chosen = arguments[:2]
            for expert in range(len(module.down_proj)):
                rows = states[(chosen == expert).any(dim=1)]
                gate, up = (rows @ module.gate_up_proj[expert].t()).chunk(2, dim=-1)
                seen.setdefault(f"{name}.gate_up_proj.{expert}", []).append(rows)
                seen.setdefault(f"{name}.down_proj.{expert}", []).append(nn.functional.silu(gate) * up)

        return hook

    handles = []
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            handles.append(module.register_forward_pre_hook(plain(f"{prefix}.{name}")))
        elif name.endswith("experts"):
            handles.append(module.register_forward_pre_hook(experts(f"{prefix}.{name}")))
    with torch.no_grad():
        for sequence in ids:
            network(sequence[None])
    for handle in handles:
        handle.remove()
    return {
        name: torch.cat(rows)[None] if rows[0].dim() == 2 else torch.cat(rows) for name, rows in seen.items()
    }


def reference(model: TransformersModel, architecture: str, recipe: Recipe, *, propagate: bool) -> tuple[Weights, dict[str, Tensor]]:
    """Every compressed weight, and the inputs that it was calibrated on."""
    ids = torch.from_numpy(windows())
    dense, network = model.network, copy.deepcopy(model.network)
    compressed: Weights = {}
    calibrated_on: dict[str, Tensor] = {}
    for prefix, block in block_modules(network, architecture).items():
        source = network if propagate else dense
        source_block = source.get_submodule(prefix)
        inputs = inputs_of(source, prefix, source_block, ids)
        calibrated_on |= inputs
        for name, weight in weights_of(prefix, block).items():
            compressed[name] = compress_weight(weight, inputs[name] if recipe.needs_calibration else None, recipe)
            weight.copy_(compressed[name])
    return compressed, calibrated_on


def agreement(found: Weights, expected: Weights) -> float:
    """Share of equal entries. A choice between two scores that tie within float32 may fall either way."""
    assert found.keys() == expected.keys()
    equal = [torch.isclose(found[name], expected[name], rtol=1e-3, atol=1e-4).flatten() for name in expected]
    return float(torch.cat(equal).double().mean())


def compressed_weights(model: TransformersModel, architecture: str) -> Weights:
    blocks = block_modules(model.network, architecture)
    return {name: w for prefix, block in blocks.items() for name, w in weights_of(prefix, block).items()}


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("text", RECIPES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_walk_equals_the_obvious_procedure(architecture: str, text: str, *, propagate: bool):
    model, recipe = toy_model(architecture), parse_recipe(text)
    expected, _ = reference(model, architecture, recipe, propagate=propagate)
    found, report = compress(model, recipe, calibration=windows(), propagate=propagate)
    print("AGREE", architecture, text, propagate, agreement(compressed_weights(found, architecture), expected))
    other, _ = reference(model, architecture, recipe, propagate=not propagate)
    print("OTHER", architecture, text, propagate, agreement(other, expected))
