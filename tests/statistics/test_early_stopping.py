"""Stopping when decided: the order, the looks, unscored items at their worst, signals, and what is reported."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.errors import DataError
from llmkick.statistics import (
    EarlyStop,
    ItemOrder,
    SequentialTest,
    SignalTest,
    compare,
    compare_stopped,
    confidence_sequence,
    early_stopping,
    order_items,
    signal_after,
)

Scores = dict[str, float | None]


def named(scores: list[float | None] | np.ndarray) -> Scores:
    return {f"q{index}": None if score is None else float(score) for index, score in enumerate(scores)}


def alone(items: int, **options: int) -> ItemOrder:
    """Every item its own cluster."""
    ids = [f"q{index}" for index in range(items)]
    return order_items(ids, {item: item for item in ids}, **options)


def drawn(items: int, loss: float, *, seed: int = 0, accuracy: float = 0.7) -> tuple[Scores, Scores]:
    rng = np.random.default_rng(seed)
    dense = (rng.random(items) < accuracy) * 1.0
    return named(dense), named(dense * (rng.random(items) >= loss))


class TestOrder:
    def test_looks_are_small_at_first_and_then_larger(self):
        ids = [f"q{index}" for index in range(300)]
        assert [len(batch) for batch in order_items(ids).batches] == [32, 32, 64, 64, 64, 44]
        clusters = {item: int(item[1:]) // 5 for item in ids}
        sizes = [len(batch) for batch in order_items(ids, clusters).batches]
        assert sizes[:4] == [35, 35, 65, 65]  # whole clusters
        assert sum(sizes) == 300

    def test_strata_are_spread_evenly(self) -> None:
        ids = [f"q{index}" for index in range(400)]
        strata = {item: int(item[1:]) % 4 for item in ids}
        order = order_items(ids, strata=strata, look=40)
        assert (order.unit, order.strata) == ("item", strata)
        assert order.clusters == {item: item for item in ids}
        assert sorted(order.ids) == sorted(ids)
        assert [len(batch) for batch in order.batches] == [40] * 10
        for batch in order.batches:
            counts = Counter(strata[item] for item in batch)
            assert all(9 <= count <= 11 for count in counts.values())

    @pytest.mark.parametrize("size", [2, 5, 30, 60])
    def test_drawn_clusters_stay_whole_however_large_or_few(self, size: int) -> None:
        ids = [f"q{index}" for index in range(60)]
        clusters = {item: int(item[1:]) // size for item in ids}
        order = order_items(ids, clusters, look=8)
        assert (order.unit, order.largest_cluster) == ("cluster", size)
        runs = [cluster for cluster, _ in itertools.groupby(order.ids, key=clusters.__getitem__)]
        assert sorted(runs) == list(range(60 // size))
        assert order.clusters == clusters

    def test_turns_stay_in_their_order_and_clusters_of_one_are_items(self) -> None:
        ids = [f"q{index}" for index in range(60)]
        place = {item: number for number, item in enumerate(order_items(ids, {i: int(i[1:]) // 5 for i in ids}).ids)}
        assert all(place[f"q{k + 1}"] == place[f"q{k}"] + 1 for k in range(59) if k % 5 < 4)
        own = order_items(ids, {item: item for item in ids})
        assert (own.unit, own.largest_cluster, own.clusters) == ("item", None, order_items(ids).clusters)

    def test_small_clusters_stay_whole(self) -> None:
        ids = [f"q{index}" for index in range(180)]
        order = order_items(ids, {item: int(item[1:]) // 5 for item in ids}, look=12)
        assert (order.unit, order.largest_cluster) == ("cluster", 5)
        assert [len(batch) for batch in order.batches] == [15] * 12
        of_cluster = [{order.clusters[item] for item in batch} for batch in order.batches]
        assert sum(map(len, of_cluster)) == 36
        assert set.union(*of_cluster) == set(range(36))

    def test_seeded_and_not_the_first_items(self) -> None:
        assert alone(200) == alone(200)
        assert alone(200).ids != alone(200, seed=1).ids
        assert set(alone(200).batches[0]) != {f"q{index}" for index in range(32)}

    def test_nothing_to_ask(self) -> None:
        assert order_items([], {}).batches == ()


class TestStop:
    @pytest.mark.parametrize(("loss", "outcome"), [(0.5, "not matching"), (0.0, "matching")])
    def test_it_stops_and_says_when(self, loss: float, outcome: str) -> None:
        order, (dense, compressed) = alone(2000), drawn(2000, loss)
        found = compare_stopped(order, dense, compressed)
        assert found.verdict == outcome
        assert found.stopping is not None
        assert found.stopping.stopped
        assert found.n == found.stopping.items < 300
        assert found.stopping.items % 32 == 0
        # By hand: the same bets in the same order.
        test = SequentialTest(alpha=0.015).update([dense[i] for i in order.ids], [compressed[i] for i in order.ids])  # type: ignore[misc]
        assert test.decision == outcome
        assert found.stopping.decided_after == test.decided_after
        assert 0 <= found.stopping.items - test.decided_after < 64  # type: ignore[operator]

    @settings(max_examples=12, deadline=None)
    @given(st.integers(0, 10**6), st.sampled_from([0.0, 0.04, 0.1, 0.3]))
    def test_what_is_asked_later_changes_nothing(self, seed: int, loss: float) -> None:
        order, (dense, compressed) = alone(500, seed=seed), drawn(500, loss, seed=seed)
        found = compare_stopped(order, dense, compressed)
        assert found.stopping is not None
        asked = order.ids[: found.stopping.items]
        again = compare_stopped(order, {i: dense[i] for i in asked}, {i: compressed[i] for i in asked})
        assert again == found

    def test_out_of_items(self) -> None:
        found = compare_stopped(alone(60), *drawn(60, 0.04))
        assert found.verdict == "undecided"
        assert found.stopping is not None
        assert (found.stopping.stopped, found.stopping.items, found.stopping.decided_after) == (False, 60, None)
        assert any("all 60 items were asked" in note for note in found.notes)

    def test_the_last_word_has_the_test_of_all_items(self) -> None:
        """300 items too few for the bets, enough for the test at its share of alpha."""
        dense, compressed = drawn(300, 0.0, accuracy=0.9)
        changed = [item for item, score in dense.items() if score == 1.0][:4]
        fewer = compressed | dict.fromkeys(changed, 0.0)
        found, plain = compare_stopped(alone(300), dense, fewer), compare(dense, fewer)
        assert plain.p_matching is not None
        assert plain.p_matching < 0.035
        assert found.stopping is not None
        assert not found.stopping.stopped
        assert found.verdict == "matching"
        assert found.p_matching == pytest.approx(plain.p_matching / 0.7)
        assert found.interval is not None
        assert found.interval[1] == pytest.approx(compare(dense, fewer, alpha=0.035).interval[1])  # type: ignore[index]

    def test_records_that_end_too_early_are_an_error(self) -> None:
        order, (dense, compressed) = alone(200), drawn(200, 0.05)
        with pytest.raises(DataError, match="was not asked"):
            compare_stopped(order, dense, {item: compressed[item] for item in order.batches[0]})

    def test_one_cluster_decides_nothing(self) -> None:
        dense, compressed = drawn(200, 0.9)
        order = order_items(list(dense), dict.fromkeys(dense, "all"))
        assert compare_stopped(order, dense, compressed).verdict == "undecided"

    def test_the_same_weights_match(self) -> None:
        dense, _ = drawn(40, 0.0)
        assert compare_stopped(alone(40), dense, dense).verdict == "undecided"
        assert compare_stopped(alone(40), dense, dense, same_model=True).verdict == "matching"

    def test_clusters_are_single_bets(self) -> None:
        """Five copies of every item: no faster than one of each."""
        dense, compressed = drawn(300, 0.3)
        several = {f"{item}/{k}": score for item, score in dense.items() for k in range(5)}
        fewer = {f"{item}/{k}": score for item, score in compressed.items() for k in range(5)}
        order = order_items(list(several), {item: item.split("/")[0] for item in several})
        found = compare_stopped(order, several, fewer)
        assert found.stopping is not None
        assert (found.verdict, found.stopping.unit) == ("not matching", "cluster")
        single = [order.batches[0][0].split("/")[0]] if not order.batches else [i.split("/")[0] for i in order.ids[::5]]
        test = SequentialTest(alpha=0.015).update([dense[i] for i in single], [compressed[i] for i in single])  # type: ignore[misc]
        assert found.stopping.decided_after == test.decided_after


class TestFamilies:
    def test_a_match_goes_on_until_it_passes_a_correction_and_a_loss_does_not(self) -> None:
        dense, same = drawn(4000, 0.0)
        _, lossy = drawn(4000, 0.5)
        one, of_many = (compare_stopped(alone(4000), dense, same, family_size=size) for size in (1, 20))
        assert one.stopping is not None
        assert of_many.stopping is not None
        assert (one.verdict, of_many.verdict) == ("matching", "matching")
        assert 0.05 / 20 < (one.p_matching or 0) < 0.05
        assert (of_many.p_matching or 1) < 0.05 / 20
        assert one.stopping.items < of_many.stopping.items < 4000
        # The bets are those of a test at 0.3 · 0.05 / 20.
        test = SequentialTest(alpha=0.015 / 20)
        asked = alone(4000).ids[: of_many.stopping.items]
        state = test.update([dense[item] for item in asked], [same[item] for item in asked])  # type: ignore[misc]
        assert of_many.stopping.decided_after == state.decided_after
        assert compare_stopped(alone(4000), dense, lossy, family_size=20) == compare_stopped(alone(4000), dense, lossy)

    def test_the_verdict_is_at_alpha_where_the_items_run_out(self) -> None:
        dense, same = drawn(330, 0.0)
        found = compare_stopped(alone(330), dense, same, family_size=1000)
        assert found.stopping is not None
        assert 0.05 / 1000 < (found.p_matching or 0) < 0.05
        assert (found.verdict, found.stopping.stopped, found.n) == ("matching", False, 330)
        assert (found.interval or (0, 1))[1] < 0.05


class TestUnscored:
    def test_few_of_them_do_not_change_a_clear_verdict(self) -> None:
        dense, compressed = drawn(2000, 0.5)
        compressed = {item: None if index % 50 == 0 else s for index, (item, s) in enumerate(compressed.items())}
        found = compare_stopped(alone(2000), dense, compressed)
        assert found.verdict == "not matching"
        assert found.stopping is not None
        assert found.stopping.unscored > 0
        assert found.unscored == found.stopping.unscored

    def test_what_they_could_change_is_incomplete(self) -> None:
        dense, compressed = drawn(600, 0.0)
        gaps = {item: None if index % 8 == 0 else score for index, (item, score) in enumerate(compressed.items())}
        found = compare_stopped(alone(600), dense, gaps)
        assert compare_stopped(alone(600), dense, compressed).verdict == "matching"
        assert found.verdict == "incomplete"
        assert found.stopping is not None
        assert not found.stopping.stopped

    def test_nothing_scored(self) -> None:
        dense, _ = drawn(100, 0.0)
        found = compare_stopped(alone(100), dense, dict.fromkeys(dense))
        assert found.verdict not in ("matching", "not matching")
        assert found.relative_drop is None

    @pytest.mark.parametrize(("chance", "scored"), [(0.0, 0.0), (0.25, 0.3)])
    def test_without_scores_nobody_knows_of_a_signal(self, chance: float, scored: float) -> None:
        """The dense model's unscored items could show what the scored ones do not."""
        order = alone(200)
        half: Scores = {
            item: None if place % 2 else float(place % 20 < 20 * scored) for place, item in enumerate(order.ids)
        }
        for dense in (half, dict.fromkeys(order.ids)):
            found = compare_stopped(order, dense, dense, chance=chance)
            assert found.verdict == "incomplete"
            assert found.stopping is not None
            assert (found.stopping.outcome, found.stopping.items) == ("incomplete", len(order.batches[0]))
            assert "depends on them" in found.notes[0]
        few: Scores = {item: None if place < 3 else 0.2 for place, item in enumerate(order.ids)}
        assert compare_stopped(order, few, few, chance=0.25).verdict == "no signal"

    def test_decided_means_whatever_they_were(self) -> None:
        """Filled in at either end, the verdict is the same."""
        dense, compressed = drawn(1000, 0.35)
        gaps: Scores = {item: None if index % 30 == 0 else s for index, (item, s) in enumerate(compressed.items())}
        found = compare_stopped(alone(1000), dense, gaps)
        assert found.stopping is not None
        asked = alone(1000).ids[: found.stopping.items]
        for instead in (0.0, 1.0):
            full = [instead if gaps[item] is None else gaps[item] for item in asked]
            state = SequentialTest(alpha=0.015).update([dense[item] for item in asked], full)  # type: ignore[misc]
            assert state.decision == found.verdict


class TestSignal:
    def test_one_success_is_a_signal_where_chance_is_nothing(self) -> None:
        order = alone(100)
        scores = dict.fromkeys(order.batches[0], 0.0)
        assert signal_after(order, scores) is None
        assert signal_after(order, {**scores, order.batches[0][5]: 1.0}) is True
        assert signal_after(order, dict.fromkeys(order.ids, 0.0)) is False

    def test_above_chance_has_to_be_proven(self) -> None:
        order = alone(400)
        good = named([float(index % 4 > 0) for index in range(400)])
        lucky = named([float(index % 4 == 0) for index in range(400)])
        first = order.batches[0] + order.batches[1]
        assert signal_after(order, {item: good[item] for item in first}, chance=0.25) is True
        assert signal_after(order, {item: lucky[item] for item in first}, chance=0.25) is None
        assert signal_after(order, lucky, chance=0.25) is False

    @pytest.mark.parametrize("items", [60, 300])
    def test_false_signals_are_rare_in_both_stages_together(self, items: int) -> None:
        """At chance: by the bets on the way and by the test of all items at the end, in at most alpha of runs."""
        rng, order, runs = np.random.default_rng(0), alone(items), 800
        early, late = 0, 0
        for _ in range(runs):
            scores = named((rng.random(items) < 0.25) * 1.0)
            test = SignalTest(order, chance=0.25)
            outcomes = [test.feed(scores) for _ in order.batches]
            at_once = bool(outcomes[-2])
            early += at_once
            late += not at_once and bool(outcomes[-1])
        assert early <= runs * (0.015 + 3 * math.sqrt(0.015 * 0.985 / runs))
        assert early + late <= runs * (0.05 + 2 * math.sqrt(0.05 * 0.95 / runs))
        assert late > 0

    def test_a_signal_of_few_clusters_is_proven_by_clusters(self) -> None:
        """Three passages of which one is known: its hundred right answers are one."""
        ids = [f"q{index}" for index in range(300)]
        order = order_items(ids, {item: int(item[1:]) // 100 for item in ids})
        scores = {item: float(int(item[1:]) < 100) for item in ids}
        assert signal_after(order, scores, chance=0.25) is False
        assert signal_after(order_items(ids), scores, chance=0.25) is True

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 10**6), st.sampled_from([0.2, 0.3, 0.4]), st.sampled_from([0.0, 0.25]), st.booleans())
    def test_fed_batch_by_batch_it_is_signal_after(self, seed: int, share: float, chance: float, whole: bool) -> None:
        rng = np.random.default_rng(seed)
        ids = [f"q{index}" for index in range(200)]
        order = order_items(ids, {i: int(i[1:]) // 3 for i in ids} if whole else None, seed=seed)
        scores = named([None if rng.random() < 0.05 else float(rng.random() < share) for _ in ids])
        test, asked = SignalTest(order, chance=chance), {}
        for batch in order.batches:
            assert signal_after(order, asked, chance=chance) is None
            asked |= {item: scores[item] for item in batch}
            outcome = test.feed(asked)
            assert outcome is signal_after(order, asked, chance=chance)
            if outcome is not None:
                break
        assert test.outcome is not None
        assert signal_after(order, scores, chance=chance) is test.outcome

    def test_every_score_is_read_and_bet_on_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Linear: four times the items cost four times the reads and bets, and one test of all items at the end."""

        class Counting(dict[str, float | None]):
            reads = 0

            def __getitem__(self, item: str) -> float | None:
                self.reads += 1
                return super().__getitem__(item)

        bets, tests = [], []
        log_wealth, has_signal = early_stopping.log_wealth, early_stopping.has_signal
        monkeypatch.setattr(
            early_stopping, "log_wealth", lambda values, *rest: bets.append(values.size) or log_wealth(values, *rest)
        )
        monkeypatch.setattr(
            early_stopping, "has_signal", lambda scores, *rest: tests.append(1) or has_signal(scores, *rest)
        )
        for items in (400, 1600):
            order, scores = alone(items), Counting(named([float(index % 4 == 0) for index in range(items)]))
            bets.clear()
            tests.clear()
            test = SignalTest(order, chance=0.25)
            for _ in order.batches:
                test.feed(scores)
            assert (test.outcome, scores.reads, sum(bets), len(tests)) == (False, items, items, 1)

    def test_without_one_a_batch_is_asked_and_no_more(self) -> None:
        order = alone(400)
        lucky = named([float(index % 4 == 0) for index in range(400)])
        found = compare_stopped(order, lucky, {item: lucky[item] for item in order.batches[0]}, chance=0.25)
        assert (found.verdict, found.n) == ("no signal", 32)
        assert found.stopping is not None
        assert found.stopping.stopped


class TestConfidenceSequence:
    def test_it_inverts_the_bets(self) -> None:
        dense, compressed = (np.array(list(scores.values())) for scores in drawn(400, 0.25))
        for chance in (0.0, 0.25):
            found = confidence_sequence(dense, compressed, alpha=0.1, chance=chance)
            assert found is not None
            low, high = found
            for margin, side in ((low, "p_not_matching"), (high, "p_matching")):
                state = SequentialTest(margin=margin, alpha=0.1, chance=chance).update(dense, compressed)
                assert getattr(state, side) == pytest.approx(0.1, rel=1e-3)

    @pytest.mark.parametrize("runs", [30, pytest.param(80, marks=pytest.mark.slow)])
    def test_it_covers_whenever_one_stops(self, runs: int) -> None:
        """Looked at while the verdict is open, and where it fell: each bound misses in at most 5 % of runs."""
        missed = np.zeros(2)
        for seed in range(runs):
            dense, compressed = drawn(400, 0.15, seed=seed)
            found = compare_stopped(alone(400, seed=seed), dense, compressed)
            assert found.interval is not None
            missed += found.interval[0] > 0.15, found.interval[1] < 0.15
        assert missed.max() <= runs * (0.05 + 3 * math.sqrt(0.05 * 0.95 / runs))

    def test_it_holds_the_plain_interval(self) -> None:
        dense, compressed = drawn(300, 0.2)
        plain = compare(dense, compressed).interval
        found = confidence_sequence(np.array(list(dense.values())), np.array(list(compressed.values())), alpha=0.05)
        assert found is not None
        assert plain is not None
        assert found[0] < plain[0] < plain[1] < found[1]

    def test_what_cannot_be_bounded(self) -> None:
        assert confidence_sequence(np.zeros(50), np.zeros(50), alpha=0.05) is None
        silent = confidence_sequence(np.ones(200), np.zeros(200), alpha=0.05)
        assert silent is not None
        assert silent[0] > 0.9
        assert silent[1] == pytest.approx(1)


def test_a_stopped_comparison_claims_nothing_it_cannot() -> None:
    found = compare_stopped(alone(500), *drawn(500, 0.5))
    assert found.mcnemar_p is None
    assert found.interval_method.startswith("pair of one-sided bounds by betting")
    assert found.p_not_matching is not None
    assert found.p_not_matching <= 0.05
    assert found.paper_verdict == "not matching"


def test_early_stop_is_fed_in_order() -> None:
    order, (dense, compressed) = alone(100), drawn(100, 0.5)
    rule = EarlyStop(order)
    assert rule.batch == order.batches[0]
    with pytest.raises(DataError, match="32 of the batch are missing"):
        rule.feed({}, {})
    rule.feed(dense, compressed)
    assert rule.batch in (order.batches[1], None)
