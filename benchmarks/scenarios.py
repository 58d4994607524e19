"""Paired scores whose true relative loss is known: the scenarios of benchmarks/statistics.py."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmkick.statistics import stratified_order
from llmkick.statistics.verdict import PairedScores

Rng = np.random.Generator
Floats = NDArray[np.float64]
MARGIN = 0.05


@dataclass(frozen=True)
class Scenario:
    """A way to draw paired scores whose true relative loss is known."""

    name: str
    loss: float
    draw: Callable[[Rng], PairedScores]
    strata: bool = False  # whether the codes are of fixed strata, in which items are independent


def paired(dense: Floats, compressed: Floats, cluster: NDArray[np.int64] | None = None) -> PairedScores:
    """Scores in [0, 1]; compressed (items,) or (seeds, items)."""
    codes = np.arange(dense.size) if cluster is None else np.unique(cluster, return_inverse=True)[1]
    scores = np.atleast_2d(compressed) * 1.0
    return PairedScores(dense=dense * 1.0, compressed=scores, cluster=codes, low=0.0, high=1.0)


def binary(n: int, accuracy: float, gained: float, loss: float = MARGIN) -> Callable[[Rng], PairedScores]:
    """Independent right-or-wrong items; `gained`: share of items only the compressed model gets."""

    def draw(rng: Rng) -> PairedScores:
        lost = loss * accuracy + gained
        counts = rng.multinomial(n, [accuracy - lost, lost, gained, 1 - accuracy - gained])
        return paired(np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts))

    return draw


def continuous(n: int, loss: float = MARGIN) -> Callable[[Rng], PairedScores]:
    """F1-like: 30 % of the dense scores 0, the others spread; the compressed model loses some items whole."""

    def draw(rng: Rng) -> PairedScores:
        dense = np.where(rng.random(n) < 0.3, 0.0, rng.beta(2, 1, n))
        noisy = np.clip(dense + np.where(dense > 0, rng.uniform(-1, 1, n) * np.minimum(dense, 1 - dense), 0), 0, 1)
        return paired(dense, np.where(rng.random(n) < loss, 0.0, noisy))

    return draw


def rouge_like(n: int, loss: float = MARGIN) -> Callable[[Rng], PairedScores]:
    """ROUGE-like: low scores, all of which lose a little, some more and some less, and none all."""

    def draw(rng: Rng) -> PairedScores:
        dense = rng.beta(3, 12, n)
        return paired(dense, np.clip(dense * (1 - loss) * (1 + 0.3 * rng.uniform(-1, 1, n)), 0, 1))

    return draw


def clustered(
    clusters: int,
    size: int,
    correlation: float,
    accuracy: float,
    gained: float,
    *,
    even: bool = True,
    loss: float = MARGIN,
) -> Callable[[Rng], PairedScores]:
    """Accuracy and loss differ between clusters (beta distributed, skewed); uneven sizes are log-normal."""
    spread = 1 / correlation - 1
    share = (loss * accuracy + gained) / accuracy

    def draw(rng: Rng) -> PairedScores:
        sizes = np.full(clusters, size)
        if not even:
            sizes = np.maximum(2, rng.lognormal(np.log(size), 0.9, clusters).astype(int))
        cluster = np.repeat(np.arange(clusters), sizes)
        right = rng.beta(accuracy * spread, (1 - accuracy) * spread, clusters)[cluster]
        losing = rng.beta(share * spread, (1 - share) * spread, clusters)[cluster]
        dense = np.where(rng.random(cluster.size) < right, 1.0, 0.0)
        chance = rng.random(cluster.size)
        kept = np.where(dense > 0, chance >= losing, chance < gained / (1 - accuracy)) * 1.0
        return paired(dense, kept, cluster)

    return draw


def seeded(seeds: int, n: int, between: float, common: float) -> Callable[[Rng], PairedScores]:
    """Calibration seeds whose share of lost items varies by `between`; `common` items fall alike in all."""

    def draw(rng: Rng) -> PairedScores:
        accuracy, gained = 0.6, 0.03
        dense = np.where(rng.random(n) < accuracy, 1.0, 0.0)
        share = MARGIN + gained / accuracy
        shares = rng.uniform(share - np.sqrt(3) * between, share + np.sqrt(3) * between, seeds)
        fate = np.where(rng.random((seeds, n)) < common, rng.random(n), rng.random((seeds, n)))
        kept = np.where(dense > 0, fate >= shares[:, None], fate < gained / (1 - accuracy)) * 1.0
        return paired(dense, kept)

    return draw


FIXED = [
    Scenario(f"n={n}, accuracy {accuracy}, gained {gained}", MARGIN, binary(n, accuracy, gained))
    for accuracy in (0.3, 0.45, 0.75, 0.95)
    for n, gained in ((60, 0.0), (60, 0.03), (200, 0.0), (200, 0.03), (1000, 0.0), (1000, 0.03))
]
GRADED = [
    Scenario(f"n={n}, {name}", MARGIN, draw(n))
    for name, draw in (("F1-like", continuous), ("ROUGE-like", rouge_like))
    for n in (60, 200, 1000)
]
FIXED += GRADED
LOSSES = [
    Scenario(f"n={n}, true loss {loss:.0%}", loss, binary(n, 0.6, 0.04, loss))
    for loss in (0.0, 0.1, 0.3)
    for n in (100, 400)
]
CLUSTERED = [
    Scenario(
        f"{k} {'even' if even else 'uneven'} clusters of {size}, correlation {rho}, gained {gained}",
        MARGIN,
        clustered(k, size, rho, 0.6, gained, even=even),
    )
    for k, size, even in (
        *(
            (57, 40, False),
            (20, 30, True),
            (20, 30, False),
            (10, 30, True),
            (10, 30, False),
            (5, 40, True),
            (200, 4, True),
        ),
    )
    for rho, gained in ((0.01, 0.03), (0.1, 0.03), (0.1, 0.0))
]
CLUSTER_LOSSES = [
    Scenario(
        f"{k} {'even' if even else 'uneven'} clusters of {size}, correlation {rho}, true loss {loss:.0%}",
        loss,
        clustered(k, size, rho, 0.6, 0.03, even=even, loss=loss),
    )
    for k, size, even in ((57, 40, False), (20, 30, True), (12, 10, True), (10, 30, False), (5, 40, True))
    for rho in (0.01, 0.1)
    for loss in (0.0, 0.15, 0.4)
]
# Most clusters lose nothing and a few nearly all.
VERY_UNEVEN = [
    Scenario(
        f"{k} {'even' if even else 'uneven'} clusters of {size}, correlation 0.2, gained 0.03",
        MARGIN,
        clustered(k, size, 0.2, 0.6, 0.03, even=even),
    )
    for k, size in ((5, 40), (10, 10), (10, 40), (10, 100), (20, 10), (20, 40), (40, 40))
    for even in (True, False)
]
VERY_UNEVEN_LOSSES = [
    Scenario(
        f"{k} {'even' if even else 'uneven'} clusters of {size}, correlation 0.2, true loss {loss:.0%}",
        loss,
        clustered(k, size, 0.2, 0.6, 0.03, even=even, loss=loss),
    )
    for k, size, even in ((57, 40, False), (20, 30, True), (12, 10, True), (10, 30, False), (5, 40, True))
    for loss in (0.0, 0.15, 0.4)
]
SEEDED = [
    Scenario(f"{k} seeds, n=400, between {between}, common {common}", MARGIN, seeded(k, 400, between, common))
    for k in (2, 3, 5)
    for between, common in ((0.0, 0.0), (0.0, 0.7), (0.02, 0.5), (0.04, 0.5), (0.0, 0.95), (0.02, 0.95))
]


def binary_stream(rng: Rng, n: int, accuracy: float, loss: float) -> tuple[Floats, Floats]:
    """Dense and compressed scores in random order at a discordance of 10 %, or as much as the loss needs."""
    net = loss * accuracy
    lost = (max(0.1, net) + net) / 2
    kind = rng.choice(4, n, p=[accuracy - lost, lost, lost - net, 1 - accuracy - lost + net])
    return np.array([1.0, 1.0, 0.0, 0.0])[kind], np.array([1.0, 0.0, 1.0, 0.0])[kind]


def stratified_stream(rng: Rng, n: int, accuracy: float, loss: float) -> tuple[Floats, Floats]:
    """57 uneven subjects, fixed, that lose between 1 % and 23 % and gain 7 %, in stratified order."""
    fixed = np.random.default_rng(57)
    sizes = fixed.lognormal(0, 0.8, 57)
    subject = np.sort(rng.choice(57, n, p=sizes / sizes.sum()))
    tilt = fixed.uniform(-0.1, 0.1, 57)
    tilt -= (tilt * np.bincount(subject, minlength=57)).sum() / n
    dense = (rng.random(n) < accuracy) * 1.0
    lose = loss + 0.07 + tilt[subject]
    gain = 0.07 * accuracy / (1 - accuracy)
    compressed = np.where(dense > 0, rng.random(n) >= lose, rng.random(n) < gain) * 1.0
    order = np.array(stratified_order(range(n), subject.tolist(), int(rng.integers(2**31))))
    return dense[order], compressed[order]


def strata(n: int, count: int, loss: float) -> Callable[[Rng], PairedScores]:
    """A few even strata, every one with its own accuracy and its own loss."""
    fixed = np.random.default_rng(count)
    tilt = fixed.uniform(-0.1, 0.1, count)
    tilt -= tilt.mean()

    def draw(rng: Rng) -> PairedScores:
        stratum = np.arange(n) % count
        dense = np.where(rng.random(n) < 0.6, 1.0, 0.0)
        lose, gain = loss + 0.12 + tilt[stratum], 0.12 * 0.6 / 0.4
        return paired(dense, np.where(dense > 0, rng.random(n) >= lose, rng.random(n) < gain) * 1.0, stratum)

    return draw


STOPPING = [
    Scenario("240 items, accuracy 0.6, gained 0.03", MARGIN, binary(240, 0.6, 0.03)),
    Scenario("480 items, accuracy 0.6, gained 0.03", MARGIN, binary(480, 0.6, 0.03)),
    Scenario("480 items, accuracy 0.75, gained 0.0", MARGIN, binary(480, 0.75, 0.0)),
    Scenario("2000 items, accuracy 0.75, gained 0.05", MARGIN, binary(2000, 0.75, 0.05)),
    Scenario("480 items, F1-like", MARGIN, continuous(480)),
    Scenario("480 items in 12 strata", MARGIN, strata(480, 12, MARGIN), strata=True),
    Scenario("72 clusters of 5, correlation 0.1", MARGIN, clustered(72, 5, 0.1, 0.6, 0.03)),
]


def drawn_clusters(settings: int, seed: int = 2026) -> list[Scenario]:
    """Settings of clusters drawn by a seed: none of them served to choose anything."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(settings):
        clusters, size = int(rng.choice([6, 8, 12, 15, 25, 30, 50, 100])), int(rng.choice([4, 6, 10, 15, 25, 50, 80]))
        correlation, accuracy = rng.choice([0.01, 0.03, 0.05, 0.1, 0.15, 0.2]), rng.choice([0.4, 0.5, 0.7, 0.8])
        gained, loss = rng.choice([0.0, 0.01, 0.03, 0.06]), rng.choice([0.0, 0.03, 0.05, 0.08, 0.15, 0.25])
        even = bool(rng.random() < 0.5)
        if gained == loss == 0:
            gained = 0.02
        drawn.append(
            Scenario(
                f"{clusters} {'even' if even else 'uneven'} clusters of {size}, correlation {correlation}, "
                f"accuracy {accuracy}, gained {gained}, true loss {loss:.0%}",
                float(loss),
                clustered(clusters, size, correlation, accuracy, gained, even=even, loss=loss),
            )
        )
    return drawn


# Frontiers: the true loss of each level. On a plateau at the margin every level is one that must not be found.
CURVES: dict[str, Callable[[int], Floats]] = {
    "loss ~ level²": lambda levels: 0.6 * (np.arange(1, levels + 1) / levels) ** 2,
    "loss ~ level⁴": lambda levels: 0.6 * (np.arange(1, levels + 1) / levels) ** 4,
    "flat at the margin": lambda levels: np.full(levels, MARGIN),
    "flat at 4.9 %": lambda levels: np.full(levels, 0.049),
    "nothing, then a plateau at the margin": lambda levels: np.where(np.arange(levels) < levels // 3, 0.0, MARGIN),
    "plateau at the margin, then a cliff": lambda levels: np.where(np.arange(levels) < levels // 2, MARGIN, 0.5),
}


def frontier_draw(items: int, truth: Floats, shared: float, rng: Rng) -> tuple[Floats, Floats]:
    """Dense scores, and compressed ones (levels, items); levels share this part of the items that they lose."""
    accuracy, gained = 0.6, 0.03
    dense = np.where(rng.random(items) < accuracy, 1.0, 0.0)
    fate, own = rng.random(items), rng.random((truth.size, items))
    mixed = np.where(rng.random((truth.size, items)) < shared, fate, own)
    share = truth[:, None] + gained / accuracy
    return dense, np.where(dense > 0, mixed >= share, mixed < gained / (1 - accuracy)) * 1.0


def subjects(n: int, count: int, loss: float, spread: float) -> tuple[Callable[[Rng], PairedScores], float]:
    """Fixed subjects whose losses differ by `spread` points, and the variance of the mean of t by stratified theory."""
    fixed = np.random.default_rng(57)
    sizes = 10 + fixed.multinomial(n - 10 * count, fixed.dirichlet(np.full(count, 2.0)))
    accuracy = fixed.uniform(0.3, 0.7, count)
    weight = sizes / n
    points = loss * accuracy + spread * fixed.normal(size=count)
    points += loss * (weight @ accuracy) - weight @ points
    lost = np.clip(points, 0, None) + 0.05
    gained = lost - points
    stratum = np.repeat(np.arange(count), sizes)

    def draw(rng: Rng) -> PairedScores:
        u, a = rng.random(n), accuracy[stratum]
        dense = u < a
        compressed = np.where(dense, u >= lost[stratum], u < a + gained[stratum])
        return paired(dense * 1.0, compressed * 1.0, stratum)

    kept = 1 - MARGIN
    both = accuracy - lost
    square = (1 - kept) ** 2 * both + kept**2 * lost + gained
    mean = (1 - kept) * both - kept * lost + gained
    return draw, float((sizes * (square - mean**2)).sum()) / n**2
