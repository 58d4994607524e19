"""Simulated samples that are tested once, or not at all, change no result."""

from __future__ import annotations

import numpy as np
import pytest

from llmkick.statistics import Design, simulated_power, simulated_test
from llmkick.statistics.design import _has_power
from llmkick.statistics.simulated_test import SimulatedTest
from llmkick.statistics.verdict import loss_test

DESIGNS = {
    "independent": Design.of_items(60, accuracy=0.7, chance=0.25),
    "clusters": Design.of_items(60, accuracy=0.7, cluster_size=4),
    "graded": Design.of_items(40, accuracy=0.6, graded=True),
    "seeds": Design.of_items(60, accuracy=0.7, seeds=2),
}


@pytest.mark.parametrize("name", DESIGNS)
def test_a_sample_has_the_p_values_of_its_own_test(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    design, rng, asked = DESIGNS[name], np.random.default_rng(0), []
    monkeypatch.setattr(simulated_test, "loss_test", lambda *a: asked.append(1) or loss_test(*a))
    test = SimulatedTest(margin=0.05, alpha=0.05, chance=design.chance)
    for _ in range(150):
        scores = design.draw(0.1, rng)
        exact = loss_test(scores, 0.05, design.chance)
        assert test._p_values(scores) == pytest.approx((exact.p_above, exact.p_below), rel=1e-9, abs=1e-12)
        assert test.matches(scores) == (exact.p_above < 0.05)
        assert test.fails(scores) == (exact.p_below < 0.05)
    assert len(asked) < 150 if name == "independent" else len(asked) >= 150


def test_a_dense_score_at_chance_shows_nothing() -> None:
    scores = Design.of_items(40, accuracy=0.3).draw(1.0, np.random.default_rng(0))
    test = SimulatedTest(margin=0.05, alpha=0.05, chance=0.9)
    assert not test.matches(scores)
    assert not test.fails(scores)


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("loss", [0.0, 0.3])
def test_a_search_stops_drawing_without_another_answer(name: str, loss: float) -> None:
    design = DESIGNS[name]
    power = simulated_power(design, loss=loss, draws=100)
    for wanted in (0.01, power - 0.01, power, power + 0.01, 0.99):
        arguments = {"loss": loss, "margin": 0.05, "alpha": 0.05, "draws": 100, "seed": 0}
        assert _has_power(design, wanted, **arguments) == (power >= wanted)  # type: ignore[arg-type]
