"""Blocks and layers of every architecture, and running one block exactly as the whole network would."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmkick.compression.walk.block_forward import BlockOutput, BlockRunner
from llmkick.compression.walk.blocks import decoder_blocks, shallow_copy
from llmkick.compression.walk.input_hooks import InputHooks, experts_one_by_one
from llmkick.compression.walk.linear_layer import LinearLayer, replace_weights
from llmkick.errors import ModelError
from llmkick.models.weights import weights_digest
from speeds import others_slow
from toy import ARCHITECTURES, BLOCKS, UNUSUAL, toy_model

QKVO = {"self_attn.q_proj": (32, 16), "self_attn.k_proj": (16, 16), "self_attn.v_proj": (16, 16),
        "self_attn.o_proj": (16, 32)}  # fmt: skip
GATED = {**QKVO, "mlp.gate_proj": (32, 16), "mlp.up_proj": (32, 16), "mlp.down_proj": (16, 32)}
EXPERTS = {f"mlp.experts.gate_up_proj.{expert}": (64, 16) for expert in range(4)} | {
    f"mlp.experts.down_proj.{expert}": (16, 32) for expert in range(4)
}
# (prefix of the blocks' names, (out, in) of each linear layer)
LAYERS: dict[str, tuple[str, dict[str, tuple[int, int]]]] = {
    **dict.fromkeys(("llama", "qwen2", "gemma", "gemma2", "gemma3", "mistral"), ("model.layers", GATED)),
    "opt": (
        "model.decoder.layers",
        {**{f"self_attn.{name}": (16, 16) for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
         "fc1": (32, 16), "fc2": (16, 32)},
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        {"attention.query_key_value": (48, 16), "attention.dense": (16, 16),
         "mlp.dense_h_to_4h": (32, 16), "mlp.dense_4h_to_h": (16, 32)},
    ),
    "gpt2": (
        "transformer.h",
        {"attn.c_attn": (48, 16), "attn.c_proj": (16, 16), "mlp.c_fc": (32, 16), "mlp.c_proj": (16, 32)},
    ),
    "mixtral": ("model.layers", {**QKVO, **EXPERTS}),
}  # fmt: skip


def tokens(rows: int = 3, length: int = 20, seed: int = 0) -> Tensor:
    return torch.randint(0, 284, (rows, length), generator=torch.Generator().manual_seed(seed))


def outputs_of_blocks(network: nn.Module, ids: Tensor) -> list[Tensor]:
    """What each block hands on in one ordinary forward of the whole network."""
    outputs: list[Tensor] = []

    def hook(_module: nn.Module, _arguments: Any, output: Any) -> None:
        outputs.append(output[0] if isinstance(output, tuple | list) else output)

    handles = [block.module.register_forward_hook(hook) for block in decoder_blocks(network)]
    with torch.no_grad():
        network(ids)
    for handle in handles:
        handle.remove()
    return outputs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_linear_layer_is_found_in_the_form_out_in(architecture: str):
    network = toy_model(architecture).network
    prefix, expected = LAYERS[architecture]
    blocks = decoder_blocks(network)
    assert [block.name for block in blocks] == [f"{prefix}.{index}" for index in range(3)]
    for block in blocks:
        found = {layer.name: tuple(layer.weight.shape) for layer in block.layers}
        assert found == {f"{block.name}.{name}": shape for name, shape in expected.items()}
        # Every matrix of the block is in the list, or a router.
        listed = sum(layer.weight.numel() for layer in block.layers)
        matrices = {name: p for name, p in block.module.named_parameters() if p.dim() >= 2}
        routers = ["mlp.gate.weight"] if architecture == "mixtral" else []
        assert listed == sum(p.numel() for name, p in matrices.items() if name not in routers)
        assert [str(r) for r in block.routers] == [f"{block.name}.{name}: a router" for name in routers]
        assert block.dense == ()


@pytest.mark.parametrize("architecture", [*UNUSUAL, *BLOCKS])
def test_every_matrix_of_a_block_is_a_layer_or_named_as_dense(architecture: str):
    """Convolutions, states and routers are no layers. A weight that blocks share is a layer of the first of them."""
    network = toy_model(architecture).network
    blocks = decoder_blocks(network)
    names = {name: id(p) for name, p in network.named_parameters(remove_duplicate=False)}
    counted: dict[int, int] = {}
    for block in blocks:
        for layer in block.layers:
            parameter = names[layer.place.parameter]
            counted[parameter] = counted.get(parameter, 0) + layer.weight.numel()
        for matrix in (*block.routers, *block.dense):
            counted[names[matrix.name]] = matrix.weights
    matrices = {
        id(p): p.numel()
        for block in blocks
        for name, p in block.module.named_parameters()
        if p.dim() >= 2 and not name.endswith("bias")
    }
    assert counted == matrices


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_weight_is_what_the_layer_multiplies_by(architecture: str):
    network = toy_model(architecture).network
    for block in decoder_blocks(network):
        seen: dict[str, Tensor] = {}

        def record(layer: LinearLayer, inputs: Tensor, seen: dict[str, Tensor] = seen) -> None:
            seen[layer.name] = inputs

        with experts_one_by_one(network), InputHooks(block.layers) as hooks, hooks.calling(record), torch.no_grad():
            network(tokens(rows=2))
        for layer in block.layers:
            if layer.form == "expert":
                continue
            inputs = seen[layer.name]
            bias = getattr(layer.module, "bias", None)
            expected = inputs @ layer.weight.t() + (0 if bias is None else bias)
            assert torch.allclose(layer.module(inputs), expected, atol=1e-5), layer.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_replacing_a_weight_leaves_the_old_tensor_and_every_other(architecture: str):
    network = toy_model(architecture).network
    before = dict(network.named_parameters())
    values = {name: parameter.clone() for name, parameter in before.items()}
    layers = decoder_blocks(network)[1].layers
    wanted = {layer.name: torch.randn(layer.weight.shape) for layer in layers}
    for layer in layers:
        replace_weights([(layer, wanted[layer.name])])
    for layer in layers:
        assert torch.equal(layer.weight, wanted[layer.name])
        assert isinstance(getattr(layer.module, layer.parameter), nn.Parameter)
    replaced = {id(getattr(layer.module, layer.parameter)) for layer in layers}
    for name, parameter in network.named_parameters():
        assert torch.equal(before[name], values[name]), name  # the old tensor is as it was
        assert (id(parameter) in replaced) == (parameter is not before[name])


def test_a_weight_is_stored_in_the_dtype_of_the_network():
    network = toy_model("gpt2", dtype=torch.bfloat16).network
    for layer in decoder_blocks(network)[0].layers:
        replace_weights([(layer, torch.randn(layer.weight.shape))])
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    network(tokens())


def test_networks_without_blocks_are_refused():
    network = nn.Sequential(nn.Linear(8, 8), nn.ModuleList([nn.LayerNorm(8)] * 3))
    network.config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(num_hidden_layers=3))
    with pytest.raises(ModelError, match="no list of 3 decoder blocks with linear layers found in Sequential"):
        decoder_blocks(network)


# Running one block


def run(runner: BlockRunner, index: int, ids: Tensor, given: BlockOutput | None) -> BlockOutput:
    with runner.only(index) as forward:
        output = forward(ids, given)
    assert output is not None
    return output


ALL = {**ARCHITECTURES, **UNUSUAL, **BLOCKS}
# Shorter and longer than the sliding windows of 12.
LENGTHS = [(architecture, length) for architecture in ALL for length in (5, 40)]


@pytest.mark.parametrize(
    ("architecture", "length"),
    others_slow(LENGTHS, [one for one in LENGTHS if one[1] == 40 or "window" in str(ALL[one[0]])]),
)
def test_block_by_block_equals_the_whole_network(architecture: str, length: int):
    network, ids = toy_model(architecture).network, tokens(length=length)
    expected = outputs_of_blocks(network, ids)
    if architecture in ARCHITECTURES:  # the same as transformers says, where it means the same
        states = network(ids, output_hidden_states=True).hidden_states
        for output, state in zip(expected[:-1], states[1:-1], strict=True):  # the last one is normalised
            assert torch.equal(output, state)
    runner = BlockRunner(network, decoder_blocks(network))
    given = None
    with torch.no_grad():
        for index, output in enumerate(expected):
            given = run(runner, index, ids, given)
            assert torch.allclose(given.states, output, rtol=1e-5, atol=1e-5), index
    assert all("forward" not in vars(block.module) for block in decoder_blocks(network))
    assert torch.equal(outputs_of_blocks(network, ids)[-1], expected[-1])


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *UNUSUAL])
def test_a_block_runs_on_the_states_it_is_given(architecture: str):
    network, ids = toy_model(architecture).network, tokens(seed=1)
    blocks = decoder_blocks(network)
    given = torch.randn(3, 20, 16, generator=torch.Generator().manual_seed(2))

    def substitute(_module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        if "hidden_states" in keywords:
            return arguments, {**keywords, "hidden_states": given}
        return (given, *arguments[1:]), keywords

    handle = blocks[1].module.register_forward_pre_hook(substitute, with_kwargs=True)
    expected = outputs_of_blocks(network, ids)[1]
    handle.remove()
    runner = BlockRunner(network, blocks)
    with torch.no_grad():
        found = run(runner, 1, ids, BlockOutput(states=given)).states
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


class OtherStyle(nn.Module):
    """Blocks called by keyword that return a tuple, as some architectures have them; the second is not used."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

        def forward(self, *, hidden_states: Tensor, scale: float) -> tuple[Tensor, None]:
            return hidden_states + scale * torch.tanh(self.linear(hidden_states)), None

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(284, 8)
        self.layers = nn.ModuleList([self.Block() for _ in range(3)])
        self.config = SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(num_hidden_layers=3))

    def forward(self, input_ids: Tensor, use_cache: bool = True, output_hidden_states: bool = False) -> Any:
        states = [self.embedding(input_ids)]
        for number, layer in enumerate(self.layers):
            output, _ = layer(hidden_states=states[-1], scale=number + 0.5)
            states.append(output)
        return SimpleNamespace(hidden_states=states)


def test_blocks_called_by_keyword_that_return_more_than_their_states():
    network, ids = OtherStyle(), tokens()
    expected = outputs_of_blocks(network, ids)
    runner = BlockRunner(network, decoder_blocks(network))
    given = None
    with torch.no_grad():
        for index, output in enumerate(expected):
            given = run(runner, index, ids, given)
            assert torch.allclose(given.states, output)
        states = torch.randn(3, 20, 8)
        found = run(runner, 1, ids, BlockOutput(states=states)).states
        assert torch.allclose(found, network.layers[1](hidden_states=states, scale=1.5)[0])


def test_a_network_that_skips_a_block_is_refused():
    network = OtherStyle()
    blocks = decoder_blocks(network)
    runner = BlockRunner(network, blocks)
    network.layers = network.layers[:1]
    with torch.no_grad():
        hidden = run(runner, 0, tokens(), None)
        with pytest.raises(ModelError, match=r"the network never ran its block layers\.1"):
            run(runner, 1, tokens(), hidden)


def test_only_the_block_asked_for_runs():
    network, ids = toy_model().network, tokens()
    blocks = decoder_blocks(network)
    ran: list[int] = []
    handles = [
        block.module.mlp.register_forward_hook(lambda *_, i=index: ran.append(i)) for index, block in enumerate(blocks)
    ]
    handles.append(network.lm_head.register_forward_hook(lambda *_: ran.append(99)))
    runner = BlockRunner(network, blocks)
    with torch.no_grad():
        hidden = run(runner, 0, ids, None)
        run(runner, 1, ids, hidden)
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


def test_an_error_inside_a_block_leaves_the_network_usable():
    network, ids = toy_model().network, tokens()
    expected = outputs_of_blocks(network, ids)[-1]
    blocks = decoder_blocks(network)
    handle = blocks[1].module.mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.no_grad():
        run(BlockRunner(network, blocks), 1, ids, BlockOutput(states=torch.zeros(3, 20, 16)))
    handle.remove()
    assert torch.equal(outputs_of_blocks(network, ids)[-1], expected)


# Recording inputs


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hooks_are_gone_afterwards_even_after_an_error(architecture: str):
    network = toy_model(architecture).network
    layers = decoder_blocks(network)[0].layers

    def fails(_layer: LinearLayer, _inputs: Tensor) -> None:
        raise KeyError("stop")

    with experts_one_by_one(network), InputHooks(layers) as hooks, torch.no_grad():
        with pytest.raises(KeyError), hooks.calling(fails):
            network(tokens())
        network(tokens())  # nobody looks
    assert all(not layer.module._forward_pre_hooks for layer in layers)
    network(tokens())


def test_the_inputs_of_experts_are_the_tokens_routed_to_them():
    network, ids = toy_model("mixtral").network, tokens()
    block = decoder_blocks(network)[1]
    routed: list[tuple[Tensor, Tensor]] = []
    handle = block.module.mlp.experts.register_forward_pre_hook(
        lambda _module, arguments: routed.append((arguments[0].clone(), arguments[1].clone()))
    )
    seen: dict[str, list[Tensor]] = {}
    implementation = network.get_experts_implementation()

    def record(layer: LinearLayer, inputs: Tensor) -> None:
        seen.setdefault(layer.name, []).append(inputs)

    with torch.no_grad(), experts_one_by_one(network), InputHooks(block.layers) as hooks, hooks.calling(record):
        network(ids)
    handle.remove()
    assert network.get_experts_implementation() == implementation
    (states, chosen), experts = routed[0], block.module.mlp.experts
    for expert in range(4):
        rows = states[(chosen == expert).any(dim=1)]
        (recorded,) = seen[f"{block.name}.mlp.experts.gate_up_proj.{expert}"]
        assert torch.equal(sorted_rows(recorded), sorted_rows(rows))
        gate, up = (rows @ experts.gate_up_proj[expert].t()).chunk(2, dim=-1)
        (recorded,) = seen[f"{block.name}.mlp.experts.down_proj.{expert}"]
        assert torch.allclose(sorted_rows(recorded), sorted_rows(nn.functional.silu(gate) * up), atol=1e-5)


def sorted_rows(matrix: Tensor) -> Tensor:
    return matrix[matrix[:, 0].argsort()]


# Copies


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_shallow_copy_shares_every_tensor_until_a_weight_is_replaced(architecture: str):
    network = toy_model(architecture, tie_word_embeddings=True).network
    digest, ids = weights_digest(network), tokens()
    expected = network(ids).logits
    twin = shallow_copy(network)
    assert torch.equal(twin(ids).logits, expected)
    originals = dict(network.named_parameters())
    assert all(parameter is originals[name] for name, parameter in twin.named_parameters())
    assert twin.get_output_embeddings().weight is twin.get_input_embeddings().weight
    originals_modules = {id(module) for module in network.modules()}
    assert all(id(module) not in originals_modules for module in twin.modules())
    assert twin.config is not network.config
    layer = decoder_blocks(twin)[0].layers[0]
    replace_weights([(layer, torch.zeros_like(layer.weight))])
    assert not torch.equal(twin(ids).logits, expected)
    assert torch.equal(network(ids).logits, expected)
    assert weights_digest(network) == digest
    assert weights_digest(copy.deepcopy(twin)) == weights_digest(twin) != digest
