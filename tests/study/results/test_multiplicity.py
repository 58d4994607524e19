"""Recipes judged together, and agreement over choices, against hand counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from llmkick.statistics import Comparison, compare, compare_perplexity, compare_stopped, holm, order_items
from llmkick.study.results.multiplicity import ALL_TASKS, agreement, correction_note, families, family_size
from llmkick.study.results.records import Family

RECIPES = ["wanda@0.1", "wanda@0.3", "wanda@0.5", "rtn@8b", "rtn@4b"]


def found(recipe: str, task: str, lost: int, *, right: int = 600, **options: Any) -> Comparison:
    dense = [1.0] * right + [0.0] * (1000 - right)
    compressed = [0.0] * lost + dense[lost:]
    return compare(dense, compressed, recipe=recipe, task=task, explain=False, **options)


def matching(families_: list[Family], scope: str) -> dict[str, bool]:
    (family,) = [one for one in families_ if one["scope"] == scope]
    return {row["recipe"]: row["matching"] for row in family["recipes"]}


LOST = {"wanda@0.1": 10, "wanda@0.3": 21, "wanda@0.5": 10, "rtn@8b": 10, "rtn@4b": 90}


def test_holm_over_the_recipes_of_a_task():
    comparisons = [found(recipe, "facts", lost) for recipe, lost in LOST.items()]
    got = families(comparisons, RECIPES, correction="holm", alpha=0.05)
    (facts,) = [one for one in got if one["scope"] == "facts"]
    expected = holm({one.recipe: one.p_matching for one in comparisons})
    assert [(row["recipe"], row["adjusted_p"], row["matching"]) for row in facts["recipes"]] == [
        (recipe, *expected[recipe]) for recipe in RECIPES
    ]
    assert (facts["correction"], facts["alpha"]) == ("holm", 0.05)
    # On its own 21 lost of 600 match; beside four others they do not.
    assert comparisons[1].verdict == "matching"
    assert not matching(got, "facts")["wanda@0.3"]


def test_on_all_tasks_the_largest_p_counts():
    comparisons = [found(recipe, "facts", 5) for recipe in RECIPES] + [
        found(r, "choices", lost) for r, lost in LOST.items()
    ]
    got = families(comparisons, RECIPES, correction="holm", alpha=0.05)
    (overall,) = [one for one in got if one["scope"] == ALL_TASKS]
    by_recipe = {row["recipe"]: row["p"] for row in overall["recipes"]}
    assert by_recipe == {one.recipe: one.p_matching for one in comparisons[5:]}


def test_a_sequence_stops_at_each_methods_first_failure():
    comparisons = [found(recipe, "facts", lost) for recipe, lost in {**LOST, "wanda@0.3": 60}.items()]
    got = families(comparisons, RECIPES, correction="fixed sequence", alpha=0.05)
    assert matching(got, "facts") == {
        "wanda@0.1": True, "wanda@0.3": False, "wanda@0.5": False, "rtn@8b": True, "rtn@4b": False,
    }  # fmt: skip
    # Two methods share alpha: p = 0.03 is not enough for the first of one.
    some = [found("rtn@8b", "facts", lost) for lost in range(10, 30)]
    borderline = next(one for one in some if 0.025 < (one.p_matching or 0) < 0.05)
    options: dict[str, Any] = {"correction": "fixed sequence", "alpha": 0.05}
    alone = families([borderline], ["rtn@8b"], **options)
    beside = families([borderline, found("wanda@0.1", "facts", 5)], ["rtn@8b", "wanda@0.1"], **options)
    assert matching(alone, "facts") == {"rtn@8b": True}
    assert matching(beside, "facts") == {"rtn@8b": False, "wanda@0.1": True}


def test_what_has_no_verdict_claims_nothing():
    silent = found("rtn@8b", "nothing", 0, right=0)
    incomplete = compare([1.0] * 100, [None] * 40 + [1.0] * 60, recipe="rtn@8b", task="gaps")
    assert (silent.verdict, incomplete.verdict) == ("no signal", "incomplete")
    got = families([silent, incomplete], ["rtn@8b"], correction="holm", alpha=0.05)
    assert {scope: matching(got, scope) for scope in ("nothing", "gaps", ALL_TASKS)} == {
        scope: {"rtn@8b": False} for scope in ("nothing", "gaps", ALL_TASKS)
    }
    # A task without a signal has no say over all tasks.
    good = found("rtn@8b", "facts", 5)
    assert matching(families([silent, good], ["rtn@8b"], correction="holm", alpha=0.05), ALL_TASKS)["rtn@8b"]


def test_the_same_weights_need_no_p():
    few = compare([1.0] * 10, [1.0] * 10, recipe="rtn@8b", task="facts", same_model=True)
    assert matching(families([few], ["rtn@8b"], correction="holm", alpha=0.05), "facts") == {"rtn@8b": True}


def test_perplexity_and_no_correction_make_no_family():
    text = compare_perplexity([1.0, 2.0, 3.0], [1.1, 2.1, 3.1], recipe="rtn@8b", task="text")
    assert families([text], ["rtn@8b"], correction="holm", alpha=0.05) == []
    assert families([found("rtn@8b", "facts", 5)], ["rtn@8b"], correction="none", alpha=0.05) == []


@pytest.mark.parametrize(("correction", "size"), [("none", 1), ("holm", 6), ("fixed sequence", 3)])
def test_the_size_of_a_family(correction: str, size: int):
    """In a sequence the methods share alpha; an external model is a method of its own."""
    assert family_size([*RECIPES, "other"], correction) == size
    assert family_size([], correction) == 1


@pytest.mark.parametrize("correction", ["holm", "fixed sequence"])
def test_recipes_that_stop_when_decided_can_pass_together(correction: str):
    recipes = ["wanda@0.1", "wanda@0.2", "rtn@8b", "gptq@8b", "magnitude@0.1", "sparsegpt@0.1"]
    rng, ids = np.random.default_rng(0), [f"q{index}" for index in range(4000)]
    dense = dict(zip(ids, (rng.random(4000) < 0.7) * 1.0, strict=True))
    # Each recipe loses nothing on average, and changes a few answers.
    answers = {
        recipe: {item: 1 - score if rng.random() < 0.01 else score for item, score in dense.items()}
        for recipe in recipes
    }

    def passing(size: int) -> int:
        comparisons = [
            compare_stopped(order_items(ids), dense, answers[recipe], family_size=size, task="facts", recipe=recipe)
            for recipe in recipes
        ]
        assert {one.verdict for one in comparisons} == {"matching"}
        return sum(matching(families(comparisons, recipes, correction=correction, alpha=0.05), "facts").values())

    assert passing(family_size(recipes, correction)) == len(recipes)
    assert passing(1) <= 1


def test_bets_that_rejected_both_claims_are_no_match():
    both = replace(found("rtn@8b", "facts", 90), p_matching=0.04, p_not_matching=0.001)
    assert both.verdict == "not matching"
    assert matching(families([both], ["rtn@8b"], correction="holm", alpha=0.05), "facts") == {"rtn@8b": False}


@pytest.mark.parametrize(
    ("correction", "word"), [("none", "on its own"), ("holm", "Holm"), ("fixed sequence", "sequence")]
)
def test_which_it_is_is_said(correction: str, word: str):
    note = correction_note(RECIPES, correction, 0.05)
    assert word in note
    assert "5%" in note


# Agreement


def records(recipe: str, rows: list[tuple[list[float] | None, str]], seed: int | None = None) -> list[dict[str, Any]]:
    return [
        {
            "recipe": recipe, "seed": seed, "task": "choices", "item_id": f"q{index}", "response": response,
            "details": {} if values is None else {"choice_logprobs": values},
        }
        for index, (values, response) in enumerate(rows)
    ]  # fmt: skip


def test_agreement_by_hand():
    dense = records("dense", [([-1.0, -2.0], "A. one"), ([-3.0, -1.0], "B. two"), ([-1.0, -1.0], "A. one")])
    other = records("rtn@4b", [([-2.0, -1.0], "B. two"), ([-3.0, -1.0], "B. two"), ([-1.0, -1.0], "A. one")])
    (row,) = agreement(pd.DataFrame(dense + other), ["rtn@4b"])
    p = np.exp([-1.0, -2.0]) / np.exp([-1.0, -2.0]).sum()
    assert row["mean_kl"] == pytest.approx((p * np.log(p / p[::-1])).sum() / 3)
    assert row["top1_agreement"] == pytest.approx(2 / 3)
    assert (row["task"], row["recipe"], row["seed"], row["n"]) == ("choices", "rtn@4b", None, 3)


def test_what_was_chosen_is_what_the_record_says():
    """Cloze chooses by length: the likeliest option need not be the one chosen."""
    dense = records("dense", [([-1.0, -2.0], "B. two")])
    other = records("rtn@4b", [([-1.0, -2.0], "A. one")])
    assert agreement(pd.DataFrame(dense + other), ["rtn@4b"])[0]["top1_agreement"] == 0


def test_only_what_both_have_scored_counts():
    dense = records("dense", [([-1.0, -2.0], "A. one"), (None, ""), ([-1.0, -2.0], "A. one"), ([-1.0, -2.0], "A")])
    other = records("rtn@4b", [([-1.0, -2.0], "A. one"), ([-1.0, -2.0], "A. one"), ([float("-inf"), -2.0], "B. two")])
    assert [row["n"] for row in agreement(pd.DataFrame(dense + other), ["rtn@4b"])] == [1]


def test_a_row_for_every_seed():
    rows = [([-1.0, -2.0], "A. one")]
    frame = pd.DataFrame(records("dense", rows) + records("wanda@0.1", rows, 3) + records("wanda@0.1", rows, 1))
    rows_found = agreement(frame, ["wanda@0.1", "rtn@4b"])
    assert [(row["recipe"], row["seed"]) for row in rows_found] == [("wanda@0.1", 1), ("wanda@0.1", 3)]


def test_tasks_without_choices_have_no_agreement():
    frame = pd.DataFrame(records("dense", [(None, "yes")]) + records("rtn@4b", [(None, "no")]))
    assert agreement(frame, ["rtn@4b"]) == []
