"""The names that plug-ins import: for compression methods, tasks and models of your own.

They are kept stable, wherever in the package the code lies; everything else may move. They are imported when first
used, so that `from llmkick.extend import Method` does not import torch. A method in a few lines:

    from dataclasses import dataclass
    from llmkick.extend import Layer, Method, Pattern, Recipe, parse_pattern, zero_lowest_per_row

    @dataclass(frozen=True, kw_only=True)
    class Small(Recipe):
        name = "small"
        pattern: Pattern

    def parse(level):
        return Small(pattern=parse_pattern("small", level, ["small@0.5"]))

    def compress(recipe, layer: Layer):
        count = int(layer.weight.shape[1] * recipe.pattern.sparsity)
        return layer.weight.masked_fill(zero_lowest_per_row(layer.weight.abs(), count), 0)

    METHOD = Method(summary="prune small weights", examples=("small@0.5",), parse=parse, kernel=compress)

Names that are neither a class nor a function: `Pattern` is `Unstructured | NM`, the sparsity that a recipe asks for;
`Prompt` is raw text or a tuple of `Message`; `Prompting` is "chat" or "raw"; `Answer` is what a model returned for a
request, `ContinuationScore | Generation | Unanswered`; `SENTENCE_EXAMPLES` are the questions with answers that a prompt
without a chat template shows before the question.
"""

from typing import TYPE_CHECKING

from llmkick.lazy_imports import lazy_names

if TYPE_CHECKING:
    from llmkick.compression.kernels.factor import HessianFactor
    from llmkick.compression.kernels.grid import FittedGrid, fit_grid, round_to_grid
    from llmkick.compression.kernels.hessian import InputStatistics
    from llmkick.compression.kernels.layer import Layer, WeightResult
    from llmkick.compression.kernels.masks import zero_lowest_per_group, zero_lowest_per_row, zero_up_to_quantile
    from llmkick.compression.kernels.patterns import NM, Grid, Pattern, Unstructured
    from llmkick.compression.levels import parse_grid, parse_pattern
    from llmkick.compression.methods import Method
    from llmkick.compression.recipe import Recipe
    from llmkick.errors import ConfigError, DataError, KickError, ModelError, NumericalError
    from llmkick.models.language_model import (
        ContinuationScore,
        GenerateRequest,
        Generation,
        LanguageModel,
        Message,
        ModelDefaults,
        ModelInfo,
        Prompt,
        ScoreRequest,
        Unanswered,
    )
    from llmkick.models.transformers_model import TransformersModel
    from llmkick.tasks.data.sources import stratified_sample
    from llmkick.tasks.metrics import contains_alias, exact_match, normalise, token_f1
    from llmkick.tasks.prompting import SENTENCE_EXAMPLES, Prompting, question_prompt
    from llmkick.tasks.question_answering import score_answer
    from llmkick.tasks.task import Answer, Item, Record, Task, TaskEntry, content_hash, task_key, unscored

# Module → the names that it has: the same as above, for the import at first use.
_HOME = {
    "llmkick.compression.kernels.grid": ("FittedGrid", "fit_grid", "round_to_grid"),
    "llmkick.compression.kernels.factor": ("HessianFactor",),
    "llmkick.compression.kernels.hessian": ("InputStatistics",),
    "llmkick.compression.kernels.layer": ("Layer", "WeightResult"),
    "llmkick.compression.kernels.masks": ("zero_lowest_per_group", "zero_lowest_per_row", "zero_up_to_quantile"),
    "llmkick.compression.kernels.patterns": ("NM", "Grid", "Pattern", "Unstructured"),
    "llmkick.compression.levels": ("parse_grid", "parse_pattern"),
    "llmkick.compression.methods": ("Method",),
    "llmkick.compression.recipe": ("Recipe",),
    "llmkick.errors": ("ConfigError", "DataError", "KickError", "ModelError", "NumericalError"),
    "llmkick.models.language_model": (
        "ContinuationScore",
        "GenerateRequest",
        "Generation",
        "LanguageModel",
        "Message",
        "ModelDefaults",
        "ModelInfo",
        "Prompt",
        "ScoreRequest",
        "Unanswered",
    ),
    "llmkick.models.transformers_model": ("TransformersModel",),
    "llmkick.tasks.data.sources": ("stratified_sample",),
    "llmkick.tasks.metrics": ("contains_alias", "exact_match", "normalise", "token_f1"),
    "llmkick.tasks.prompting": ("SENTENCE_EXAMPLES", "Prompting", "question_prompt"),
    "llmkick.tasks.question_answering": ("score_answer",),
    "llmkick.tasks.task": (
        "Answer",
        "Item",
        "Record",
        "Task",
        "TaskEntry",
        "content_hash",
        "task_key",
        "unscored",
    ),
}

__all__ = [
    "NM",
    "SENTENCE_EXAMPLES",
    "Answer",
    "ConfigError",
    "ContinuationScore",
    "DataError",
    "FittedGrid",
    "GenerateRequest",
    "Generation",
    "Grid",
    "HessianFactor",
    "InputStatistics",
    "Item",
    "KickError",
    "LanguageModel",
    "Layer",
    "Message",
    "Method",
    "ModelDefaults",
    "ModelError",
    "ModelInfo",
    "NumericalError",
    "Pattern",
    "Prompt",
    "Prompting",
    "Recipe",
    "Record",
    "ScoreRequest",
    "Task",
    "TaskEntry",
    "TransformersModel",
    "Unanswered",
    "Unstructured",
    "WeightResult",
    "contains_alias",
    "content_hash",
    "exact_match",
    "fit_grid",
    "normalise",
    "parse_grid",
    "parse_pattern",
    "question_prompt",
    "round_to_grid",
    "score_answer",
    "stratified_sample",
    "task_key",
    "token_f1",
    "unscored",
    "zero_lowest_per_group",
    "zero_lowest_per_row",
    "zero_up_to_quantile",
]

__getattr__, __dir__ = lazy_names(globals(), _HOME)
