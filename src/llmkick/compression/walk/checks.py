"""Checks that a recipe and a calibration fit a model, made before any work is done."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from llmkick.compression.recipe import Recipe, Recovered
from llmkick.compression.recoveries import LowRank
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.processes import Processes
from llmkick.compression.walk.text_forward import text_forward
from llmkick.errors import ConfigError, ModelError
from llmkick.models.transformers_model import TransformersModel

# Modules that attend to the outputs of an encoder.
_CROSS_ATTENTION = re.compile(r"(encoder_attn|encoder_attention|cross_?attn|cross_?attention|EncDecAttention)$")
# Share of the weights of all blocks that a recipe has to compress, unless the user allows less.
LEAST_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class WeightCounts:
    """Numbers of weights: in the layers that recipes compress, in all matrices of the blocks, and in the whole model.

    Biases, norms and what else has one dimension count in the model only; shared weights count once.
    """

    layers: int
    blocks: int
    model: int
    routers: tuple[str, ...]  # names of the routers' weights

    @property
    def share(self) -> float:
        """Share of the weights of the blocks that recipes compress."""
        return self.layers / self.blocks


def count_weights(network: nn.Module, blocks: list[Block]) -> WeightCounts:
    """The numbers of weights of a network and its blocks."""
    layers = sum(layer.weight.numel() for block in blocks for layer in block.layers)
    dense = sum(matrix.weights for block in blocks for matrix in (*block.routers, *block.dense))
    model = sum(parameter.numel() for parameter in network.parameters())
    routers = tuple(matrix.name for block in blocks for matrix in block.routers)
    return WeightCounts(layers=layers, blocks=layers + dense, model=model, routers=routers)


def check_compressible(network: nn.Module, blocks: list[Block], *, allow_partial: bool) -> None:
    """Raise ModelError where the blocks do not run each once when the network reads text, or need an encoder.

    Raise ConfigError where recipes would leave a large part of the blocks dense, unless `allow_partial`.
    """
    architecture = type(network).__name__
    for block in blocks:
        for name, _ in block.module.named_modules():
            if _CROSS_ATTENTION.search(name):
                raise ModelError(
                    f"{architecture} cannot be compressed: {block.name}.{name} attends to an encoder, and only models "
                    "that read nothing but text are calibrated here"
                )
    runs = Counter(text_forward(network, [block.module for block in blocks]).runs)
    for number, block in enumerate(blocks):
        if runs[number] != 1:
            how = f"runs {runs[number]} times" if runs[number] else "does not run"
            raise ModelError(
                f"{architecture} cannot be compressed: its block {block.name} {how} when the model reads text, and "
                "each block must run once"
            )
    counts = count_weights(network, blocks)
    if counts.share < LEAST_SHARE and not allow_partial:
        raise ConfigError(
            f"{architecture}: recipes would compress {counts.share:.1%} of the weights in its blocks and leave the "
            f"rest dense, the most of it in {_largest_dense(blocks)}; allow that with --allow-partial, or "
            "allow_partial = true"
        )


def _largest_dense(blocks: list[Block]) -> str:
    """The names of the largest dense matrices, with * for the number of the block, and their shares of all dense."""
    sizes: Counter[str] = Counter()
    for block in blocks:
        for matrix in (*block.routers, *block.dense):
            sizes[re.sub(r"\.\d+(?=\.)", ".*", matrix.name)] += matrix.weights
    return ", ".join(f"{name} ({size / sizes.total():.0%})" for name, size in sizes.most_common(3))


def check_seen(block: Block, is_seen: Callable[[LinearLayer], bool]) -> None:
    """Raise ModelError where the calibration did not reach a large part of a block, or none of its experts.

    Single experts that no token was routed to do not count: the report names them.
    """
    seen = {_part(layer) for layer in block.layers if is_seen(layer)}
    unseen = [layer for layer in block.layers if _part(layer) not in seen]
    missed = sum(layer.weight.numel() for layer in unseen)
    if missed > (1 - LEAST_SHARE) * sum(layer.weight.numel() for layer in block.layers):
        names = dict.fromkeys(f"{block.name}.{layer.role}" if layer.role else layer.place.parameter for layer in unseen)
        raise ModelError(
            f"{block.name}: calibration text does not reach {', '.join(names)}, so a recipe that needs calibration "
            "would leave them dense; choose one that needs none, or allow that with --allow-partial"
        )


def _part(layer: LinearLayer) -> object:
    """What a layer of an expert has in common with those of the other experts."""
    return layer.role or (id(layer.module), layer.parameter)


def check_recipe_fits(recipe: Recipe, blocks: list[Block], calibration: Calibration | None) -> None:
    """Raise ConfigError when a layer's size does not fit the recipe, or when it lacks a calibration."""
    rank = recipe.recovery.rank if isinstance(recipe, Recovered) and isinstance(recipe.recovery, LowRank) else 0
    for block in blocks:
        for layer in block.layers:
            width = layer.weight.shape[1]
            if width % recipe.multiple:
                raise ConfigError(
                    f"{recipe}: {layer.name} has {width} inputs, which is not a multiple of {recipe.multiple}; "
                    "choose a pattern whose M divides every layer's width"
                )
            if rank > (most := min(layer.weight.shape)):
                shape = " × ".join(map(str, layer.weight.shape))
                raise ConfigError(
                    f"{recipe}: rank {rank} is more than {layer.name}, a matrix of {shape}, can have; "
                    f"give at most {most}"
                )
    if recipe.needs_calibration and calibration is None:
        raise ConfigError(f"{recipe} needs calibration: pass a Calibration or token ids (sequences, tokens)")


def check_calibration_fits(calibration: Calibration, model: TransformersModel) -> None:
    """Raise ConfigError for windows that the model cannot read: foreign token ids, or too many tokens."""
    tokens, vocabulary = calibration.tokens, model.network.get_input_embeddings().weight.shape[0]
    unknown_ids = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if unknown_ids.size:
        raise ConfigError(
            f"calibration holds token id {unknown_ids[0]}, but the model's vocabulary has {vocabulary}: "
            "it was made with another tokenizer"
        )
    if tokens.shape[1] > model.max_tokens:
        raise ConfigError(
            f"calibration windows of {tokens.shape[1]} tokens exceed the model's context of {model.max_tokens}"
        )


def uneven_groups(recipe: Recipe, blocks: list[Block]) -> list[str]:
    """Warnings about widths that the group size does not divide: rows end in a smaller group, as in GPTQ's code."""
    group = recipe.group_size
    widths = sorted({layer.weight.shape[1] for block in blocks for layer in block.layers})
    return [
        f"the last group of rows with {width} inputs has {width % group} inputs instead of {group}"
        for width in widths
        if group is not None and width % group
    ]


def refuse_several(recipe: Recipe, processes: Processes) -> None:
    """Raise ConfigError for a recovery that several processes are to share."""
    if processes.count > 1 and isinstance(recipe, Recovered):
        raise ConfigError(
            f"{recipe}: a recovery runs in one process, not in {processes.count}; start the command without torchrun"
        )
