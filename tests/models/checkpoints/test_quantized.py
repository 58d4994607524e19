"""Folders that other tools quantized: what is missing is named before anything is loaded; what is there loads."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.bitnet import BitLinear, pack_weights

from llmkick.compression.walk.compress import compress
from llmkick.errors import ModelError
from llmkick.models.checkpoints import quantized
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.quantized import (
    READERS,
    has_packed_integers,
    method_of,
    precision_of,
    refuse_packed_integers,
)
from llmkick.models.checkpoints.references import locate
from llmkick.models.checkpoints.sparsity import zeros_of
from llmkick.models.language_model import ScoreRequest
from toy import save_toy, save_toy_gguf


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def stating(folder: Path, stated: Any) -> Path:
    """A toy whose configuration states a quantization."""
    save_toy(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": stated}))
    return folder


@pytest.mark.parametrize("method", READERS)
def test_a_missing_package_is_named_with_how_to_get_it(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantized, "_is_installed", lambda module: False)
    folder = stating(tmp_path / "q", {"quant_method": method, "bits": 4})
    with pytest.raises(ModelError) as caught:
        locate(str(folder))
    message = str(caught.value)
    assert f"the weights of q are quantized by {method}, which needs {READERS[method].modules[0]}" in message
    assert READERS[method].install in message
    assert "pip install" in message


def test_only_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(quantized, "_is_installed", lambda module: module == "gptqmodel")
    folder = stating(tmp_path / "q", {"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="needs optimum to be read"):
        locate(str(folder))
    monkeypatch.setattr(quantized, "_is_installed", lambda module: True)
    found = locate(str(folder))
    assert (found.quantization, found.source_precision) == ("gptq", "gptq 4b")


def test_a_submodule_of_a_missing_package_is_missing():
    assert not quantized._is_installed("no_such_package.part")
    assert quantized._is_installed("torch.nn")


@pytest.mark.parametrize(
    ("stated", "method", "precision"),
    [
        ({}, "", "float"),
        ({"quant_method": "gptq", "bits": 3}, "gptq", "gptq 3b"),
        ({"quant_method": "awq", "w_bit": 4}, "awq", "awq 4b"),
        ({"load_in_8bit": True}, "bitsandbytes", "bitsandbytes 8b"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", "bitsandbytes 4b"),
        ({"quant_method": "torchao"}, "torchao", "torchao"),
        ({"bits": 4}, "unknown", "unknown 4b"),
    ],
)
def test_method_and_precision_as_stated(stated: dict[str, Any], method: str, precision: str):
    assert (method_of(stated), precision_of(stated)) == (method, precision)


def test_plain_and_pruned_folders_are_float_and_as_large_as_their_files(tmp_path: Path):
    save_toy(tmp_path / "toy")
    found = locate(str(tmp_path / "toy"))
    assert (found.quantization, found.source_precision) == ("", "float")
    assert found.stored_bytes == (tmp_path / "toy" / "model.safetensors").stat().st_size


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_bitsandbytes_folder_is_asked_like_any_other(bits: int, tmp_path: Path):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    check_quantized(
        tmp_path,
        AutoModelForCausalLM,
        BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8),
        f"bitsandbytes {bits}b",
    )


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
def test_a_torchao_folder_is_asked_like_any_other(tmp_path: Path):
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    check_quantized(tmp_path, AutoModelForCausalLM, TorchAoConfig(Int8WeightOnlyConfig()), "torchao")


def save_bitnet(folder: Path) -> Any:
    """A toy in the packed integers of BitNet, which needs no other package; returns the dense one."""
    dense = save_toy(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "proj.weight" in name]:
        scale = 1 / tensors[name].abs().mean()
        tensors[name] = pack_weights((tensors[name] * scale).round().clamp(-1, 1))
        tensors[f"{name}_scale"] = scale.reshape(1)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitnet", "linear_class": "bitlinear"}
    (folder / "config.json").write_text(json.dumps(config))
    return dense


def test_packed_integers_stay_packed(tmp_path: Path):
    dense = save_bitnet(tmp_path / "q")
    found = load_model(str(tmp_path / "q"), dtype="float32", device="cpu")
    assert isinstance(found.network.model.layers[0].mlp.up_proj, BitLinear)
    assert found.network.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert (found.info.parameters, found.info.source_precision) == (dense.info.parameters, "bitnet")
    assert has_packed_integers(locate(str(tmp_path / "q")))
    with pytest.raises(
        ModelError, match=r"q cannot be compressed: its weights, quantized by bitnet, stay packed integ"
    ):
        refuse_packed_integers(locate(str(tmp_path / "q")))
    with pytest.raises(ModelError, match="q cannot be compressed"):
        compress(found, "magnitude@0.5")


def test_a_tensor_that_packed_integers_have_no_place_for(tmp_path: Path):
    save_bitnet(tmp_path / "q")
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.qzeros"
    save_file({**tensors, name: torch.ones(4)}, tmp_path / "q" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=rf"holds {name}, which belongs to quantized weights"):
        load_model(str(tmp_path / "q"), dtype="float32", device="cpu")


def check_quantized(folder: Path, kind: Any, config: Any, precision: str) -> None:
    dense = save_toy(folder / "dense", hidden_size=64, intermediate_size=64, head_dim=16)
    network = kind.from_pretrained(folder / "dense", quantization_config=config, dtype=torch.float32)
    network.save_pretrained(folder / "quantized")
    dense.tokenizer.save_pretrained(folder / "quantized")
    found = load_model(str(folder / "quantized"), dtype="float32", device="cpu")
    assert found.info.source_precision == precision
    assert found.info.parameters == dense.info.parameters  # what the architecture has, not what is packed
    assert zeros_of(found.network) is None
    request = ScoreRequest("the", " and the")
    expected, score = dense.logprobs([request])[0], found.logprobs([request])[0]
    assert score.logprob != expected.logprob  # type: ignore[union-attr]
    assert score.logprob == pytest.approx(expected.logprob, abs=1.5)  # type: ignore[union-attr]


# GGUF


@pytest.mark.parametrize("precision", ["F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"])
def test_gguf_files_of_any_quantization_are_as_large_as_the_file(precision: str, tmp_path: Path):
    save_toy_gguf(tmp_path / "toy.gguf", precision=precision)
    found = locate(str(tmp_path / "toy.gguf"))
    assert found.source_precision == ("float" if precision in ("F16", "BF16") else precision)
    assert found.stored_bytes == (tmp_path / "toy.gguf").stat().st_size
    assert locate(str(tmp_path / "toy.gguf")).stored_bytes == found.stored_bytes  # from the cache


def test_a_gguf_of_an_unknown_architecture_says_which_and_what_to_do(tmp_path: Path):
    writer = gguf.GGUFWriter(str(tmp_path / "new.gguf"), "rwkv9")
    writer.add_name("new")
    writer.add_block_count(1)
    writer.add_tensor("blk.0.attn_q.weight", torch.ones(32, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ModelError) as caught:
        locate(str(tmp_path / "new.gguf"))
    message = str(caught.value)
    assert "new.gguf is a GGUF file of architecture 'rwkv9', which transformers cannot read (it reads " in message
    assert "llama" in message
    assert "openai:URL#NAME" in message
    assert not list((tmp_path / "cache" / "converted").glob("*-v*"))
