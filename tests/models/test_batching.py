"""Which requests run together, and that running them together leaves each as it would be alone."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.models.batching import (
    MIN_SHARED_TOKENS,
    Runner,
    budget_batches,
    can_reuse_cache,
    common_prefix_length,
    group_by_prefix,
    pad,
    token_budget,
)
from toy import toy_model

PROMPTS = st.lists(
    st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), max_size=20)).map(
        lambda drawn: tuple([7] * 20 * drawn[0] + [drawn[0]] + drawn[1])
    ),
    min_size=1,
    max_size=12,
)
CPU = torch.device("cpu")


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


def test_short_prefixes_are_not_run_apart():
    assert group_by_prefix([(1, 2, 3), (1, 2, 4)])[0][1] == 0
    longer = tuple(range(MIN_SHARED_TOKENS))
    assert group_by_prefix([(*longer, 98), (*longer, 99)])[0][1] == MIN_SHARED_TOKENS


@settings(derandomize=True, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=30), st.integers(1, 200), st.integers(1, 8))
def test_batches_hold_all_within_the_budget(costs: list[int], budget: int, max_rows: int):
    batches = list(budget_batches(costs, budget, max_rows))
    assert sorted(index for batch in batches for index in batch) == list(range(len(costs)))
    for batch in batches:
        assert 1 <= len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(costs[index] for index in batch) <= budget
    assert [costs[index] for batch in batches for index in batch] == sorted(costs, reverse=True)


def test_padding_is_masked_on_either_side():
    ids, mask = pad([(5, 6, 7), (8,)], CPU, left=True)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = pad([(5, 6, 7), (8,)], CPU, left=False)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


@pytest.mark.parametrize(
    ("architecture", "config", "columns", "expected"),
    [
        ("llama", {}, 10_000, True),
        ("gpt2", {}, 10_000, True),
        ("mistral", {"sliding_window": 12}, 11, True),
        ("mistral", {"sliding_window": 12}, 12, False),
        ("mistral", {"sliding_window": None}, 10_000, True),
        ("gemma3", {"sliding_window": 12}, 12, False),
    ],
)
def test_which_caches_can_be_reused(architecture: str, config: dict[str, Any], columns: int, *, expected: bool):
    assert can_reuse_cache(toy_model(architecture, **config).network, columns) is expected


def test_recurrent_states_are_never_cut():
    network = toy_model().network
    network._is_stateful = True
    assert not can_reuse_cache(network, 1)


def test_the_budget_is_fixed_on_the_cpu_and_follows_free_memory_on_cuda(monkeypatch: pytest.MonkeyPatch):
    network = toy_model().network
    assert token_budget(network, CPU) == 8192
    bytes_a_token = 2 * 3 * 2 * 8 * 4  # keys and values, layers, key heads, head width, float32
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10_000 * bytes_a_token, None))
    assert token_budget(network, SimpleNamespace(type="cuda")) == 2048  # 0.3 × 10,000, down to a power of two
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (0, None))
    assert token_budget(network, SimpleNamespace(type="cuda")) == 1024


@pytest.mark.parametrize("architecture", ["llama", "gemma", "opt", "gpt_neox", "gpt2", "mixtral"])
def test_prefill_goes_on_from_a_shared_prefix_without_spending_it(architecture: str):
    model = toy_model(architecture)
    runner = Runner(model.network, model.device)
    generator = random.Random(0)
    prefix = tuple(generator.randrange(284) for _ in range(20))
    prompts = [(*prefix, *(generator.randrange(284) for _ in range(length))) for length in (1, 9, 4)]
    with torch.inference_mode():
        cache = runner.run_prefix(prefix)
        for _ in range(2):  # the second time from the same cache
            state = runner.prefill(prompts, len(prefix), cache)
            assert cache.get_seq_length() == 20
            assert state.lengths.tolist() == [21, 29, 24]
            assert state.mask.sum(1).tolist() == [21, 29, 24]
            for row, prompt in enumerate(prompts):
                expected = model.network(torch.tensor([prompt])).logits[0, -1]
                assert torch.allclose(state.next_logits[row], expected, atol=1e-4)
        state.select(torch.tensor([2, 2, 0]))
        assert state.lengths.tolist() == [24, 24, 21]
        assert state.cache.layers[0].keys.shape[0] == 3
        following = torch.tensor([[3], [4], [5]])
        mask = torch.cat([state.mask, torch.ones(3, 1, dtype=torch.long)], dim=1)
        logits = runner.forward(
            following, mask=mask, positions=state.lengths[:, None], cache=state.cache, keep_last=True
        )
        for row, (prompt, token) in enumerate([(2, 3), (2, 4), (0, 5)]):
            expected = model.network(torch.tensor([(*prompts[prompt], token)])).logits[0, -1]
            assert torch.allclose(logits[row, -1], expected, atol=1e-4)


def test_networks_without_optional_arguments_are_served_too():
    class Plain:
        """Neither positions nor logits_to_keep."""

        def forward(self, input_ids: torch.Tensor, attention_mask: Any, past_key_values: Any, use_cache: bool) -> Any:
            return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids, 8))

        __call__ = forward

    ids = torch.tensor([[3, 1, 4]])
    arguments: dict[str, Any] = {"mask": torch.ones_like(ids), "positions": ids, "cache": None}
    assert Runner(Plain(), CPU).forward(ids, keep_last=True, **arguments).argmax(-1).tolist() == [[4]]
    assert Runner(Plain(), CPU).forward(ids, keep_last=False, **arguments).argmax(-1).tolist() == [[3, 1, 4]]
