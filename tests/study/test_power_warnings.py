"""What is said before a run about verdicts that will not come."""

from __future__ import annotations

import pytest

from llmkick.statistics import items_needed, verdict_power
from llmkick.study.power_warnings import ACCURACY, warn_of_low_power
from llmkick.tasks.task import Item


def items(count: int, clusters: int | None = None) -> list[Item]:
    return [Item(id=str(k), cluster=str(k % (clusters or count)), question="?") for k in range(count)]


def told(**judged: list[Item]) -> list[str]:
    return warn_of_low_power(judged, margin=0.05, alpha=0.05)


def test_enough_items_need_no_warning():
    assert told(plenty=items(items_needed(ACCURACY))) == []
    assert told() == []


def test_too_few_to_call_anything_matching():
    (line,) = told(few=items(100), plenty=items(1000))
    share = verdict_power(100, ACCURACY)
    assert f"few (100 items: {share:.0%}" in line
    assert "plenty" not in line
    assert f"{items_needed(ACCURACY)} items would do it" in line


@pytest.mark.parametrize("some", [items(1), items(2), items(500, clusters=1)], ids=["one", "two", "one cluster"])
def test_nothing_can_be_decided(some: list[Item]):
    (line,) = told(hopeless=some)
    assert line.startswith("this study cannot decide anything: hopeless: ")
    first, *_ = told(hopeless=some, plenty=items(1000))
    assert first.startswith("hopeless cannot be decided: ")


def test_a_wide_margin_needs_fewer():
    assert warn_of_low_power({"few": items(100)}, margin=0.2, alpha=0.05) == []
