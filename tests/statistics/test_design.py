"""Power of a design by simulation: against draws of another kind, and its inverses against itself."""

from __future__ import annotations

import numpy as np
import pytest

from llmkick.errors import ConfigError
from llmkick.statistics import (
    Design,
    detectable_loss,
    items_for_power,
    items_needed,
    simulated_power,
    verdict_power,
)
from llmkick.statistics import design as design_module
from llmkick.statistics.design import cluster_sizes
from llmkick.statistics.verdict import PairedScores, decide

DRAWS = 400


def share_right(draws: list[tuple[np.ndarray, np.ndarray, np.ndarray]], verdict: str) -> float:
    drawn = (PairedScores(dense=d, compressed=c[None] * 1.0, cluster=g, low=0.0, high=1.0) for d, c, g in draws)
    verdicts = [decide(scores, margin=0.05, chance=0.0, alpha=0.05, same_model=False) for scores in drawn]
    return verdicts.count(verdict) / len(verdicts)  # type: ignore[arg-type]


@pytest.mark.parametrize(("items", "loss", "verdict"), [(300, 0.0, "matching"), (200, 0.2, "not matching")])
def test_independent_items_against_tables_of_counts(items: int, loss: float, verdict: str) -> None:
    """The four counts of a paired table from a multinomial distribution."""
    rng, accuracy = np.random.default_rng(1), 0.75
    net = loss * accuracy
    changed = max(0.1, net)
    gained = (changed - net) / 2
    cells = [accuracy - gained - net, gained + net, gained, 1 - accuracy - gained]
    draws = []
    for _ in range(DRAWS):
        counts = rng.multinomial(items, cells)
        draws.append((np.repeat([1.0, 1, 0, 0], counts), np.repeat([1.0, 0, 1, 0], counts), np.arange(items)))
    design = Design.of_items(items, accuracy=accuracy)
    power = simulated_power(design, loss=loss, draws=DRAWS)
    assert power == pytest.approx(share_right(draws, verdict), abs=0.05 + 0.05)
    assert power == pytest.approx(verdict_power(items, accuracy, loss=loss), abs=0.08)


def test_few_clusters_against_urns() -> None:
    """Twelve clusters of ten: each draws from urns of its own, to which every ball returns with copies (Pólya)."""
    rng, accuracy, correlation = np.random.default_rng(2), 0.7, 0.05

    def urn(share: float, size: int) -> np.ndarray:
        balls, returned = np.array([1 - share, share]) * (1 / correlation - 1), np.zeros(size)
        for k in range(size):
            returned[k] = rng.random() < balls[1] / balls.sum()
            balls[int(returned[k])] += 1
        return returned

    lost = 0.05 / accuracy
    draws = []
    for _ in range(DRAWS):
        dense, falling = (np.concatenate([urn(share, 10) for _ in range(12)]) for share in (accuracy, lost))
        rising = rng.random(120) < 0.05 / (1 - accuracy)
        draws.append((dense, np.where(dense > 0, 1 - falling, rising), np.repeat(np.arange(12), 10)))
    design = Design.of_items(120, cluster_size=10, accuracy=accuracy)
    power = simulated_power(design, draws=2 * DRAWS)
    assert power == pytest.approx(share_right(draws, "matching"), abs=0.05)
    # Normal theory without clusters promises far more.
    assert verdict_power(120, accuracy) > power + 0.05


def test_a_design_draws_what_it_says() -> None:
    rng = np.random.default_rng(3)
    for graded, seeds in ((False, 1), (True, 1), (False, 3), (True, 3)):
        design = Design.of_items(4000, cluster_size=4, accuracy=0.6, seeds=seeds, graded=graded, chance=0.2)
        drawn = [design.draw(0.2, rng) for _ in range(20)]
        assert np.mean([scores.dense.mean() for scores in drawn]) == pytest.approx(0.6, abs=0.01)
        losses = [1 - (s.compressed.mean() - 0.2) / (s.dense.mean() - 0.2) for s in drawn]
        assert np.mean(losses) == pytest.approx(0.2, abs=0.02)
        assert drawn[0].compressed.shape == (seeds, 4000)
        assert drawn[0].clusters == 1000
        assert drawn[0].binary is not graded


def test_seeds_that_differ_limit_power() -> None:
    one = simulated_power(Design.of_items(2000, accuracy=0.7), draws=100)
    two = simulated_power(Design.of_items(2000, accuracy=0.7, seeds=2, seed_spread=0.05), draws=100)
    assert one > 0.95
    assert two < 0.5


def test_a_limit_that_seeds_set_is_noticed_long_before_a_million_items(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    simulated = design_module._right_verdicts
    monkeypatch.setattr(
        design_module,
        "_right_verdicts",
        lambda design, *a, **k: asked.append(design.items) or simulated(design, *a, **k),
    )
    limited = Design.of_items(60, accuracy=0.5, seeds=2, seed_spread=0.1)
    assert items_for_power(limited, draws=50) is None
    assert max(asked) < 50_000
    # Seeds that hardly differ set none.
    assert items_for_power(Design.of_items(60, accuracy=0.75, seeds=3, seed_spread=0.0), draws=50) is not None


@pytest.mark.parametrize(
    ("design", "loss"),
    [(Design.of_items(1, accuracy=0.75), 0.0), (Design.of_items(8, cluster_size=4, accuracy=0.6), 0.2)],
)
def test_the_items_give_the_power(design: Design, loss: float) -> None:
    items = items_for_power(design, loss=loss, draws=200)
    assert items is not None
    # With other draws: within their error and the twentieth to which the number is searched.
    assert simulated_power(design.scaled(items), loss=loss, draws=400, seed=1) == pytest.approx(0.8, abs=0.08)
    assert simulated_power(design.scaled(items // 2), loss=loss, draws=200, seed=1) < 0.75
    if loss == 0:
        assert items == pytest.approx(items_needed(0.75), rel=0.2)


def test_the_loss_is_detected_and_no_smaller_one() -> None:
    design = Design.of_items(200, cluster_size=2, accuracy=0.7)
    loss = detectable_loss(design, draws=200)
    assert loss is not None
    assert simulated_power(design, loss=loss, draws=400, seed=1) == pytest.approx(0.8, abs=0.08)
    assert simulated_power(design, loss=0.05 + (loss - 0.05) / 2, draws=200, seed=1) < 0.7
    assert detectable_loss(Design.of_items(1, accuracy=0.7), draws=20) is None
    items = items_for_power(design, loss=loss, draws=200)
    assert items == pytest.approx(200, rel=0.2)


def test_sizes() -> None:
    assert Design.of_items(10, cluster_size=4, accuracy=0.5).cluster_sizes == (4, 4, 2)
    assert Design(cluster_sizes=(3, 1), accuracy=0.5).scaled(9).cluster_sizes == (3, 1, 3, 1, 3)
    assert cluster_sizes(["a", "b", "a", "c", "a"]) == (3, 1, 1)
    assert simulated_power(Design(cluster_sizes=(50,), accuracy=0.5), draws=10) == 0


@pytest.mark.parametrize(
    "changes",
    [{"accuracy": 0.0}, {"accuracy": 0.2, "chance": 0.25}, {"correlation": 1.0}, {"discordance": 1.5}, {"seeds": 0}],
)
def test_designs_that_cannot_be(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Design(**{"cluster_sizes": (1, 1), "accuracy": 0.5, **changes})  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        items_for_power(Design.of_items(10, accuracy=0.5), loss=0.05)
