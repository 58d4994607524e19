"""Every tensor of a checkpoint is used, known to be of no use, or refused by name: nothing is dropped in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmkick.compression.storage.compress_to_disk import CalibrationPlan, compress_checkpoint
from llmkick.errors import ModelError
from llmkick.models.checkpoints.accounting import match_names, refuse_unknown
from llmkick.models.checkpoints.loading import load_model, meta_network, read_config
from llmkick.models.checkpoints.meta_model import load_meta_model
from llmkick.models.checkpoints.weight_files import TensorFiles
from toy import ARCHITECTURES, UNUSUAL, save_toy


class Silent:
    def stage(self, title: str, total: int) -> None:
        pass

    def advance(self, done: int) -> None:
        pass


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def load(folder: Path) -> Any:
    return load_model(str(folder), dtype="float32", device="cpu")


def same_weights(model: Any, other: Any) -> bool:
    one, two = model.network.state_dict(), other.network.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def edit(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> dict[str, Tensor]:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


def configure(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(folder)
    with pytest.raises(ModelError, match=message):
        load_meta_model(str(folder), dtype="float32", device="cpu")


@pytest.mark.parametrize("architecture", {**ARCHITECTURES, **UNUSUAL})
def test_the_tensors_of_every_kind_of_network_are_all_used(tmp_path: Path, architecture: str):
    saved = save_toy(tmp_path / "toy", architecture)
    network, names = meta_network(read_config(tmp_path / "toy")), TensorFiles(tmp_path / "toy").names
    matching = match_names(network, [*names, "model.layers.0.unheard_of.weight"])
    assert matching.unmatched == ["model.layers.0.unheard_of.weight"]
    assert {name for sources in matching.sources.values() for name in sources} == names
    own = saved.network.state_dict().keys() - saved.network.all_tied_weights_keys.keys()
    assert own <= matching.sources.keys()


# Tensors that a network does not take


@pytest.mark.parametrize(
    "name", ["model.layers.0.mlp.extra.weight", "model.layers.3.mlp.up_proj.weight", "v_head.weight", "lm_head.bias"]
)
def test_a_tensor_that_would_be_left_out_is_named(tmp_path: Path, name: str):
    save_toy(tmp_path / "toy")
    edit(tmp_path / "toy", lambda weights: weights.update({name: torch.ones(4)}))
    refused(
        tmp_path / "toy", rf"model\.safetensors holds {name}, for which a LlamaForCausalLM has no place: it would be"
    )


def test_biases_that_the_configuration_denies(tmp_path: Path):
    save_toy(tmp_path / "toy", attention_bias=True)
    configure(tmp_path / "toy", attention_bias=False)
    refused(tmp_path / "toy", r"holds model\.layers\.0\.self_attn\.k_proj\.bias and 11 more")


def test_more_layers_than_the_configuration_says(tmp_path: Path):
    save_toy(tmp_path / "toy")
    configure(tmp_path / "toy", num_hidden_layers=2)
    refused(tmp_path / "toy", r"holds model\.layers\.2\.input_layernorm\.weight and 8 more")


@pytest.mark.parametrize(
    ("architecture", "name", "tensor"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
        ("llama", "mtp.layers.0.mlp.up_proj.weight", torch.ones(4, 4)),
        ("gpt2", "transformer.h.0.attn.bias", torch.ones(1, 1, 8, 8, dtype=torch.bool)),
        ("gpt2", "transformer.h.0.attn.masked_bias", torch.tensor(-1e4)),
        ("gpt_neox", "gpt_neox.layers.0.attention.bias", torch.ones(1, 1, 8, 8, dtype=torch.uint8)),
        ("gpt_neox", "gpt_neox.layers.0.attention.rotary_emb.inv_freq", torch.ones(4)),
        ("gpt_neo", "transformer.h.0.attn.attention.bias", torch.ones(1, 1, 8, 8, dtype=torch.uint8)),
        ("gpt_neo", "transformer.h.0.attn.attention.masked_bias", torch.tensor(-1e9)),
    ],
)
def test_tensors_that_no_answer_depends_on_change_nothing(tmp_path: Path, architecture: str, name: str, tensor: Tensor):
    saved = save_toy(tmp_path / "toy", architecture)
    edit(tmp_path / "toy", lambda weights: weights.update({name: tensor}))
    assert same_weights(load(tmp_path / "toy"), saved)
    load_meta_model(str(tmp_path / "toy"), dtype="float32", device="cpu")


def test_a_bias_of_zeros_is_no_bias(tmp_path: Path):
    saved = save_toy(tmp_path / "toy")
    name = "model.layers.0.mlp.up_proj.bias"
    edit(tmp_path / "toy", lambda weights: weights.update({name: torch.zeros(32)}))
    assert same_weights(load(tmp_path / "toy"), saved)
    edit(tmp_path / "toy", lambda weights: weights.update({name: torch.zeros(32).index_fill_(0, torch.tensor(7), 1)}))
    refused(tmp_path / "toy", rf"holds {name}")


def test_what_a_composite_model_has_for_images_is_not_for_text(tmp_path: Path):
    saved = save_toy(tmp_path / "toy")
    tower = {"vision_tower.layers.0.weight": torch.ones(4, 4), "multi_modal_projector.weight": torch.ones(4, 4)}
    edit(tmp_path / "toy", lambda weights: weights.update(tower))
    refused(tmp_path / "toy", r"holds multi_modal_projector\.weight and 1 more")
    configure(tmp_path / "toy", vision_config={"hidden_size": 4})
    network = meta_network(saved.network.config)
    refuse_unknown(network, TensorFiles(tmp_path / "toy"), sorted(tower))


def test_sizes_count_what_is_loaded(tmp_path: Path):
    save_toy(tmp_path / "toy", "deepseek_v3")
    alone = load(tmp_path / "toy").checkpoint.stored_bytes
    assert alone == (tmp_path / "toy" / "model.safetensors").stat().st_size
    configure(tmp_path / "toy", num_nextn_predict_layers=1)
    later = {"model.layers.3.eh_proj.weight": torch.ones(100, 64), "model.layers.3.enorm.weight": torch.ones(64).half()}
    edit(tmp_path / "toy", lambda weights: weights.update(later))
    with_later = load(tmp_path / "toy").checkpoint.stored_bytes
    assert (tmp_path / "toy" / "model.safetensors").stat().st_size > alone + 4 * 6400
    assert with_later - alone < 1000  # names in the header


def test_a_bias_is_no_mask(tmp_path: Path):
    save_toy(tmp_path / "toy")
    edit(tmp_path / "toy", lambda weights: weights.update({"model.layers.0.self_attn.bias": torch.ones(16)}))
    refused(tmp_path / "toy", r"holds model\.layers\.0\.self_attn\.bias")


def test_layers_for_later_tokens_only_as_many_as_are_stated(tmp_path: Path):
    saved = save_toy(tmp_path / "toy", "deepseek_v3")
    later = {"model.layers.3.eh_proj.weight": torch.ones(4, 4), "model.layers.3.mlp.gate.weight": torch.ones(4, 4)}
    edit(tmp_path / "toy", lambda weights: weights.update(later))
    configure(tmp_path / "toy", num_nextn_predict_layers=0)
    refused(tmp_path / "toy", r"holds model\.layers\.3\.")
    configure(tmp_path / "toy", num_nextn_predict_layers=1)
    assert same_weights(load(tmp_path / "toy"), saved)
    edit(tmp_path / "toy", lambda weights: weights.update({"model.layers.4.eh_proj.weight": torch.ones(4, 4)}))
    refused(tmp_path / "toy", r"holds model\.layers\.4\.eh_proj\.weight")


def test_two_tensors_for_one_weight(tmp_path: Path):
    save_toy(tmp_path / "toy")
    copy = {"layers.0.mlp.up_proj.weight": torch.ones(32, 16)}  # transformers adds the prefix "model."
    edit(tmp_path / "toy", lambda weights: weights.update(copy))
    refused(tmp_path / "toy", r"layers\.0\.mlp\.up_proj\.weight both stand for model\.layers\.0\.mlp\.up_proj\.weight")


def test_missing_tensors_are_named_before_a_compression_begins(tmp_path: Path):
    save_toy(tmp_path / "toy")
    edit(tmp_path / "toy", lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    refused(tmp_path / "toy", r"lacks 1 tensors of a LlamaForCausalLM, among them .*1\.mlp\.up_proj")


def test_a_tensor_of_another_shape_is_named(tmp_path: Path):
    save_toy(tmp_path / "toy")
    name = "model.layers.1.mlp.up_proj.weight"
    edit(tmp_path / "toy", lambda weights: weights.update({name: weights[name][:5].clone()}))
    refused(tmp_path / "toy", rf"{name} has shape \(5, 16\), but config.json asks for \(\d+, 16\)")


# Codes instead of values


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.bool])
def test_integers_are_not_taken_for_weights(tmp_path: Path, dtype: torch.dtype):
    save_toy(tmp_path / "toy")
    name = "model.layers.1.mlp.up_proj.weight"
    edit(tmp_path / "toy", lambda weights: weights.update({name: (weights[name] * 10).to(dtype)}))
    refused(tmp_path / "toy", rf"{name} is stored as \w+, which are codes and not the values of a weight")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_eight_bit_floats_without_a_description(tmp_path: Path, dtype: torch.dtype):
    save_toy(tmp_path / "toy")
    name = "model.layers.1.mlp.up_proj.weight"
    edit(tmp_path / "toy", lambda weights: weights.update({name: weights[name].to(dtype)}))
    refused(tmp_path / "toy", rf"{name} \(F8_\w+\) belongs to quantized weights, but config.json has no quant.*nothing")


@pytest.mark.parametrize(
    "name", ["mlp.up_proj.weight_scale", "mlp.up_proj.weight_scale_inv", "mlp.up_proj.input_scale",
             "mlp.up_proj.scales", "mlp.up_proj.qweight", "self_attn.k_scale", "mlp.up_proj.weight_zero_point"],
)  # fmt: skip
def test_what_is_left_of_a_quantization(tmp_path: Path, name: str):
    save_toy(tmp_path / "toy")
    edit(tmp_path / "toy", lambda weights: weights.update({f"model.layers.1.{name}": torch.ones(1)}))
    refused(tmp_path / "toy", rf"model\.layers\.1\.{name}.*quantized weights.*quantization_config")


# Tied weights


def untied(folder: Path) -> Any:
    """A folder whose configuration ties the output head that its weights have of their own."""
    saved = save_toy(folder, tie_word_embeddings=False)
    configure(folder, tie_word_embeddings=True)
    return saved


@pytest.mark.parametrize("recipe", ["magnitude@0.1", "wanda@0.5", "rtn@8b"])
def test_an_output_head_of_its_own_is_kept_everywhere(tmp_path: Path, recipe: str):
    saved = untied(tmp_path / "toy")
    head = saved.network.lm_head.weight
    loaded = load(tmp_path / "toy")
    meta = load_meta_model(str(tmp_path / "toy"), dtype="float32", device="cpu")
    assert same_weights(loaded, saved)
    assert (loaded.info.parameters, meta.info) == (saved.info.parameters, loaded.info)
    assert meta.obstacle is None
    compress_checkpoint(
        str(tmp_path / "toy"), recipe, tmp_path / "out", calibration=CalibrationPlan(sequences=2, length=32),
        dtype="float32", device="cpu", observer=Silent(),
    )  # fmt: skip
    again = load(tmp_path / "out")
    assert torch.equal(again.network.lm_head.weight, head)
    assert not torch.equal(again.network.lm_head.weight, again.network.model.embed_tokens.weight)
    for network in (loaded.network, meta.model.network, again.network):
        assert network.config.tie_word_embeddings is False


def test_a_copy_of_the_embeddings_is_tied(tmp_path: Path):
    saved = save_toy(tmp_path / "toy", tie_word_embeddings=True)
    embeddings = saved.network.model.embed_tokens.weight
    edit(tmp_path / "toy", lambda weights: weights.update({"lm_head.weight": embeddings.clone()}))
    model, meta = load(tmp_path / "toy"), load_meta_model(str(tmp_path / "toy"), dtype="float32", device="cpu")
    assert model.network.lm_head.weight is model.network.model.embed_tokens.weight
    assert model.network.config.tie_word_embeddings is True
    assert (meta.info.parameters, meta.obstacle) == (saved.info.parameters, None)
    assert meta.tied == {"lm_head.weight": "model.embed_tokens.weight"}


def test_what_is_equal_in_the_precision_of_the_network_is_tied(tmp_path: Path):
    saved = save_toy(tmp_path / "toy", tie_word_embeddings=True)
    nearly = saved.network.model.embed_tokens.weight.bfloat16().float() * (1 + 2**-12)
    edit(
        tmp_path / "toy",
        lambda weights: weights.update(
            {"lm_head.weight": nearly, "model.embed_tokens.weight": nearly.bfloat16().float()}
        ),
    )
    for dtype, tied in (("bfloat16", True), ("float32", False)):
        model = load_model(str(tmp_path / "toy"), dtype=dtype, device="cpu")
        meta = load_meta_model(str(tmp_path / "toy"), dtype=dtype, device="cpu")
        assert (model.network.lm_head.weight is model.network.model.embed_tokens.weight) is tied
        assert ("lm_head.weight" in meta.tied) is tied
        assert model.info == meta.info


def test_embeddings_that_are_stored_as_the_output_head_alone(tmp_path: Path):
    saved = save_toy(tmp_path / "toy", tie_word_embeddings=True)
    edit(tmp_path / "toy", lambda w: w.update({"lm_head.weight": w.pop("model.embed_tokens.weight")}))
    assert same_weights(load(tmp_path / "toy"), saved)
