"""Levels: what tables and figures say about a recipe, and the order of recipes from mild to severe."""

import math

import pytest

from llmkick.compression.levels import level_of
from llmkick.compression.recipe import Recipe
from llmkick.compression.registry import parse_recipe


@pytest.mark.parametrize(
    ("text", "method", "kind", "label", "sparsity"),
    [
        ("wanda@0.5", "wanda", "sparsity", "0.5", 0.5),
        ("magnitude@.25", "magnitude", "sparsity", "0.25", 0.25),
        ("wanda@2:4", "wanda", "n:m", "2:4", None),
        ("rtn@8b", "rtn", "bits", "8b", None),
        ("gptq@3b-g64-act", "gptq", "bits", "3b-g64-act", None),
        ("sparsegpt@0.5+4b", "sparsegpt", "combined", "0.5+4b", None),
        ("wanda@2:4+gptq@4b-g128", "wanda+gptq", "combined", "2:4+4b-g128", None),
        ("dense", "dense", "other", "dense", None),
    ],
)
def test_a_recipe_has_its_level(text, method, kind, label, sparsity):
    level = level_of(parse_recipe(text))
    assert (level.method, level.kind, level.label, level.sparsity) == (method, kind, label, sparsity)
    assert level.recipe == str(parse_recipe(text))


def test_a_recipe_without_a_pattern_is_of_another_kind():
    class Future(Recipe):
        name = "future"

        def __str__(self) -> str:
            return "future@x9"

    level = level_of(Future())
    assert (level.method, level.kind, level.label, level.severity) == ("future", "other", "x9", ())


@pytest.mark.parametrize(
    "mild_first",
    [
        ["wanda@0.1", "wanda@0.25", "wanda@0.5"],
        ["wanda@4:8", "wanda@2:4", "wanda@1:4"],
        ["gptq@8b", "gptq@4b-g64", "gptq@4b-g128", "gptq@4b", "gptq@3b-g64", "gptq@2b"],
        ["sparsegpt@0.25+8b", "sparsegpt@0.5+8b", "sparsegpt@0.5+4b"],
    ],
)
def test_levels_of_a_kind_are_ordered_from_mild_to_severe(mild_first):
    levels = [level_of(parse_recipe(text)) for text in mild_first]
    severe_first = levels[::-1]
    assert sorted(severe_first, key=lambda level: level.severity) == levels
    assert all(math.isfinite(number) for level in levels for number in level.severity)
