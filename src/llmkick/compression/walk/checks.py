"""Whether a recipe and a calibration suit a model: asked before any work is done."""

from __future__ import annotations

from llmkick.compression.recipe import Recipe
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.calibration import Calibration
from llmkick.errors import ConfigError
from llmkick.models.transformers_model import TransformersModel


def check_recipe_fits(recipe: Recipe, blocks: list[Block], calibration: Calibration | None) -> None:
    """Raise ConfigError, before any work, when a layer's width does not suit the recipe."""
    for block in blocks:
        for layer in block.layers:
            width = layer.weight.shape[1]
            if width % recipe.multiple:
                raise ConfigError(
                    f"{recipe}: {layer.name} has {width} inputs, which is not a multiple of {recipe.multiple}; "
                    "choose a pattern whose M divides every layer's width"
                )
    if recipe.needs_calibration and calibration is None:
        raise ConfigError(f"{recipe} needs calibration: pass a Calibration or token ids (sequences, tokens)")


def check_calibration_fits(calibration: Calibration, model: TransformersModel) -> None:
    """Raise ConfigError, before any work, for windows that the model cannot read."""
    tokens, vocabulary = calibration.tokens, model.network.get_input_embeddings().weight.shape[0]
    strange = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if strange.size:
        raise ConfigError(
            f"calibration holds token id {strange[0]}, but the model's vocabulary has {vocabulary}: "
            "it was made with another tokenizer"
        )
    if tokens.shape[1] > model.max_tokens:
        raise ConfigError(
            f"calibration windows of {tokens.shape[1]} tokens exceed the model's context of {model.max_tokens}"
        )


def uneven_groups(recipe: Recipe, blocks: list[Block]) -> list[str]:
    """Which widths the recipe's group size does not divide: their rows end in a smaller group, as in GPTQ's code."""
    group = recipe.group_size
    widths = sorted({layer.weight.shape[1] for block in blocks for layer in block.layers})
    return [
        f"the last group of rows with {width} inputs has {width % group} inputs instead of {group}"
        for width in widths
        if group is not None and width % group
    ]
