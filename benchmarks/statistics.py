"""How often the verdicts err, by simulation: python benchmarks/statistics.py [replications] [--write].

Every draw has a known true loss. At the margin "matching" and "not matching" are both errors, each to happen
in at most 5 % of draws; the 95 % interval is to contain the true loss in 93-97 %. tests/statistics runs the
same scenarios with fewer replications.
"""

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import scipy
from numpy.typing import NDArray
from scipy import special

from llmkick.statistics import (
    EarlyStop,
    SequentialTest,
    compare,
    find_frontier,
    items_needed,
    order_items,
    stratified_order,
    verdict_power,
)
from llmkick.statistics.bootstrap import bootstrap_interval
from llmkick.statistics.verdict import PairedScores, decide, interval_p, loss_test

Rng = np.random.Generator
Floats = NDArray[np.float64]
MARGIN = 0.05
GAINED = (0.0, 0.01, 0.03, 0.06)  # shares of items in the grid of `coverage_by_changes`
LOST = (0.0, 0.05, 0.1, 0.3)


@dataclass(frozen=True)
class Scenario:
    """A way to draw paired scores whose true relative loss is known."""

    name: str
    loss: float
    draw: Callable[[Rng], PairedScores]


@dataclass(frozen=True)
class Rates:
    """Shares of draws."""

    matching: float  # by test
    not_matching: float
    covered: float
    covered_by_bootstrap: float
    t_alone: float  # "matching" by Student's t without the guards
    identical: float  # all scores equal; judged by the test like the others


def paired(dense: Floats, compressed: Floats, cluster: NDArray[np.int64] | None = None) -> PairedScores:
    """Scores in [0, 1]; compressed (items,) or (seeds, items)."""
    codes = np.arange(dense.size) if cluster is None else np.unique(cluster, return_inverse=True)[1]
    return PairedScores(dense=dense, compressed=np.atleast_2d(compressed), cluster=codes, low=0.0, high=1.0)


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


def student_p(values: Floats) -> float:
    """One-sided p of a plain t test of mean ≤ 0."""
    error = values.std(ddof=1) / np.sqrt(values.size)
    return float(special.stdtr(values.size - 1, -values.mean() / error)) if error > 0 else 0.0


def error_rates(scenario: Scenario, replications: int, *, seed: int = 0, resamples: int = 0) -> Rates:
    """Shares over seeded draws; the bootstrap is skipped without resamples."""
    rng = np.random.default_rng([seed, *scenario.name.encode()])
    outcomes = np.zeros(6)
    for replication in range(replications):
        scores = scenario.draw(rng)
        test = loss_test(scores, MARGIN)
        # The interval inverts its test: it holds the true loss exactly when that does not reject it.
        covered = interval_p(scores, scenario.loss) > 0.05
        resampled = bootstrap_interval(scores, alpha=0.05, resamples=resamples, seed=replication)
        by_bootstrap = resampled is not None and resampled[0] <= scenario.loss <= resampled[1]
        generous = student_p(scores.shortfall(MARGIN).mean(axis=0)) < 0.05
        outcomes += (test.p_above < 0.05, test.p_below < 0.05, covered, by_bootstrap, generous, scores.identical)
    return Rates(*(float(x) for x in outcomes / replications))


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


def sequential_run(
    stream: Callable[[Rng, int, float, float], tuple[Floats, Floats]],
    n: int,
    accuracy: float,
    loss: float,
    rng: Rng,
) -> tuple[str, int]:
    """Decision with a look after every item, and after how many."""
    state = SequentialTest(margin=MARGIN).update(*stream(rng, n, accuracy, loss))
    return state.decision, state.decided_after or n


def sequential_clusters_run(rng: Rng) -> tuple[str, int]:
    """2,000 random clusters of 4 items, one bet a cluster, at the margin."""
    scores = clustered(2000, 4, 0.1, 0.6, 0.03)(rng)
    test = SequentialTest(margin=MARGIN, largest_cluster=4)
    state = test.update(scores.dense, scores.compressed[0], scores.cluster.tolist())
    return state.decision, state.decided_after or scores.clusters


def asked_in_order(dense: Floats, compressed: Floats, cluster: NDArray[np.int64], seed: int) -> tuple[str, int]:
    """Verdict of the study's rule (bets, then the test of all items, half of alpha each), and the items asked."""
    ids = [str(index) for index in range(dense.size)]
    order = order_items(ids, dict(zip(ids, cluster.tolist(), strict=True)), seed=seed)
    rule = EarlyStop(order, margin=MARGIN)
    d, c = dict(zip(ids, dense.tolist(), strict=True)), dict(zip(ids, compressed.tolist(), strict=True))
    while rule.batch is not None:
        rule.feed(d, c)
    return rule.state.outcome, rule.state.items


def stopping_run(draw: Callable[[Rng], PairedScores], rng: Rng) -> tuple[str, int]:
    """The study's rule on one draw."""
    scores = draw(rng)
    # Another order in every draw: the draws of `binary` are sorted.
    return asked_in_order(scores.dense, scores.compressed[0], scores.cluster, int(rng.integers(2**31)))


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
    Scenario("480 items in 12 strata", MARGIN, strata(480, 12, MARGIN)),
    Scenario("72 clusters of 5, correlation 0.1", MARGIN, clustered(72, 5, 0.1, 0.6, 0.03)),
]


def frontier_draw(items: int, levels: int, steepness: float, rng: Rng) -> tuple[list[float], Floats, Floats]:
    """True losses by level, dense scores, and compressed ones (levels, items) that lose the same items first."""
    truth = [float(loss) for loss in np.clip(0.6 * (np.arange(1, levels + 1) / levels) ** steepness, 0, 1)]
    accuracy, gained = 0.6, 0.03
    dense = np.where(rng.random(items) < accuracy, 1.0, 0.0)
    fate, own = rng.random(items), rng.random((levels, items))
    # Half of an item's fate is the level's own: neighbouring levels are alike, not the same.
    mixed = np.where(rng.random((levels, items)) < 0.5, fate, own)
    share = np.array(truth)[:, None] + gained / accuracy
    return truth, dense, np.where(dense > 0, mixed >= share, mixed < gained / (1 - accuracy)) * 1.0


def frontier_run(items: int, levels: int, steepness: float, rng: Rng) -> tuple[bool, bool, float]:
    """Whether the level found is too severe, whether the failing one is too mild, and the share of items asked."""
    truth, dense, compressed = frontier_draw(items, levels, steepness, rng)
    asked, seed = np.zeros(levels), int(rng.integers(2**31))

    def evaluate(level: int) -> str:
        outcome, asked[level] = asked_in_order(dense, compressed[level], np.arange(items), seed)
        return outcome

    def confirm(level: int) -> str:
        asked[level] = items
        return compare(dense, compressed[level], margin=MARGIN, resamples=0, same_model=False).verdict

    found = find_frontier(range(levels), evaluate, confirm=confirm)
    strong, weak = found.strongest_matching, found.weakest_not_matching
    too_severe, too_mild = strong is not None and truth[strong] >= MARGIN, weak is not None and truth[weak] <= MARGIN
    return too_severe, too_mild, float(asked.sum()) / items / levels


def stopping_tables(replications: int) -> list[str]:
    """Errors of the study's rule at the margin, and of a search for the frontier."""
    rows = []
    for scenario in STOPPING:
        rng = np.random.default_rng([5, *scenario.name.encode()])
        results = [stopping_run(scenario.draw, rng) for _ in range(replications)]
        outcomes, used = [outcome for outcome, _ in results], [items for _, items in results]
        rates = [outcomes.count(verdict) / replications for verdict in ("matching", "not matching")]
        rows.append([scenario.name, *rates, f"{np.mean(used):,.0f}"])
    searches = []
    count = max(1, replications // 4)
    for items, levels, steepness in ((480, 38, 2.0), (480, 38, 4.0), (2000, 38, 3.0), (480, 13, 3.0)):
        rng = np.random.default_rng([6, items, levels, int(steepness)])
        runs = np.array([frontier_run(items, levels, steepness, rng) for _ in range(count)], dtype=float).mean(axis=0)
        searches.append([f"{items} items, {levels} levels, loss ~ level^{steepness:g}", *map(float, runs)])
    return [
        f"## Stop when decided, true loss at the margin ({replications} runs)\n\n"
        + table(["scenario", "matching", "not matching", "mean items"], rows),
        f"## Frontier by bisection ({count} runs)\n\n"
        + table(["grid", "level found too severe", "failing level too mild", "items asked, of all"], searches),
    ]


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; floats as percentages."""

    def cell(value: object) -> str:
        return f"{100 * value:.1f} %" if isinstance(value, float) else str(value)

    columns = list(header)
    lines = [columns, ["---"] * len(columns), *[[cell(value) for value in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def fixed_table(title: str, scenarios: list[Scenario], resamples: int, replications: int) -> list[str]:
    """Error and coverage of `compare` at a fixed number of items."""
    header = [
        "scenario",
        "matching",
        "not matching",
        "interval covers",
        "bootstrap covers",
        "t alone: matching",
        "identical",
    ]
    rows = []
    for scenario in scenarios:
        r = error_rates(scenario, replications, resamples=resamples)
        boot = r.covered_by_bootstrap if resamples else "–"
        rows.append([scenario.name, r.matching, r.not_matching, r.covered, boot, r.t_alone, r.identical])
    return [f"## {title}\n\n{table(header, rows)}"]


def coverage_by_changes(replications: int) -> list[str]:
    """Coverage of the interval of independent answers over a grid, by how many answers are expected to differ."""
    found = []
    for n, accuracy, gained, loss in product((30, 60, 100, 200), (0.3, 0.45, 0.6, 0.75, 0.95), GAINED, LOST):
        lost = loss * accuracy + gained
        if gained > 1 - accuracy or lost > accuracy or lost + gained == 0:
            continue
        rng = np.random.default_rng([7, n, *(int(100 * x) for x in (accuracy, gained, loss))])
        kinds = [accuracy - lost, lost, gained, 1 - accuracy - gained]
        tables, times = np.unique(rng.multinomial(n, kinds, size=replications), axis=0, return_counts=True)
        held = [_covers(table, loss) for table in tables]
        found.append((n * (lost + gained), float(times @ held) / replications))
    edges = (0, 3, 6, 10, 20, math.inf)
    rows = []
    for low, high in pairwise(edges):
        inside = [rate for changes, rate in found if low <= changes < high]
        name = f"{low} and more" if math.isinf(high) else f"{low} to {high}"
        rows.append([name, len(inside), min(inside), float(np.mean(inside)), max(inside)])
    title = f"## Coverage by the answers expected to differ, {len(found)} settings of independent answers"
    return [f"{title}\n\n{table(['answers expected to differ', 'settings', 'lowest', 'mean', 'highest'], rows)}"]


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


def coverage_of_drawn_clusters(replications: int) -> list[str]:
    """Coverage where nothing was chosen for it, by how many answers differ on average; the furthest ones by name."""
    count = max(1, replications // 4)
    found = []
    for scenario in drawn_clusters(48):
        rng = np.random.default_rng([11, *scenario.name.encode()])
        held, differ = 0, 0
        for _ in range(count):
            scores = scenario.draw(rng)
            # A dense score of 0 has no loss.
            held += not scores.dense.any() or interval_p(scores, scenario.loss) > 0.05
            differ += int((scores.dense != scores.compressed[0]).sum())
        found.append((differ / count, held / count, scenario.name))
    rows = []
    for low, high in ((0, 6), (6, math.inf)):
        inside = [rate for differing, rate, _ in found if low <= differing < high]
        name = f"{low} and more" if math.isinf(high) else f"{low} to {high}"
        rows.append([name, len(inside), min(inside), float(np.mean(inside)), max(inside)])
    furthest = sorted(found, key=lambda f: -abs(f[1] - 0.95))[:6]
    return [
        f"## Coverage of {len(found)} settings of clusters drawn by a seed ({count} draws each)\n\n"
        + table(["answers that differ", "settings", "lowest", "mean", "highest"], rows)
        + "\n\n"
        + table(
            ["furthest from 95 %", "answers that differ", "interval covers"],
            [[name, f"{differing:.1f}", rate] for differing, rate, name in furthest],
        )
    ]


def _covers(counts: NDArray[np.int64], loss: float) -> bool:
    """Whether the interval of both right, lost, gained, both wrong holds a loss; a dense score of 0 has no loss."""
    dense, compressed = np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)
    if not dense.any():
        return True
    return interval_p(paired(dense, compressed), loss) > 0.05


def sequential_tables(replications: int) -> list[str]:
    """Error at the margin and items used by `SequentialTest`."""
    rng = np.random.default_rng(1)
    header = ["stream", "matching", "not matching", "mean bets", "median bets"]
    runs: list[tuple[str, Callable[[], tuple[str, int]]]] = [
        (
            f"{name}, 14,042 items, accuracy {a}, loss 5 %",
            partial(sequential_run, stream, 14_042, a, 0.05, rng),
        )
        for name, stream in (("random order", binary_stream), ("57 strata", stratified_stream))
        for a in (0.45, 0.75)
    ]
    runs.append(("2,000 random clusters of 4, loss 5 %", partial(sequential_clusters_run, rng)))
    savings: list[tuple[str, Callable[[], tuple[str, int]]]] = [
        (
            f"accuracy {a}, loss {loss:.0%}",
            partial(sequential_run, binary_stream, 14_042, a, loss, rng),
        )
        for a in (0.45, 0.75)
        for loss in (0.25, 0.12, 0.08, 0.02, 0.0)
    ]
    parts = []
    for title, some, count in (
        ("Sequential, true loss at the margin, a look after every bet", runs, replications),
        ("Sequential, items until the decision (of 14,042)", savings, max(1, replications // 10)),
    ):
        rows = []
        for name, run in some:
            results = [run() for _ in range(count)]
            decisions, bets = [d for d, _ in results], [b for _, b in results]
            rates = [decisions.count(v) / count for v in ("matching", "not matching")]
            rows.append([name, *rates, f"{np.mean(bets):,.0f}", f"{np.median(bets):,.0f}"])
        parts.append(f"## {title} ({count} runs)\n\n{table(header, rows)}")
    return parts


def power_table(replications: int) -> list[str]:
    """Items needed for 80 % power, the power simulated with them, and the paper's rule beside it."""
    rng = np.random.default_rng(2)
    rows = []
    for accuracy, loss in ((0.75, 0.0), (0.45, 0.0), (0.3, 0.0), (0.75, 0.12), (0.45, 0.15)):
        n = items_needed(accuracy, loss=loss)
        right = "matching" if loss < MARGIN else "not matching"
        hits = 0
        for _ in range(replications):
            dense, compressed = binary_stream(rng, n, accuracy, loss)
            hits += decide(paired(dense, compressed), margin=MARGIN, chance=0.0, alpha=0.05) == right
        formula = verdict_power(n, accuracy, loss=loss)
        rows.append([f"accuracy {accuracy}, true loss {loss:.0%}", n, right, formula, hits / replications])
    return ["## Power\n\n" + table(["case", "items needed", "verdict", "power by formula", "simulated"], rows)]


def paper_rule(replications: int) -> list[str]:
    """How often 100 items let the point rule call a true loss of 8 % matching."""
    rng = np.random.default_rng(3)
    rows = []
    for accuracy in (0.45, 0.75):
        results = [compare(*binary_stream(rng, 100, accuracy, 0.08), resamples=0) for _ in range(replications)]
        point = sum(result.paper_verdict == "matching" for result in results) / replications
        ours = sum(result.verdict == "matching" for result in results) / replications
        rows.append([accuracy, point, ours])
    header = ["accuracy", "S_c ≥ 0.95·S_d", "verdict"]
    return ["## A true loss of 8 % on 100 items: called matching\n\n" + table(header, rows)]


def timing(_: int) -> list[str]:
    """Seconds of one comparison the size of MMLU."""
    rng = np.random.default_rng(4)
    dense = (rng.random(14_042) < 0.45) * 1.0
    compressed = np.where(rng.random(14_042) < 0.1, 1 - dense, dense)
    subjects = rng.integers(57, size=14_042).tolist()
    rows = []
    for name, c, clusters in (
        ("57 clusters", compressed, subjects),
        ("no clusters", compressed, None),
        ("57 clusters, 5 seeds", np.stack([compressed] * 5), subjects),
        ("no clusters, continuous", compressed * rng.random(14_042), None),
    ):
        start = time.perf_counter()
        compare(dense, c, clusters=clusters, chance=0.25)
        rows.append([name, f"{time.perf_counter() - start:.2f} s"])
    return ["## Time: 14,042 items, 10,000 resamples\n\n" + table(["case", "time"], rows)]


def processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


TABLES: dict[str, Callable[[int], list[str]]] = {
    "independent": partial(fixed_table, "Independent items, true loss at the margin", FIXED, 0),
    "losses": partial(fixed_table, "Independent items, other true losses (discordance 8 % and more)", LOSSES, 500),
    "changes": coverage_by_changes,
    "clusters": partial(fixed_table, "Clusters, true loss at the margin", CLUSTERED, 500),
    "cluster losses": partial(fixed_table, "Clusters, other true losses, gained 0.03", CLUSTER_LOSSES, 0),
    "very uneven": partial(fixed_table, "Clusters that lose very unevenly, true loss at the margin", VERY_UNEVEN, 0),
    "very uneven losses": partial(
        fixed_table, "Clusters that lose very unevenly, other true losses, gained 0.03", VERY_UNEVEN_LOSSES, 0
    ),
    "drawn clusters": coverage_of_drawn_clusters,
    "seeds": partial(fixed_table, "Several calibration seeds, true loss at the margin", SEEDED, 500),
    "sequential": sequential_tables,
    "stopping": stopping_tables,
    "power": power_table,
    "paper": paper_rule,
    "time": timing,
}


def main() -> None:
    """Run everything, print the report, write it with --write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("replications", nargs="?", type=int, default=2000)
    parser.add_argument("--tables", default=",".join(TABLES), help="which tables to make; default: %(default)s")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/statistics.md")
    arguments = parser.parse_args()
    count, names = arguments.replications, arguments.tables.split(",")
    if unknown := [name for name in names if name not in TABLES]:
        parser.error(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    if arguments.write and names != list(TABLES):
        parser.error("--write needs all tables; leave --tables out")
    start = time.perf_counter()
    tables = [part for name in names for part in TABLES[name](count)]
    head = (
        f"# Statistics: error rates, coverage, power\n\n"
        f"`{' '.join(['python benchmarks/statistics.py', *sys.argv[1:]])}` · {count} replications each · "
        f"{time.perf_counter() - start:.0f} s\n\n"
        f"{processor()}, {os.cpu_count()} cores · Python {platform.python_version()}, "
        f"numpy {np.__version__}, scipy {scipy.__version__}\n\n"
        f"Monte-Carlo standard error of a 5 % rate: {100 * (0.05 * 0.95 / count) ** 0.5:.1f} points. "
        f"Identical: every score equal, and judged like any other."
    )
    report = "\n\n".join([head, *tables]) + "\n"
    sys.stdout.write(report)
    if arguments.write:
        target = Path(__file__).parent / "results" / "statistics.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
