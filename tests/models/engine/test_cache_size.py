"""The memory of a token, for networks whose configuration does not tell it: measured, and right for every layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmkick.models.engine.cache_size import bytes_a_token, cache_bytes_a_token
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    ModelInfo,
    ScoreRequest,
)
from llmkick.models.transformers_model import TransformersModel
from toy import ARCHITECTURES, UNUSUAL, toy_model, toy_tokenizer

COMMON: dict[str, Any] = {
    "vocab_size": 288, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
TWO_KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 16}
# model type: what differs from COMMON, and the cached values of one token over all layers
LAYOUTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "heads of two widths": (
        "gemma4_text",
        {**TWO_KINDS, "head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 8,
         "vocab_size_per_layer_input": 288, "num_kv_shared_layers": 0},
        2 * 2 * (8 + 16) * 2,
    ),
    "keys shared between layers": (
        "gemma4_text",
        {**TWO_KINDS, "head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 8,
         "vocab_size_per_layer_input": 288, "num_kv_shared_layers": 2},
        2 * 2 * (8 + 16),
    ),
    "one layer in four with attention": (
        "qwen3_next",
        {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
         "linear_value_head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "shared_expert_intermediate_size": 16,
         "layer_types": ["linear_attention"] * 3 + ["full_attention"]},
        2 * 2 * 8,
    ),
    "no attention": ("mamba2", {"num_heads": 8, "head_dim": 8, "n_groups": 2, "state_size": 8}, 0),
}  # fmt: skip


def network_of(layout: str) -> Any:
    model_type, own, _ = LAYOUTS[layout]
    wanted = {**COMMON, **own}
    if model_type == "mamba2":
        wanted = {name: wanted[name] for name in wanted if "attention" not in name and "key_value" not in name}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**wanted)).eval().requires_grad_(False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cached_values_of_a_token(layout: str):
    network = network_of(layout)
    assert cache_bytes_a_token(network) == 4 * LAYOUTS[layout][2]
    assert cache_bytes_a_token(network.bfloat16()) == 4 * LAYOUTS[layout][2]  # measured once


@pytest.mark.parametrize("layout", LAYOUTS)
def test_networks_of_every_layout_answer(layout: str):
    network = network_of(layout)
    info = ModelInfo(name="x", revision="", digest="", architecture="", parameters=0, dtype="float32")
    model = TransformersModel.wrap(network, toy_tokenizer(), info)
    scores = model.logprobs([ScoreRequest("the and", " on"), ScoreRequest("the", " and the")])
    answers = model.generate([GenerateRequest("the and", max_new_tokens=4), GenerateRequest("a", max_new_tokens=2)])
    assert all(isinstance(score, ContinuationScore) for score in scores)
    assert all(isinstance(answer, Generation) for answer in answers)
    assert bytes_a_token(network) >= 2 * cache_bytes_a_token(network) + (12 * 32 + 4 * 48) * 4


@pytest.mark.parametrize("architecture", {**ARCHITECTURES, **UNUSUAL})
def test_a_token_more_takes_as_much_as_measured(architecture: str):
    network = toy_model(architecture).network

    def cached(tokens: int) -> int:
        cache = getattr(network(torch.zeros(1, tokens, dtype=torch.long), use_cache=True), "past_key_values", None)
        layers = getattr(cache, "layers", ())
        states = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        return sum(state.numel() * 4 for state in states if state is not None)

    assert cached(6) - cached(5) == cache_bytes_a_token(network)


def test_the_inner_width_may_differ_between_layers():
    network = toy_model().network
    network.config.__dict__["intermediate_size"] = [32, 80, 64]
    assert bytes_a_token(network) == 2 * 384 + (12 * 16 + 4 * 80) * 4
    network.config.__dict__["intermediate_size"] = None
    assert bytes_a_token(network) == 2 * 384 + (12 * 16 + 4 * 64) * 4
