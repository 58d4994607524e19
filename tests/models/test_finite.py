"""NaN and Inf are found wherever they are, in every precision."""

import math

import pytest
import torch

from llmkick.models.finite import all_finite, finite_rows, first_not_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_entry_anywhere_is_found(dtype: torch.dtype, value: float):
    for place in (0, 17, 36):
        tensor = torch.linspace(-3, 3, 37, dtype=dtype)
        assert all_finite(tensor)
        tensor[place] = value
        assert not all_finite(tensor)


def test_nothing_is_finite_and_so_are_the_largest_numbers():
    assert all_finite(torch.empty(0, 3))
    assert all_finite(torch.tensor([torch.finfo(torch.float32).max, torch.finfo(torch.float32).min]))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_rows_are_told_apart(value: float):
    rows = torch.linspace(-3, 3, 36).reshape(4, 9)
    for place in (0, 4, 8):
        spoilt = rows.clone()
        spoilt[2, place] = value
        assert finite_rows(spoilt).tolist() == [True, True, False, True]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_of_several_that_is_not_finite(value: float):
    tensors = [torch.ones(2, 3, dtype=dtype) for dtype in (torch.float32, torch.float16, torch.float32, torch.bfloat16)]
    assert first_not_finite(tensors) is None
    assert first_not_finite([]) is None
    tensors[3][1, 1] = value
    assert first_not_finite(tensors) == 3
    tensors[1][0, 2] = value
    assert first_not_finite(tensors) == 1
