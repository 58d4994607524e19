"""Attention by key head is the usual attention: the same sums, whatever the mask, or the usual function itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmkick.models.engine import grouped_query as shared_keys
from llmkick.models.engine.grouped_query import GroupedQueryAttention


@pytest.fixture
def usual(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every call of the usual function."""
    calls: list[int] = []

    def counted(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
        calls.append(arguments[1].shape[2])
        return sdpa_attention_forward(*arguments, **options)

    monkeypatch.setattr(shared_keys, "default_attention", counted)
    return calls


def layer(shared: int) -> nn.Module:
    module = nn.Module()
    module.num_key_value_groups = shared  # type: ignore[assignment]
    module.is_causal = True  # type: ignore[assignment]
    return module


def states(
    *,
    rows: int = 3,
    heads: int = 6,
    key_heads: int = 2,
    tokens: int = 5,
    columns: int = 17,
    width: int = 8,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(tokens)
    query = torch.randn(rows, tokens, heads, width, **options).transpose(1, 2)
    key = torch.randn(rows, key_heads, columns, width, **options)
    return query, key, torch.randn(rows, key_heads, columns, width + 4, **options)


def padded_mask(rows: int, tokens: int, columns: int) -> Tensor:
    """Causal for the last `tokens` columns, with a column more of padding on the left of each row."""
    mask = torch.ones(tokens, columns, dtype=torch.bool).tril(columns - tokens).repeat(rows, 1, 1, 1)
    for row in range(rows):
        mask[row, :, :, :row] = False
    return mask


@pytest.mark.parametrize("tokens", [2, 5, 17])
@pytest.mark.parametrize("numbers", [False, True])
def test_it_is_the_usual_attention(tokens: int, numbers: bool, usual: list[int]) -> None:
    query, key, value = states(tokens=tokens)
    mask = padded_mask(3, tokens, 17)
    given = torch.zeros(mask.shape).masked_fill(~mask, float("-inf")) if numbers else mask
    found, _ = GroupedQueryAttention()(layer(3), query, key, value, given, scaling=0.3)
    expected, _ = sdpa_attention_forward(layer(3), query, key, value, given, scaling=0.3)
    assert usual == []
    assert found.shape == expected.shape == (3, tokens, 6, 12)
    assert found.is_contiguous()
    seen = mask.any(-1)[:, 0]  # a padding token that sees nothing has no attention to compare
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-5, atol=1e-6)


def test_in_half_precision_it_is_no_further_from_the_truth() -> None:
    query, key, value = states(tokens=40, columns=600, width=64, dtype=torch.bfloat16)
    mask = padded_mask(3, 40, 600)
    truth = sdpa_attention_forward(layer(3), query.double(), key.double(), value.double(), mask)[0]
    errors = [
        float((function(layer(3), query, key, value, mask)[0].double() - truth).abs().mean())
        for function in (GroupedQueryAttention(), sdpa_attention_forward)
    ]
    assert errors[0] <= 1.05 * errors[1]


def test_a_mask_is_made_once_for_all_layers_that_share_it() -> None:
    query, key, value = states()
    attention = GroupedQueryAttention()
    full, sliding = padded_mask(3, 5, 17), padded_mask(3, 5, 17)
    sliding[..., :4] = False
    first = [attention(layer(3), query, key, value, mask)[0] for mask in (full, sliding, full)]
    assert len(attention._masks) == 2
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        pytest.param({}, {"mask": None}, id="no mask"),
        pytest.param({"key_heads": 6}, {}, id="a key head for each head"),
        pytest.param({"tokens": 1}, {}, id="a step of decoding"),
        pytest.param({}, {"position_bias": torch.zeros(1, 6, 5, 17)}, id="a bias of positions"),
        pytest.param({}, {"dropout": 0.1}, id="dropout"),
        pytest.param({}, {"heads": True}, id="a mask for each head"),
    ],
)
def test_what_it_is_not_for_goes_the_usual_way(
    shape: dict[str, int], options: dict[str, Any], usual: list[int]
) -> None:
    query, key, value = states(**shape)
    tokens = query.shape[2]
    mask = options.pop("mask", padded_mask(3, tokens, 17))
    if options.pop("heads", False):
        mask = mask.repeat(1, 6, 1, 1)
    GroupedQueryAttention()(layer(query.shape[1] // key.shape[1]), query, key, value, mask, **options)
    assert usual == [tokens]


def test_a_mask_too_large_to_be_made_goes_the_usual_way(monkeypatch: pytest.MonkeyPatch, usual: list[int]) -> None:
    query, key, value = states()
    monkeypatch.setattr(shared_keys, "MASK_BYTES", 4 * 3 * 5 * 17 * 3 - 1)
    GroupedQueryAttention()(layer(3), query, key, value, padded_mask(3, 5, 17))
    assert usual == [5]


def test_layers_of_several_precisions_have_masks_of_their_own() -> None:
    query, key, value = states()
    attention, mask = GroupedQueryAttention(), padded_mask(3, 5, 17)
    attention(layer(3), query, key, value, mask)
    found, _ = attention(layer(3), query.double(), key.double(), value.double(), mask)
    expected, _ = sdpa_attention_forward(layer(3), query.double(), key.double(), value.double(), mask)
    torch.testing.assert_close(found[mask.any(-1)[:, 0]], expected[mask.any(-1)[:, 0]])


@pytest.mark.parametrize(("device", "applies"), [("cpu", True), ("cuda", True), ("mps", False), ("meta", False)])
def test_where_heads_are_grouped(device: str, applies: bool) -> None:
    with FakeTensorMode():
        key = torch.empty(3, 2, 17, 8, device=device)
        for tokens, expected in ((5, applies), (1, False)):  # a single token has a path of its own
            query = torch.empty(3, 6, tokens, 8, device=device)
            mask = torch.empty(3, 1, tokens, 17, dtype=torch.bool, device=device)
            assert shared_keys._is_worthwhile(query, key, mask) == expected
