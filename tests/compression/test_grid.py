"""Grids against the quantizer of GPTQ, written out number by number, and their codes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from llmkick.compression.kernels.compiled import round_
from llmkick.compression.kernels.grid import decode, encode, fit_grid, nearest_point, round_to_grid
from llmkick.compression.kernels.rtn import rtn
from llmkick.compression.recipe import Grid

ALL_BITS = [2, 3, 4, 8, 16]


def weights(rows: int = 6, columns: int = 24) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def by_hand(row: list[float], bits: int, symmetric: bool) -> tuple[float, float, list[float]]:
    """Scale, zero point and rounded values of one row, in float32: ties at the ends of a grid are common."""
    values = [np.float32(weight) for weight in row]
    top = np.float32(2**bits - 1)
    low, high = min(np.float32(0), *values), max(np.float32(0), *values)
    if symmetric:
        high = max(-low, high)
        low = -high if low < 0 else low
    if low == high == 0:
        low, high = np.float32(-1), np.float32(1)
    scale = (high - low) / top
    zero = (top + 1) / 2 if symmetric else np.rint(-low / scale)
    codes = [min(max(np.rint(value / scale) + zero, np.float32(0)), top) for value in values]
    return float(scale), float(zero), [float(scale * (code - zero)) for code in codes]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_grid_equals_the_formula(bits: int, symmetric: bool) -> None:
    weight = weights()
    weight[1] = weight[1].abs()  # no negative weight
    weight[2] = -weight[2].abs()  # no positive one
    weight[3] = 0
    weight[4] = 0.25  # a constant
    fitted = fit_grid(weight, Grid(bits=bits, symmetric=symmetric))
    rounded = round_to_grid(weight, fitted)
    for row, line in enumerate(weight.tolist()):
        found = fitted.scale[row].item(), fitted.zero[row].item(), rounded[row].tolist()
        assert found == by_hand(line, bits, symmetric)


def test_numbers_of_a_small_row() -> None:
    row = torch.tensor([[-1.0, 0.0, 0.4, 2.0]])  # 4 points a step of 1 apart, from −1 to 2
    fitted = fit_grid(row, Grid(bits=2))
    assert (fitted.scale.item(), fitted.zero.item(), fitted.top) == (1.0, 1.0, 3)
    assert encode(row, fitted).tolist() == [[0, 1, 1, 3]]
    assert round_to_grid(row, fitted).tolist() == [[-1.0, 0.0, 0.0, 2.0]]


def test_a_symmetric_row_without_negatives_is_clipped_as_in_the_original() -> None:
    row = torch.tensor([[0.0, 1.0, 3.0]])
    assert round_to_grid(row, fit_grid(row, Grid(bits=2, symmetric=True))).tolist() == [[0.0, 1.0, 1.0]]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", ALL_BITS)
def test_zero_stays_exactly_zero(bits: int, symmetric: bool) -> None:
    weight = weights() + 3 * torch.arange(-3.0, 3.0)[:, None]
    weight[:, ::3] = 0
    rounded = round_to_grid(weight, fit_grid(weight, Grid(bits=bits, group_size=6, symmetric=symmetric)))
    assert torch.equal(rounded[:, ::3], torch.zeros(6, 8))


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-42, 1e-38])
def test_rows_of_almost_nothing_stay_so(size: float) -> None:
    weight = torch.tensor([[size, -size, 0.0, 22 * size], [size, -size, 0.0, size]])
    for symmetric in (False, True):
        rounded, _ = rtn(weight, Grid(bits=4, symmetric=symmetric))
        assert bool(torch.isfinite(rounded).all())
        assert rounded[:, 2].tolist() == [0, 0]
        assert rounded.abs().max() <= 22.01 * size


@pytest.mark.parametrize("bits", ALL_BITS)
def test_asymmetric_rounding_moves_no_weight_by_more_than_half_a_step(bits: int) -> None:
    weight = weights()
    rounded, fitted = rtn(weight, Grid(bits=bits, group_size=8))
    step = fitted.scale.repeat_interleave(8, dim=1)
    # The zero point is rounded as well, which can push the grid half a step past one end.
    assert ((rounded - weight).abs() <= step * 1.001).all()
    inside = (encode(weight, fitted) > 0) & (encode(weight, fitted) < fitted.top)
    assert ((rounded - weight).abs() <= step * 0.501)[inside].all()
    # Rounding again changes nothing.
    assert torch.equal(round_to_grid(rounded, fitted), rounded)


def test_groups_are_grids_of_consecutive_inputs() -> None:
    weight = weights()
    whole = fit_grid(weight, Grid(bits=3, group_size=8, symmetric=True))
    assert whole.scale.shape == whole.zero.shape == (6, 3)
    parts = [rtn(part, Grid(bits=3, symmetric=True))[0] for part in torch.split(weight, 8, dim=1)]
    assert torch.equal(round_to_grid(weight, whole), torch.cat(parts, dim=1))


@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_round_trip(bits: int, group_size: int | None) -> None:
    weight = weights(rows=64)
    rounded, fitted = rtn(weight, Grid(bits=bits, group_size=group_size))
    codes = encode(weight, fitted)
    assert codes.dtype == torch.uint8
    assert torch.equal(decode(codes, fitted), rounded)
    assert torch.equal(encode(rounded, fitted), codes)
    assert torch.equal(encode(rounded.half(), fitted), codes)
    if bits < 8:  # 8 significant bits do not tell neighbours apart when the zero point is at one end
        assert torch.equal(encode(rounded.bfloat16(), fitted), codes)


def test_sixteen_bits_need_wider_codes_and_change_almost_nothing() -> None:
    weight = weights()
    rounded, fitted = rtn(weight, Grid(bits=16))
    codes = encode(weight, fitted)
    assert codes.dtype == torch.int32
    assert codes.max() > 255
    assert torch.equal(decode(codes, fitted), rounded)
    assert torch.allclose(rounded, weight, atol=1e-4)
    assert not torch.equal(rounded, weight)


def test_no_value_is_rounded_to_minus_zero():
    """Codes cannot tell −0 from 0: what is stored would not be what was measured."""
    weight = torch.tensor([[-1e-4, 1e-4, -0.0, 3.0, -3.0]])
    rounded = round_to_grid(weight, fit_grid(weight, Grid(bits=4)))
    assert not bool(torch.signbit(rounded[rounded == 0]).any())
    scale, low, high = torch.full((5,), 0.4), torch.full((5,), -8.0), torch.full((5,), 7.0)
    column = weight[0].clone()
    round_(column.numpy(), scale.numpy(), low.numpy(), high.numpy())
    assert column.tolist() == nearest_point(weight[0], scale, low, high).tolist()
    assert not bool(torch.signbit(column[column == 0]).any())
    column[2] = math.nan
    round_(column.numpy(), scale.numpy(), low.numpy(), high.numpy())
    assert bool(column[2].isnan())
