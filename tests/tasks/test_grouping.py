"""Scores by group."""

from __future__ import annotations

from typing import Any

import pytest

from llmkick.errors import ConfigError
from llmkick.tasks.grouping import group_scores, popularity_bin
from llmkick.tasks.task import Record


def record(score: float | None, cluster: str = "c", **details: Any) -> Record:
    return Record(item_id="", cluster=cluster, response="", score=score, details=details)


def test_micro_is_over_items_and_macro_over_groups():
    records = [record(1.0, "a"), record(0.0, "b"), record(0.0, "b"), record(None, "b"), record(1.0, "b")]
    grouped = group_scores(records, "cluster")
    assert grouped is not None
    assert grouped.groups == {"a": (1.0, 1), "b": (pytest.approx(1 / 3), 3)}
    assert grouped.micro == 0.5
    assert grouped.macro == pytest.approx((1 + 1 / 3) / 2)


@pytest.mark.parametrize(
    ("views", "name"),
    [(0, "0 to 99"), (99, "0 to 99"), (100, "100 to 999"), (9_999, "1,000 to 9,999"), (10**6, "100,000 and more")],
)
def test_popularity_is_binned_by_powers_of_ten(views: int, name: str):
    assert popularity_bin(views) == name


def test_popularity_bins_stand_in_their_order():
    records = [record(1.0, popularity=views) for views in (5_000, 3, 700, 20)]
    grouped = group_scores(records, "popularity")
    assert grouped is not None
    assert list(grouped.groups) == ["0 to 99", "100 to 999", "1,000 to 9,999"]
    assert grouped.groups["0 to 99"] == (1.0, 2)


def test_an_unknown_detail_is_refused_and_nothing_scored_is_nothing():
    with pytest.raises(ConfigError, match="cannot group by 'colour': choose from: cluster, discipline"):
        group_scores([record(1.0, discipline="stem")], "colour")
    with pytest.raises(ConfigError, match=r"cannot group by 'choice_logprobs': choose from: cluster, discipline$"):
        group_scores([record(1.0, discipline="stem", choice_logprobs=[-1.0, -2.0])], "choice_logprobs")
    assert group_scores([record(None)], "colour") is None


def test_another_number_than_the_score():
    records = [
        record(1.0, category="a", words=3),
        record(0.0, category="a", words=5),
        record(None, category="b", words=9),
        record(0.5, category="b"),
    ]
    grouped = group_scores(records, "category", of="words")
    assert grouped is not None
    assert grouped.groups == {"a": (4.0, 2)}
    with pytest.raises(ConfigError, match="no record has a number 'colour': choose from: words"):
        group_scores(records, "category", of="colour")
