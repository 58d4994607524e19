"""The compressed-tensors export, opened by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage.compressed_tensors import check_exportable, save_compressed_tensors
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import as_calibration
from llmkick.compression.walk.compress import compress, kept_blocks
from llmkick.compression.walk.streaming import compress_streamed
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.meta_model import load_meta_model
from toy import save_toy, toy_model

pytest.importorskip("compressed_tensors", reason="the compressed-tensors package is not installed")

WINDOWS = np.random.default_rng(0).integers(0, 284, (4, 30))
RECIPES = (
    "rtn@4b", "rtn@8b-g8", "gptq@4b-g8", "gptq@4b-g8-sym", "gptq@3b", "gptq@2b-g16", "gptq@4b-g8-act",
    "wanda@0.5+gptq@4b", "sparsegpt@2:4+4b-g8",
)  # fmt: skip


def opened(folder: Path, *, packed: bool = False) -> Any:
    """By transformers alone; packed weights with zero points do not load otherwise in compressed-tensors 0.20."""
    how = {} if packed else {"quantization_config": CompressedTensorsConfig(dequantize=True)}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("text", RECIPES)
def test_transformers_reads_the_same_model(tmp_path: Path, architecture: str, text: str):
    save_toy(tmp_path / "model", architecture)
    model, recipe = load_model(str(tmp_path / "model"), dtype="float32"), parse_recipe(text)
    expected, _ = compress(model, text, calibration=WINDOWS, keep=tmp_path / "kept")
    finished = kept_blocks(model.info, model.device, recipe, as_calibration(WINDOWS), tmp_path / "kept", propagate=True)
    save_compressed_tensors(model, recipe, finished, tmp_path / "out")
    ids = torch.from_numpy(WINDOWS)
    with torch.no_grad():
        wanted = expected.network(ids).logits
        dense = model.network(ids).logits
        theirs = opened(tmp_path / "out")(ids).logits
        ours = load_model(str(tmp_path / "out"), dtype="float32").network(ids).logits
        if "sym" in text:  # left packed, as inference engines read it
            assert torch.allclose(opened(tmp_path / "out", packed=True)(ids).logits, wanted, atol=1e-4)
    assert torch.allclose(theirs, wanted, atol=1e-4)
    assert torch.allclose(ours, wanted, atol=1e-4)
    assert not torch.allclose(dense, wanted, atol=1e-2)
    assert not hasattr(model.network.config, "quantization_config")


def test_a_streamed_model_is_exported_too(tmp_path: Path):
    save_toy(tmp_path / "model")
    meta_model, recipe = load_meta_model(str(tmp_path / "model"), dtype="float32"), parse_recipe("gptq@4b-g8")
    finished = compress_streamed(meta_model, recipe, tmp_path / "kept", calibration=as_calibration(WINDOWS))
    save_compressed_tensors(meta_model, recipe, finished, tmp_path / "out")
    expected, _ = compress(load_model(str(tmp_path / "model"), dtype="float32"), recipe, calibration=WINDOWS)
    ids = torch.from_numpy(WINDOWS)
    with torch.no_grad():
        found = opened(tmp_path / "out")(ids).logits
        assert torch.allclose(found, expected.network(ids).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("architecture", "text", "message"),
    [
        ("llama", "wanda@0.5", "rounds nothing, and compressed-tensors stores integers; use --packed"),
        ("llama", "rtn@4b-g12", "has 16 inputs, which is not a multiple of 12"),
        ("gpt2", "rtn@4b", "is no plain linear layer"),
        ("mixtral", "rtn@4b", "is no plain linear layer"),
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_work(architecture: str, text: str, message: str):
    with pytest.raises(ConfigError, match=message):
        check_exportable(parse_recipe(text), decoder_blocks(toy_model(architecture).network))
