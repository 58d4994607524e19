"""Bets: fair against the claim they bet on, the same in every batch size, and orders that hide nothing."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.errors import ConfigError, DataError
from llmkick.statistics import SequentialTest, stratified_order, whole_cluster_order
from llmkick.statistics.betting import STAKES


def wealth(state_p: float) -> float:
    return 1 / state_p


class TestBets:
    @pytest.mark.parametrize("lost", [0.05, 0.3])
    def test_fair_at_the_margin(self, lost: float) -> None:
        """E[wealth] over all outcomes of three items is 1 at the margin, on either side."""
        accuracy = 0.8
        gained = lost - 0.05 * accuracy
        cells = {(1, 1): accuracy - lost, (1, 0): lost, (0, 1): gained, (0, 0): 1 - accuracy - gained}
        for side in (0, 1):
            expected = 0.0
            for outcome in itertools.product(cells, repeat=3):
                test = SequentialTest()
                test.update([d for d, _ in outcome], [c for _, c in outcome])
                final = float(np.exp(test._wealth[side]).mean())
                expected += math.prod(cells[cell] for cell in outcome) * final
            assert expected == pytest.approx(1)

    def test_wealth_by_hand(self) -> None:
        test = SequentialTest(margin=0.1)
        state = test.update([1.0, 0.0], [1.0, 1.0])
        stakes = STAKES / 0.9
        by_hand = np.mean((1 + stakes * 0.1) * (1 + stakes * 1.0))
        assert wealth(state.p_matching) == pytest.approx(by_hand)
        assert state.p_not_matching == 1

    @settings(max_examples=30, deadline=None)
    @given(st.integers(0, 10**6), st.lists(st.integers(1, 80), min_size=1, max_size=6))
    def test_batches_do_not_matter(self, seed: int, cuts: list[int]) -> None:
        rng = np.random.default_rng(seed)
        dense = (rng.random(400) < 0.7) * 1.0
        compressed = dense * (rng.random(400) < 0.75)
        whole = SequentialTest().update(dense, compressed)
        test = SequentialTest()
        borders = [0, *sorted({min(c, 400) for c in itertools.accumulate(cuts)} | {400})]
        for start, stop in itertools.pairwise(borders):
            state = test.update(dense[start:stop], compressed[start:stop])
        assert state.decided_after == whole.decided_after
        assert state.p_not_matching == pytest.approx(whole.p_not_matching)
        assert (state.decision, state.bets, state.items) == (whole.decision, whole.bets, whole.items)

    def test_a_decision_stands(self) -> None:
        test = SequentialTest()
        first = test.update([1.0] * 40, [0.0] * 40)
        assert first.decision == "not matching"
        later = test.update([1.0] * 3000, [1.0] * 3000)
        assert (later.decision, later.decided_after) == ("not matching", first.decided_after)
        assert later.items == 3040
        at_once = SequentialTest().update([1.0] * 3040, [0.0] * 40 + [1.0] * 3000)
        assert (at_once.decision, at_once.decided_after) == ("not matching", first.decided_after)

    def test_identity_is_decided_when_it_is_proven(self) -> None:
        state = SequentialTest().update([1.0] * 300, [1.0] * 300)
        assert state.decision == "matching"
        # No test of level 5 % can exclude a loss of 5 % with fewer than 59 items and nothing lost.
        assert 59 <= (state.decided_after or 0) <= 150

    def test_nothing_seen(self) -> None:
        state = SequentialTest().update([], [])
        assert (state.decision, state.items, state.relative_drop) == ("undecided", 0, None)
        assert (state.p_matching, state.p_not_matching) == (1, 1)

    def test_scores_of_a_judge(self) -> None:
        """A 0-10 judge bets as tenths do."""
        rng = np.random.default_rng(0)
        dense, compressed = rng.integers(0, 11, 200), rng.integers(0, 11, 200)
        judged = SequentialTest(score_range=(0, 10)).update(dense.tolist(), compressed.tolist())
        tenths = SequentialTest().update((dense / 10).tolist(), (compressed / 10).tolist())
        assert judged.p_matching == pytest.approx(tenths.p_matching)

    @pytest.mark.parametrize("bad", [[None], [math.nan], [1.5]])
    def test_what_cannot_be_bet_on(self, bad: list[float]) -> None:
        with pytest.raises(DataError, match="scores must be numbers"):
            SequentialTest().update([1.0], bad)

    def test_settings_out_of_range(self) -> None:
        for kwargs in ({"margin": 1.0}, {"alpha": 0.0}, {"score_range": (1, 0)}, {"largest_cluster": 0}):
            with pytest.raises(ConfigError):
                SequentialTest(**kwargs)


class TestClusterBets:
    def test_one_bet_a_cluster(self) -> None:
        state = SequentialTest(largest_cluster=3).update([1, 1, 1, 0], [1, 0, 1, 1], ["a", "a", "a", "b"])
        assert (state.bets, state.items) == (2, 4)

    def test_clusters_of_one_are_items(self) -> None:
        rng = np.random.default_rng(0)
        dense, compressed = (rng.random((2, 50)) < 0.6) * 1.0
        items = SequentialTest().update(dense, compressed)
        clusters = SequentialTest(largest_cluster=1).update(dense, compressed, list(range(50)))
        assert clusters == items

    def test_copies_of_an_item_bet_once(self) -> None:
        """Ten copies of every item prove no more than one: the bets and the wealth are the same."""
        rng = np.random.default_rng(1)
        dense, compressed = (rng.random((2, 60)) < 0.6) * 1.0
        single = SequentialTest().update(dense, compressed)
        labels = np.repeat(np.arange(60), 10).tolist()
        copies = SequentialTest(largest_cluster=10).update(np.repeat(dense, 10), np.repeat(compressed, 10), labels)
        assert copies.p_matching == pytest.approx(single.p_matching)
        assert copies.bets == single.bets

    def test_misuse(self) -> None:
        test = SequentialTest(largest_cluster=2)
        test.update([1], [1], ["a"])
        with pytest.raises(DataError, match="'a' was in an earlier batch"):
            test.update([1], [1], ["a"])
        with pytest.raises(DataError, match="a cluster of 3 items"):
            test.update([1, 1, 1], [1, 1, 1], ["b", "b", "b"])
        with pytest.raises(ConfigError, match="largest_cluster"):
            test.update([1], [1])
        with pytest.raises(ConfigError, match="largest_cluster"):
            SequentialTest().update([1], [1], ["a"])


IDS = [f"{k}{i}" for k, n in (("a", 40), ("b", 80), ("c", 200)) for i in range(n)]
CLUSTERS = {name: name[0] for name in IDS}


class TestOrders:
    def test_every_part_holds_its_share(self) -> None:
        order = stratified_order(IDS, CLUSTERS, seed=1)
        assert sorted(order) == sorted(IDS)
        for stop in range(1, len(order) + 1):
            for cluster, size in (("a", 40), ("b", 80), ("c", 200)):
                seen = sum(name[0] == cluster for name in order[:stop])
                assert abs(seen - stop * size / 320) < 2

    def test_no_item_has_a_fixed_place(self) -> None:
        """Every item is in the first half of the order in half of the draws, whatever its cluster's size."""
        orders = [stratified_order(list("abcdefgh"), list("xxxxxyyz"), seed) for seed in range(2000)]
        for item in "abcdefgh":
            assert sum(item in order[:4] for order in orders) / 2000 == pytest.approx(0.5, abs=0.05)
            assert sum(item == order[0] for order in orders) / 2000 > 0.02

    def test_seeded(self) -> None:
        assert stratified_order(IDS, CLUSTERS, 3) == stratified_order(IDS, CLUSTERS, 3)
        assert stratified_order(IDS, CLUSTERS, 3) != stratified_order(IDS, CLUSTERS, 4)
        assert sorted(stratified_order(range(5))) == list(range(5))
        assert stratified_order([]) == ()

    def test_whole_clusters_stay_together(self) -> None:
        order = whole_cluster_order(IDS, CLUSTERS, seed=2)
        assert sorted(order) == sorted(IDS)
        assert len([k for k, _ in itertools.groupby(order, key=lambda name: name[0])]) == 3
        firsts = {whole_cluster_order(IDS, CLUSTERS, seed)[0][0] for seed in range(30)}
        assert firsts == {"a", "b", "c"}

    def test_bad_labels(self) -> None:
        with pytest.raises(DataError, match="'b' has no cluster"):
            stratified_order(["a", "b"], {"a": 1})
        with pytest.raises(DataError, match="1 clusters for 2"):
            whole_cluster_order(["a", "b"], ["x"])
        with pytest.raises(DataError, match="more than once"):
            stratified_order(["a", "a"])
