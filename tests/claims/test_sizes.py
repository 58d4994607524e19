"""Claim 5: a large model pruned to the size of a small one, which is another run's dense model or stands beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from claims.made_up import made_up_run, variant, with_result
from llmkick.claims.evidence import NotAskedError
from llmkick.claims.runs import ClaimRun, models_of
from llmkick.claims.sizes import sparse_is_no_better
from llmkick.study.results.records import ComparedModel, CompressionSummary

CHOICE, RECIPE = "multiple_choice:letter", "wanda@0.4616"
LARGE, SMALL = 13_000_000_000, 7_000_000_000
LARGE_SCORE, CHANCE = 0.7, 0.25


def loss(score: float) -> float:
    """The relative loss of a model with this score against the large dense one."""
    return (LARGE_SCORE - score) / (LARGE_SCORE - CHANCE)


def external(label: str = "small", parameters: int | None = SMALL, precision: str = "float") -> ComparedModel:
    return ComparedModel.model_validate(
        {
            "label": label, "reference": f"./{label}", "architecture": "llama", "dtype": "bfloat16", "digest": label,
            "source_precision": precision, "parameters": parameters, "stored_bytes": None, "zeros": None,
        }
    )  # fmt: skip


def compression(recipe: str = RECIPE, share: float | None = None) -> CompressionSummary:
    return CompressionSummary.model_validate(
        {
            "recipe": recipe, "seed": 0, "calibration": None, "calibration_source": None, "digest": "d",
            "dense_bytes": 1, "stored_bytes": 1, "layers": (), "warnings": (), "model_share": share,
        }
    )  # fmt: skip


def study(
    sparse: float = 0.5, small: float = 0.6, *models: ComparedModel, items: int = 1500, **changes: Any
) -> ClaimRun:
    """A large model, pruned and dense, and a small one beside it, with these scores."""
    losses = {(RECIPE, CHOICE): loss(sparse), ("small", CHOICE): loss(small)}
    run = made_up_run(losses, items=items, dense={CHOICE: LARGE_SCORE}, model="large", parameters=LARGE)
    return with_result(run, models=models or (external(),), **changes)


def statements(*runs: ClaimRun) -> list[tuple[str, float, float]]:
    """Each statement with the probabilities for and against it."""
    return [(line.text, line.p_for, line.p_against) for line in sparse_is_no_better(models_of(runs)).statements]


def is_not_asked(*runs: ClaimRun) -> bool:
    with pytest.raises(NotAskedError, match=r"needs multiple choice, with a signal, of a pruned model and of a dense"):
        sparse_is_no_better(models_of(runs))
    return True


@pytest.mark.parametrize(("sparse", "small", "shown"), [(0.5, 0.6, True), (0.68, 0.5, False)])
def test_a_small_model_of_the_same_study(sparse: float, small: float, shown: bool) -> None:
    """As `kick paper section-4` asks it, with the small model among `others`."""
    ((text, p_for, p_against),) = statements(study(sparse, small))
    assert text == f"{RECIPE} of large is no better than small on {CHOICE}"
    assert (p_for < 0.025, p_against < 0.025) == (shown, not shown)


def test_equal_scores_are_within_the_margin() -> None:
    """No better by more than the margin: a model as good as the small one is no better."""
    ((_, p_for, _),) = statements(study(0.6, 0.6, items=20_000))
    assert p_for < 0.025


def test_a_small_model_of_another_study() -> None:
    large = made_up_run({(RECIPE, CHOICE): loss(0.5)}, dense={CHOICE: LARGE_SCORE}, model="large", parameters=LARGE)
    small = made_up_run({("wanda@0.5", CHOICE): 0.5}, dense={CHOICE: 0.6}, model="small", parameters=SMALL, name="two")
    ((text, p_for, _),) = statements(large, small)
    assert text == f"{RECIPE} of large is no better than small on {CHOICE}"
    assert p_for < 0.025


@pytest.mark.parametrize("parameters", [SMALL, round(SMALL * 0.96), round(SMALL * 1.04)])
def test_a_few_percent_of_the_parameters_make_no_other_size(parameters: int) -> None:
    assert statements(study(0.5, 0.6, external(parameters=parameters)))


@pytest.mark.parametrize("parameters", [None, round(SMALL * 0.93), round(SMALL * 1.07), LARGE])
def test_a_model_of_another_size_says_nothing(parameters: int | None) -> None:
    assert is_not_asked(study(0.5, 0.6, external(parameters=parameters)))


def test_the_bound_is_a_twentieth() -> None:
    left = LARGE * (1 - 0.4616)
    assert statements(study(0.5, 0.6, external(parameters=round(left / 1.049))))
    assert is_not_asked(study(0.5, 0.6, external(parameters=round(left / 1.051))))


def test_weights_that_are_never_pruned_are_left() -> None:
    """Either count will do: that of the paper, or that of the zeros where a tenth of the weights is embeddings."""
    left = external(parameters=round(LARGE * (1 - 0.4616 * 0.8)))
    assert is_not_asked(study(0.5, 0.6, left))
    assert statements(study(0.5, 0.6, left, compression=(compression(share=0.8),)))
    assert statements(study(0.5, 0.6, compression=(compression(share=0.8),)))
    others = (compression("magnitude@0.4616", share=0.8), compression(share=None))
    assert is_not_asked(study(0.5, 0.6, left, compression=others))


@pytest.mark.parametrize("precision", ["int4", "Q4_K_M", "gptq 4b"])
def test_a_compressed_model_is_no_small_dense_one(precision: str) -> None:
    assert is_not_asked(study(0.5, 0.6, external(precision=precision)))


def test_the_models_of_the_study_itself_are_none() -> None:
    """A study with external models lists its dense model and its recipes among them."""
    own = [external("dense"), external(RECIPE)]
    assert is_not_asked(study(0.5, 0.6, *own))
    assert len(statements(study(0.5, 0.6, *own, external()))) == 1


def test_other_items_are_named() -> None:
    """A run of the small model that was asked something else is no answer, unless another run is one."""
    large = made_up_run({(RECIPE, CHOICE): loss(0.5)}, dense={CHOICE: LARGE_SCORE}, model="large", parameters=LARGE)
    options: dict[str, Any] = {"dense": {CHOICE: 0.6}, "model": "small", "parameters": SMALL}
    fewer = made_up_run({("wanda@0.5", CHOICE): 0.5}, items=900, name="fewer", **options)
    models = models_of([large, fewer])
    with pytest.raises(NotAskedError, match="fewer and run asked other items"):
        sparse_is_no_better(models)
    same = made_up_run({("wanda@0.5", CHOICE): 0.5}, name="same", **options)
    both = [replace(model, runs=(*model.runs, same)) if model.name == "small" else model for model in models]
    assert len(sparse_is_no_better(both).statements) == 1


def test_a_small_model_at_chance_says_nothing() -> None:
    large = made_up_run({(RECIPE, CHOICE): loss(0.5)}, dense={CHOICE: LARGE_SCORE}, model="large", parameters=LARGE)
    small = made_up_run({("wanda@0.5", CHOICE): 0.0}, dense={CHOICE: CHANCE}, model="small", name="two")
    assert is_not_asked(large, small)


def test_a_recipe_with_an_axis_is_no_dense_model() -> None:
    """Its label is not among the recipes of the study file."""
    levels = tuple(variant(label) for label in (RECIPE, "small [sequences=8]"))
    run = study(0.5, 0.6, external("small [sequences=8]"))
    assert is_not_asked(with_result(run, variants=levels))


def test_a_model_is_not_held_against_a_larger_one() -> None:
    """A few zeros leave about as many parameters as a model of the same size has."""
    losses = {("wanda@0.02", CHOICE): 0.1, ("small", CHOICE): loss(0.6)}
    run = made_up_run(losses, dense={CHOICE: LARGE_SCORE}, model="large", parameters=LARGE)
    assert is_not_asked(with_result(run, models=(external(parameters=round(1.01 * LARGE)),)))
    assert statements(with_result(run, models=(external(parameters=round(0.99 * LARGE)),)))
