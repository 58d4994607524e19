"""One model of every kind, from its folder to a compressed folder that transformers reads, against an oracle.

The table says for each kind which matrices are linear layers and along which axis their inputs lie; every other tensor
has to stay as it was, bit for bit. `benchmarks/architectures.py` tries all families of transformers.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CompressedTensorsConfig, GenerationConfig

import llmkick
from llmkick.compression.storage.compress_to_disk import CalibrationPlan, Form, compress_checkpoint
from llmkick.compression.walk.report import CompressionReport
from llmkick.errors import KickError
from speeds import others_slow
from tiny import save_tiny

ATTENTION = r"self_attn\.[qkvo]_proj\.weight"
GATED = r"mlp\.(gate|up|down)_proj\.weight"
LATENT = r"self_attn\.(q_a_proj|q_b_proj|kv_a_proj_with_mqa|kv_b_proj|o_proj)\.weight"
PLAN = {"sequences": 6, "length": 48}


@dataclass(frozen=True)
class Kind:
    """A family; patterns of the block's matrices whose inputs lie along the last axis, or along the one before it."""

    family: str
    rows: str
    columns: str = "nothing"
    routers: int = 0
    compressed_tensors: bool = True
    blocks: str = r"(layers|h)\.\d\."

    def axis(self, name: str) -> int | None:
        """The axis of a tensor's inputs; None for what is no linear layer of a block."""
        if re.search(rf"{self.blocks}(.*\.)?({self.rows})", name):
            return -1
        return -2 if re.search(rf"{self.blocks}(.*\.)?({self.columns})", name) else None


KINDS = {
    "dense": Kind("llama", f"{ATTENTION}|{GATED}"),
    "fused qkv": Kind("phi3", r"self_attn\.(qkv|o)_proj\.weight|mlp\.(gate_up|down)_proj\.weight"),
    "Conv1D": Kind(
        "gpt2", "nothing", r"attn\.c_(attn|proj)\.weight|mlp\.c_(fc|proj)\.weight", compressed_tensors=False
    ),
    "experts, listed on disk": Kind(
        "mixtral", rf"{ATTENTION}|mlp\.experts\.(gate_up|down)_proj", routers=4, compressed_tensors=False
    ),
    "experts, fused on disk": Kind(
        "granitemoe", rf"{ATTENTION}|experts\.(gate_up|down)_proj", routers=4, compressed_tensors=False
    ),
    "experts, transposed": Kind(
        "gpt_oss", ATTENTION, r"mlp\.experts\.(gate_up|down)_proj$", routers=4, compressed_tensors=False
    ),
    "shared expert": Kind(
        "qwen2_moe",
        rf"{ATTENTION}|mlp\.experts\.(gate_up|down)_proj|shared_expert\.(gate|up|down)_proj\.weight",
        routers=8,  # with the gates of the shared expert
        compressed_tensors=False,
    ),
    "latent attention": Kind(
        "deepseek_v3",
        rf"{LATENT}|{GATED}|mlp\.experts\.(gate_up|down)_proj|shared_experts\.(gate|up|down)_proj\.weight",
        routers=3,  # the first block is dense
        compressed_tensors=False,
    ),
    "sliding window": Kind("gemma2", f"{ATTENTION}|{GATED}"),
    "keys of other blocks": Kind("gemma4_text", rf"{ATTENTION}|{GATED}|per_layer_projection\.weight", routers=4),
    "recurrent": Kind("bamba", rf"{ATTENTION}|mamba\.(in|out)_proj\.weight|feed_forward\.(gate|up|down)_proj\.weight"),
    # with a vision tower of as many layers, which have names of the same kind
    "multimodal": Kind("gemma3", f"{ATTENTION}|{GATED}", blocks=r"language_model\.layers\.\d\."),
}


class Silent:
    """Hears the stages of a compression and says nothing."""

    def stage(self, title: str, total: int) -> None: ...

    def advance(self, done: int) -> None: ...


def compress(dense: Path, recipe: str, out: Path, form: Form = "folder") -> CompressionReport:
    plan = CalibrationPlan(source=str(text_beside(dense)), **PLAN)
    return compress_checkpoint(
        str(dense), recipe, out, form=form, calibration=plan, dtype="float32", device="cpu", observer=Silent()
    )


def text_beside(dense: Path) -> Path:
    """Random letters: all experts see some of them."""
    text = dense.parent / "text.txt"
    letters = [chr(code) for code in (*range(32, 127), *range(0xC0, 0x180))]
    text.write_text("".join(random.Random(0).choices(letters, k=4000)), encoding="utf-8")
    return text


def plain(folder: Path, **options: Any) -> Any:
    """The model of a folder by transformers alone, of the class that its configuration names."""
    config = transformers.AutoConfig.from_pretrained(folder)
    (name,) = config.architectures
    network, info = getattr(transformers, name).from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **options
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return network.eval()


def logits(network: Any) -> Tensor:
    ids = torch.randint(4, 280, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network(input_ids=ids, use_cache=False).logits


def two_of_four(weight: Tensor, *, axis: int) -> Tensor:
    """The oracle of magnitude@2:4: of four consecutive inputs the two largest stay."""
    moved = weight.movedim(axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, 4)
    largest = groups.abs().topk(2, dim=-1).indices
    kept = torch.zeros_like(groups).scatter(-1, largest, groups.gather(-1, largest))
    return kept.reshape(moved.shape).movedim(-1, axis)


def levels_of_groups(weight: Tensor, *, axis: int) -> int:
    """The largest number of different values among 32 consecutive inputs of one output."""
    groups = weight.movedim(axis, -1).reshape(-1, 32).sort(dim=-1).values
    return int((groups.diff(dim=-1) != 0).sum(dim=-1).max()) + 1


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_each_linear_layer_is_pruned_along_its_inputs_and_nothing_else_changes(kind: Kind, tmp_path: Path):
    dense = tmp_path / "dense"
    save_tiny(dense, kind.family)
    report = compress(dense, "magnitude@2:4", tmp_path / "out")
    before, network = plain(dense).state_dict(), plain(tmp_path / "out")
    changed = 0
    for name, tensor in network.state_dict().items():
        axis = kind.axis(name)
        expected = before[name] if axis is None else two_of_four(before[name], axis=axis)
        assert torch.equal(tensor, expected), name
        changed += axis is not None
    assert set(before) == set(network.state_dict())
    assert changed >= 16
    assert report.block_share is not None
    assert report.block_share >= 0.9
    assert report.realised_sparsity == 0.5
    assert len(report.routers) == kind.routers
    again = llmkick.load_model(str(tmp_path / "out"), dtype="float32", device="cpu").network
    assert torch.equal(logits(again), logits(network))
    assert not torch.equal(logits(network), logits(plain(dense)))
    for file in ("LICENSE", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / file).read_bytes() == (dense / file).read_bytes()
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (settings.eos_token_id, settings.temperature, settings.do_sample) == ([1, 3], 0.7, True)


# The others are written in two of these forms by the tests of streaming, and in all three by those of composite models.
IN_ALL_FORMS = [
    "dense", "fused qkv", "Conv1D", "experts, listed on disk", "experts, fused on disk", "experts, transposed",
    "recurrent",
]  # fmt: skip


@pytest.mark.parametrize("name", others_slow(KINDS, IN_ALL_FORMS))
def test_all_forms_hold_the_weights_that_the_walk_in_memory_gives(name: str, tmp_path: Path):
    kind = KINDS[name]
    dense, recipe = tmp_path / "dense", "gptq@4b-g32"
    save_tiny(dense, kind.family)
    model = llmkick.load_model(str(dense), dtype="float32", device="cpu")
    calibration = llmkick.calibrate(model, source=str(text_beside(dense)), **PLAN)
    compressed, _report = llmkick.compress(model, recipe, calibration=calibration)
    expected, wanted = compressed.network.state_dict(), logits(compressed.network)
    for key, tensor in expected.items():
        axis = kind.axis(key)
        if axis is not None:
            assert levels_of_groups(tensor, axis=axis) <= 16, key
    compress(dense, recipe, tmp_path / "out")
    compress(dense, recipe, tmp_path / "packed", "packed")
    for network in (plain(tmp_path / "out"), llmkick.load_model(str(tmp_path / "packed"), dtype="float32").network):
        state = network.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
        assert torch.equal(logits(network), wanted)
    if not kind.compressed_tensors:
        with pytest.raises(KickError, match="compressed-tensors cannot hold it here"):
            compress(dense, recipe, tmp_path / "ct", "compressed-tensors")
        return
    compress(dense, recipe, tmp_path / "ct", "compressed-tensors")
    network = plain(tmp_path / "ct", quantization_config=CompressedTensorsConfig(dequantize=True))
    assert torch.allclose(logits(network), wanted, atol=1e-4 * float(wanted.abs().max()))


def test_blocks_that_share_weights_are_compressed_once_and_stay_tied(tmp_path: Path):
    dense = tmp_path / "dense"
    save_tiny(dense, "zamba")
    compress(dense, "magnitude@2:4", tmp_path / "out")
    before, network = plain(dense), plain(tmp_path / "out")
    shared = [network.model.layers[index].shared_transf for index in (2, 5)]
    weight = before.model.layers[2].shared_transf.self_attn.q_proj.weight
    for part in shared:
        assert torch.equal(part.self_attn.q_proj.weight, two_of_four(weight, axis=-1))
    assert shared[0].self_attn.q_proj.weight is shared[1].self_attn.q_proj.weight
    stored = load_names(tmp_path / "out")
    assert not [name for name in stored if name.startswith("model.layers.5.shared_transf")]


def load_names(folder: Path) -> list[str]:
    return [name for file in folder.glob("*.safetensors") for name in load_file(file)]


def test_a_model_stored_in_float8_is_compressed_as_the_weights_that_it_stands_for(tmp_path: Path):
    dense, out = tmp_path / "dense", tmp_path / "out"
    network = save_tiny(tmp_path / "plain", "llama")
    store_in_float8(tmp_path / "plain", dense)
    compress(dense, "magnitude@2:4", out)
    state = plain(out).state_dict()
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    for name, tensor in network.state_dict().items():
        if re.search(rf"{ATTENTION}|{GATED}", name):
            rounded = (tensor / scale_of(tensor)).to(torch.float8_e4m3fn).float() * scale_of(tensor)
            kept = state[name] != 0
            assert torch.allclose(state[name], rounded * kept, rtol=1e-6), name
            groups = [weight.reshape(-1, 4).abs().sort().values for weight in (state[name], rounded)]
            assert torch.equal(groups[0][:, :2], torch.zeros_like(groups[0][:, :2])), name
            assert torch.allclose(groups[0][:, 2:], groups[1][:, 2:], rtol=1e-6), name  # codes often tie


def scale_of(tensor: Tensor) -> Tensor:
    return tensor.abs().max() / 448


def store_in_float8(source: Path, target: Path) -> None:
    """The folder as DeepSeek publishes: codes in blocks of 128 × 128, here one block for a matrix, and their scales."""
    shutil.copytree(source, target)
    stored: dict[str, Tensor] = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if "_proj.weight" in name:
            stored[name] = (tensor / scale_of(tensor)).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale_of(tensor).reshape(1, 1)
        else:
            stored[name] = tensor
    save_file(stored, target / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic",
                                     "weight_block_size": [128, 128], "fmt": "e4m3"}  # fmt: skip
    (target / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("bart", "attends to an encoder"),
        ("hrm_text", "its layers are spread over the lists"),
        ("t5gemma2", "no model that transformers runs on text alone"),
    ],
)
def test_what_cannot_be_compressed_is_refused_before_the_work(family: str, reason: str, tmp_path: Path):
    save_tiny(tmp_path / "dense", family)
    for form in ("folder", "packed", "compressed-tensors"):
        with pytest.raises(KickError, match=reason) as refusal:
            compress(tmp_path / "dense", "gptq@4b-g32", tmp_path / "out", form)
        assert "\n" not in str(refusal.value)
        assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("cache/**/*.safetensors"))


def test_compressed_tensors_are_refused_where_transformers_merges_other_tensors(tmp_path: Path):
    """It does not read such tensors beside the format: here the convolutions of q, k and v, which become one."""
    save_tiny(tmp_path / "dense", "olmo_hybrid")
    with pytest.raises(KickError, match=r"conv1d\.weight is stored merged with other tensors.*use --packed"):
        compress(tmp_path / "dense", "gptq@4b-g32", tmp_path / "out", "compressed-tensors")
    assert not (tmp_path / "out").exists()
