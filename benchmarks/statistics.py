"""How often the verdicts err, by simulation: python benchmarks/statistics.py [replications] [--write].

Every draw has a known true loss. A bound that misses it is an error, to happen in at most 5 % of draws; at the margin
these are the verdicts "matching" (the upper bound misses) and "not matching" (the lower one). The scenarios are in
scenarios.py, those that served to choose nothing in unseen_generators.py, other tests in other_tests.py. The suite
runs the same with fewer replications.
"""

import argparse
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import pairwise, product
from pathlib import Path

# Behind the standard library, whose `statistics` this file would hide.
HERE = Path(__file__).resolve().parent
sys.path = [*(entry for entry in sys.path if Path(entry).resolve() != HERE), str(HERE)]

import numpy as np  # noqa: E402
import scipy  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from other_tests import bca, cluster_t, tango  # noqa: E402
from scenarios import (  # noqa: E402
    CLUSTER_LOSSES,
    CLUSTERED,
    CURVES,
    FIXED,
    LOSSES,
    MARGIN,
    SEEDED,
    STOPPING,
    VERY_UNEVEN,
    VERY_UNEVEN_LOSSES,
    Floats,
    Rng,
    Scenario,
    binary,
    binary_stream,
    clustered,
    continuous,
    drawn_clusters,
    frontier_draw,
    paired,
    rouge_like,
    seeded,
    stratified_stream,
    subjects,
)
from unseen_generators import UNKNOWABLE, UNSEEN, dialogue_grades  # noqa: E402

from llmkick.statistics import (  # noqa: E402
    Design,
    EarlyStop,
    SequentialTest,
    compare,
    find_frontier,
    items_for_power,
    order_items,
    simulated_power,
    verdict_power,
)
from llmkick.statistics.frontier import looks  # noqa: E402
from llmkick.statistics.verdict import decide, loss_test  # noqa: E402

ALPHA = 0.05
GAINED = (0.0, 0.01, 0.03, 0.06)  # shares of items in the grid of `errors_by_changes`
LOST = (0.0, 0.05, 0.1, 0.3)
PEERS = ("cluster t", "BCa", "Tango")


def shown_by(
    scenario: Scenario, replications: int, loss: float, *, resamples: int = 0
) -> dict[str, tuple[float, float]]:
    """How often each test shows "the loss is below `loss`" and "it is above", by name of the test.

    BCa is tried on every fourth draw, and left out without resamples.
    """
    rng = np.random.default_rng(list(scenario.name.encode()))
    totals = {name: np.zeros(3) for name in ("ours", *PEERS)}
    for replication in range(replications):
        scores = scenario.draw(rng)
        if not scores.dense.any():
            continue  # a dense score of 0 has no loss
        test = loss_test(scores, loss)
        results = {"ours": (test.p_above < ALPHA, test.p_below < ALPHA), "cluster t": cluster_t(scores, loss, ALPHA)}
        if scores.binary and scores.clusters == scores.dense.size and len(scores.compressed) == 1:
            results["Tango"] = tango(scores, loss, ALPHA)
        if resamples and replication % 4 == 0:
            results["BCa"] = bca(scores, loss, ALPHA, resamples=resamples, seed=replication)
        for name, (below, above) in results.items():
            totals[name] += (1, below, above)
    return {name: (float(below / n), float(above / n)) for name, (n, below, above) in totals.items() if n}


def errors(scenario: Scenario, replications: int, *, resamples: int = 0) -> dict[str, tuple[float, float]]:
    """How often the upper and the lower bound at the true loss miss it."""
    return shown_by(scenario, replications, scenario.loss, resamples=resamples)


def _of_index(
    kind: str, index: int, replications: int, resamples: int, loss: float | None
) -> dict[str, tuple[float, float]]:
    """`shown_by` for a scenario by its place: closures do not travel between processes."""
    scenario = SCENARIOS[kind][index]
    return shown_by(scenario, replications, scenario.loss if loss is None else loss, resamples=resamples)


def rates_of(
    kind: str, replications: int, *, resamples: int = 0, loss: float | None = None
) -> list[dict[str, tuple[float, float]]]:
    """`shown_by` for every scenario of a kind."""
    run = partial(_of_index, kind, replications=replications, resamples=resamples, loss=loss)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(run, range(len(SCENARIOS[kind]))))


def no_loss_and_much() -> list[Scenario]:
    """The same designs without a loss, and with one of 15 %: how often does a test say so?"""
    designs: list[tuple[str, Callable[[float], Callable[[Rng], object]]]] = [
        ("60 items, accuracy 0.75, gained 0.03", lambda r: binary(60, 0.75, 0.03, r)),
        ("200 items, accuracy 0.75, gained 0.03", lambda r: binary(200, 0.75, 0.03, r)),
        ("500 items, accuracy 0.5, gained 0.05", lambda r: binary(500, 0.5, 0.05, r)),
        ("200 items, F1-like", lambda r: continuous(200, r)),
        ("60 items, ROUGE-like", lambda r: rouge_like(60, r)),
        ("12 clusters of 10, correlation 0.1", lambda r: clustered(12, 10, 0.1, 0.6, 0.03, loss=r)),
        ("20 clusters of 30, correlation 0.01", lambda r: clustered(20, 30, 0.01, 0.6, 0.03, loss=r)),
        ("57 uneven clusters of 40, correlation 0.1", lambda r: clustered(57, 40, 0.1, 0.6, 0.03, even=False, loss=r)),
        ("200 clusters of 4, correlation 0.1", lambda r: clustered(200, 4, 0.1, 0.6, 0.03, loss=r)),
        ("30 dialogues of 2, judge's grades", lambda r: dialogue_grades(30, r)),
        ("80 dialogues of 2, judge's grades", lambda r: dialogue_grades(80, r)),
    ]
    return [
        Scenario(f"{name}, true loss {loss:.0%}", loss, draw(loss))  # type: ignore[arg-type]
        for name, draw in designs
        for loss in (0.0, 0.15)
    ]


SCENARIOS: dict[str, list[Scenario]] = {
    "independent": FIXED,
    "losses": LOSSES,
    "clusters": CLUSTERED,
    "cluster losses": CLUSTER_LOSSES,
    "very uneven": VERY_UNEVEN,
    "very uneven losses": VERY_UNEVEN_LOSSES,
    "drawn clusters": drawn_clusters(48),
    "seeds": SEEDED,
    "unseen": UNSEEN,
    "unknowable": UNKNOWABLE,
    "power": no_loss_and_much(),
}


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; floats as percentages."""

    def cell(value: object) -> str:
        return f"{100 * value:.1f} %" if isinstance(value, float) else str(value)

    columns = list(header)
    lines = [columns, ["---"] * len(columns), *[[cell(value) for value in row] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def error_table(title: str, kind: str, resamples: int, replications: int) -> list[str]:
    """Errors of both bounds at the true loss, beside those of other tests; the last line has the largest."""
    rates = rates_of(kind, replications, resamples=resamples)
    names = ["ours", *(peer for peer in PEERS if any(peer in rate for rate in rates))]
    header = ["scenario", *(f"{name}: {side}" for name in names for side in ("upper misses", "lower misses"))]
    rows = [
        [scenario.name, *(x for name in names for x in rate.get(name, ("–", "–")))]
        for scenario, rate in zip(SCENARIOS[kind], rates, strict=True)
    ]
    largest = ["**largest**", *(max(r[name][side] for r in rates if name in r) for name in names for side in (0, 1))]
    return [f"## {title}\n\n{table(header, [*rows, largest])}"]


def power_against_peers(replications: int) -> list[str]:
    """How often each test is right where there is no loss, and where it is 15 %."""
    rates = rates_of("power", replications, resamples=400, loss=MARGIN)
    rows = []
    for scenario, rate in zip(SCENARIOS["power"], rates, strict=True):
        side = 0 if scenario.loss < MARGIN else 1
        rows.append([scenario.name, *(rate[name][side] if name in rate else "–" for name in ("ours", *PEERS))])
    title = "Right verdicts, beside other tests (whose errors are in the tables above)"
    return [f"## {title}\n\n{table(['scenario', 'ours', *PEERS], rows)}"]


def errors_by_changes(replications: int) -> list[str]:
    """Errors of the bounds of independent answers over a grid, by how many answers are expected to differ.

    Samples with the same counts are tested once, so that twenty times as many draws take little more time.
    """
    cells, draws = [], 20 * replications
    for n, accuracy, gained, loss in product((30, 60, 100, 200), (0.3, 0.45, 0.6, 0.75, 0.95), GAINED, LOST):
        lost = loss * accuracy + gained
        if gained > 1 - accuracy or lost > accuracy or lost + gained == 0:
            continue
        rng = np.random.default_rng([7, n, *(int(100 * x) for x in (accuracy, gained, loss))])
        kinds = [accuracy - lost, lost, gained, 1 - accuracy - gained]
        tables, times = np.unique(rng.multinomial(n, kinds, size=draws), axis=0, return_counts=True)
        missed = np.array([_misses(counts, loss) for counts in tables], dtype=float)
        cells.append((n * (lost + gained), times @ missed / draws))
    rows = []
    for low, high in pairwise((0, 3, 6, 10, 20, math.inf)):
        inside = np.array([rate for changes, rate in cells if low <= changes < high])
        name = f"{low} and more" if math.isinf(high) else f"{low} to {high}"
        rows.append(
            [name, len(inside), *(float(x) for side in (0, 1) for x in (inside[:, side].mean(), inside[:, side].max()))]
        )
    title = (
        f"## Errors by the answers expected to differ, {len(cells)} settings of independent answers, {draws:,} draws"
    )
    header = [
        "answers expected to differ",
        "settings",
        "upper misses: mean",
        "largest",
        "lower misses: mean",
        "largest",
    ]
    return [f"{title}\n\n{table(header, rows)}"]


def _misses(counts: NDArray[np.int64], loss: float) -> tuple[bool, bool]:
    """Whether the bounds of both right, lost, gained, both wrong miss a loss; a dense score of 0 has no loss."""
    dense, compressed = np.repeat([1.0, 1.0, 0.0, 0.0], counts), np.repeat([1.0, 0.0, 1.0, 0.0], counts)
    if not dense.any():
        return False, False
    test = loss_test(paired(dense, compressed), loss)
    return test.p_above < ALPHA, test.p_below < ALPHA


def sequential_run(
    stream: Callable[[Rng, int, float, float], tuple[Floats, Floats]], n: int, accuracy: float, loss: float, rng: Rng
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


def asked_in_order(
    dense: Floats,
    compressed: Floats,
    codes: NDArray[np.int64],
    seed: int,
    *,
    strata: bool = False,
    alpha: float = ALPHA,
) -> tuple[str, int]:
    """Verdict of the study's rule (bets, then the test of all items), and the items asked."""
    ids = [str(index) for index in range(dense.size)]
    groups = dict(zip(ids, codes.tolist(), strict=True))
    order = order_items(ids, strata=groups, seed=seed) if strata else order_items(ids, groups, seed=seed)
    rule = EarlyStop(order, margin=MARGIN, alpha=alpha)
    d, c = dict(zip(ids, dense.tolist(), strict=True)), dict(zip(ids, compressed.tolist(), strict=True))
    while rule.batch is not None:
        rule.feed(d, c)
    return rule.state.outcome, rule.state.items


def stopping_run(scenario: Scenario, rng: Rng) -> tuple[str, int]:
    """The study's rule on one draw."""
    scores = scenario.draw(rng)
    # Another order in every draw: the draws of `binary` are sorted.
    seed = int(rng.integers(2**31))
    return asked_in_order(scores.dense, scores.compressed[0], scores.cluster, seed, strata=scenario.strata)


def frontier_run(items: int, truth: Floats, shared: float, rng: Rng) -> tuple[bool, bool, float]:
    """Whether the level found is too severe, whether the failing one is too mild, and the share of items asked."""
    dense, compressed = frontier_draw(items, truth, shared, rng)
    asked, seed = np.zeros(truth.size), int(rng.integers(2**31))
    strict = ALPHA / looks(truth.size)

    def ask(level: int, alpha: float) -> str:
        outcome, count = asked_in_order(dense, compressed[level], np.arange(items), seed, alpha=alpha)
        asked[level] = max(asked[level], count)
        return outcome

    def confirm(level: int) -> str:
        asked[level] = items
        verdict: str = compare(
            dense, compressed[level], margin=MARGIN, alpha=strict, same_model=False, explain=False
        ).verdict
        return verdict

    found = find_frontier(
        range(truth.size), partial(ask, alpha=ALPHA), confirm=confirm, refute=partial(ask, alpha=strict)
    )
    strong, weak = found.strongest_matching, found.weakest_not_matching
    too_severe, too_mild = strong is not None and truth[strong] >= MARGIN, weak is not None and truth[weak] <= MARGIN
    return bool(too_severe), bool(too_mild), float(asked.sum()) / items / truth.size


def stopping_table(replications: int) -> list[str]:
    """Errors of the study's rule at the margin."""
    rows = []
    for scenario in STOPPING:
        rng = np.random.default_rng([5, *scenario.name.encode()])
        results = [stopping_run(scenario, rng) for _ in range(replications)]
        outcomes, used = [outcome for outcome, _ in results], [items for _, items in results]
        rates = [outcomes.count(verdict) / replications for verdict in ("matching", "not matching")]
        rows.append([scenario.name, *rates, f"{np.mean(used):,.0f}"])
    header = ["scenario", "matching", "not matching", "mean items"]
    return [f"## Stop when decided, true loss at the margin ({replications} runs)\n\n{table(header, rows)}"]


def frontier_table(replications: int) -> list[str]:
    """How often a search for the frontier ends at a level that is too severe, or fails one that is too mild.

    Curves with levels at the margin, where errors are largest, have all replications, the others a quarter.
    """
    settings = list(product(CURVES, ((480, 38, 0.5), (480, 38, 0.0), (2000, 13, 0.5))))
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rows = list(pool.map(partial(_frontier_row, replications), settings))
    header = ["curve", "searches", "level found too severe", "failing level too mild", "items asked, of all"]
    return [f"## Frontier by bisection\n\n{table(header, rows)}"]


def _frontier_row(replications: int, setting: tuple[str, tuple[int, int, float]]) -> list[str | float]:
    name, (items, levels, shared) = setting
    rng, truth = np.random.default_rng([6, items, *name.encode()]), CURVES[name](levels)
    count = replications if (truth == MARGIN).any() else max(1, replications // 4)
    runs = [frontier_run(items, truth, shared, rng) for _ in range(count)]
    means = np.array(runs, dtype=float).mean(axis=0).tolist()
    return [f"{name}; {items} items, {levels} levels, {shared:.0%} of losses shared", str(count), *means]


def subjects_table(replications: int, sizes: Sequence[int] = (2000, 5000, 14_042)) -> list[str]:
    """57 fixed subjects: how often a true loss of 3 % of 14,042 items matches, beside what stratified theory says."""
    count, rows = max(20, replications // 10), []
    for n in sizes:
        draw, variance = subjects(n, 57, 0.03, 0.03)
        rng = np.random.default_rng([8, n])
        fixed = stopped = clusters = 0
        accuracy = 0.0
        for _ in range(count):
            scores = draw(rng)
            accuracy += float(scores.dense.mean()) / count
            pair = scores.dense, scores.compressed[0]
            stratum = scores.cluster.tolist()
            fixed += compare(*pair, strata=stratum, explain=False).verdict == "matching"
            clusters += compare(*pair, clusters=stratum, explain=False).verdict == "matching"
            seed = int(rng.integers(2**31))
            stopped += asked_in_order(*pair, scores.cluster, seed, strata=True)[0] == "matching"
        z = 0.02 * accuracy / math.sqrt(variance) - 1.645
        theory = float(scipy.stats.norm.cdf(z))
        rows.append([f"{n:,}", theory, fixed / count, stopped / count, clusters / count])
    header = ["items", "stratified theory", "strata", "strata, stopped when decided", "as clusters (another claim)"]
    title = f"57 fixed subjects whose losses differ by 3 points, true loss 3 %: matching ({count} runs)"
    return [f"## {title}\n\n{table(header, rows)}"]


def sequential_tables(replications: int) -> list[str]:
    """Error at the margin and items used by `SequentialTest`."""
    rng = np.random.default_rng(1)
    header = ["stream", "matching", "not matching", "mean bets", "median bets"]
    runs: list[tuple[str, Callable[[], tuple[str, int]]]] = [
        (f"{name}, 14,042 items, accuracy {a}, loss 5 %", partial(sequential_run, stream, 14_042, a, 0.05, rng))
        for name, stream in (("random order", binary_stream), ("57 strata", stratified_stream))
        for a in (0.45, 0.75)
    ]
    runs.append(("2,000 random clusters of 4, loss 5 %", partial(sequential_clusters_run, rng)))
    savings: list[tuple[str, Callable[[], tuple[str, int]]]] = [
        (f"accuracy {a}, loss {loss:.0%}", partial(sequential_run, binary_stream, 14_042, a, loss, rng))
        for a in (0.45, 0.75)
        for loss in (0.25, 0.12, 0.08, 0.02, 0.0)
    ]
    parts = []
    for title, some, count in (
        ("Sequential, true loss at the margin, a look after every bet", runs, max(1, replications // 2)),
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
    """Power as the design's simulation states it, and as other generators with the same design show it."""
    count, rows = max(50, replications // 2), []
    cases: list[tuple[str, Design, float, Callable[[Rng], object]]] = [
        ("420 items, accuracy 0.75", Design.of_items(420, accuracy=0.75), 0.0, _stream(420, 0.75, 0.0)),
        ("120 items, accuracy 0.75, loss 15 %", Design.of_items(120, accuracy=0.75), 0.15, _stream(120, 0.75, 0.15)),
        (
            "12 clusters of 10, accuracy 0.6",
            Design.of_items(120, cluster_size=10, accuracy=0.6, correlation=0.1),
            0.0,
            clustered(12, 10, 0.1, 0.6, 0.05, loss=0.0),
        ),
        (
            "12 clusters of 10, accuracy 0.6, loss 18 %",
            Design.of_items(120, cluster_size=10, accuracy=0.6, correlation=0.1, discordance=0.168),
            0.18,
            clustered(12, 10, 0.1, 0.6, 0.03, loss=0.18),
        ),
        (
            "200 clusters of 4, accuracy 0.6",
            Design.of_items(800, cluster_size=4, accuracy=0.6, correlation=0.1, discordance=0.06),
            0.0,
            clustered(200, 4, 0.1, 0.6, 0.03, loss=0.0),
        ),
        (
            "3 seeds, 400 items, accuracy 0.6",
            Design.of_items(400, accuracy=0.6, seeds=3, discordance=0.128, seed_spread=0.0),
            0.12,
            _more_loss(seeded(3, 400, 0.0, 0.5), 0.12),
        ),
    ]
    for name, design, loss, draw in cases:
        rng = np.random.default_rng([2, *name.encode()])
        right = "matching" if loss < MARGIN else "not matching"
        hits = 0
        for _ in range(count):
            scores = draw(rng)
            hits += decide(scores, margin=MARGIN, chance=0.0, alpha=ALPHA, same_model=False) == right  # type: ignore[arg-type]
        formula = verdict_power(design.items, design.accuracy, loss=loss, discordance=design.discordance)
        rows.append([name, right, simulated_power(design, loss=loss), hits / count, formula])
    needed = [
        [f"{design.accuracy}", f"{design.cluster_sizes[0]}", f"{items_for_power(design):,}"]
        for design in (
            Design.of_items(100, accuracy=0.75),
            Design.of_items(100, accuracy=0.45),
            Design.of_items(100, accuracy=0.6, cluster_size=5),
        )
    ]
    header = ["design", "right verdict", "power as stated", "by another generator", "formula for independent items"]
    return [
        "## Power of a design\n\n" + table(header, rows),
        "## Items needed to call a model without a loss matching in 80 %\n\n"
        + table(["accuracy", "cluster size", "items"], needed),
    ]


def _stream(n: int, accuracy: float, loss: float) -> Callable[[Rng], object]:
    return lambda rng: paired(*binary_stream(rng, n, accuracy, loss))


def _more_loss(draw: Callable[[Rng], object], loss: float) -> Callable[[Rng], object]:
    """The same scores with further items lost in every seed, from the margin to this loss."""

    def more(rng: Rng) -> object:
        scores = draw(rng)
        extra = rng.random(scores.dense.size) < (loss - MARGIN) / (1 - MARGIN)  # type: ignore[attr-defined]
        return paired(scores.dense, np.where(extra, 0.0, scores.compressed))  # type: ignore[attr-defined]

    return more


def paper_rule(replications: int) -> list[str]:
    """How often 100 items let the point rule call a true loss of 8 % matching."""
    rng = np.random.default_rng(3)
    rows = []
    for accuracy in (0.45, 0.75):
        results = [compare(*binary_stream(rng, 100, accuracy, 0.08), explain=False) for _ in range(replications)]
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
    subject = rng.integers(57, size=14_042).tolist()
    rows = []
    cases: tuple[tuple[str, Floats, dict[str, list[int]]], ...] = (
        ("57 strata", compressed, {"strata": subject}),
        ("57 clusters", compressed, {"clusters": subject}),
        ("57 strata, 5 seeds", np.stack([compressed] * 5), {"strata": subject}),
        ("graded", compressed * rng.random(14_042), {}),
    )
    for name, c, groups in cases:
        start = time.perf_counter()
        compare(dense, c, chance=0.25, **groups)
        rows.append([name, f"{time.perf_counter() - start:.2f} s"])
    return ["## Time: 14,042 items\n\n" + table(["case", "time"], rows)]


def processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


TABLES: dict[str, Callable[[int], list[str]]] = {
    "independent": partial(error_table, "Independent items, true loss at the margin", "independent", 400),
    "losses": partial(error_table, "Independent items, other true losses", "losses", 400),
    "changes": errors_by_changes,
    "clusters": partial(error_table, "Clusters, true loss at the margin", "clusters", 400),
    "cluster losses": partial(error_table, "Clusters, other true losses", "cluster losses", 0),
    "very uneven": partial(
        error_table, "Clusters that lose very unevenly, true loss at the margin", "very uneven", 400
    ),
    "very uneven losses": partial(
        error_table, "Clusters that lose very unevenly, other true losses", "very uneven losses", 0
    ),
    "drawn clusters": partial(error_table, "48 settings of clusters drawn by a seed", "drawn clusters", 0),
    "seeds": partial(error_table, "Several calibration seeds, true loss at the margin", "seeds", 400),
    "unseen": partial(error_table, "Generators that served to choose nothing", "unseen", 0),
    "unknowable": partial(error_table, "What no sample of this size can show", "unknowable", 0),
    "peers": power_against_peers,
    "subjects": subjects_table,
    "sequential": sequential_tables,
    "stopping": stopping_table,
    "frontier": frontier_table,
    "power": power_table,
    "paper": paper_rule,
    "time": timing,
}


def main() -> None:
    """Run everything, print each table as it is made, write the report with --write."""
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
    tables = []
    for name in names:
        made = TABLES[name](count)
        sys.stdout.write("\n\n".join(made) + "\n\n")
        sys.stdout.flush()
        tables += made
        sys.stderr.write(f"{name}: {time.perf_counter() - start:.0f} s\n")
    head = (
        f"# Statistics: errors and power\n\n"
        f"`{' '.join(['python benchmarks/statistics.py', *sys.argv[1:]])}` · {count} replications each · "
        f"{time.perf_counter() - start:.0f} s\n\n"
        f"{processor()}, {os.cpu_count()} cores · Python {platform.python_version()}, "
        f"numpy {np.__version__}, scipy {scipy.__version__}\n\n"
        f"“Upper misses”: the upper bound is below the true loss, which at the margin is the verdict “matching”. "
        f"“Lower misses”: the lower bound is above it, “not matching” at the margin. Each is to happen in at most 5 %; "
        f"the Monte-Carlo standard error of a 5 % rate is {100 * (0.05 * 0.95 / count) ** 0.5:.1f} points (BCa: a "
        f"quarter of the draws, 400 resamples)."
    )
    notes = (HERE / "statistics_notes.md").read_text(encoding="utf-8")
    report = "\n\n".join([head, *tables, notes])
    if arguments.write:
        target = Path(__file__).parent / "results" / "statistics.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
