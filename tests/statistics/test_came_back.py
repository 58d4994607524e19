"""What came back, against brute force, and against simulations whose truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.errors import ConfigError, DataError
from llmkick.statistics import CameBack, what_came_back
from speeds import others_slow

Floats = np.ndarray


def scores(values: Sequence[float | None]) -> dict[str, float | None]:
    return {f"item-{i}": None if value is None else float(value) for i, value in enumerate(values)}


def came_back(
    dense: Sequence[float | None],
    base: Mapping[int | None, Sequence[float | None]],
    recovered: Mapping[int | None, Sequence[float | None]],
    *,
    clusters: Sequence[int] | None = None,
) -> CameBack:
    return what_came_back(
        scores(dense),
        {seed: scores(row) for seed, row in base.items()},
        {seed: scores(row) for seed, row in recovered.items()},
        clusters=None if clusters is None else {f"item-{i}": label for i, label in enumerate(clusters)},
    )


# Definitions, by brute force


BITS = st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30)


@given(BITS)
@settings(max_examples=30, deadline=None)
def test_right_and_wrong_answers_are_counted(items: list[tuple[bool, bool, bool]]) -> None:
    dense, base, recovered = (list(map(float, column)) for column in zip(*items, strict=True))
    found = came_back(dense, {0: base}, {0: recovered})
    lost = [item for item in items if item[0] and not item[1]]
    kept = [item for item in items if item[0] and item[1]]
    neither = [item for item in items if not item[0] and not item[1]]
    assert found.lost == len(lost)
    assert found.kept == len(kept)
    assert found.returned.value == (sum(r for _, _, r in lost) / len(lost) if lost else None)
    assert found.newly_lost.value == (sum(not r for _, _, r in kept) / len(kept) if kept else None)
    assert found.gained.value == (sum(r for _, _, r in neither) / len(neither) if neither else None)
    assert found.change.value == pytest.approx(sum(r - c for _, c, r in items) / len(items))
    words = {True: "right", False: "wrong"}
    for flow in found.flow:
        history = (flow.dense, flow.compressed, flow.recovered)
        assert flow.items == sum(tuple(words[state] for state in item) == history for item in items)
    assert sum(flow.items for flow in found.flow) == len(items)


GRADES = st.lists(st.tuples(*[st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0])] * 3), min_size=1, max_size=20)


@given(GRADES)
@settings(max_examples=30, deadline=None)
def test_of_graded_answers_the_shares_are_of_score(items: list[tuple[float, float, float]]) -> None:
    dense, base, recovered = map(list, zip(*items, strict=True))
    found = came_back(dense, {0: base}, {0: recovered})
    lost = back = kept = new = 0.0
    for d, c, r in items:
        if c < d:
            lost += d - c
            back += min(r, d) - c if r > c else 0.0
        low = min(d, c)
        kept += low
        new += low - r if r < low else 0.0
    for share, part, whole in ((found.returned, back, lost), (found.newly_lost, new, kept)):
        assert share.value == (pytest.approx(part / whole) if whole else None)
        if share.interval is not None:
            assert 0 <= share.interval[0] <= share.value + 1e-9
            assert share.value - 1e-9 <= share.interval[1] <= 1


def test_seeds_are_paired_with_their_own_base_and_the_control_with_the_next_one() -> None:
    dense = [1, 1, 1, 1, 1, 0]
    base = {3: [0, 0, 1, 1, 1, 0], 5: [1, 0, 0, 1, 1, 0], 8: [1, 1, 1, 0, 0, 1]}
    recovered = {8: [1, 1, 1, 1, 0, 0], 3: [1, 0, 1, 1, 1, 0], 5: [1, 1, 1, 0, 1, 0]}
    found = came_back(dense, base, recovered)
    lost = {seed: [i for i in range(6) if dense[i] > row[i]] for seed, row in base.items()}
    many = sum(map(len, lost.values()))
    following = {3: 5, 5: 8, 8: 3}
    back = sum(recovered[seed][i] for seed, items in lost.items() for i in items)
    by_chance = sum(base[following[seed]][i] for seed, items in lost.items() for i in items)
    assert found.seeds == (8, 3, 5)
    assert found.lost == many / 3
    assert found.returned.value == back / many
    assert found.control.value == by_chance / many
    assert found.difference.value == pytest.approx((back - by_chance) / many)
    kept = {seed: [i for i in range(6) if dense[i] and row[i]] for seed, row in base.items()}
    gone = sum(1 - base[following[seed]][i] for seed, items in kept.items() for i in items)
    assert found.newly_lost_control.value == gone / sum(map(len, kept.values()))


def test_nothing_lost_is_not_a_share_of_zero() -> None:
    found = came_back([1, 1, 0], {0: [1, 1, 0], 1: [1, 1, 1]}, {0: [1, 0, 0], 1: [1, 1, 0]})
    assert (found.returned.value, found.returned.interval, found.returned.reason) == (None, None, "nothing was lost")
    assert found.outcome == "nothing lost"
    assert found.newly_lost.value == 1 / 4


def test_nothing_measured_is_not_nothing_lost() -> None:
    base = {seed: {"a": 0.0, "b": None} for seed in range(2)}
    recovered = {seed: {"a": 1.0, "b": 1.0} for seed in range(2)}
    found = what_came_back({"a": None, "b": 1.0}, base, recovered)
    assert (found.n, found.outcome) == (0, "no control")
    assert {found.returned.reason, found.change.reason} == {"no item has a score from every model"}


def test_without_a_second_seed_there_is_no_control() -> None:
    found = came_back([1, 1, 1], {0: [0, 0, 1]}, {0: [1, 0, 1]})
    assert found.outcome == "no control"
    assert found.control.value is found.difference.value is None
    assert "second" in found.control.reason


def test_a_base_without_seeds_has_no_control_but_may_show_what_always_returns() -> None:
    found = came_back([1, 1, 1, 1], {None: [0, 0, 0, 1]}, {0: [1, 1, 0, 1], 1: [1, 0, 1, 1]})
    assert found.outcome == "no control"
    assert "does not depend on the calibration seed" in found.control.reason
    assert found.returned.value == 4 / 6
    assert found.always.value == 1 / 3
    assert came_back([1, 1], {None: [0, 0]}, {None: [1, 0]}).always.value is None


def test_unscored_items_are_left_out_and_counted() -> None:
    found = came_back([1, 1, None, 1, 1], {0: [0, None, 0, 0, 1]}, {0: [1, 1, 1, 0, 1]})
    assert (found.n, found.unscored, found.returned.value) == (3, 2, 0.5)
    nothing = came_back([None, 1], {0: [1, None]}, {0: [1, 1]})
    assert (nothing.n, nothing.returned.value, nothing.change.value) == (0, None, None)
    assert nothing.outcome == "no control"  # and not that nothing was lost


def test_a_single_cluster_has_a_value_and_no_interval() -> None:
    found = came_back([1] * 4, {0: [0] * 4}, {0: [1, 1, 0, 0]}, clusters=[7] * 4)
    assert (found.returned.value, found.returned.interval) == (0.5, None)
    assert found.returned.reason == "only one cluster: no interval"
    assert came_back([1, 1], {0: [0, 1]}, {0: [1, 1]}).returned.reason == "only one item: no interval"


def test_what_does_not_match_is_refused() -> None:
    with pytest.raises(DataError, match="of other items"):
        what_came_back({"a": 1.0}, {0: {"b": 1.0}}, {0: {"a": 1.0}})
    with pytest.raises(DataError, match="same seeds"):
        came_back([1], {0: [1]}, {1: [1]})
    with pytest.raises(DataError, match="outside"):
        came_back([3], {0: [1]}, {0: [1]})
    with pytest.raises(ConfigError, match="alpha"):
        what_came_back({"a": 1.0}, {0: {"a": 1.0}}, {0: {"a": 1.0}}, alpha=0.7)


# Intervals


def test_the_bounds_of_independent_right_answers() -> None:
    """Of 80 lost items 24 returned: the less favourable of Student's t and of the score test, with 79 degrees."""
    found = came_back([1] * 80 + [0] * 40, {0: [0] * 120}, {0: [1] * 24 + [0] * 96})
    t, n, p = 1.99045, 80, 0.3
    student = p - t * math.sqrt(p * (1 - p) / (n - 1))
    score = (p + t**2 / (2 * n) + t * math.sqrt(p * (1 - p) / n + t**2 / (4 * n**2))) / (1 + t**2 / n)
    assert found.returned.interval == pytest.approx((student, score), abs=1e-3)


def test_the_difference_is_shown_exactly_if_its_interval_is_above_zero() -> None:
    rng = np.random.default_rng(3)
    outcomes = set()
    for _ in range(15):
        lost = 30
        base = {seed: (rng.random(lost) < 0.3).astype(float) for seed in range(4)}
        share = rng.choice([0.3, 0.5, 0.9])
        recovered = {seed: np.maximum(row, rng.random(lost) < share).tolist() for seed, row in base.items()}
        found = came_back([1] * lost, {seed: row.tolist() for seed, row in base.items()}, recovered)
        low, high = found.difference.interval
        assert (found.outcome == "brought back") == (low > 0)
        assert (found.outcome == "less than control") == (high < 0)
        assert (found.difference.p < 0.05) == (low > 0 or high < 0)
        outcomes.add(found.outcome)
    assert {"brought back", "undecided"} <= outcomes


def test_clusters_and_strata_count_as_everywhere() -> None:
    """Items that return together are fewer units than items: strata leave them independent, clusters do not."""
    labels = [i // 8 for i in range(64)]
    recovered = [float(label % 2) for label in labels]
    data = (scores([1] * 64), {0: scores([0] * 64)}, {0: scores(recovered)})
    groups = {f"item-{i}": label for i, label in enumerate(labels)}
    alone, strata = what_came_back(*data), what_came_back(*data, strata=groups)
    clusters = what_came_back(*data, clusters=groups)
    assert replace(alone, notes=()) == replace(strata, notes=())
    width = [high - low for low, high in (alone.returned.interval, clusters.returned.interval)]
    assert width[1] > 2 * width[0]


def test_right_answers_that_all_returned_prove_no_certainty() -> None:
    found = came_back([1] * 10, {0: [0] * 10}, {0: [1] * 10})
    assert found.returned.value == found.returned.interval[1] == 1.0
    assert 0.5 < found.returned.interval[0] < 0.75  # exact: 0.025 ** (1 / 10) = 0.69


# Simulations


def draw(
    rng: np.random.Generator, *, clusters: int, size: int, returned: float, spread: float, seeds: int = 1
) -> tuple[CameBack, float]:
    """A draw in which a fifth of the right answers are lost, and this share of these returns on average.

    The chance to return differs between clusters as a beta distribution with `spread` as its sum of parameters.
    """
    items = clusters * size
    cluster = np.repeat(np.arange(clusters), size)
    dense = (rng.random(items) < 0.8).astype(float)
    chance = rng.beta(returned * spread, (1 - returned) * spread, clusters)[cluster]
    base, recovered = {}, {}
    for seed in range(seeds):
        base[seed] = dense * (rng.random(items) >= 0.2)
        recovered[seed] = np.where(dense > base[seed], rng.random(items) < chance, base[seed])
    return came_back(dense, base, recovered, clusters=cluster.tolist()), returned


@pytest.mark.parametrize(
    ("clusters", "size", "returned", "spread"),
    [
        (250, 1, 0.3, 9.0),
        pytest.param(40, 5, 0.4, 3.0, marks=pytest.mark.slow),
        pytest.param(20, 10, 0.8, 3.0, marks=pytest.mark.slow),
        (15, 8, 0.15, 4.0),
    ],
)
@pytest.mark.parametrize("draws", [40, pytest.param(100, marks=pytest.mark.slow)])
def test_the_interval_covers_the_true_share(
    clusters: int, size: int, returned: float, spread: float, draws: int
) -> None:
    rng = np.random.default_rng([clusters, size])
    missed = 0
    for _ in range(draws):
        found, truth = draw(rng, clusters=clusters, size=size, returned=returned, spread=spread)
        low, high = found.returned.interval
        missed += not low <= truth <= high
    assert missed / draws <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize(("seeds", "draws"), others_slow([(2, 30), (2, 80), (3, 80)], [(2, 30)]))
def test_a_recovery_that_only_draws_anew_is_not_said_to_bring_back(seeds: int, draws: int) -> None:
    """The recovered model is one more draw of the base, whose quality differs between seeds."""
    rng = np.random.default_rng(seeds)
    said = 0
    for _ in range(draws):
        dense = (rng.random(200) < 0.8).astype(float)
        hard = rng.beta(1, 3, 200)

        def model(dense: Floats = dense, hard: Floats = hard) -> Floats:
            return dense * (rng.random(200) >= np.clip(hard + 0.08 * rng.standard_normal(), 0, 1))

        base = {seed: model() for seed in range(seeds)}
        said += came_back(dense, base, {seed: model() for seed in base}).outcome == "brought back"
    assert said / draws <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / draws)


def test_a_recovery_that_returns_much_is_said_to_bring_back() -> None:
    rng = np.random.default_rng(5)
    dense = np.ones(300)
    base = {seed: dense * (rng.random(300) >= 0.4) for seed in range(3)}
    recovered = {seed: np.maximum(row, rng.random(300) < 0.9) for seed, row in base.items()}
    found = came_back(dense, base, recovered)
    assert found.outcome == "brought back"
    assert found.against_base == "better"
    assert found.difference.interval[0] < 0.9 - 0.6 < found.difference.interval[1]
    worse = came_back(dense, base, {seed: row * (rng.random(300) < 0.5) for seed, row in base.items()})
    assert (worse.outcome, worse.against_base) == ("less than control", "worse")
