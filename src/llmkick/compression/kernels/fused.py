"""The loop over a block of columns as one kernel for NVIDIA GPUs, compiled by Triton.

Rows do not depend on each other, so each program sweeps over all columns of a few rows, of one of several weights.
Products, sums and quotients round one by one, in the order of `replacement.replace_plainly`: the result is the same,
bit for bit.
"""

from __future__ import annotations

import contextlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmkick.compression.kernels.replacement import ColumnGrids, LowestOfGroups, Replacement, replace_plainly

COLUMNS = 128  # columns of a call, at most
ROWS = 32  # rows of a program, one for each thread of a warp
AT_ONCE = tl.constexpr(8)  # loads that wait for memory at the same time
WHOLE_NUMBERS = tl.constexpr(12582912.0)  # 1.5 · 2²³: added to a float32 below 2²², it leaves no room for a fraction
# A product and a sum merged into one operation would round once instead of twice, and a load moved ahead of the store
# before it would miss an error.
OPTIONS = {"num_warps": 1, "num_stages": 1, "enable_fp_fusion": False}


def _compensated(
    now: tl.tensor,
    column: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    errors: tl.tensor,
    unit: tl.tensor,
    unit_row: tl.tensor,
    unit_column: tl.tensor,
    place: tl.tensor,
) -> tl.tensor:
    """A column less its shares of the errors of the columns start … stop, in this order."""
    rows, row, inside = place
    for before in range(start, stop, AT_ONCE):
        for step in tl.static_range(AT_ONCE):
            is_before = before + step < stop
            share = tl.load(unit + (before + step) * unit_row + column * unit_column, mask=is_before, other=0.0)
            error = tl.load(errors + (before + step) * rows + row, mask=inside & is_before, other=0.0)
            now -= share * error
    return now


def _nearest(value: tl.tensor, scale: tl.tensor, low: tl.tensor, high: tl.tensor, place: tl.tensor) -> tl.tensor:
    """The grid point nearest to each value, as `grid.nearest_point` finds it."""
    _, row, inside = place
    distance = tl.load(scale + row, mask=inside, other=1.0)
    lowest, highest = tl.load(low + row, mask=inside), tl.load(high + row, mask=inside)
    steps = tl.div_rn(value, distance)
    # Clamped before it is rounded, which is the same, because the bounds are whole numbers. NaN stays NaN.
    steps = tl.where(steps < lowest, lowest, steps)
    steps = tl.where(steps > highest, highest, steps)
    return (steps + WHOLE_NUMBERS - WHOLE_NUMBERS) * distance


# The names by which the kernel calls them.
compensated, nearest = triton.jit(_compensated), triton.jit(_nearest)


# fmt: off
def _replace_columns(
    values: tl.tensor, dense: tl.tensor, errors: tl.tensor, scores: tl.tensor, unit: tl.tensor, zeroed: tl.tensor,
    size: tl.tensor, number: tl.tensor, scale: tl.tensor, low: tl.tensor, high: tl.tensor,
    rows: tl.tensor, columns: tl.tensor, unit_row: tl.tensor, unit_column: tl.tensor,
    next_values: tl.tensor, next_errors: tl.tensor, next_unit: tl.tensor, next_zeroed: tl.tensor,
    next_size: tl.tensor, next_number: tl.tensor, next_scale: tl.tensor,
    count: tl.constexpr, group: tl.constexpr, has_mask: tl.constexpr, has_grids: tl.constexpr, width: tl.constexpr,
) -> None:
    # fmt: on
    """Replace the columns of `width` rows. Tensors as in `replace_plainly`; scores: (…, group, out), to work with.

    next_…: how far a tensor of the next weight is; `dense` lies as `values`, `low` and `high` as `scale`.
    """
    weight = tl.program_id(1).to(tl.int64)  # several weights may have more entries than 32 bits count
    values, dense = values + weight * next_values, dense + weight * next_values
    errors, scores = errors + weight * next_errors, scores + weight * group * rows
    unit, zeroed = unit + weight * next_unit, zeroed + weight * next_zeroed
    size, number = size + weight * next_size, number + weight * next_number
    scale, low, high = scale + weight * next_scale, low + weight * next_scale, high + weight * next_scale
    row = tl.program_id(0) * width + tl.arange(0, width)
    inside = row < rows
    place = rows, row, inside
    for first in range(0, columns, group):
        last = tl.minimum(first + group, columns)
        if count > 0:
            for column in range(first, last):
                spot = column * rows + row
                now = tl.load(values + spot, mask=inside, other=0.0)
                now = compensated(now, column, 0, first, errors, unit, unit_row, unit_column, place)
                tl.store(values + spot, now, mask=inside)
                # As if nothing in the group were replaced: the changes since `dense` take the place of errors.
                now = compensated(now, column, first, column, errors, unit, unit_row, unit_column, place)
                tl.store(errors + spot, now - tl.load(dense + spot, mask=inside, other=0.0), mask=inside)
                tl.store(scores + (column - first) * rows + row, tl.abs(now) * tl.load(size + column), mask=inside)
                tl.debug_barrier()
        for column in range(first, last):
            spot = column * rows + row
            new = tl.load(values + spot, mask=inside, other=0.0)
            new = compensated(new, column, first, column, errors, unit, unit_row, unit_column, place)
            if count > 0:
                own = tl.load(scores + (column - first) * rows + row, mask=inside, other=0.0)
                lower = tl.full((width,), 0, tl.int32)
                for other in range(first, last):
                    score = tl.load(scores + (other - first) * rows + row, mask=inside, other=0.0)
                    lower += ((score < own) | ((score == own) & (other < column))).to(tl.int32)
                new = tl.where(lower < count, 0.0, new)
            if has_mask:
                new = tl.where(tl.load(zeroed + spot, mask=inside, other=0) != 0, 0.0, new)
            if has_grids:
                grid = tl.load(number + column) * rows
                new = nearest(new, scale + grid, low + grid, high + grid, place)
            tl.store(values + spot, new, mask=inside)
            tl.store(errors + spot, new - tl.load(dense + spot, mask=inside, other=0.0), mask=inside)
            tl.debug_barrier()


TENSORS = ["values", "dense", "errors", "scores", "unit", "zeroed", "size", "number", "scale", "low", "high"]
STEPS = [f"next_{name}" for name in ("values", "errors", "unit", "zeroed", "size", "number", "scale")]
NUMBERS = ["rows", "columns", "unit_row", "unit_column", *STEPS]
# One machine code for all shapes, whether or not numbers and addresses are multiples of 16.
kernel = triton.jit(_replace_columns, do_not_specialize=NUMBERS, do_not_specialize_on_alignment=TENSORS)


def replace_columns(values: Tensor, dense: Tensor, errors: Tensor, unit: Tensor, replacement: Replacement) -> None:
    """Do what `replacement.replace_plainly` does, for at most COLUMNS columns."""
    columns, rows = values.shape[-2:]
    weights = values.shape[0] if values.dim() == 3 else 1
    zeroed, lowest, grids = replacement.zeroed, replacement.lowest, replacement.grids
    assert columns <= COLUMNS, columns
    assert all((one if one.dim() == 2 else one[0]).is_contiguous() for one in (values, dense, errors))
    assert _step(values) == _step(dense), "they do not lie alike"
    group = COLUMNS if lowest is None else lowest.group
    # What is not used stands for what there is not: no address is empty.
    scores = values if lowest is None else torch.empty(weights, group, rows, dtype=torch.float32, device=values.device)
    rounding = (unit, values, values, values)
    if grids is not None:
        rounding = (grids.number, grids.scale, grids.low, grids.high)
    mask, sizes = values if zeroed is None else zeroed, unit if lowest is None else lowest.size
    steps = (
        _step(values),
        _step(errors),
        _step(unit),
        _step(mask),
        _step(sizes, 1),
        _step(rounding[0], 1),
        _step(rounding[1]),
    )
    with torch.cuda.device(values.device) if values.is_cuda else contextlib.nullcontext():
        kernel[triton.cdiv(rows, ROWS), weights](
            *(values, dense, errors, scores, unit),
            mask,
            sizes,
            *rounding,
            *(rows, columns, unit.stride(-2), unit.stride(-1)),
            *steps,
            count=0 if lowest is None else lowest.count,
            group=group,
            has_mask=zeroed is not None,
            has_grids=grids is not None,
            width=ROWS,
            **OPTIONS,
        )


def _step(tensor: Tensor, dimensions: int = 2) -> int:
    """How far the next weight's part of a tensor is; 0 where it has none, with `dimensions` for each weight."""
    return tensor.stride(0) if tensor.dim() > dimensions else 0


def try_on(device: torch.device) -> None:
    """Run the kernel on a small example. Raises RuntimeError if the result is not that of `replace_plainly`."""
    rows, columns = ROWS + 5, 21
    dense, unit = torch.linspace(-2, 3, columns * rows, device=device).view(columns, rows).sin(), _triangle(columns)
    scale = torch.full((1, rows), 0.15, device=device)
    replacement = Replacement(
        lowest=LowestOfGroups(count=2, group=4, size=torch.ones(columns, device=device)),
        grids=ColumnGrids(
            number=torch.zeros(columns, dtype=torch.int64, device=device),
            scale=scale,
            low=torch.full_like(scale, -7),
            high=torch.full_like(scale, 8),
        ),
    )
    results = []
    for replace in (replace_columns, replace_plainly):
        values, errors = dense.clone(), torch.empty_like(dense)
        replace(values, dense, errors, unit.to(device), replacement)
        results.append(torch.stack([values, errors]))
    if not torch.equal(*results):
        raise RuntimeError("its result differs from that of single operations")


def _triangle(columns: int) -> Tensor:
    """An upper triangular matrix with ones on its diagonal."""
    return torch.linspace(-1, 1, columns**2).view(columns, columns).cos().triu(1) / columns + torch.eye(columns)
