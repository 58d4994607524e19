"""Quantized folders that are read as plain weights, against dequantization written out entry by entry."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmkick.compression.storage.compress_to_disk import compress_checkpoint
from llmkick.errors import ModelError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.meta_model import load_meta_model
from llmkick.models.checkpoints.plain_tensors import open_tensors
from llmkick.models.checkpoints.references import locate
from speeds import others_slow
from toy import save_toy, toy_tokenizer

FP8 = torch.float8_e4m3fn
FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [8, 8], "fmt": "e4m3"}


class Silent:
    def stage(self, title: str, total: int) -> None:
        pass

    def advance(self, done: int) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load(folder: Path, dtype: str = "float32") -> Any:
    return load_model(str(folder), dtype=dtype, device="cpu")


def blockwise(stored: Tensor, scale: Tensor, rows: int, columns: int) -> Tensor:
    """Values times the scale of their block, entry by entry."""
    result = torch.empty(stored.shape)
    for row in range(stored.shape[0]):
        for column in range(stored.shape[1]):
            result[row, column] = stored[row, column].float() * scale[row // rows, column // columns].float()
    return result


Parts = tuple[dict[str, Tensor], Tensor]


def in_blocks(name: str, weight: Tensor, rows: int = 8, columns: int = 8, suffix: str = "_scale_inv") -> Parts:
    """A weight in FP8 with a scale for each block, also where the last block of an axis is smaller; its true values."""
    grid = (-(-weight.shape[0] // rows), -(-weight.shape[1] // columns))
    scale = torch.rand(grid, generator=torch.Generator().manual_seed(len(name))) / 100 + 1e-3
    spread = torch.kron(scale, torch.ones(rows, columns))[: weight.shape[0], : weight.shape[1]]
    stored = (weight / spread).clamp(-448, 448).to(FP8)
    return {name: stored, f"{name}{suffix}": scale}, blockwise(stored, scale, rows, columns)


def by_tensor(name: str, weight: Tensor, suffix: str = "_scale") -> Parts:
    scale = weight.abs().max() / 448
    stored = (weight / scale).to(FP8)
    layer = name.removesuffix(".weight")
    parts = {name: stored, f"{name}{suffix}": scale.reshape(1), f"{layer}.input_scale": torch.ones(1)}
    return parts, stored.float() * scale


def by_row(name: str, weight: Tensor, *, flat: bool = False) -> Parts:
    scale = weight.abs().amax(1, keepdim=True) / 448
    stored = (weight / scale).to(FP8)
    values = torch.stack([row.float() * factor for row, factor in zip(stored, scale, strict=True)])
    return {name: stored, f"{name}_scale": scale.flatten() if flat else scale}, values


def by_exponent(name: str, weight: Tensor) -> Parts:
    """MXFP8: 1 × 8 blocks, whose scale is a power of two, stored as its exponent plus 127."""
    blocks = weight.view(weight.shape[0], -1, 8)
    exponent = torch.floor(torch.log2(blocks.abs().amax(-1))) - 8
    stored = (blocks / 2 ** exponent[..., None]).clamp(-448, 448).to(FP8).view(weight.shape)
    return (
        {name: stored, f"{name}_scale_inv": (exponent + 127).to(torch.uint8)},
        blockwise(stored, 2**exponent, 1, 8),
    )


def quantize(
    folder: Path, stated: Mapping[str, Any], change: Callable[[str, Tensor], Parts], **toy: Any
) -> dict[str, Tensor]:
    """A toy whose linear layers are stored quantized; returns their true values by name."""
    save_toy(folder, **toy)
    tensors, truth = {}, {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        parts = {name: tensor}
        if "proj.weight" in name or "experts." in name:
            parts, truth[name] = change(name, tensor)
        tensors |= parts
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": stated}))
    return truth


def store(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


FORMS: dict[str, tuple[dict[str, Any], Callable[[str, Tensor], Parts], dict[str, Any]]] = {
    "blocks": (BLOCKS, in_blocks, {}),
    "blocks, the last ones smaller": (BLOCKS, in_blocks, {"hidden_size": 20, "intermediate_size": 28}),
    "blocks, the scales named scale": (BLOCKS, lambda n, w: in_blocks(n, w, suffix="_scale"), {}),
    "blocks that the configuration does not state": (
        {**BLOCKS, "weight_block_size": [128, 128]}, lambda n, w: in_blocks(n, w, 4, 8), {},
    ),
    "one scale": ({**BLOCKS, "activation_scheme": "static", "weight_block_size": None}, by_tensor, {}),
    "one scale, inv": (
        {**BLOCKS, "activation_scheme": "static"}, lambda n, w: by_tensor(n, w, "_scale_inv"), {},
    ),
    "a scale a row": ({**BLOCKS, "weight_block_size": None}, by_row, {}),
    "fbgemm": ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, by_row, {}),
    "fbgemm, flat scales": ({"quant_method": "fbgemm_fp8"}, lambda n, w: by_row(n, w, flat=True), {}),
    "mxfp8": ({"quant_method": "mxfp8", "weight_block_size": [1, 8], "scale_fmt": "ue8m0"}, by_exponent, {}),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_eight_bit_floats_times_their_scales(tmp_path: Path, form: str):
    stated, change, toy = FORMS[form]
    truth = quantize(tmp_path / "toy", stated, change, **toy)
    model, meta = load(tmp_path / "toy"), load_meta_model(str(tmp_path / "toy"), dtype="float32", device="cpu")
    state = model.network.state_dict()
    for name, values in truth.items():
        assert torch.equal(state[name], values), name
        assert torch.equal(meta.files.read(name), values), name
        assert meta.files.shape(name) == tuple(values.shape)
    half = load(tmp_path / "toy", "bfloat16").network.state_dict()
    assert all(torch.equal(half[name], values.bfloat16()) for name, values in truth.items())
    assert model.info == meta.info
    assert (model.info.source_precision, meta.obstacle) == (stated["quant_method"], None)
    assert not hasattr(model.network.config, "quantization_config")


# Each form with one recipe, and one form with both.
WRITTEN = list(product(("blocks", "blocks, the last ones smaller", "one scale", "mxfp8"), ("magnitude@0.1", "rtn@8b")))


@pytest.mark.parametrize(
    ("form", "recipe"), others_slow(WRITTEN, [one for one in WRITTEN if "blocks" in one or "magnitude@0.1" in one])
)
def test_what_is_loaded_is_what_is_written(tmp_path: Path, form: str, recipe: str):
    stated, change, toy = FORMS[form]
    truth = quantize(tmp_path / "toy", stated, change, **toy)
    load(tmp_path / "toy").network.save_pretrained(tmp_path / "saved")
    toy_tokenizer().save_pretrained(tmp_path / "saved")
    compress_checkpoint(
        str(tmp_path / "toy"), recipe, tmp_path / "out", dtype="float32", device="cpu", observer=Silent()
    )
    saved, out = (load(tmp_path / place).network.state_dict() for place in ("saved", "out"))
    for name, values in truth.items():
        assert torch.equal(saved[name], values), name
        assert (out[name] - values).abs().max() < 0.1 * values.abs().max(), name
    for place in ("saved", "out"):
        assert "quantization_config" not in json.loads((tmp_path / place / "config.json").read_text())
        assert not any("scale" in name for name in open_tensors(tmp_path / place).names)


def test_experts_that_are_stored_one_by_one(tmp_path: Path):
    truth = quantize(tmp_path / "toy", BLOCKS, in_blocks, architecture="mixtral")
    state = load(tmp_path / "toy").network.state_dict()
    up = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    assert up in truth
    assert torch.equal(state["model.layers.1.mlp.experts.gate_up_proj"][2, 32:], truth[up])
    load(tmp_path / "toy").network.save_pretrained(tmp_path / "saved")
    assert torch.equal(load_file(tmp_path / "saved" / "model.safetensors")[up], truth[up])


def test_fused_experts_of_fbgemm_have_a_scale_for_each_output(tmp_path: Path):
    truth = quantize(tmp_path / "toy", {"quant_method": "fbgemm_fp8"}, by_row)
    generator = torch.Generator().manual_seed(0)
    stored = {name: torch.randn(3, 4, 5, generator=generator).to(FP8) for name in ("e.gate_up_proj", "e.down_proj")}
    scales = {"e.gate_up_proj_scale": torch.rand(3, 1, 5, generator=generator),
              "e.down_proj_scale": torch.rand(3, 5, 1, generator=generator)}  # fmt: skip
    store(tmp_path / "toy", lambda tensors: tensors.update(stored | scales))
    files = open_tensors(tmp_path / "toy")
    assert truth.keys() | stored.keys() <= files.names
    for name, values in stored.items():
        for output in range(5):
            scale = scales[f"{name}_scale"].flatten(1)[:, output]
            assert torch.equal(files.read(name)[:, :, output], values[:, :, output].float() * scale[:, None])


def test_pairs_of_four_bit_floats_for_experts(tmp_path: Path):
    quantize(tmp_path / "toy", {**BLOCKS, "expert_dtype": "fp4"}, in_blocks)
    codes = torch.randint(-128, 128, (6, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    exponents = torch.randint(120, 130, (6, 2), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    store(tmp_path / "toy", lambda t: t.update({"e.weight": codes, "e.scale": exponents}))
    values = open_tensors(tmp_path / "toy").read("e.weight")
    for row in range(6):
        for column in range(16):
            byte = int(codes[row, column // 2]) & 255
            code = byte >> 4 if column % 2 else byte & 15
            assert values[row, column] == FP4[code] * 2.0 ** (int(exponents[row, column // 8]) - 127)


def test_four_bit_floats_of_gpt_oss(tmp_path: Path):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    def pack(name: str, weight: Tensor) -> Parts:
        if name.endswith("bias") or "experts" not in name:
            return {name: weight}, weight
        experts, inner, outer = weight.shape
        generator = torch.Generator().manual_seed(len(name))
        blocks = torch.randint(0, 256, (experts, outer, inner // 32, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(115, 123, (experts, outer, inner // 32), generator=generator, dtype=torch.uint8)
        values = torch.empty(weight.shape)
        for expert in range(experts):
            for row in range(outer):
                for column in range(inner):
                    byte = int(blocks[expert, row, column // 32, column % 32 // 2])
                    code = byte >> 4 if column % 2 else byte & 15
                    exponent = int(scales[expert, row, column // 32]) - 127
                    values[expert, column, row] = FP4[code] * 2.0**exponent
        assert torch.equal(convert_moe_packed_tensors(blocks, scales, dtype=torch.float32), values)
        return {f"{name}_blocks": blocks, f"{name}_scales": scales}, values

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "layer_types": ["full_attention"]}
    truth = quantize(tmp_path / "toy", {"quant_method": "mxfp4"}, pack, architecture="gpt_oss", **sizes)
    model = load(tmp_path / "toy")
    state = model.network.state_dict()
    assert "model.layers.0.mlp.experts.gate_up_proj" in truth
    assert all(torch.equal(state[name], values) for name, values in truth.items())
    model.network.save_pretrained(tmp_path / "saved")
    toy_tokenizer().save_pretrained(tmp_path / "saved")
    assert all(torch.equal(load(tmp_path / "saved").network.state_dict()[name], v) for name, v in truth.items())
    store(tmp_path / "toy", lambda t: t.pop("model.layers.0.mlp.experts.down_proj_scales"))
    with pytest.raises(ModelError, match=r"down_proj_blocks has no model\.layers\.0\.mlp\.experts\.down_proj_scales"):
        load(tmp_path / "toy")


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integers_with_scales_and_biases(tmp_path: Path, bits: int):
    generator = torch.Generator().manual_seed(bits)

    def pack(name: str, weight: Tensor) -> Parts:
        rows, columns = weight.shape
        codes = torch.randint(0, 1 << bits, (rows, columns), generator=generator)
        scales, biases = torch.rand(2, rows, columns // 16, generator=generator)
        words = torch.zeros(rows, columns * bits // 32, dtype=torch.int64)
        values = torch.empty(rows, columns)
        for column in range(columns):
            words[:, column * bits // 32] |= codes[:, column] << (column % (32 // bits) * bits)
            values[:, column] = codes[:, column].float() * scales[:, column // 16] + biases[:, column // 16]
        stem = name.removesuffix("weight")
        stored = torch.tensor(words.numpy().astype("uint32"))
        return {name: stored, f"{stem}scales": scales, f"{stem}qbiases": biases}, values

    stated = {"quant_method": "metal", "bits": bits, "group_size": 16}
    truth = quantize(tmp_path / "toy", stated, pack)
    state = load(tmp_path / "toy").network.state_dict()
    assert all(torch.equal(state[name], values) for name, values in truth.items())


def test_a_quantization_that_is_stated_for_the_text_model(tmp_path: Path):
    truth = quantize(tmp_path / "toy", BLOCKS, in_blocks)
    config = json.loads((tmp_path / "toy" / "config.json").read_text())
    config["text_config"] = {"quantization_config": config.pop("quantization_config")}
    (tmp_path / "toy" / "config.json").write_text(json.dumps(config))
    files = open_tensors(tmp_path / "toy")
    assert all(torch.equal(files.read(name), values) for name, values in truth.items())


# What cannot be told


def test_eight_bit_floats_without_their_scale(tmp_path: Path):
    quantize(tmp_path / "toy", BLOCKS, in_blocks)
    name = "model.layers.1.mlp.up_proj.weight"
    store(tmp_path / "toy", lambda tensors: tensors.pop(f"{name}_scale_inv"))
    for read in (load, lambda folder: load_meta_model(str(folder))):
        with pytest.raises(ModelError, match=rf"{name} is stored as F8_E4M3 without a scale \({name}_scale_inv\)"):
            read(tmp_path / "toy")


@pytest.mark.parametrize("shape", [(3, 2), (5,), (4, 2, 1)])
def test_scales_that_fit_no_blocks(tmp_path: Path, shape: tuple[int, ...]):
    quantize(tmp_path / "toy", BLOCKS, in_blocks)
    name = "model.layers.1.mlp.up_proj.weight"
    store(tmp_path / "toy", lambda tensors: tensors.update({f"{name}_scale_inv": torch.ones(shape)}))
    with pytest.raises(ModelError, match=rf"{name}_scale_inv has shape .*which fits no blocks of {name} \(32, 16\)"):
        load(tmp_path / "toy")


def test_scales_of_weights_that_are_not_quantized(tmp_path: Path):
    quantize(tmp_path / "toy", BLOCKS, in_blocks)
    store(tmp_path / "toy", lambda tensors: tensors.update({"lm_head.weight_scale_inv": torch.ones(36, 2)}))
    with pytest.raises(ModelError, match=r"holds lm_head\.weight_scale_inv, which belongs to quantized weights"):
        load(tmp_path / "toy")


@pytest.mark.parametrize("method", ["modelopt", "exl3", "unheard_of"])
def test_a_method_that_transformers_does_not_know(tmp_path: Path, method: str):
    quantize(tmp_path / "toy", {"quant_method": method, "quant_algo": "FP8"}, by_tensor)
    with pytest.raises(
        ModelError, match=rf"config\.json states the quantization '{method}', which transformers does n"
    ):
        locate(str(tmp_path / "toy"))


@pytest.mark.parametrize(
    ("file", "tool"),
    [
        ("hf_quant_config.json", "NVIDIA ModelOpt"),
        ("quantize_config.json", "AutoGPTQ"),
        ("quant_config.json", "AutoAWQ"),
    ],
)
def test_a_quantization_that_stands_elsewhere(tmp_path: Path, file: str, tool: str):
    quantize(tmp_path / "toy", {}, by_tensor)
    (tmp_path / "toy" / file).write_text('{"producer": {"name": "x"}, "quantization": {"quant_algo": "FP8"}}')
    with pytest.raises(ModelError, match=rf"F8_E4M3.*no quantization_config .*{file} \({tool}\) describes it"):
        locate(str(tmp_path / "toy"))


def test_codes_of_mlx(tmp_path: Path):
    save_toy(tmp_path / "toy")
    store(tmp_path / "toy", lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(32, 4).int()}))
    config = json.loads((tmp_path / "toy" / "config.json").read_text())
    (tmp_path / "toy" / "config.json").write_text(json.dumps({**config, "quantization": {"bits": 4, "group_size": 64}}))
    with pytest.raises(ModelError, match=r"are quantized, but 'quantization' in config\.json \(MLX\) describes it"):
        locate(str(tmp_path / "toy"))


def test_a_note_of_a_tool_beside_plain_weights_is_no_quantization(tmp_path: Path):
    saved = save_toy(tmp_path / "toy")
    (tmp_path / "toy" / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": null}}')
    state = load(tmp_path / "toy").network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.network.state_dict().items())


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes_4bit", "torchao", "hqq", "quanto"])
def test_packed_integers_are_not_compressed(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch):
    from llmkick.models.checkpoints import quantized

    save_toy(tmp_path / "toy")
    config = json.loads((tmp_path / "toy" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4}
    (tmp_path / "toy" / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(quantized, "_is_installed", lambda module: True)
    with pytest.raises(ModelError, match=rf"toy cannot be compressed: its weights, quantized by {method}, stay packed"):
        compress_checkpoint(str(tmp_path / "toy"), "rtn@8b", tmp_path / "out", observer=Silent())


# compressed-tensors

GROUPS = {
    "group_0": {
        "targets": [r"re:.*self_attn\..*_proj"], "format": "pack-quantized",
        "weights": {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 8},
    },
    "group_1": {
        "targets": ["Linear"], "format": "int-quantized",
        "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
    },
}  # fmt: skip
MIXED = {
    "quant_method": "compressed-tensors", "format": "mixed-precision", "quantization_status": "compressed",
    "config_groups": GROUPS, "ignore": ["lm_head"],
}  # fmt: skip


def in_integers(name: str, weight: Tensor) -> Parts:
    """Attention in four bits, eight codes a word, with a scale for 8 inputs; the rest in eight bits, one a row."""
    rows, columns = weight.shape
    layer = name.removesuffix(".weight")
    generator = torch.Generator().manual_seed(len(name))
    if "self_attn" not in name:
        scale = torch.rand(rows, 1, generator=generator)
        codes = torch.randint(-128, 128, (rows, columns), generator=generator)
        return {name: codes.to(torch.int8), f"{layer}.weight_scale": scale}, blockwise(codes, scale, 1, columns)
    scale = torch.rand(rows, columns // 8, generator=generator)
    codes = torch.randint(-8, 8, (rows, columns), generator=generator)
    words = torch.zeros(rows, columns // 8, dtype=torch.int64)
    for column in range(columns):
        words[:, column // 8] |= (codes[:, column] + 8) << (column % 8 * 4)
    packed = torch.tensor(words.numpy().astype("uint32").astype("int32"))
    parts = {f"{layer}.weight_packed": packed, f"{layer}.weight_scale": scale}
    return parts | {f"{layer}.weight_shape": torch.tensor([rows, columns])}, blockwise(codes, scale, 1, 8)


def test_every_layer_of_compressed_tensors_has_its_own_scheme(tmp_path: Path):
    pytest.importorskip("compressed_tensors")
    truth = quantize(tmp_path / "toy", MIXED, in_integers)
    model, meta = load(tmp_path / "toy"), load_meta_model(str(tmp_path / "toy"), dtype="float32", device="cpu")
    state = model.network.state_dict()
    for name, values in truth.items():
        torch.testing.assert_close(state[name], values, rtol=1e-6, atol=0)
        assert torch.equal(meta.files.read(name).float(), state[name])
        assert meta.files.shape(name) == tuple(values.shape)
    assert (meta.obstacle, meta.info) == (None, model.info)
    model.network.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(saved[name], state[name]) for name in truth)


def test_columns_in_the_order_of_their_activations(tmp_path: Path):
    pytest.importorskip("compressed_tensors")
    truth = quantize(tmp_path / "toy", MIXED, in_integers)
    name = "model.layers.1.self_attn.q_proj.weight_g_idx"
    store(tmp_path / "toy", lambda tensors: tensors.update({name: torch.arange(16) // 8}))
    assert torch.allclose(
        load(tmp_path / "toy").network.model.layers[1].self_attn.q_proj.weight, truth[name.removesuffix("_g_idx")]
    )
    store(tmp_path / "toy", lambda tensors: tensors.update({name: (torch.arange(16) // 8).flip(0)}))
    with pytest.raises(ModelError, match=rf"columns in the order of their activations \({name}\), which the installed"):
        load(tmp_path / "toy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "with the sparse format sparse-24-bitmask"),
        ({"transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}}, "with rotations of activations"),
        ({"config_groups": {}}, "with a quantization_config without config_groups"),
        ({"config_groups": {"a": {**GROUPS["group_0"], "format": "marlin-24"}, "b": GROUPS["group_1"]}}, "marlin-24"),
        ({"config_groups": {"a": GROUPS["group_0"]}}, "has 0 groups for model.layers.0.mlp"),
        (
            {"config_groups": {**GROUPS, "c": {**GROUPS["group_1"], "weights": GROUPS["group_0"]["weights"]}}},
            "has 2 groups for model.layers.0.mlp",
        ),
    ],
)
def test_what_the_package_does_not_read(tmp_path: Path, change: dict[str, Any], message: str):
    pytest.importorskip("compressed_tensors")
    quantize(tmp_path / "toy", {**MIXED, **change}, in_integers)
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "toy")
