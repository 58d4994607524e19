"""Finding the blocks: those that write text, each of which runs once, or a refusal before any work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmkick.compression.walk.block_list import find_blocks
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.checks import check_compressible
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.text_forward import text_forward
from llmkick.errors import ModelError
from llmkick.models.checkpoints.loading import load_model
from tiny import tiny_network
from toy import ARCHITECTURES, BLOCKS, UNUSUAL, toy_model, toy_tokenizer

TEXT = {"vocab_size": 288, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 4, "max_position_embeddings": 256}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
          "image_size": 28, "patch_size": 14}  # fmt: skip
# Model type → settings with a vision tower as deep as the language model, and the blocks of the latter.
AS_DEEP: dict[str, tuple[dict[str, Any], str]] = {
    "gemma3": (
        {"text_config": {**TEXT, "sliding_window": 12, "query_pre_attn_scalar": 4},
         "vision_config": {**VISION, "model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4},
        "model.language_model.layers",
    ),
    "got_ocr2": (
        {"text_config": {**TEXT, "model_type": "qwen2"},
         "vision_config": {**VISION, "mlp_dim": 32, "output_channels": 8, "global_attn_indexes": [1]}},
        "model.language_model.layers",
    ),
    "git": ({**TEXT, "vision_config": VISION}, "git.encoder.layer"),
    "llama4": (
        {"text_config": {**TEXT, "intermediate_size_mlp": 32, "num_local_experts": 4}, "vision_config": VISION},
        "model.layers",
    ),
}  # fmt: skip


def as_deep(model_type: str) -> Any:
    settings, _ = AS_DEEP[model_type]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**settings)).eval().requires_grad_(False)


@pytest.mark.parametrize("model_type", AS_DEEP)
def test_a_vision_tower_as_deep_as_the_language_model_holds_no_blocks(model_type: str):
    network = as_deep(model_type)
    _, prefix = AS_DEEP[model_type]
    blocks = decoder_blocks(network)
    assert [block.name for block in blocks] == [f"{prefix}.{index}" for index in range(3)]
    check_compressible(network, blocks, allow_partial=False)


def test_the_vision_tower_stays_as_it_was(tmp_path: Path):
    as_deep("gemma3").save_pretrained(tmp_path)
    toy_tokenizer().save_pretrained(tmp_path)
    model = load_model(str(tmp_path), dtype="float32")
    compressed, report = compress(model, "wanda@0.5", calibration=np.random.default_rng(0).integers(0, 284, (4, 20)))
    before = dict(model.network.named_parameters())
    changed = {name for name, p in compressed.network.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {f"{layer.name}.weight" for layer in report.layers}
    assert all(name.startswith("model.language_model.layers.") for name in changed)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *UNUSUAL, *BLOCKS])
def test_every_block_runs_once_on_text(architecture: str):
    network = toy_model(architecture).network
    blocks = decoder_blocks(network)
    ran: list[int] = []
    handles = [b.module.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(blocks)]
    with torch.no_grad():
        network(torch.zeros(2, 5, dtype=torch.long), use_cache=False)
    for handle in handles:
        handle.remove()
    dry = text_forward(network, [block.module for block in blocks])
    assert list(dry.runs) == ran == list(range(len(blocks)))
    assert bool(dry.kept) == (architecture == "inkling2")
    assert dry.uses_extras == (architecture in {"glm_moe_dsa", "zaya"})


def test_a_dry_forward_computes_with_no_weight_and_changes_none():
    network = toy_model("gemma4").network
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    modules = [block.module for block in decoder_blocks(network)]
    network.to("meta")
    on_meta = text_forward(network, modules)
    whole = toy_model("gemma4").network
    assert text_forward(whole, [block.module for block in decoder_blocks(whole)]) == on_meta
    assert all(torch.equal(p, before[name]) for name, p in whole.named_parameters())
    assert "forward" not in vars(decoder_blocks(whole)[0].module)


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("hrm_text", r"spread over the lists model\.L_module\.layers, model\.H_module\.layers"),
        ("xlm", r"spread over the lists transformer\.attentions, transformer\.ffns"),
        ("blt", r"spread over the lists"),
        ("bart", r"encoder_attn attends to an encoder"),
        ("whisper", r"encoder_attn attends to an encoder"),
        ("prophetnet", r"cross_attn attends to an encoder"),
        ("rwkv", r"it divides its own weights while it runs"),
        ("mllama", r"cross_attn attends to an encoder"),
    ],
)
def test_families_that_cannot_be_compressed_are_refused_in_one_line(model_type: str, reason: str):
    network = tiny_network(model_type)
    with pytest.raises(ModelError, match=reason) as refused:
        check_compressible(network, decoder_blocks(network), allow_partial=True)
    assert str(refused.value).startswith(type(network).__name__)
    assert "\n" not in str(refused.value)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(3))

    def forward(self, states: Tensor) -> Tensor:
        return states + sum(torch.tanh(expert(states)) for expert in self.experts)


class Network(nn.Module):
    """Three blocks, each with as many experts as there are blocks; beside them adapters that run, and a tower."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order
        self.tower = nn.ModuleList(Block() for _ in range(3))
        self.embedding = nn.Embedding(284, 8)
        self.adapters = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(num_hidden_layers=3))

    def forward(self, input_ids: Tensor, use_cache: bool = True) -> Tensor:
        states = self.embedding(input_ids)
        for number in self.order:
            states = self.layers[number](self.adapters[number](states))
        return states


def test_lists_inside_blocks_of_bare_layers_and_that_do_not_run_are_none():
    assert find_blocks(Network((0, 1, 2)))[0] == "layers"


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ((0, 1), r"layers\.2 does not run"),
        ((0, 1, 2, 1), r"layers\.1 runs 2 times"),
        ((), "Network cannot be run on text alone"),
    ],
)
def test_blocks_that_do_not_run_once_are_refused(order: tuple[int, ...], reason: str):
    network = Network(order)
    del network.tower
    with pytest.raises(ModelError, match=reason):
        check_compressible(network, decoder_blocks(network), allow_partial=True)


def test_a_block_that_stands_twice_in_the_list_is_refused():
    network = Network((0, 1, 2))
    network.layers[2] = network.layers[0]
    with pytest.raises(ModelError, match=r"layers\.0 runs 2 times|layers\.0 does not run|layers\.2"):
        check_compressible(network, decoder_blocks(network), allow_partial=True)
