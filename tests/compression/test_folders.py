"""Compressed folders hold what was in memory, in the form of their source, and plain transformers reads it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from composites import COMPOSITES, open_whole, save_composite
from compressing import compressed
from llmkick.compression.storage.compress_to_disk import Form
from llmkick.compression.storage.folder import save_folder
from llmkick.compression.walk.compress import compress
from llmkick.errors import ModelError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.tensor_writer import TensorWriter
from llmkick.models.weights import weights_digest
from speeds import others_slow
from toy import save_toy, toy_model

IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 280, (2, 30)))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))


def in_memory(source: Path, recipe: str = "magnitude@0.5", dtype: str = "float32") -> Any:
    return compress(load_model(str(source), dtype=dtype), recipe)[0].network


def opened(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """By transformers alone; nothing may be missing."""
    auto: Any = AutoModelForCausalLM
    network, loading = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not loading["missing_keys"]
    return network


def logits(network: Any) -> Tensor:
    with torch.no_grad():
        values: Tensor = network(input_ids=IDS, use_cache=False).logits
    return values


def tensors_in(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


# The form of the source

# Renamed head, stacked experts, shared experts beside them, transposed experts, tied head, Conv1D, base-model prefix.
KINDS = ("llama", "gpt_neox", "mixtral", "deepseek_v3", "gpt_oss", "qwen2", "gpt2", "minimax")


@pytest.mark.parametrize("architecture", others_slow(KINDS, ["llama", "gpt_neox", "mixtral", "gpt2"]))
def test_plain_transformers_reads_what_was_in_memory(tmp_path: Path, architecture: str):
    save_toy(tmp_path / "model", architecture)
    expected = in_memory(tmp_path / "model")
    report = compressed(tmp_path / "model", tmp_path / "out")
    plain = opened(tmp_path / "out")
    assert weights_digest(plain) == weights_digest(expected) == report.digest
    assert torch.equal(logits(plain), logits(expected))
    assert not torch.equal(logits(plain), logits(opened(tmp_path / "model")))
    assert tensors_in(tmp_path / "out").keys() == tensors_in(tmp_path / "model").keys()


@pytest.mark.parametrize("architecture", ["mixtral", "gpt_neox"])
def test_a_folder_in_the_names_of_the_network_stays_in_them(tmp_path: Path, architecture: str):
    model = save_toy(tmp_path / "model", architecture)
    model.network.save_pretrained(tmp_path / "model", save_original_format=False)
    expected = in_memory(tmp_path / "model")
    compressed(tmp_path / "model", tmp_path / "out")
    assert weights_digest(opened(tmp_path / "out")) == weights_digest(expected)
    assert tensors_in(tmp_path / "out").keys() == tensors_in(tmp_path / "model").keys()


def test_a_model_that_came_from_no_folder_is_written_as_transformers_would(tmp_path: Path):
    model = toy_model("mixtral")
    small, report = compress(model, "magnitude@0.5")
    save_folder(small, report, tmp_path / "out")
    small.network.save_pretrained(tmp_path / "theirs")
    ours, theirs = tensors_in(tmp_path / "out"), tensors_in(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert weights_digest(opened(tmp_path / "out")) == report.digest
    assert load_model(str(tmp_path / "out")).tokenize("the cat") == model.tokenize("the cat")


def test_the_configuration_states_the_precision_that_was_written(tmp_path: Path):
    save_toy(tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "config.json").read_text())
    kept = {**settings, "of_another_tool": {"a": [1, 2]}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(kept))
    compressed(tmp_path / "model", tmp_path / "out", dtype="bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {**kept, "dtype": "bfloat16"}
    assert {tensor.dtype for tensor in tensors_in(tmp_path / "out").values()} == {torch.bfloat16}


@pytest.mark.parametrize("form", ["folder", "packed", "compressed-tensors"])
@pytest.mark.parametrize("sharded", [True, False])
def test_the_name_of_the_sources_weights_stays_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: Form, sharded: bool
):
    if form == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    save_toy(tmp_path / "model")
    named = "weights-v2.safetensors"
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / named)
    if sharded:
        index = {"metadata": {}, "weight_map": dict.fromkeys(tensors_in(tmp_path / "model"), named)}
        named = "weights-v2.safetensors.index.json"
        (tmp_path / "model" / named).write_text(json.dumps(index))
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "transformers_weights": named}))
    expected = in_memory(tmp_path / "model", "rtn@8b")
    compressed(tmp_path / "model", tmp_path / "out", form, "rtn@8b")
    assert "transformers_weights" not in json.loads((tmp_path / "out" / "config.json").read_text())
    read = load_model(str(tmp_path / "out"), dtype="float32").network if form == "packed" else opened(tmp_path / "out")
    assert torch.equal(logits(read), logits(expected))


def test_a_head_of_its_own_stays_whatever_the_configuration_says(tmp_path: Path):
    save_toy(tmp_path / "model", "qwen2", tie_word_embeddings=False)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "tie_word_embeddings": True}))
    head = tensors_in(tmp_path / "model")["lm_head.weight"]
    compressed(tmp_path / "model", tmp_path / "out")
    assert torch.equal(tensors_in(tmp_path / "out")["lm_head.weight"], head)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(opened(tmp_path / "out").lm_head.weight, head)


# Sources that are stored quantized


def store_fp8(folder: Path, *, ending: str | tuple[str, ...]) -> None:
    """Store weights in blocks of 8-bit floats, as DeepSeek-V3 and Qwen3-FP8 are."""
    stored, size = {}, 16
    for name, tensor in tensors_in(folder).items():
        if not name.endswith(ending):
            stored[name] = tensor
            continue
        rows, columns = tensor.shape
        blocks = tensor.float().view(rows // size, size, columns // size, size)
        scale = blocks.abs().amax((1, 3)) / 448
        stored[name] = (blocks / scale[:, None, :, None]).view(rows, columns).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    file = folder / "config.json"
    described = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [size, size],
        "fmt": "e4m3",
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": described}))


@pytest.mark.parametrize("form", ["folder", "packed"])
@pytest.mark.parametrize(
    ("architecture", "ending"),
    [("llama", "_proj.weight"), ("deepseek_v3", "down_proj.weight"), ("mixtral", "w1.weight")],
)
def test_a_source_in_fp8_is_written_as_the_plain_weights_in_memory(
    tmp_path: Path, architecture: str, ending: str, form: Form
):
    save_toy(tmp_path / "model", architecture, dtype=torch.bfloat16)
    plain_names = tensors_in(tmp_path / "model").keys()
    store_fp8(tmp_path / "model", ending=ending)
    expected = in_memory(tmp_path / "model", "magnitude@0.1", "bfloat16")
    report = compressed(tmp_path / "model", tmp_path / "out", form, "magnitude@0.1", "bfloat16")
    assert weights_digest(expected) == report.digest
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    again = load_model(str(tmp_path / "out"), dtype="bfloat16").network
    assert weights_digest(again) == report.digest
    if form == "folder":
        assert tensors_in(tmp_path / "out").keys() == plain_names
        assert torch.equal(logits(opened(tmp_path / "out", torch.bfloat16)), logits(expected))


def test_a_source_in_mxfp4_is_written_as_the_plain_weights_in_memory(tmp_path: Path):
    save_toy(tmp_path / "model", "gpt_oss", dtype=torch.bfloat16, hidden_size=32)
    plain, generator = tensors_in(tmp_path / "model"), torch.Generator().manual_seed(0)
    stored = {}
    for name, tensor in plain.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            experts, inputs, outputs = tensor.shape
            size = experts, outputs, inputs // 32
            stored[f"{name}_blocks"] = torch.randint(0, 256, (*size, 16), dtype=torch.uint8, generator=generator)
            stored[f"{name}_scales"] = torch.randint(122, 127, size, dtype=torch.uint8, generator=generator)
        else:
            stored[name] = tensor
    save_file(stored, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": "mxfp4"}}))
    expected = in_memory(tmp_path / "model", "magnitude@0.5", "bfloat16")
    compressed(tmp_path / "model", tmp_path / "out", "folder", "magnitude@0.5", "bfloat16")
    assert tensors_in(tmp_path / "out").keys() == plain.keys()
    assert torch.equal(logits(opened(tmp_path / "out", torch.bfloat16)), logits(expected))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


# Models of text and images


@pytest.mark.parametrize("architecture", COMPOSITES)
def test_a_composite_model_keeps_its_other_parts(tmp_path: Path, architecture: str):
    save_composite(tmp_path / "model", architecture)
    expected = in_memory(tmp_path / "model")
    compressed(tmp_path / "model", tmp_path / "out")
    source, written = (json.loads((tmp_path / place / "config.json").read_text()) for place in ("model", "out"))
    assert written["architectures"] == source["architectures"]
    assert written["vision_config"] == source["vision_config"]
    dense, whole = open_whole(tmp_path / "model", architecture), open_whole(tmp_path / "out", architecture)
    assert torch.equal(logits(whole), logits(expected))
    assert torch.equal(logits(opened(tmp_path / "out")), logits(expected))
    seeing = [name for name in dense.state_dict() if "vis" in name]
    assert seeing
    assert all(torch.equal(whole.state_dict()[name], dense.state_dict()[name]) for name in seeing)


@pytest.mark.parametrize("architecture", COMPOSITES)
def test_a_packed_composite_model_can_be_written_as_a_folder_again(tmp_path: Path, architecture: str):
    save_composite(tmp_path / "model", architecture)
    compressed(tmp_path / "model", tmp_path / "packed", "packed")
    expected = in_memory(tmp_path / "packed", "magnitude@0.75")
    compressed(tmp_path / "packed", tmp_path / "out", recipe="magnitude@0.75")
    assert torch.equal(logits(open_whole(tmp_path / "out", architecture)), logits(expected))
    assert tensors_in(tmp_path / "out").keys() == tensors_in(tmp_path / "model").keys()


@pytest.mark.parametrize("architecture", COMPOSITES)
def test_a_composite_model_in_fp8_becomes_plain_as_a_whole(tmp_path: Path, architecture: str):
    """The vision tower too, also where the network that is compressed does not have it."""
    save_composite(tmp_path / "model", architecture)
    names = tensors_in(tmp_path / "model").keys()
    store_fp8(tmp_path / "model", ending=("mlp.down_proj.weight", "linear_fc1.weight", "fc1.weight"))
    expected = in_memory(tmp_path / "model")
    compressed(tmp_path / "model", tmp_path / "out")
    assert tensors_in(tmp_path / "out").keys() == names
    assert {tensor.dtype for tensor in tensors_in(tmp_path / "out").values()} == {torch.float32}
    assert torch.equal(logits(open_whole(tmp_path / "out", architecture)), logits(expected))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_packed_weights_alone_count_as_the_size_of_a_packed_model(tmp_path: Path):
    save_composite(tmp_path / "model", "qwen3_5")
    compressed(tmp_path / "model", tmp_path / "out", "packed")
    checkpoint = load_model(str(tmp_path / "out")).checkpoint
    assert checkpoint is not None
    assert checkpoint.stored_bytes == sum(file.stat().st_size for file in (tmp_path / "out").glob("packed-*"))


# Written while it is compressed


def damaged_writing(monkeypatch: pytest.MonkeyPatch, how: str, damaged: str) -> None:
    """Something goes wrong on the way of a tensor to its file."""
    put = TensorWriter.put

    def wrong(writer: TensorWriter, name: str, tensor: Tensor) -> None:
        match how if name == damaged else "":
            case "missing":
                return
            case "type":
                put(writer, name, tensor.to(torch.float64))
            case "shape":
                put(writer, name, tensor[1:])
            case "twice":
                put(writer, name, tensor)
                put(writer, name, tensor)
            case _:
                put(writer, name, tensor)

    monkeypatch.setattr(TensorWriter, "put", wrong)


@pytest.mark.parametrize("how", ["missing", "type", "shape", "twice"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])  # streamed, and written from memory
def test_a_tensor_that_is_not_written_as_planned_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, how: str
):
    save_toy(tmp_path / "model", architecture)
    name = {"llama": "model.layers.1.self_attn.q_proj.weight", "gpt_neox": "gpt_neox.final_layer_norm.weight"}
    damaged_writing(monkeypatch, how, name[architecture])
    with pytest.raises(ModelError, match=name[architecture]):
        compressed(tmp_path / "model", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model"]


def test_a_packed_tensor_that_is_not_written_as_planned_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_toy(tmp_path / "model")
    damaged_writing(monkeypatch, "type", "model.norm.weight:values")
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        compressed(tmp_path / "model", tmp_path / "out", "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model"]


def test_what_a_killed_compression_left_beside_the_folder_is_gone_afterwards(tmp_path: Path):
    save_toy(tmp_path / "model")
    (tmp_path / ".out.weights.partial").mkdir()
    (tmp_path / ".out.weights.partial" / "model-00009-of-00009.safetensors").write_bytes(b"of another size")
    compressed(tmp_path / "model", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model", "out"]
    assert [path.name for path in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])
def test_the_files_are_those_that_the_hub_would_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
):
    save_toy(tmp_path / "model", architecture)
    split = huggingface_hub.split_torch_state_dict_into_shards
    monkeypatch.setattr(
        huggingface_hub, "split_torch_state_dict_into_shards", lambda tensors: split(tensors, max_shard_size=20_000)
    )
    compressed(tmp_path / "model", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    tensors = tensors_in(tmp_path / "out")
    assert len(set(index["weight_map"].values())) > 2
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "out" / file)
    expected = in_memory(tmp_path / "model")
    assert weights_digest(opened(tmp_path / "out")) == weights_digest(expected)


@pytest.mark.parametrize("form", ["folder", "packed"])
@pytest.mark.parametrize("recipe", ["rtn@8b", "magnitude@0.5", "wanda@2:4"])
def test_a_compression_that_is_in_the_cache_gives_the_same_files(tmp_path: Path, form: Form, recipe: str):
    save_toy(tmp_path / "model", dtype=torch.bfloat16)
    first = compressed(tmp_path / "model", tmp_path / "one", form, recipe, "bfloat16")
    again = compressed(tmp_path / "model", tmp_path / "two", form, recipe, "bfloat16")
    assert first == again
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in names)


# Settings for generation


@pytest.mark.parametrize("form", ["folder", "packed", "compressed-tensors"])
@pytest.mark.parametrize("architecture", ["llama", "gpt_neox"])  # streamed, and written from memory
def test_the_compressed_model_stops_where_the_dense_one_does(tmp_path: Path, architecture: str, form: Form):
    if form == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    save_toy(tmp_path / "model", architecture)
    # As models ship them: further end tokens, and sampling settings that transformers refuses to write.
    text = '{"eos_token_id": [1, 20], "do_sample": false, "temperature": 0.6, "top_p": 0.9}'
    (tmp_path / "model" / "generation_config.json").write_text(text)
    compressed(tmp_path / "model", tmp_path / "out", form, "rtn@8b")
    assert (tmp_path / "out" / "generation_config.json").read_text() == text
    dense, small = (load_model(str(tmp_path / place), dtype="float32") for place in ("model", "out"))
    assert small.end_tokens == dense.end_tokens == {1, 20}
    if form != "packed":
        plain = opened(tmp_path / "out").generation_config
        assert (plain.eos_token_id, plain.top_p) == ([1, 20], 0.9)


@pytest.mark.parametrize("form", ["folder", "packed"])
def test_a_model_without_settings_for_generation_gets_none(tmp_path: Path, form: Form):
    save_toy(tmp_path / "model", eos_token_id=7)
    (tmp_path / "model" / "generation_config.json").unlink()
    compressed(tmp_path / "model", tmp_path / "out", form)
    assert not (tmp_path / "out" / "generation_config.json").exists()
    dense, small = (load_model(str(tmp_path / place)) for place in ("model", "out"))
    assert small.end_tokens == dense.end_tokens == {1, 7}


def test_settings_of_a_model_that_came_from_no_folder_are_written(tmp_path: Path):
    model = toy_model()
    model.network.generation_config = GenerationConfig(eos_token_id=[1, 30])
    small, report = compress(model, "magnitude@0.5")
    save_folder(small, report, tmp_path / "out")
    assert opened(tmp_path / "out").generation_config.eos_token_id == [1, 30]
