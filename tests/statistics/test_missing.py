"""Missing scores: the exact test against scipy's, and how often it errs."""

import numpy as np
import pytest
from scipy import stats

from llmkick.errors import DataError
from llmkick.statistics import as_incomplete, compare, missing_scores


def scores(missing: set[int], items: int = 20) -> dict[str, float | None]:
    return {f"q{number}": None if number in missing else 0.5 for number in range(items)}


def test_items_of_their_own_are_mcnemars_test() -> None:
    test = missing_scores(scores({0, 1, 2}), scores({2, 3, 4, 5, 6, 7, 8, 9}))
    assert (test.items, test.dense, test.compressed) == (20, 3, 8)
    assert (test.more_dense, test.more_compressed) == (2, 7)
    assert test.p == pytest.approx(stats.binomtest(7, 9).pvalue)
    swapped = missing_scores(scores({2, 3, 4, 5, 6, 7, 8, 9}), scores({0, 1, 2}))
    assert (swapped.more_dense, swapped.more_compressed, swapped.p) == (7, 2, test.p)


def test_nothing_missing_and_the_same_missing_show_nothing() -> None:
    assert missing_scores(scores(set()), scores(set())).p == 1
    same = missing_scores(scores(set(range(19))), scores(set(range(19))))
    assert (same.dense, same.compressed, same.p) == (19, 19, 1)
    assert missing_scores(scores(set()), scores(set(range(5)))).p > 0.05
    assert missing_scores(scores(set()), scores(set(range(6)))).p == pytest.approx(2 / 2**6)


def test_turns_of_one_conversation_count_once() -> None:
    clusters = {f"q{number}": number // 2 for number in range(20)}
    test = missing_scores(scores(set()), scores(set(range(10))), clusters=clusters)
    assert (test.compressed, test.more_compressed) == (10, 5)
    assert test.p == pytest.approx(2 / 2**5)
    # One missing turn in each model is no difference.
    assert missing_scores(scores({0}), scores({1}), clusters=clusters).more_compressed == 0


def test_items_that_do_not_match_are_refused() -> None:
    with pytest.raises(DataError, match="other items"):
        missing_scores(scores(set()), scores(set(), items=21))


def test_missing_at_random_is_rarely_called_related() -> None:
    rng = np.random.default_rng(20261129)
    rejected = 0
    for _ in range(2000):
        clusters = {f"q{number}": number // 2 for number in range(60)}
        # Both turns of a conversation tend to be missing together, in either model alike.
        gaps = [np.repeat(rng.random(30) < 0.2, 2) & (rng.random(60) < 0.8) for _ in range(2)]
        dense, compressed = (scores(set(np.flatnonzero(gap)), 60) for gap in gaps)
        rejected += missing_scores(dense, compressed, clusters=clusters).p < 0.05
    assert 0 < rejected <= 0.05 * 2000 + 20


def test_an_incomplete_comparison_says_why_and_no_longer_that_nothing_can_change() -> None:
    dense = {f"q{number}": 1.0 for number in range(200)}
    compressed = {name: None if int(name[1:]) < 8 else 0.0 for name in dense}
    comparison = compare(dense, compressed)
    assert comparison.verdict == "not matching"
    assert any(note.endswith("they cannot change the verdict") for note in comparison.notes)
    incomplete = as_incomplete(comparison, "because")
    assert (incomplete.verdict, incomplete.notes[-1]) == ("incomplete", "because")
    assert not any("cannot change" in note for note in incomplete.notes)
    assert (incomplete.n, incomplete.relative_drop) == (comparison.n, comparison.relative_drop)
