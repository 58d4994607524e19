"""Levels from mild to severe, and what is no grid."""

from __future__ import annotations

import pytest

from llmkick.errors import ConfigError
from llmkick.study.levels import GRIDS, level_grid, level_text, severity


def levels(text: str) -> list[str]:
    return [level_text(recipe) for recipe in level_grid(text).recipes]


def test_every_kind_has_a_grid():
    assert levels("wanda") == list(GRIDS["sparsity"])
    assert levels("sparsegpt@n:m") == list(GRIDS["n:m"])
    assert levels("gptq") == levels("gptq@bits") == list(GRIDS["bits"])
    assert [level_grid(text).kind for text in ("magnitude", "wanda@N:M", "rtn")] == ["sparsity", "n:m", "bits"]


@pytest.mark.parametrize("kind", GRIDS)
def test_the_grids_are_mild_first(kind: str):
    method = "rtn" if kind == "bits" else "magnitude"
    recipes = level_grid(f"{method}@{kind}").recipes
    places = [severity(recipe) for recipe in recipes]
    assert places == sorted(places)
    assert len(set(places)) == len(places)


def test_listed_levels_are_put_in_order():
    assert levels("wanda@0.5,0.1,0.3") == ["0.1", "0.3", "0.5"]
    assert levels("wanda@2:4,7:8,4:8") == ["7:8", "4:8", "2:4"]
    assert levels("gptq@3b, 4b, 4b-g128,8b") == ["8b", "4b-g128", "4b", "3b"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("wander", "unknown method 'wander' in 'wander'; choose from: magnitude, wanda, sparsegpt, rtn, gptq"),
        ("dense", "unknown method 'dense'"),
        ("wanda@bits", "wanda has no levels of kind 'bits'; choose from: sparsity, n:m"),
        ("gptq@sparsity", "gptq has no levels of kind 'sparsity'; choose from: bits"),
        ("wanda@0.5", "give two levels or more"),
        ("wanda@0.5,0.50", "give two levels or more, each once"),
        ("wanda@0.5,2:4", "levels of different kinds have no order"),
        ("sparsegpt@0.5+4b,0.6+4b", "levels of different kinds have no order"),
        ("gptq@4b,5b", "'5b' is not a grid of gptq"),
        ("wanda@0.5,1.5", "sparsity 1.5"),
    ],
)
def test_what_is_no_grid(text: str, reason: str):
    with pytest.raises(ConfigError) as raised:
        level_grid(text)
    assert reason in str(raised.value)
