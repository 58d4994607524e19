"""Items and losses: the guide figures, the inverses of each other, and a simulation of what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.errors import ConfigError
from llmkick.statistics import items_needed, smallest_detectable_loss, verdict_power
from llmkick.statistics.verdict import PairedScores, decide


@pytest.mark.parametrize(("accuracy", "items"), [(0.75, 420), (0.45, 1170), (0.3, 2600)])
def test_guide_figures(accuracy: float, items: int) -> None:
    assert items_needed(accuracy) == pytest.approx(items, rel=0.015)


def test_variance_by_enumeration() -> None:
    """Accuracy 0.6, discordance 0.2: the four cells at a loss of 10 % and at the margin, by hand."""

    def moments(right: float, lost: float, gained: float) -> tuple[float, float]:
        cells = {0.05: right, -0.95: lost, 1.0: gained}
        mean = sum(p * t for t, p in cells.items())
        return mean, (sum(p * t**2 for t, p in cells.items()) - mean**2) ** 0.5

    mean, spread = moments(0.47, 0.13, 0.07)
    zero, at_margin = moments(0.485, 0.115, 0.085)
    assert zero == pytest.approx(0)
    expected = ((1.644854 * max(spread, at_margin) + 0.841621 * spread) / mean) ** 2
    assert items_needed(0.6, loss=0.1, discordance=0.2) == pytest.approx(expected, abs=1)


def test_nothing_changes_follows_the_rule_of_three() -> None:
    """All right and no discordance: still some 59 items, since fewer cannot exclude 5 % lost (0.95 ** 59 < 0.05)."""
    assert 45 <= items_needed(1.0, discordance=0.0) <= 60
    # Nothing can be gained where nothing was wrong.
    assert items_needed(1.0, discordance=0.2) == items_needed(1.0, discordance=0.0)
    assert verdict_power(100, 1.0, discordance=0.0) == 1
    assert verdict_power(20, 1.0, discordance=0.0) == 0


@settings(max_examples=50, deadline=None)
@given(
    accuracy=st.floats(0.2, 1),
    loss=st.one_of(st.floats(0, 0.03), st.floats(0.08, 0.9)),
    discordance=st.floats(0.01, 0.3),
)
def test_items_give_the_power(accuracy: float, loss: float, discordance: float) -> None:
    n = items_needed(accuracy, loss=loss, discordance=discordance)
    assert verdict_power(n, accuracy, loss=loss, discordance=discordance) >= 0.8 - 1e-9
    if n > 1:
        assert verdict_power(n - 1, accuracy, loss=loss, discordance=discordance) < 0.8


@pytest.mark.parametrize("items", [100, 400, 2000])
def test_smallest_detectable_loss_is_the_inverse(items: int) -> None:
    loss = smallest_detectable_loss(items, 0.6)
    assert loss is not None
    assert loss > 0.05
    assert items_needed(0.6, loss=loss) == pytest.approx(items, abs=1)


def test_more_items_detect_less() -> None:
    losses = [smallest_detectable_loss(n, 0.45) for n in (50, 200, 1000, 14_042)]
    assert losses == sorted(losses, reverse=True)  # type: ignore[type-var]
    assert smallest_detectable_loss(3, 0.3) is None


def test_clusters_cost_their_design_effect() -> None:
    assert items_needed(0.6, design_effect=3.0) == pytest.approx(3 * items_needed(0.6), abs=3)
    assert verdict_power(300, 0.6, design_effect=3.0) == pytest.approx(verdict_power(100, 0.6))


@pytest.mark.parametrize(("accuracy", "loss", "verdict"), [(0.75, 0.0, "matching"), (0.75, 0.12, "not matching")])
def test_power_by_simulation(accuracy: float, loss: float, verdict: str) -> None:
    rng = np.random.default_rng(0)
    n = items_needed(accuracy, loss=loss)
    net = loss * accuracy
    lost = (0.1 + net) / 2
    hits, draws = 0, 600
    for _ in range(draws):
        counts = rng.multinomial(n, [accuracy - lost, lost, lost - net, 1 - accuracy - lost + net])
        dense, compressed = np.repeat([1.0, 1, 0, 0], counts), np.repeat([1.0, 0, 1, 0], counts)
        scores = PairedScores(dense=dense, compressed=compressed[None], cluster=np.arange(n), low=0, high=1)
        hits += decide(scores, margin=0.05, chance=0.0, alpha=0.05) == verdict
    assert hits / draws == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"accuracy": 0.0},
        {"accuracy": 75.0},
        {"accuracy": 0.5, "discordance": -0.1},
        {"accuracy": 0.5, "loss": 0.05},
    ],
)
def test_out_of_range(kwargs: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        items_needed(**kwargs)
    with pytest.raises(ConfigError, match="0 items"):
        verdict_power(0, 0.5)
