"""The compressed-tensors export, opened by transformers itself."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

from composites import COMPOSITES, open_whole, save_composite
from compressing import compressed
from llmkick.compression.kernels.layer import WeightResult
from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage import compress_to_disk
from llmkick.compression.storage.compressed_tensors import check_exportable, check_storable, save_compressed_tensors
from llmkick.compression.walk import recipe_output
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import as_calibration
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.compression_key import kept_blocks
from llmkick.compression.walk.streaming import compress_streamed
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.meta_model import load_meta_model
from speeds import others_slow
from toy import save_toy, toy_model

pytest.importorskip("compressed_tensors", reason="the compressed-tensors package is not installed")

WINDOWS = np.random.default_rng(0).integers(0, 284, (4, 30))
RECIPES = (
    "rtn@4b", "rtn@8b-g8", "gptq@4b-g8", "gptq@4b-g8-sym", "gptq@3b", "gptq@2b-g16", "gptq@4b-g8-act",
    "wanda@0.5+gptq@4b", "sparsegpt@2:4+4b-g8",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))


def opened(folder: Path, *, unpacked: bool = False) -> Any:
    """By transformers alone; nothing may be missing."""
    auto: Any = AutoModelForCausalLM
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if unpacked else {}
    network, loading = auto.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **how)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    return network


def ignored(folder: Path) -> set[str]:
    config = json.loads((folder / "config.json").read_text())
    return set(config["quantization_config"]["ignore"])


@pytest.mark.parametrize(
    ("architecture", "text"),
    others_slow(product(("llama", "qwen2"), RECIPES), [*product(["llama"], RECIPES), ("qwen2", "gptq@4b-g8-act")]),
)
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
        unpacked = opened(tmp_path / "out", unpacked=True)(ids).logits
    assert torch.allclose(unpacked, wanted, atol=1e-4)
    assert torch.allclose(theirs, wanted, atol=1e-4)
    assert torch.allclose(ours, wanted, atol=1e-4)
    assert not torch.allclose(dense, wanted, atol=1e-2)
    assert not hasattr(model.network.config, "quantization_config")


@pytest.mark.parametrize("text", ["gptq@4b-g8-sym", "rtn@4b-g8-sym", "gptq@4b-g8"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_transformers_reads_the_same_weights_in_half_precision(tmp_path: Path, dtype: str, text: str):
    """Its packed layers would cast the scales to the precision of the model."""
    save_toy(tmp_path / "model")
    model, recipe = load_model(str(tmp_path / "model"), dtype=dtype), parse_recipe(text)
    expected, _ = compress(model, text, calibration=WINDOWS, keep=tmp_path / "kept")
    finished = kept_blocks(model.info, model.device, recipe, as_calibration(WINDOWS), tmp_path / "kept", propagate=True)
    save_compressed_tensors(model, recipe, finished, tmp_path / "out")
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=getattr(torch, dtype))
    wanted = dict(expected.network.named_parameters())
    found = dict(theirs.named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


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


# What was not compressed is ignored


@pytest.mark.parametrize("text", ["rtn@4b", "rtn@4b-g8-sym"])
@pytest.mark.parametrize(
    ("architecture", "settings", "names"),
    [
        # Projections between the embeddings and the blocks.
        ("opt", {"word_embed_proj_dim": 8, "do_layer_norm_before": False},
         {"lm_head", "model.decoder.project_in", "model.decoder.project_out"}),
        ("gpt_neox", {}, {"lm_head"}),
        ("mpt", {}, {"lm_head"}),
    ],
)  # fmt: skip
def test_modules_that_were_not_compressed_are_ignored(
    tmp_path: Path, architecture: str, settings: dict[str, Any], names: set[str], text: str
):
    save_toy(tmp_path / "model", architecture, **settings)
    expected, report = compress(load_model(str(tmp_path / "model"), dtype="float32"), text)
    compressed(tmp_path / "model", tmp_path / "out", "compressed-tensors", text)
    ids = torch.from_numpy(WINDOWS)
    with torch.no_grad():
        wanted = expected.network(ids).logits
        assert torch.allclose(opened(tmp_path / "out")(ids).logits, wanted, atol=1e-4)
    assert names <= ignored(tmp_path / "out")
    assert not ignored(tmp_path / "out") & {layer.name for layer in report.layers}


@pytest.mark.parametrize(
    ("architecture", "text"),
    others_slow(product(COMPOSITES, ("rtn@4b", "rtn@4b-g8-sym")), [("gemma3", "rtn@4b"), ("qwen3_5", "rtn@4b-g8-sym")]),
)
def test_a_composite_model_opens_as_the_whole_and_as_its_language_model(tmp_path: Path, architecture: str, text: str):
    save_composite(tmp_path / "model", architecture)
    expected, report = compress(load_model(str(tmp_path / "model"), dtype="float32"), text)
    compressed(tmp_path / "model", tmp_path / "out", "compressed-tensors", text)
    dense, whole = open_whole(tmp_path / "model", architecture), open_whole(tmp_path / "out", architecture)
    ids = torch.from_numpy(WINDOWS)
    with torch.no_grad():
        wanted = expected.network(ids).logits
        auto: Any = AutoModelForCausalLM
        language = auto.from_pretrained(tmp_path / "out", dtype=torch.float32)
        assert torch.allclose(language(ids).logits, wanted, atol=1e-4)
        assert torch.allclose(whole(input_ids=ids).logits, wanted, atol=1e-4)
    seeing = [name for name in dense.state_dict() if "vis" in name]
    assert seeing
    assert all(torch.equal(whole.state_dict()[name], dense.state_dict()[name]) for name in seeing)
    linear = {name for name, module in dense.named_modules() if type(module).__name__ == "Linear"}
    assert {name for name in linear if "vis" in name} <= ignored(tmp_path / "out")
    assert len(linear - ignored(tmp_path / "out")) == len(report.layers)
    configs = [json.loads((tmp_path / place / "config.json").read_text()) for place in ("model", "out")]
    assert configs[0]["architectures"] == configs[1]["architectures"]


ROWS = (1, 2, 3, 4, 8, 12)  # of the projections of keys and values


@pytest.mark.parametrize(
    ("head_dim", "text"),
    others_slow(
        product(ROWS, ("rtn@4b-g8", "rtn@8b-g8", "rtn@4b", "rtn@3b-g8-sym")),
        [*product(ROWS, ["rtn@4b-g8"]), *product((3, 4), ("rtn@8b-g8", "rtn@4b", "rtn@3b-g8-sym"))],
    ),
)
def test_layers_of_few_rows_are_read_back(tmp_path: Path, head_dim: int, text: str):
    save_toy(tmp_path / "model", num_key_value_heads=1, num_attention_heads=8, head_dim=2 * head_dim)
    expected, _ = compress(load_model(str(tmp_path / "model"), dtype="float32"), text)
    report = compressed(tmp_path / "model", tmp_path / "out", "compressed-tensors", text)
    ids = torch.from_numpy(WINDOWS)
    with torch.no_grad():
        assert torch.allclose(opened(tmp_path / "out")(ids).logits, expected.network(ids).logits, atol=1e-4)
    plain = {line.rpartition(" ")[2] for line in report.warnings if line.startswith("stored as plain weights")}
    assert plain == {name for name in ignored(tmp_path / "out") if name != "lm_head"}


def test_a_layer_that_was_left_dense_stays_dense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As an expert that no calibration token reached: it has no codes."""
    save_toy(tmp_path / "model")
    layer, solve = "model.layers.1.mlp.up_proj", recipe_output.compress_with_statistics

    def without_codes(weight: Any, statistics: Any, recipe: Any, *, name: str, **options: Any) -> Any:
        options["name"] = name
        return WeightResult(weight.detach()) if name == layer else solve(weight, statistics, recipe, **options)

    monkeypatch.setattr(recipe_output, "compress_with_statistics", without_codes)
    compressed(tmp_path / "model", tmp_path / "out", "compressed-tensors", "rtn@4b")
    assert ignored(tmp_path / "out") == {"lm_head", layer}
    dense = load_model(str(tmp_path / "model"), dtype="float32").network
    assert torch.equal(
        opened(tmp_path / "out").get_parameter(f"{layer}.weight"), dense.get_parameter(f"{layer}.weight")
    )


# Refusals before the work


@pytest.mark.parametrize(
    ("architecture", "text", "message"),
    [
        ("llama", "wanda@0.5", "rounds nothing"),
        ("llama", "gptq@4b-g12", "not a multiple of 12"),
        ("gpt2", "gptq@4b", "is no plain linear layer"),
        ("mixtral", "gptq@4b", "is no plain linear layer"),
        ("gpt_oss", "gptq@4b", "is no plain linear layer"),
    ],
)
def test_a_refusal_comes_before_the_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, text: str, message: str
):
    def calibrate(*_: Any, **__: Any) -> None:
        raise AssertionError("it was calibrated")

    monkeypatch.setattr(compress_to_disk, "calibrate", calibrate)
    save_toy(tmp_path / "model", architecture)
    with pytest.raises(ConfigError, match=message):
        compressed(tmp_path / "model", tmp_path / "out", "compressed-tensors", text)
    assert not (tmp_path / "out").exists()


def test_a_weight_that_two_blocks_share_is_refused():
    first, second, _ = decoder_blocks(toy_model().network)
    shared = replace(first, layers=(replace(first.layers[0], twins=(second.layers[0],)),))
    with pytest.raises(ConfigError, match=r"layers\.0\.self_attn\.q_proj shares its weight with model\.layers\.1\."):
        check_exportable(parse_recipe("rtn@4b"), [shared])


def test_modules_that_transformers_replaces_when_it_reads_the_format_are_refused():
    with pytest.raises(ConfigError, match=r"layers\.0\.feed_forward\.experts: transformers puts other layers in"):
        check_storable(toy_model("llama4"), [])


@pytest.mark.parametrize("architecture", COMPOSITES)
def test_such_a_folder_can_be_compressed_into_a_plain_one(tmp_path: Path, architecture: str):
    save_composite(tmp_path / "model", architecture)
    compressed(tmp_path / "model", tmp_path / "rounded", "compressed-tensors", "rtn@4b")
    expected, _ = compress(load_model(str(tmp_path / "rounded"), dtype="float32"), "magnitude@0.5")
    compressed(tmp_path / "rounded", tmp_path / "out")
    ids = torch.from_numpy(WINDOWS)
    with torch.no_grad():
        wanted = expected.network(ids).logits
        assert torch.equal(open_whole(tmp_path / "out", architecture)(input_ids=ids).logits, wanted)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
