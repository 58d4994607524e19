"""Which requests run together."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.models.engine.batches import (
    FORWARD_COST_TOKENS,
    MIN_SHARED_TOKENS,
    common_prefix_length,
    group_by_prefix,
    plan_batches,
    plan_packed_rows,
)

PROMPTS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), max_size=20)).map(
        lambda drawn: tuple([7] * 20 * drawn[0] + [drawn[0]] + drawn[1])
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        ([(1, 2, 3), (1, 2, 4)], 2),
        ([(1, 2, 3), (1, 2)], 1),  # the shorter keeps a token of its own: its logits are wanted
        ([(1, 2, 3), (1, 2, 3)], 2),
        ([(1,), (1,)], 0),
        ([(1, 2), (3, 2)], 0),
        ([(1, 2, 9), (1, 2, 3), (1, 5, 3)], 1),
    ],
)
def test_common_prefix(prompts: list[tuple[int, ...]], shared: int):
    assert common_prefix_length(prompts) == shared


@settings(derandomize=True, deadline=None)
@given(PROMPTS)
def test_groups_hold_every_prompt_once_and_share_what_they_say(prompts: list[tuple[int, ...]]):
    groups = group_by_prefix(prompts)
    assert sorted(index for indices, _ in groups for index in indices) == list(range(len(prompts)))
    for indices, shared in groups:
        assert shared == 0 or shared >= MIN_SHARED_TOKENS
        assert len({prompts[index][:shared] for index in indices}) == 1
        assert all(len(prompts[index]) > shared for index in indices)


def test_groups_follow_the_subjects_when_their_shots_differ():
    subjects = [(subject,) * 400 for subject in (1, 2, 3)]
    prompts = [(*subject, 50 + question, 9) for question in range(5) for subject in subjects]
    groups = group_by_prefix(prompts)
    assert sorted(shared for _, shared in groups) == [400, 400, 400]
    assert {frozenset(prompts[index][0] for index in indices) for indices, _ in groups} == {
        frozenset({1}),
        frozenset({2}),
        frozenset({3}),
    }


def test_what_all_share_is_shared_below_the_groups_and_by_those_without_one():
    opening = (7,) * 30
    passages = [(*opening, *[passage] * 100) for passage in (1, 2)]
    prompts = [(*passage, 50 + question) for question in range(4) for passage in passages]
    alone = [(*opening, *range(60 + 40 * number, 100 + 40 * number)) for number in range(3)]
    groups = group_by_prefix([*prompts, *alone])
    assert [(sorted(indices), shared) for indices, shared in groups] == [
        ([0, 2, 4, 6], 130),
        ([1, 3, 5, 7], 130),
        ([8, 9, 10], 30),
    ]


def test_a_group_must_save_more_than_its_forwards_cost():
    subjects = [(subject,) * 40 for subject in (1, 2)]
    few = [(*subject, 50 + question) for question in range(2) for subject in subjects]
    assert group_by_prefix(few) == [([0, 2, 1, 3], 0)]
    many = [(*subject, 50 + question) for question in range(9) for subject in subjects]
    assert [shared for _, shared in group_by_prefix(many)] == [40, 40]


def test_short_prefixes_are_not_run_apart():
    assert group_by_prefix([(1, 2, 3), (1, 2, 4)])[0][1] == 0
    longer = tuple(range(MIN_SHARED_TOKENS))
    assert group_by_prefix([(*longer, 98), (*longer, 99)])[0][1] == MIN_SHARED_TOKENS


ROWS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 80)), max_size=30)


@settings(derandomize=True, deadline=None)
@given(ROWS, st.integers(1, 200), st.integers(1, 8), st.none() | st.integers(1, 100))
def test_batches_hold_all_within_every_limit(
    drawn: list[tuple[int, int]], budget: int, max_rows: int, max_tokens: int | None
):
    lengths, columns = [length for length, _ in drawn], [length + more for length, more in drawn]
    batches = list(plan_batches(lengths, columns, budget=budget, max_rows=max_rows, max_tokens=max_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(drawn)))
    assert [lengths[index] for batch in batches for index in batch] == sorted(lengths, reverse=True)
    for batch in batches:
        longest = lengths[batch[0]]
        assert 1 <= len(batch) <= max_rows
        assert sum(longest - lengths[index] for index in batch) <= FORWARD_COST_TOKENS
        assert len(batch) == 1 or len(batch) * max(columns[index] for index in batch) <= budget
        assert len(batch) == 1 or max_tokens is None or len(batch) * longest <= max_tokens


def test_batches_end_only_where_a_limit_is_reached():
    assert list(plan_batches([9] * 10, [9] * 10, budget=10**6, max_rows=64)) == [list(range(10))]
    lengths = [100, 3, 2, 3, 98]
    assert list(plan_batches(lengths, lengths, budget=10**6, max_rows=64)) == [[0, 4], [1, 3, 2]]


def test_plans_do_not_depend_on_chance():
    lengths = [7, 3, 7, 5, 3, 9] * 5
    plans = {str(list(plan_batches(lengths, lengths, budget=40, max_rows=4))) for _ in range(3)}
    assert len(plans) == 1


@pytest.mark.parametrize(
    ("lengths", "most", "expected"),
    [
        ([], 9, []),
        ([4, 3, 2], 9, [[0, 1, 2]]),
        ([4, 3, 3], 9, [[0, 1], [2]]),
        ([12, 3, 12], 9, [[0], [1], [2]]),
        ([2, 2], -5, [[0], [1]]),
    ],
)
def test_rows_without_padding_hold_what_fits_and_one_at_least(lengths: list[int], most: int, expected: list[list[int]]):
    assert list(plan_packed_rows(lengths, most=most)) == expected
