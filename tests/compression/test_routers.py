"""What is a router: in every mixture of experts of transformers, and what only looks like one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoModelForCausalLM

from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.routers import router_modules
from tiny import tiny_config
from toy import BLOCKS, toy_model

GATE = "mlp.gate.weight"
SHARED_GATE = "mlp.shared_expert_gate.weight"
# Model type → the weights of routers in its blocks, by their names in a block.
ROUTERS: dict[str, set[str] | frozenset[str]] = {
    **dict.fromkeys(
        ("axk1", "axk2", "bailing_hybrid", "beam", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32",
         "deepseek_v4", "dots1", "dots3_note_text", "ernie4_5_moe", "exaone_moe", "flex_olmo", "flint", "glm4_moe",
         "glm4_moe_lite", "glm_moe_dsa", "hy_v3", "hy_v4", "inkling2_text", "inkling_text", "kimi_linear", "kolibri1",
         "laguna", "mellum", "mimo_v2_flash", "minimax", "minimax_m2", "minimax_m3_vl_text", "mixtral", "olmoe",
         "qwen3_moe", "solar_open"),
        frozenset({GATE}),
    ),
    **dict.fromkeys(("qwen2_moe", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text"), frozenset({GATE, SHARED_GATE})),
    **dict.fromkeys(("aria_text", "gpt_oss", "phimoe"), frozenset({"mlp.router.weight"})),
    **dict.fromkeys(
        ("granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared"),
        frozenset({"block_sparse_moe.router.weight"}),
    ),
    **dict.fromkeys(("jamba", "llama4_text"), frozenset({"feed_forward.router.weight"})),
    "afmoe": {"mlp.router.gate.weight"},
    "dbrx": {"ffn.router.layer.weight"},
    "gemma3n_text": {"altup.modality_router.weight", "per_layer_input_gate.weight"},
    "hunyuan_v1_moe": {"mlp.gate.wg.weight"},
    "jetmoe": {"mlp.router.layer.weight", "self_attention.experts.router.layer.weight"},
    "lfm2_moe": {"feed_forward.gate.weight"},
    "longcat_flash": {"mlp.router.classifier.weight"},
    "nemotron_h": {"mixer.gate.weight"},
    "zaya": {f"mlp.gate.{name}.weight" for name in ("down_proj", "router_mlp.fc1", "router_mlp.fc2",
                                                      "router_mlp.out_proj")},
    # Gates of attention and of recurrent layers, and gated MLPs, route nothing.
    **{name: set() for name in ("bamba", "doge", "llama", "nanochat", "qwen3_5_text", "recurrent_gemma", "xlstm")},
}  # fmt: skip


def routers_of(network: nn.Module) -> set[str]:
    return {router.name.removeprefix(f"{block.name}.") for block in decoder_blocks(network) for router in block.routers}


@pytest.mark.parametrize("model_type", ROUTERS)
def test_routers_of_every_family_are_found_by_name(model_type: str):
    with init_empty_weights(include_buffers=False):
        network = AutoModelForCausalLM.from_config(tiny_config(model_type))
    network.tie_weights()
    assert routers_of(network) == ROUTERS[model_type]
    layers = {layer.place.parameter for block in decoder_blocks(network) for layer in block.layers}
    assert not any(name.endswith(tuple(ROUTERS[model_type])) for name in layers if ROUTERS[model_type])


@pytest.mark.parametrize(
    ("architecture", "settings", "names"),
    [
        ("gemma4_moe", {}, {"router.proj.weight", "per_layer_input_gate.weight"}),
        ("deepseek_v3", {"num_key_value_heads": 4}, {GATE}),
    ],
)
def test_routers_of_families_that_have_them_by_choice(architecture: str, settings: dict[str, Any], names: set[str]):
    assert routers_of(toy_model(architecture, **settings).network) == names


@pytest.mark.parametrize("architecture", [name for name in BLOCKS if name not in {"gemma4", "zamba", "zamba2"}])
def test_routers_are_as_they_were_and_listed_in_the_report(architecture: str):
    model = toy_model(architecture)
    before = {name: parameter.clone() for name, parameter in model.network.named_parameters()}
    compressed, report = compress(model, "magnitude@0.5", allow_partial=True)
    after = dict(compressed.network.named_parameters())
    assert report.routers
    assert {name.split(".", 3)[3] for name in report.routers} == routers_of(model.network)
    assert all(torch.equal(after[name], before[name]) for name in report.routers)
    named = {layer.name for layer in report.layers}
    assert not any(f"{name}" in report.routers for name in named | {f"{name}.weight" for name in named})


class Mixture(nn.Module):
    """Four experts with what may stand beside them: each of these gives four numbers, or one."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        for name in ("gate", "scores", "shared_expert_gate", "fc1_latent_proj", "gate_proj", "k_proj", "w1", "output"):
            setattr(self, name, nn.Linear(8, 4))
        self.weight_of_shared = nn.Linear(8, 1)
        self.wide = nn.Linear(8, 12)


class MixtureBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mixture = Mixture()
        self.k_proj, self.gate, self.forget_gate = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(8, 4)
        self.modality_router = nn.Linear(8, 3)


def test_routers_by_structure():
    """A linear layer among the experts with a number for each is a router, unless it is called a projection."""
    found = router_modules(MixtureBlock(), {"mixture": 4})
    assert found == {
        *("mixture.gate", "mixture.scores", "mixture.shared_expert_gate", "mixture.output"),
        *("mixture.weight_of_shared", "modality_router"),
    }


def test_a_projection_to_as_many_outputs_as_experts_is_no_router():
    """4 experts, and keys and values of width 4."""
    network = toy_model("phimoe", num_key_value_heads=1, head_dim=4).network
    names = {layer.name for layer in decoder_blocks(network)[0].layers}
    assert {"model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.v_proj"} <= names
    assert routers_of(network) == {"mlp.router.weight"}
