"""Checks that a recipe and a calibration fit a model, made before any work is done."""

from __future__ import annotations

from llmkick.compression.recipe import Recipe
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.calibration import Calibration
from llmkick.errors import ConfigError
from llmkick.models.transformers_model import TransformersModel


def check_recipe_fits(recipe: Recipe, blocks: list[Block], calibration: Calibration | None) -> None:
    """Raise ConfigError when a layer's width does not fit the recipe, or when it lacks a calibration."""
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
