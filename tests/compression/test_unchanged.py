"""Which weights a compression leaves as they are."""

from __future__ import annotations

import pytest

from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.unchanged import names_outside_blocks, names_outside_layers, output_heads
from toy import ARCHITECTURES, toy_model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_layers_and_unchanged_weights_are_all_weights(architecture: str):
    network = toy_model(architecture).network
    blocks = decoder_blocks(network)
    layers = {layer.place.parameter for block in blocks for layer in block.layers}
    unchanged = names_outside_layers(network, blocks)
    twins = set(network.all_tied_weights_keys)
    assert len(unchanged) == len(set(unchanged))
    assert layers.isdisjoint(unchanged)
    assert layers | set(unchanged) | twins == set(network.state_dict())
    outside = names_outside_blocks(network, blocks)
    assert outside == [name for name in unchanged if not any(name.startswith(f"{b.name}.") for b in blocks)]
    assert 0 < len(outside) < len(unchanged)  # the blocks have norms


def test_a_tied_head_is_no_weight_of_its_own():
    network = toy_model("qwen2").network
    blocks = decoder_blocks(network)
    assert network.all_tied_weights_keys == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "model.embed_tokens.weight" in names_outside_blocks(network, blocks)
    assert "lm_head.weight" not in names_outside_layers(network, blocks)
    assert output_heads(network) == ["lm_head"]
