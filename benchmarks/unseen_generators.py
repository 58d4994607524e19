"""Generators of paired scores that served to choose nothing: they were written before the test was, and confirm it.

Each solves one of its parameters so that the true relative loss is exact, by integrating over its latent variables.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scenarios import Scenario, paired
from scipy import optimize, special, stats

from llmkick.statistics.verdict import PairedScores

Rng = np.random.Generator
Floats = NDArray[np.float64]

# Latent values that stand for a whole population when a parameter is solved for.
_POPULATION = stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
_PAIRS = stats.qmc.Sobol(2, seed=11).random_base2(14)


def ability(n: int, shift_of: float, noise: float) -> Callable[[Rng], PairedScores]:
    """Questions of normal difficulty; the compressed model has a lower ability and noise of its own in each answer."""

    def keeps(shift: float) -> float:
        dense = special.ndtr(0.4 - _POPULATION)
        return 1 - float(special.ndtr((0.4 - shift) - _POPULATION).mean() / dense.mean()) - shift_of

    shift = float(optimize.brentq(keeps, -1, 4))

    def draw(rng: Rng) -> PairedScores:
        difficulty, shared = rng.normal(size=n), rng.normal(size=n)
        own = np.sqrt(noise) * rng.normal(size=n) + np.sqrt(1 - noise) * shared
        return paired(shared < 0.4 - difficulty, own < 0.4 - shift - difficulty)

    return draw


def passages(count: int, mean_size: float, spread: float, loss: float) -> Callable[[Rng], PairedScores]:
    """Passages of geometric size; both what is right and what is lost vary by passage on the logit scale."""
    a, b = stats.norm.ppf(_PAIRS.clip(1e-9, 1 - 1e-9)).T

    def excess(intercept: float) -> float:
        right, lost = special.expit(0.5 + spread * a), special.expit(intercept + spread * b)
        gained = 0.06 * (1 - right)
        return float((right * lost - gained).mean() / right.mean()) - loss

    intercept = float(optimize.brentq(excess, -12, 6))

    def draw(rng: Rng) -> PairedScores:
        sizes = rng.geometric(1 / mean_size, count)
        codes = np.repeat(np.arange(count), sizes)
        right = special.expit(0.5 + spread * rng.normal(size=count))[codes]
        lost = special.expit(intercept + spread * rng.normal(size=count))[codes]
        dense = rng.random(codes.size) < right
        compressed = np.where(dense, rng.random(codes.size) >= lost, rng.random(codes.size) < 0.06)
        return paired(dense, compressed, codes)

    return draw


def heavy_tails(n: int, loss: float) -> Callable[[Rng], PairedScores]:
    """Answers are right where a latent t with 3 degrees of freedom is low; both models share most of it."""
    t = stats.t(3)
    accuracy, mixed = 0.6, 0.15
    limit = t.ppf(accuracy)
    lower = t.ppf((accuracy * (1 - loss) - mixed * accuracy * (1 - loss)) / (1 - mixed))

    def draw(rng: Rng) -> PairedScores:
        latent = rng.standard_t(3, n)
        fresh = rng.random(n) < accuracy * (1 - loss)
        return paired(latent < limit, np.where(rng.random(n) < mixed, fresh, latent < lower))

    return draw


def dialogue_grades(dialogues: int, loss: float) -> Callable[[Rng], PairedScores]:
    """Two turns a dialogue, graded 1 to 10 by a judge; a share of the compressed answers falls by 1 to 5 grades."""
    falls = np.array([1, 2, 3, 4, 5])
    chance = np.array([0.4, 0.25, 0.15, 0.1, 0.1])
    base = np.arange(3, 11)
    weight = np.array([0.04, 0.06, 0.1, 0.15, 0.2, 0.2, 0.15, 0.1])
    weight = weight / weight.sum()
    mean = float((base * weight).sum()) / 10
    dropped = np.maximum(base[:, None] - falls[None], 1)
    fall = float(((base[:, None] - dropped) * weight[:, None] * chance[None]).sum()) / 10
    share = loss * mean / fall

    def draw(rng: Rng) -> PairedScores:
        level = rng.choice(base, dialogues, p=weight)
        dense = np.repeat(level, 2)
        compressed = np.maximum(dense - rng.choice(falls, 2 * dialogues, p=chance), 1)
        both = np.repeat(rng.random(dialogues) < 0.5, 2)
        u = np.repeat(rng.random(dialogues), 2)
        falling = np.where(both, u, rng.random(2 * dialogues)) < share
        jitter = np.where(rng.random(2 * dialogues) < 0.5, 1, -1) * (rng.random(2 * dialogues) < 0.2)
        jitter = np.where((dense >= 10) | (dense <= 1), 0, jitter)
        scores = np.where(falling, compressed, dense)
        return paired(
            dense / 10,
            np.clip(np.where(falling, scores, scores + jitter), 1, 10) / 10,
            np.repeat(np.arange(dialogues), 2),
        )

    return draw


def summaries(n: int, loss: float) -> Callable[[Rng], PairedScores]:
    """ROUGE of summaries: most lose a little in proportion, a twentieth collapses to a fifth of its score."""
    collapsed = 0.05 * 0.8
    factor = (1 - loss - 0.05 * 0.2) / 0.95 if loss > collapsed else 1 - loss
    share = 0.05 if loss > collapsed else 0.0

    def draw(rng: Rng) -> PairedScores:
        dense = rng.beta(4, 10, n)
        kept = np.clip(dense * factor * (1 + 0.25 * rng.uniform(-1, 1, n)), 0, 1)
        return paired(dense, np.where(rng.random(n) < share, 0.2 * dense, kept))

    return draw


def strata(n: int, count: int, spread: float, loss: float, seed: int) -> Callable[[Rng], PairedScores]:
    """Fixed strata of uneven size, each with its accuracy and its own relative loss (`spread`: sd of lost points)."""
    fixed = np.random.default_rng(seed)
    sizes = np.maximum(2, (n * fixed.dirichlet(np.full(count, 3.0))).round().astype(int))
    accuracy = fixed.uniform(0.3, 0.8, count)
    points = loss * accuracy + spread * fixed.normal(size=count)
    weight = sizes / sizes.sum()
    points += loss * (weight * accuracy).sum() - (weight * points).sum()
    gain = 0.05
    lost = np.clip(points + gain, 0, accuracy)
    gained = np.clip(lost - points, 0, 1 - accuracy)
    off = float((weight * (lost - gained)).sum()) - loss * float((weight * accuracy).sum())
    gained = gained + off
    codes = np.repeat(np.arange(count), sizes)

    def draw(rng: Rng) -> PairedScores:
        u = rng.random(codes.size)
        a, lo, ga = accuracy[codes], lost[codes], gained[codes]
        dense = u < a
        compressed = np.where(dense, u >= lo, u < a + ga)
        return paired(dense, compressed)

    return draw


def calibrated(seeds: int, n: int, spread: float, heavy: bool) -> Callable[[Rng], PairedScores]:
    """Calibration seeds whose loss varies around the margin, normally or with heavy tails; items fall in common."""

    def draw(rng: Rng) -> PairedScores:
        dense = rng.random(n) < 0.7
        noise = rng.standard_t(4, seeds) / np.sqrt(2) if heavy else rng.normal(size=seeds)
        share = np.clip(0.08 + spread * noise, 0, 0.16)
        common, own = rng.random(n), rng.random((seeds, n))
        fate = np.where(rng.random((seeds, n)) < 0.6, common, own)
        gain = 0.03 * 0.7 / 0.3
        return paired(dense, np.where(dense, fate >= share[:, None], fate < gain))

    return draw


def all_or_nothing(clusters: int, size: int, loss: float) -> Callable[[Rng], PairedScores]:
    """Rare clusters lose everything, the others nothing: a sample may hold none of them."""

    def draw(rng: Rng) -> PairedScores:
        codes = np.repeat(np.arange(clusters), size)
        dense = rng.random(codes.size) < 0.7
        gone = (rng.random(clusters) < loss)[codes]
        return paired(dense, dense & ~gone, codes)

    return draw


def bad_seed(n: int) -> Callable[[Rng], PairedScores]:
    """One calibration seed in five loses a quarter, the others nothing; two seeds are drawn."""

    def draw(rng: Rng) -> PairedScores:
        dense = rng.random(n) < 0.7
        share = np.where(rng.random(2) < 0.2, 0.25, 0.0)
        return paired(dense, dense & (rng.random((2, n)) >= share[:, None]))

    return draw


UNSEEN = [
    *(
        Scenario(f"ability, {n} questions, noise {noise}, loss {loss:.0%}", loss, ability(n, loss, noise))
        for n in (80, 300)
        for noise in (0.05, 0.4)
        for loss in (0.0, 0.05, 0.2)
    ),
    *(
        Scenario(f"{k} passages of {size:g}, spread {spread}, loss {loss:.0%}", loss, passages(k, size, spread, loss))
        for k, size in ((15, 8.0), (40, 5.0), (150, 3.0))
        for spread in (0.3, 0.8)
        for loss in (0.0, 0.05, 0.15)
    ),
    *(
        Scenario(f"heavy tails, {n} items, loss {loss:.0%}", loss, heavy_tails(n, loss))
        for n in (100, 500)
        for loss in (0.05, 0.15)
    ),
    *(
        Scenario(f"judge's grades, {n} dialogues of 2, loss {loss:.0%}", loss, dialogue_grades(n, loss))
        for n in (30, 80)
        for loss in (0.0, 0.05, 0.12)
    ),
    *(
        Scenario(f"summaries, {n}, loss {loss:.0%}", loss, summaries(n, loss))
        for n in (40, 150)
        for loss in (0.02, 0.05, 0.1)
    ),
    *(
        Scenario(f"{n} items in {count} fixed strata, spread {spread}", 0.05, strata(n, count, spread, 0.05, n + count))
        for n, count in ((300, 12), (1000, 57))
        for spread in (0.03, 0.08)
    ),
    *(
        Scenario(
            f"{k} seeds, spread {spread}, {'heavy' if heavy else 'normal'}", 0.05, calibrated(k, 300, spread, heavy)
        )
        for k in (2, 3, 6)
        for spread, heavy in ((0.01, False), (0.025, False), (0.02, True))
    ),
]
# What no sample of this size can show.
UNKNOWABLE = [
    Scenario("20 clusters of 10, a twentieth of which lose all", 0.05, all_or_nothing(20, 10, 0.05)),
    Scenario("40 clusters of 10, a twentieth of which lose all", 0.05, all_or_nothing(40, 10, 0.05)),
    Scenario("2 seeds of which one in five loses a quarter", 0.05, bad_seed(400)),
]
