"""How often the processor waits for a GPU while a block is compressed: counted on meta tensors, without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expert_modules import toy_mixture
from launches import Launches
from llmkick.compression.kernels.layer import WeightResult
from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk import recipe_output, solved_layer
from llmkick.compression.walk.block_sources import BlocksInMemory
from llmkick.compression.walk.blocks import Block, decoder_blocks
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.finished_blocks import count_finished
from llmkick.compression.walk.inputs import InputRecord
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.recipe_output import RecipeOutput
from llmkick.compression.walk.walk import Walk
from llmkick.errors import NumericalError
from toy import toy_model

TOKENS, EXPERTS = 48, 4


def inputs_of(layers: tuple[LinearLayer, ...], device: torch.device) -> list[tuple[LinearLayer, Tensor]]:
    """What each layer is given: q, k and v share their input, as gate and up do, and each expert has one of its own."""
    shared: dict[str, Tensor] = {}
    given = []
    for layer in layers:
        kind = layer.name.rpartition(".")[2]
        key = "qkv" if kind in ("q_proj", "k_proj", "v_proj") else "gate_up" if kind in ("gate_proj", "up_proj") else ""
        fresh = torch.ones(2, TOKENS, layer.weight.shape[1], dtype=layer.weight.dtype, device=device)
        given.append((layer, shared.setdefault(key, fresh) if key else fresh))
    return given


def solved(text: str, architecture: str = "llama", *, network: nn.Module | None = None) -> tuple[Launches, Launches]:
    """What is counted while the inputs of a block are recorded and checked, and while the block is compressed.

    network: in place of a toy on the meta device.
    """
    if network is None:
        network = toy_model(architecture, dtype=torch.bfloat16).network.to("meta")
    device = network.get_input_embeddings().weight.device  # type: ignore[operator, union-attr]
    recipe = parse_recipe(text)
    block: Block = decoder_blocks(network)[0]
    record = InputRecord(block.layers, hessian=recipe.needs_hessian, squares=recipe.needs_squares, batches=1)
    with Launches(number=1) as recorded:
        record.add(inputs_of(block.layers, device))
        InputRecord.check_finite([record])
    output = RecipeOutput(recipe=recipe)
    source = BlocksInMemory(blocks=[block])
    walk = Walk(network=network, source=source, outputs=[output], device=device, propagate=True)
    with Launches(number=1) as counted:
        walk._compress_block(0, block, [output], {2: record})
    assert [layer.name for layer in output.tally.layers] == [layer.name for layer in block.layers]
    return recorded, counted


# The weights of a block are checked in one read, and all that is measured of the results in another. A factorisation is
# read once, because more damping may be needed: q, k and v share one, and so do gate and up. A recovery is timed, and
# is given results that were checked.
@pytest.mark.parametrize(
    ("text", "reads"),
    [("magnitude@0.5", 2), ("magnitude@2:4", 2), ("rtn@4b", 2), ("rtn@4b-g8", 2), ("wanda@0.5", 2), ("wanda@2:4", 2),
     ("sparsegpt@0.5", 2 + 4), ("sparsegpt@2:4", 2 + 4), ("sparsegpt@2:4+4b-g8", 2 + 4), ("gptq@4b", 2 + 4),
     ("gptq@4b-g8", 2 + 4), ("gptq@4b-g8-act", 2 + 4), ("wanda@0.5+gptq@4b", 2 + 4),
     ("wanda@0.5+reconstruct", 2 + 2 * 7), ("rtn@4b-g8+reconstruct", 2 + 2 * 7), ("wanda@2:4+eora-r2", 2 + 2 * 7),
     ("gptq@4b+eora-r2", 2 + 4 + 2 * 7)],
)  # fmt: skip
def test_a_block_is_waited_for_twice_and_once_for_each_factor(text: str, reads: int):
    recorded, counted = solved(text)
    assert recorded.synchronisations.total() == 1
    assert counted.synchronisations.total() == reads, counted.synchronisations


# q, k and v, o, and one Cholesky decomposition for all experts of each of the two parameters.
@pytest.mark.parametrize(
    ("text", "reads"),
    [("magnitude@0.5", 2), ("wanda@2:4", 2), ("sparsegpt@0.5", 2 + 4), ("gptq@4b-g8", 2 + 4),
     ("wanda@0.5+reconstruct", 2 + 4 + 2 + 4 + 2 * EXPERTS)],
)  # fmt: skip
def test_the_experts_of_a_mixture_are_waited_for_together(text: str, reads: int):
    _, counted = solved(text, "mixtral")
    assert counted.synchronisations.total() == reads, counted.synchronisations


def test_an_error_names_the_first_layer_in_order_and_its_block_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Although the results of all layers are looked at together, and experts are solved projection by projection."""
    monkeypatch.setattr(solved_layer, "batches_experts", lambda _device: True)
    first, later = "model.layers.1.mlp.experts.2.down_proj", "model.layers.1.mlp.experts.4.gate_proj"
    solve = recipe_output.compress_alike
    order: list[str] = []

    def overflowing(*arguments: Any, **options: Any) -> list[WeightResult]:
        results, names = solve(*arguments, **options), arguments[3]
        order.extend(names)
        return [
            result._replace(weight=result.weight / 0) if name in (first, later) else result
            for result, name in zip(results, names, strict=True)
        ]

    monkeypatch.setattr(recipe_output, "compress_alike", overflowing)
    windows = np.random.default_rng(0).integers(0, 284, (2, 24))
    with pytest.raises(NumericalError, match=rf"^{first}: rtn@4b leads to values that torch.float32 cannot hold"):
        compress(toy_mixture(), "rtn@4b", calibration=windows, keep=tmp_path)
    assert order.index(later) < order.index(first)
    assert count_finished(tmp_path) == 1


@pytest.mark.parametrize("text", ["magnitude@0.5", "gptq@4b", "rtn@4b+reconstruct"])
def test_a_damaged_weight_is_named_before_any_is_compressed(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setattr(
        recipe_output, "compress_with_statistics", lambda *_, **__: pytest.fail("compressed a damaged block")
    )
    network = toy_model().network
    for name in ("mlp.up_proj", "self_attn.o_proj"):
        network.get_submodule(f"model.layers.0.{name}").weight[1, 2] = torch.nan
    with pytest.raises(NumericalError, match=r"^model\.layers\.0\.self_attn\.o_proj: the weight holds NaN or Inf"):
        solved(text, network=network)
