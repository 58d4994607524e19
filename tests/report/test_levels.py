import pytest

from llmkick.report.level_axes import KINDS
from llmkick.study.levels import level_of_text


@pytest.mark.parametrize(
    ("recipe", "method", "kind", "label", "sparsity"),
    [
        ("wanda@0.5", "wanda", "sparsity", "0.5", 0.5),
        ("magnitude@.25", "magnitude", "sparsity", ".25", 0.25),
        ("wanda@2:4", "wanda", "n:m", "2:4", None),
        ("rtn@8b", "rtn", "bits", "8b", None),
        ("gptq@3b-g64-act", "gptq", "bits", "3b-g64-act", None),
        ("sparsegpt@0.5+4b", "sparsegpt", "combined", "0.5+4b", None),
        ("wanda@2:4+gptq@4b-g128", "wanda+gptq", "combined", "2:4+4b-g128", None),
        ("future@x9", "future", "other", "x9", None),
        ("future", "future", "other", "future", None),
        ("a@1:0", "a", "other", "1:0", None),
    ],
)
def test_a_recipe_has_its_place(recipe, method, kind, label, sparsity):
    level = level_of_text(recipe)
    assert (level.method, level.kind, level.label, level.sparsity) == (method, kind, label, sparsity)
    assert level.recipe == recipe
    assert level.kind in KINDS


def test_levels_of_a_kind_are_ordered_from_mild_to_severe():
    mild_first = [
        ["a@0.1", "a@0.25", "a@0.5"],
        ["a@4:8", "a@2:4", "a@1:4"],
        ["a@8b", "a@4b-g64", "a@4b-g128", "a@4b", "a@3b-g64", "a@2b"],
        ["a@0.25+8b", "a@0.5+8b", "a@0.5+4b"],
    ]
    for recipes in mild_first:
        severe_first = recipes[::-1]
        assert sorted(severe_first, key=lambda recipe: level_of_text(recipe).severity) == recipes
