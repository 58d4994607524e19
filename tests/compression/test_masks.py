"""Masks against their definition by a stable sort, with plenty of ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from llmkick.compression.kernels import masks
from llmkick.compression.kernels.masks import (
    LONG,
    SAMPLED,
    zero_lowest_per_group,
    zero_lowest_per_row,
    zero_lowest_without_waiting,
    zero_up_to_quantile,
)
from llmkick.compression.recipe import NM


def lowest_by_sort(scores: Tensor, count: int) -> Tensor:
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for row, line in enumerate(scores.tolist()):
        for column in sorted(range(len(line)), key=lambda column: (line[column], column))[:count]:
            mask[row, column] = True
    return mask


def test_rows_of_many_scores_and_scores_stored_by_column() -> None:
    """Rows longer than those compared one by one, and the transposed scores that SparseGPT hands over."""
    generator = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 5, (7, 24), generator=generator).float()
    for count in (0, 1, 11, 24):
        assert torch.equal(zero_lowest_per_row(scores, count), lowest_by_sort(scores, count))
        assert torch.equal(zero_lowest_per_row(scores.T, min(count, 7)), lowest_by_sort(scores.T, min(count, 7)))


# Few distinct values, so that most thresholds are shared by several scores.
tied = arrays("float32", (5, 12), elements=st.integers(0, 4)).map(torch.from_numpy)


@settings(deadline=None)  # the first call loads the compiler
@given(tied, st.integers(0, 12))
def test_rows_lose_exactly_the_count_and_ties_go_first_come_first(scores: Tensor, count: int) -> None:
    mask = zero_lowest_per_row(scores, count)
    assert torch.equal(mask, lowest_by_sort(scores, count))
    assert mask.sum(dim=1).tolist() == [count] * 5


@settings(deadline=None)  # the first call loads the compiler
@given(tied, st.integers(1, 12))
def test_a_gpu_takes_the_same_without_being_asked_for_ties(scores: Tensor, count: int) -> None:
    wide = torch.cat([scores, scores.flip(1)], dim=1)  # sorted, where the few are compared in pairs
    for some in (scores, wide, wide.T):
        few = min(count, some.shape[1])
        assert torch.equal(zero_lowest_without_waiting(some, few), lowest_by_sort(some, few))


@pytest.mark.parametrize("columns", [masks.FEW, masks.FEW + 1])
def test_a_gpu_takes_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    scores = torch.randint(0, 4, (13, columns), generator=torch.Generator().manual_seed(0)).float()
    scores[2, 3] = torch.inf
    for values in (1, 3 * columns, 13 * columns):
        monkeypatch.setattr(masks, "SORTED_VALUES", values)
        assert torch.equal(zero_lowest_without_waiting(scores, 5), lowest_by_sort(scores, 5))


@settings(deadline=None)  # the first call loads the compiler
@given(tied, st.sampled_from([(1, 2), (2, 4), (1, 3), (5, 6), (1, 12)]))
def test_groups_keep_exactly_n_of_m(scores: Tensor, pattern: tuple[int, int]) -> None:
    kept, group = pattern
    mask = zero_lowest_per_group(scores, NM(kept=kept, group=group))
    assert torch.equal(mask.reshape(-1, group), lowest_by_sort(scores.reshape(-1, group), group - kept))


@settings(deadline=None)  # the first call loads the compiler
@given(tied, st.floats(0.01, 0.99))
def test_the_quantile_is_a_threshold_with_all_its_ties(scores: Tensor, sparsity: float) -> None:
    threshold = sorted(scores.flatten().tolist())[int(scores.numel() * sparsity)]
    assert torch.equal(zero_up_to_quantile(scores, sparsity), scores <= threshold)


@pytest.mark.parametrize("sparsity", [0.0, 1e-4, 0.1, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("order", ["random", "ascending", "descending", "ties", "sample misleads", "infinite"])
def test_the_quantile_of_many_scores_is_that_of_a_sort(order: str, sparsity: float) -> None:
    scores = torch.randn(128, 300, generator=torch.Generator().manual_seed(0)).abs()
    if order in ("ascending", "descending"):
        scores = scores.flatten().sort(descending=order == "descending").values.view(128, 300)
    elif order == "ties":
        scores = (4 * scores).round()
    elif order == "sample misleads":
        scores.view(-1)[::SAMPLED] += 100
    elif order == "infinite":
        scores[3] = torch.inf
    assert scores.numel() >= LONG
    threshold = scores.flatten().sort().values[int(scores.numel() * sparsity)]
    assert torch.equal(zero_up_to_quantile(scores, sparsity), scores <= threshold)


def test_the_quantile_counts_one_more_than_int() -> None:
    mask = zero_up_to_quantile(torch.arange(10.0).flip(0).reshape(2, 5), 0.5)
    assert mask.tolist() == [[False] * 4 + [True], [True] * 5]  # 0 to 5 of 0 to 9


def test_groups_are_of_consecutive_inputs() -> None:
    mask = zero_lowest_per_group(torch.tensor([[1.0, 2, 3, 4], [9, 2, 7, 8]]), NM(kept=1, group=2))
    assert mask.tolist() == [[True, False, True, False], [False, True, True, False]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    scores = torch.tensor([[3.0, 1, 2, 2, 5, 0]], dtype=dtype)
    assert zero_lowest_per_row(scores, 3).tolist() == [[False, True, True, False, False, True]]
    assert int(zero_up_to_quantile(scores, 0.4).sum()) == 4  # both twos


def test_masks_leave_their_scores_alone() -> None:
    scores = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    before = scores.clone()
    zero_lowest_per_row(scores, 3)
    zero_lowest_per_group(scores, NM(kept=2, group=4))
    zero_up_to_quantile(scores, 0.5)
    assert torch.equal(scores, before)
