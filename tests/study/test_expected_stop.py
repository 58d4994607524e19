"""Where cells with early stopping are expected to end, against runs of the rule and drawn studies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from llmkick.compression.registry import parse_recipe
from llmkick.study.expected_ends import ExpectedEnds
from llmkick.study.expected_losses import Losses
from llmkick.study.expected_stop import StopSettings, expected_rise, items_until_decided
from llmkick.study.parts import Part, PartState
from llmkick.study.running.early_stopping import Asked
from llmkick.study.running.seen_scores import rise_of_perplexity
from llmkick.tasks.registry import get_task
from simulated_studies import PARAMETERS, DrawnStudy, DrawnTask
from timelines import stated

WRITTEN, CHOICES = DrawnTask(4000, 0.6), DrawnTask(4000, 0.75, 0.25)
PASSAGES = DrawnTask(4000, 0.65, cluster=12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "loss"),
    [(task, loss) for task in (WRITTEN, CHOICES, PASSAGES) for loss in (0.0, 0.15, 0.25, 0.4, 0.95)],
)
def test_bets_decide_after_about_the_expected_number_of_items(task: DrawnTask, loss: float):
    ends = []
    for seed in range(16):
        study = DrawnStudy({"task": task}, {"wanda@0.5": 1.0}, seed=seed)
        dense = Asked(scores=dict(study.dense["task"]), ask=_nobody)
        compressed = Asked(scores=dict(study.answers("task", loss)), ask=_nobody)
        ends.append(study.rules["task"].until_decided(dense, compressed).items)
    expected = items_until_decided(loss, task.accuracy, study.rules["task"].settings)
    assert float(np.median(ends)) == pytest.approx(min(expected, task.items), rel=0.3)


def _nobody(batch: object) -> dict[str, float | None]:
    raise AssertionError("all items have answers")


def test_a_loss_at_the_margin_is_never_decided_and_larger_ones_sooner():
    stop = StopSettings(margin=0.05, alpha=0.05)
    assert items_until_decided(0.05, 0.6, stop) == math.inf
    needed = [items_until_decided(loss, 0.6, stop) for loss in (0.08, 0.12, 0.2, 0.4, 0.9)]
    assert needed == sorted(needed, reverse=True)
    assert items_until_decided(0.12, 0.6, replace(stop, alpha=0.001)) > needed[1]
    assert items_until_decided(0.12, 0.3, stop) > needed[1]


def test_a_match_that_is_to_pass_a_correction_takes_longer_and_a_loss_does_not():
    alone, of_six = StopSettings(), StopSettings(family_size=6)
    assert items_until_decided(0.0, 0.6, of_six) == items_until_decided(0.0, 0.6, StopSettings(alpha=0.05 / 6))
    assert items_until_decided(0.0, 0.6, of_six) > items_until_decided(0.0, 0.6, alone)
    assert items_until_decided(0.2, 0.6, of_six) == items_until_decided(0.2, 0.6, alone)


def test_the_expected_rise_follows_level_method_and_size():
    def rises(*recipes: str, parameters: int = PARAMETERS) -> list[float]:
        return [expected_rise(parse_recipe(recipe), parameters) for recipe in recipes]

    mild_to_severe = rises("rtn@8b", "wanda@0.3", "gptq@4b-g128", "wanda@0.5", "gptq@3b", "sparsegpt@2:4", "gptq@2b")
    assert mild_to_severe == sorted(mild_to_severe)
    assert rises("magnitude@0.5") > rises("wanda@0.5") > rises("wanda@0.5+eora-r8")
    assert rises("wanda@0.5+gptq@4b")[0] == pytest.approx(sum(rises("wanda@0.5", "gptq@4b")))
    # LLaMA-7B in arXiv:2306.11695 and arXiv:2210.17323.
    measured = {"wanda@0.5": 0.25, "wanda@2:4": 0.71, "gptq@4b": 0.07, "gptq@3b": 0.35}
    for recipe, rise in measured.items():
        assert rises(recipe, parameters=6_700_000_000)[0] == pytest.approx(rise, rel=0.4)


def test_what_is_measured_of_a_cell_tells_of_its_recipe_its_task_and_the_run():
    def losses() -> Losses:
        return Losses({"a": 0.3, "b": 0.3}, {"x": 1.0, "y": 1.0})

    cells = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    before = [belief.mean for belief in losses().of_cells(cells)]
    told = losses()
    told.see_loss("a", "x", 0.8, 0.02)
    after = [belief.mean for belief in told.of_cells(cells)]
    moved = [new - old for new, old in zip(after, before, strict=True)]
    assert moved[0] > max(moved[1], moved[2]) > min(moved[1], moved[2]) > moved[3] > 0
    told.see_rise("b", 0.01)
    assert told.of_cells(cells)[2].mean < before[2]
    assert told.of_cells(cells)[2].variance < losses().of_cells(cells)[2].variance


def ends_of(states: list[PartState]) -> list[float]:
    ends = ExpectedEnds(states)
    return [ends.steps(state) for state in states]


def cells(*recipes: str, items: int = 1000) -> list[PartState]:
    stop = StopSettings()
    parts = [Part(key="dense", pool=("ask", "t", "dense"), steps=items, cost=1, stop=stop, is_reference=True)]
    parts += [
        Part(
            key=recipe,
            pool=("ask", "t", "compared"),
            steps=items,
            cost=1,
            stop=stop,
            recipe=recipe,
            severity=expected_rise(parse_recipe(recipe), PARAMETERS),
        )
        for recipe in recipes
    ]
    return [PartState(part=part) for part in parts]


def test_mild_recipes_take_many_items_and_severe_ones_few():
    dense, eight, tenth, half = ends_of(cells("rtn@8b", "wanda@0.1", "magnitude@0.5"))
    assert half < 60 < 400 < min(eight, tenth)
    assert max(eight, tenth) <= dense <= 1000  # the dense model is asked as far as any of them


def test_a_running_cell_is_forecast_by_its_own_loss():
    states = cells("gptq@4b")
    states[0].accuracy = 0.6
    states[1].done = 128
    unknown = ends_of(states)[1]
    states[1].loss, states[1].loss_error = 0.05, 0.06
    near_the_margin = ends_of(states)[1]
    states[1].loss = 0.3
    assert ends_of(states)[1] < unknown < near_the_margin <= 1000
    assert ends_of(states)[1] > 128


def test_without_a_signal_one_batch_of_a_recipe_is_asked_and_every_item_of_the_dense_model():
    states = cells("wanda@0.1", "wanda@0.5")
    states[0].accuracy, states[0].has_signal = 0.02, False
    assert ends_of(states) == [1000, 32, 32]


def test_the_rise_of_perplexity_is_in_nats_a_token_on_the_windows_that_both_read():
    nats, bytes_ = get_task("perplexity", limit=2), get_task("perplexity", limit=2, unit="bytes")
    dense, compressed = {"a": 3.0, "b": 4.0, "c": None}, {"a": 3.2, "b": 4.4, "c": 9.0, "d": 9.0}
    assert rise_of_perplexity(nats, dense, compressed) == pytest.approx(0.3)
    assert rise_of_perplexity(bytes_, dense, compressed) == pytest.approx(0.3 * 4 * math.log(2))
    assert rise_of_perplexity(nats, dense, {}) is None
    assert rise_of_perplexity(get_task("factoid_qa", limit=2), dense, compressed) is None


def test_the_loss_so_far_has_the_error_of_its_clusters():
    """Answers that change by whole passages tell less than as many answers that change one by one."""
    single, passages = (DrawnStudy({"t": replace(WRITTEN, items=240, cluster=size)}, {}, seed=1) for size in (1, 12))
    dense = {f"{place}": 1.0 for place in range(240)}
    compressed: dict[str, float | None] = {f"{place}": float(place // 12 % 4 > 0) for place in range(240)}
    (loss, error), (same, larger) = (
        study.rules["t"].loss_so_far(dense, compressed) or (0.0, 0.0) for study in (single, passages)
    )
    assert loss == same == pytest.approx(0.25)
    assert error == pytest.approx(math.sqrt(0.25 * 0.75 / 240), rel=0.05)
    assert larger == pytest.approx(error * math.sqrt(12), rel=0.05)
    assert single.rules["t"].loss_so_far(dense, {"0": None}) is None


QUICK = {"factoid_qa": DrawnTask(480, 0.58), "cloze": DrawnTask(352, 0.75, 0.25, sensitivity=0.5)}
MANY = ["magnitude@0.1", "magnitude@0.3", "wanda@0.3", "wanda@0.5", "rtn@8b", "rtn@4b-g128", "gptq@3b-g128", "gptq@8b"]


def drawn(recipes: list[str], tasks: Mapping[str, DrawnTask], seed: int) -> DrawnStudy:
    """A study whose recipes and tasks are another model's: milder or worse, each and all together."""
    rng = np.random.default_rng(seed + 1000)
    run = rng.normal(0, 0.4)
    rises = {r: expected_rise(parse_recipe(r), PARAMETERS) * math.exp(run + rng.normal(0, 0.45)) for r in recipes}
    other = {
        name: replace(task, sensitivity=task.sensitivity * math.exp(rng.normal(0, 0.5))) for name, task in tasks.items()
    }
    return DrawnStudy(other, rises, seed=seed)


def test_drawn_studies_are_forecast():
    """A single study may be far off, as nobody knows the losses; half of them are not, and there is no bias."""
    worst, ratios = [], []
    for seed in range(8):
        answers = [answer for answer in stated(drawn(MANY, QUICK, seed).timeline())[::5] if answer.first_cell_done]
        after_a_tenth = [answer.left / answer.truth for answer in answers if 0.1 <= answer.share < 0.8 and answer.left]
        ratios.append(after_a_tenth[0])
        worst.append(max(max(ratio, 1 / ratio) for ratio in after_a_tenth))
    assert np.median(worst) < 1.35
    assert max(worst) < 1.8
    assert float(np.exp(np.mean(np.log(ratios)))) == pytest.approx(1, abs=0.15)
    assert np.median([max(ratio, 1 / ratio) for ratio in ratios]) < 1.2
