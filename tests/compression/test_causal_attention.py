"""Causal attention by pieces against torch's own, and against the sums written out."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from llmkick.compression.walk import causal_attention
from llmkick.compression.walk.causal_attention import LONGEST, PIECE, CausalByPieces, causal_by_pieces


def heads(tokens: int, *, keys: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shapes = (2, 4, tokens, 16), (2, keys, tokens, 16), (2, keys, tokens, 16)
    query, key, value = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return query, key, value


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the windows that went by pieces."""
    seen: list[int] = []

    def noted(query: Tensor, *rest: Any, **options: Any) -> Tensor:
        seen.append(query.shape[-2])
        return causal_by_pieces(query, *rest, **options)

    monkeypatch.setattr(causal_attention, "causal_by_pieces", noted)
    return seen


def test_it_is_the_sum_over_the_tokens_before():
    query, key, value = heads(150)
    scores = query.double() @ key.double().mT * 0.3
    hidden = torch.ones(150, 150, dtype=torch.bool).triu(1)
    expected = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ value.double()
    assert torch.allclose(causal_by_pieces(query, key, value, scale=0.3).double(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [PIECE + 1, 2 * PIECE, 200, LONGEST])
@pytest.mark.parametrize("keys", [4, 2, 1])
def test_it_is_what_torch_computes(pieces: list[int], dtype: torch.dtype, tokens: int, keys: int):
    given = heads(tokens, keys=keys, dtype=dtype)
    expected = F.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=keys < 4)
    with CausalByPieces():
        found = F.scaled_dot_product_attention(*given, is_causal=True, enable_gqa=keys < 4)
    assert pieces == [tokens]
    assert found.dtype == dtype
    assert torch.allclose(found.float(), expected.float(), atol=1e-6 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize(
    ("tokens", "options"),
    [
        (PIECE, {"is_causal": True}),
        (LONGEST + 1, {"is_causal": True}),
        (200, {}),
        (200, {"attn_mask": torch.ones(200, 200, dtype=torch.bool).tril(3)}),
    ],
    ids=["short", "long", "not causal", "a mask of its own"],
)
def test_all_else_is_left_to_torch(pieces: list[int], tokens: int, options: dict[str, Any]):
    given = heads(tokens)
    with CausalByPieces():
        found = F.scaled_dot_product_attention(*given, **options)
    assert not pieces
    assert torch.equal(found, F.scaled_dot_product_attention(*given, **options))


def test_fewer_queries_than_keys_are_left_to_torch(pieces: list[int]):
    query, key, value = heads(200)
    with CausalByPieces():
        F.scaled_dot_product_attention(query[:, :, 100:], key, value, is_causal=True)
    assert not pieces
