"""GGUF files: what their metadata and tensors say is what the network computes, or the file is refused by name."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmkick.errors import ModelError
from llmkick.models.checkpoints.gguf_rope import _llama3_divisors
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.references import locate
from models.checkpoints.gguf_writing import add_entries, finish, rewrite
from toy import save_toy_gguf, toy_model, toy_tokenizer

IDS = torch.arange(5, 205)[None]  # long enough for scaled positions to matter
BASE = 10000.0


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load(path: Path) -> Any:
    return load_model(str(path), dtype="float32", device="cpu").network


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        locate(str(path))
    assert not list((path.parent / "cache" / "converted").glob("*"))


def same_logits(network: Any, other: Any) -> bool:
    with torch.inference_mode():
        one, two = network(IDS).logits, other(IDS).logits
    return torch.allclose(one, two, rtol=1e-4, atol=1e-4)


def toy_llama(**rope: Any) -> Any:
    """The network of the toy file, with other rotary positions."""
    settings = {"hidden_size": 32, "num_hidden_layers": 2}
    if rope:
        settings["rope_parameters"] = {"rope_theta": BASE, **rope}
    return toy_model(**settings).network


# Rotary positions

SCALED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"scaling.type": "linear", "scaling.factor": 8.0}, {"rope_type": "linear", "factor": 8.0}),
    "linear, the type left out": ({"scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "linear, as of old": ({"scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "none": ({"scaling.type": "none", "scaling.factor": 8.0}, {"rope_type": "default"}),
    "linear by 1": ({"scaling.type": "linear", "scaling.factor": 1.0}, {"rope_type": "default"}),
    "yarn": (
        {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "yarn, everything stated": (
        {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 64,
         "scaling.yarn_beta_fast": 16.0, "scaling.yarn_beta_slow": 2.0, "scaling.attn_factor": 0.5,
         "scaling.finetuned": True},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 16.0,
         "beta_slow": 2.0, "attention_factor": 0.5 * (0.1 * math.log(4) + 1)},
    ),
    "another base": ({"freq_base": 500000.0}, {"rope_type": "default", "rope_theta": 500000.0}),
}  # fmt: skip


@pytest.mark.parametrize("case", SCALED)
def test_scaled_rotary_positions(tmp_path: Path, case: str):
    entries, rope = SCALED[case]
    path = rewrite(tmp_path / "toy.gguf", {f"llama.rope.{key}": value for key, value in entries.items()})
    network = load(path)
    assert same_logits(network, toy_llama(**rope))
    assert same_logits(network, toy_llama()) is (rope == {"rope_type": "default"})
    assert network.config.rope_parameters["rope_type"] == rope["rope_type"]


def test_a_base_that_is_left_out_is_that_of_llama_cpp(tmp_path: Path):
    assert same_logits(load(rewrite(tmp_path / "toy.gguf", {"llama.rope.freq_base": None})), toy_llama())


@pytest.mark.parametrize(("factor", "length"), [(8.0, 8192), (32.0, 8192), (4.0, 64)])
def test_the_factors_of_llama_3(tmp_path: Path, factor: float, length: int):
    """Written as llama.cpp's converter does, with a base at which all three ranges of wavelengths occur."""
    rope = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": length, "rope_theta": 1e6}  # fmt: skip
    divisors = np.array(_llama3_divisors(1e6, 4, factor, length))
    assert (divisors == 1).any()
    assert (divisors == factor).any()
    entries = {"llama.rope.freq_base": 1e6, "llama.rope.scaling.original_context_length": length}
    network = load(rewrite(tmp_path / "toy.gguf", entries, {"rope_freqs.weight": divisors}))
    reference = toy_llama(**rope)
    assert network.config.rope_parameters == reference.config.rope_parameters
    assert torch.equal(network.model.rotary_emb.inv_freq, reference.model.rotary_emb.inv_freq)
    assert same_logits(network, reference)


def test_the_divisors_are_those_of_transformers():
    reference = toy_llama(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
    )
    plain = toy_llama().model.rotary_emb.inv_freq
    divisors = torch.tensor(_llama3_divisors(BASE, 4, 8.0, 64))
    torch.testing.assert_close(plain / divisors, reference.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)


def test_factors_of_any_kind(tmp_path: Path):
    divisors = np.array([1.0, 1.7, 2.5, 40.0])
    network = load(rewrite(tmp_path / "toy.gguf", {}, {"rope_freqs.weight": divisors}))
    reference = toy_llama()
    reference.model.rotary_emb.inv_freq /= torch.tensor(divisors).float()
    assert same_logits(network, reference)
    assert not same_logits(network, toy_llama())


def test_factors_of_one_change_nothing(tmp_path: Path):
    network = load(rewrite(tmp_path / "toy.gguf", {}, {"rope_freqs.weight": np.ones(4)}))
    assert network.config.rope_parameters["rope_type"] == "default"
    assert same_logits(network, toy_llama())


@pytest.mark.parametrize(
    ("entries", "tensors", "message"),
    [
        ({"scaling.type": "longrope", "scaling.factor": 2.0}, [], "short and long texts"),
        ({}, ["rope_factors_long.weight", "rope_factors_short.weight"], "short and long texts"),
        ({"scaling.type": "ntk", "scaling.factor": 2.0}, [], "rope.scaling.type = ntk"),
        ({"scaling.type": "yarn", "scaling.factor": 2.0, "scaling.yarn_ext_factor": 0.5}, [], "scaling.type = yarn"),
        ({"scaling.attn_factor": 1.2}, [], "scaling of attention"),
        ({"scaling.type": "linear", "scaling.factor": 2.0}, ["rope_freqs.weight"], "rope_freqs.weight together with"),
        ({"scaling.alpha": 2.0}, [], r"rope\.scaling\.alpha = 2\.0"),
        ({"freq_base_swa": 5000.0}, [], r"rope\.freq_base_swa = 5000\.0"),
        ({"unheard_of": 3}, [], r"rope\.unheard_of = 3"),
    ],
)
def test_rotary_positions_that_cannot_be_expressed(
    tmp_path: Path, entries: dict[str, Any], tensors: list[str], message: str
):
    stated = {f"llama.rope.{key}": value for key, value in entries.items()}
    path = rewrite(tmp_path / "toy.gguf", stated, {name: np.array([1.0, 2, 2, 4]) for name in tensors})
    refused(path, rf"toy\.gguf has .*{message}")


# Other entries and tensors


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("attention.sliding_window", 64), ("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0),
        ("attention.scale", 0.5), ("logit_scale", 0.0625), ("embedding_scale", 12.0), ("residual_scale", 0.22),
        ("expert_count", 8), ("attention.causal", False), ("attention.clamp_kqv", 8.0),
        ("attention.max_alibi_bias", 8.0), ("attention.value_length", 4),
        ("attention.temperature_length", 8192), ("attention.layer_norm_epsilon", 1e-3), ("unheard_of", 1),
        ("expert_weights_scale", 2.5),
    ],
)  # fmt: skip
def test_entries_that_would_be_ignored(tmp_path: Path, entry: str, value: Any):
    refused(
        rewrite(tmp_path / "toy.gguf", {f"llama.{entry}": value}), rf"toy\.gguf: its metadata say llama\.{entry} = "
    )


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("attention.key_length", 8), ("attention.value_length", 8), ("expert_count", 0), ("expert_used_count", 0),
        ("attention.causal", True), ("attention.clamp_kqv", 0.0), ("attention.sliding_window", 0),
        ("tensor_data_layout", "Meta AI original pth"), ("attention.scale", 8**-0.5), ("vocab_size", 288),
        ("logit_scale", 1.0),
    ],
)  # fmt: skip
def test_entries_that_change_nothing(tmp_path: Path, entry: str, value: Any):
    assert same_logits(load(rewrite(tmp_path / "toy.gguf", {f"llama.{entry}": value})), toy_llama())


def test_heads_of_which_only_a_part_is_rotated(tmp_path: Path):
    path = rewrite(tmp_path / "toy.gguf", {"llama.attention.key_length": 16, "llama.attention.value_length": 16})
    refused(path, r"toy\.gguf has rope\.dimension_count = 8 for heads of width 16")


def test_heads_that_differ_between_layers(tmp_path: Path):
    refused(rewrite(tmp_path / "toy.gguf", {"llama.attention.head_count_kv": [2, 1]}), "cannot read toy")


@pytest.mark.parametrize(
    "name", ["blk.0.attn_q.bias", "blk.0.ffn_gate_inp.weight", "blk.2.attn_q.weight", "cls.weight"]
)
def test_tensors_that_would_be_left_out(tmp_path: Path, name: str):
    refused(
        rewrite(tmp_path / "toy.gguf", {}, {name: np.ones(32)}), rf"toy\.gguf holds {name}, which a LlamaForCausalLM"
    )


def test_frequencies_of_each_block_are_computed_anyway(tmp_path: Path):
    path = rewrite(tmp_path / "toy.gguf", {}, {"blk.0.attn_rot_embd.weight": np.ones(4)})
    assert same_logits(load(path), toy_llama())


@pytest.mark.parametrize("kind", ["adapter", "mmproj"])
def test_files_that_hold_no_model(tmp_path: Path, kind: str):
    refused(rewrite(tmp_path / "toy.gguf", {"general.type": kind}), rf"holds no model, but what GGUF calls '{kind}'")


# Other architectures

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma2": (
        "gemma2",
        {**HEADS, "sliding_window": 12, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0,
         "final_logit_softcapping": 3.0},
        {"attention.sliding_window": 12, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma2, its scale stated": (
        "gemma2", {**HEADS, "sliding_window": 12, "query_pre_attn_scalar": 64},
        {"attention.sliding_window": 12, "attention.scale": 0.125, "attn_logit_softcapping": 50.0},
    ),
    "gemma3": (
        "gemma3",
        {**HEADS, "sliding_window": 12, "query_pre_attn_scalar": 16,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
        {"attention.sliding_window": 12, "attention.sliding_window_pattern": [True, False, True],
         "rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "qwen3": ("qwen3", {**HEADS, "head_dim": 32}, {}),
    "qwen2": ("qwen2", {**HEADS, "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4,
                                                     "original_max_position_embeddings": 64}},
              {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}),
    "stablelm": (
        "stablelm",
        {"num_attention_heads": 4, "num_key_value_heads": 4,
         "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope.dimension_count": 8, "use_parallel_residual": False},
    ),
    "phi3": ("phi3", {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 12},
             {"attention.sliding_window": 12}),
}  # fmt: skip
MODEL_TYPES = {"gemma3": "gemma3_text"}


def write_family(path: Path, family: str) -> Any:
    """A small network of a family as a GGUF file, in the way of llama.cpp's converter; returns the network."""
    name, own, stated = FAMILIES[family]
    settings = {"vocab_size": 288, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 3,
                "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
                "tie_word_embeddings": True}  # fmt: skip
    torch.manual_seed(0)
    config = CONFIG_MAPPING[MODEL_TYPES.get(name, name)](**{**settings, **own})
    network = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.mul_(4 if parameter.dim() > 1 else 1).add_(0.1 * torch.randn_like(parameter))
    writer = gguf.GGUFWriter(str(path), name)
    head = own.get("head_dim", 16)
    norm = "layer_norm_epsilon" if name == "stablelm" else "layer_norm_rms_epsilon"
    epsilon = config.layer_norm_eps if name == "stablelm" else config.rms_norm_eps
    common = {"context_length": 256, "embedding_length": 64, "block_count": 3, "feed_forward_length": 48,
              "attention.head_count": 4, "attention.head_count_kv": own["num_key_value_heads"],
              "attention.key_length": head, "attention.value_length": head, f"attention.{norm}": epsilon,
              "rope.freq_base": 1e4}  # fmt: skip
    add_entries(writer, {f"{name}.{key}": value for key, value in {**common, **stated}.items()})
    vocabulary = toy_tokenizer().get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*tokens, *(f"<|unused_{index}|>" for index in range(288 - len(tokens)))])
    writer.add_token_merges(["t h", "th e"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    arch = next(kind for kind, title in gguf.MODEL_ARCH_NAMES.items() if title == name)
    names = gguf.get_tensor_name_map(arch, 3)
    for key, tensor in network.state_dict().items():
        if key == "lm_head.weight":
            continue
        stored = names.get_name(key, try_suffixes=(".weight", ".bias"))
        assert stored, key
        values = tensor.numpy().copy()
        writer.add_tensor(stored, values + 1 if name.startswith("gemma") and key.endswith("norm.weight") else values)
    finish(writer)
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_other_families_compute_what_their_networks_do(tmp_path: Path, family: str):
    network = write_family(tmp_path / "toy.gguf", family)
    assert same_logits(load(tmp_path / "toy.gguf"), network)


# Parts


def split(folder: Path, numbers: Iterable[int], count: int = 3) -> Path:
    folder.mkdir()
    for number in numbers:
        path = folder / f"toy-{number:05d}-of-{count:05d}.gguf"
        entries = {"split.no": number - 1, "split.count": count, "split.tensors.count": 20}
        rewrite(path, entries)
    (folder / "source.gguf").unlink()
    return folder / f"toy-00001-of-{count:05d}.gguf"


def test_one_part_of_several(tmp_path: Path):
    path = split(tmp_path / "one", [1])
    with pytest.raises(
        ModelError, match=r"toy-00001-of-00003\.gguf is one of 3 parts .* toy-00002-of-00003\.gguf, toy-0"
    ):
        locate(str(path))


def test_all_parts_are_to_be_joined_first(tmp_path: Path):
    path = split(tmp_path / "all", [1, 2, 3])
    with pytest.raises(
        ModelError, match=r"one of 3 parts of a GGUF file, and .* whole files only: join the parts \(llama"
    ):
        locate(str(path))
    path.rename(path.with_name("renamed.gguf"))  # the file says it too
    with pytest.raises(ModelError, match=r"renamed\.gguf is one of 3 parts"):
        locate(str(path.with_name("renamed.gguf")))


def test_links_and_pointers(tmp_path: Path):
    (tmp_path / "toy.gguf").symlink_to("blobs/gone")
    with pytest.raises(ModelError, match=r"toy\.gguf is a link to blobs/gone, which is not there"):
        locate(str(tmp_path / "toy.gguf"))
    (tmp_path / "toy.gguf").unlink()
    (tmp_path / "toy.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 538\n")
    with pytest.raises(ModelError, match=r"toy\.gguf is a Git LFS pointer, not the file itself"):
        locate(str(tmp_path / "toy.gguf"))


def test_a_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also by transformers, and not at all when it was converted before."""
    save_toy_gguf(tmp_path / "toy.gguf")
    opened: list[str] = []

    class Counted(gguf.GGUFReader):  # type: ignore[misc]
        def __init__(self, path: Any, mode: Any = "r") -> None:
            opened.append(str(path))
            super().__init__(path, mode)

    before = gguf.GGUFReader, gguf.get_tensor_name_map
    monkeypatch.setattr(gguf.gguf_reader, "GGUFReader", Counted)
    for _ in range(2):
        load(tmp_path / "toy.gguf")
        assert opened == [str((tmp_path / "toy.gguf").resolve())]
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before


def test_the_package_is_left_as_it_was_after_an_error(tmp_path: Path):
    before = gguf.GGUFReader, gguf.get_tensor_name_map
    refused(rewrite(tmp_path / "toy.gguf", {"llama.expert_count": 8}), "expert_count")
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == before
