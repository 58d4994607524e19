"""Least squares on what a compression left free, the kept weights or the scales of the grid, mask or codes fixed."""

from dataclasses import replace

import torch
from torch import Tensor

from llmkick.compression.kernels.grid import FittedGrid, decode, in_groups

# Steps of the conjugate gradients, and the share of the first residual's square at which a row is finished.
ITERATIONS, TOLERANCE = 20, 1e-8
# Share of itself that is added to the diagonal of the small system of scales, which can be singular.
RIDGE = 1e-9
# Values in memory at once of the systems of scales, groups² for each row, in float64: 256 MB, and as much for factors.
MATRIX_VALUES = 2**25


def refit_kept(dense: Tensor, weight: Tensor, hessian: Tensor) -> Tensor:
    """The weights that are not 0, moved to minimise ‖(W − Ŵ) X‖: (out, in) → same, in the dtype of `weight`.

    dense W and weight Ŵ: (out, in); hessian: (in, in), any multiple of X Xᵀ. Conjugate gradients with the diagonal as
    preconditioner begin at Ŵ, for all rows at once, and move along inputs that occur. Zeros keep their bits. A row
    stays as it is if its error, in the dtype of the weight, would not be smaller. A GPU is not waited for.
    """
    kept = weight != 0
    solution = weight.float()
    hessian = hessian.float()
    diagonal = hessian.diagonal()
    scaling = torch.where(diagonal > 0, diagonal.reciprocal(), 0)
    residual = ((dense.float() - solution) @ hessian).masked_fill_(~kept, 0)
    scaled = residual * scaling
    direction, square = scaled, (residual * scaled).sum(dim=1)
    first = square.clamp(min=torch.finfo(torch.float32).tiny)
    stops, is_finished = is_stopped_early(weight.device), torch.zeros((), dtype=torch.bool, device=weight.device)
    for _ in range(ITERATIONS):
        image = (direction @ hessian).masked_fill_(~kept, 0)
        curvature = (direction * image).sum(dim=1)
        step = torch.where(curvature > 0, square / curvature, 0)[:, None]
        moved = solution + step * direction
        # When all rows are finished a CPU stops, and a GPU goes on without a change.
        solution = moved if stops else torch.where(is_finished, solution, moved)
        residual = residual - step * image
        scaled = residual * scaling
        next_square = (residual * scaled).sum(dim=1)
        is_finished |= (next_square <= TOLERANCE * first).all()
        if stops and bool(is_finished):
            break
        direction = scaled + torch.where(square > 0, next_square / square, 0)[:, None] * direction
        square = next_square
    moved = torch.where(kept, solution.to(weight.dtype), weight)
    return torch.where(_is_better(dense, moved, weight, hessian)[:, None], moved, weight)


def is_stopped_early(device: torch.device) -> bool:
    """Whether the iterations end when all rows are finished, which would make a GPU wait in each."""
    return device.type == "cpu"


def refit_scales(dense: Tensor, codes: Tensor, grid: FittedGrid, hessian: Tensor, dtype: torch.dtype) -> FittedGrid:
    """The grid with scales that minimise ‖(W − Ŵ) X‖ for fixed codes and zero points: (out, groups) float32.

    dense W: (out, in); codes: (out, in). dtype: of the weight that is stored; a row whose error would not be smaller in
    it keeps its scales, and so does one for which a scale would not be positive.
    """
    rows, hessian64 = max(1, MATRIX_VALUES // grid.scale.shape[1] ** 2), hessian.double()
    now = decode(codes, grid)
    pieces = zip(*(torch.split(values, rows) for values in (dense, codes, now, grid.scale, grid.zero)), strict=True)
    new = torch.cat([
        _refitted(own, code, wrong, replace(grid, scale=scale, zero=zero), hessian64)
        for own, code, wrong, scale, zero in pieces
    ])  # fmt: skip
    moved = decode(codes, replace(grid, scale=new)).to(dtype)
    better = _is_better(dense, moved, now.to(dtype), hessian)
    return replace(grid, scale=torch.where(better[:, None], new, grid.scale))


def _refitted(dense: Tensor, codes: Tensor, now: Tensor, grid: FittedGrid, hessian64: Tensor) -> Tensor:
    """The scales of some rows by least squares; those of a row whose system has no sound solution stay.

    now: the rounded rows as they are, (rows, in).
    """
    # Ŵ = Σ_g s_g u_g: the codes less the zero point within group g, and 0 elsewhere.
    unit = decode(codes, replace(grid, scale=torch.ones_like(grid.scale))).double()
    rows, count = grid.scale.shape
    matrix = torch.zeros(rows, count, count, dtype=torch.float64, device=dense.device)
    for group in range(count):
        columns = slice(group * grid.group, (group + 1) * grid.group)
        matrix[:, group] = in_groups(unit[:, columns] @ hessian64[columns] * unit, grid.group).sum(dim=2)
    old = grid.scale.double()
    slope = in_groups((dense.double() - now) @ hessian64 * unit, grid.group).sum(dim=2)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    # The scale of a group without weights, or without inputs, stays where it is.
    diagonal.add_(torch.where(diagonal > 0, RIDGE * diagonal, 1))
    factor, failed = torch.linalg.cholesky_ex(matrix)
    change = torch.cholesky_solve(slope[..., None], factor)[..., 0]
    new = (old + change).float()
    is_sound = (failed == 0) & (torch.isfinite(new) & (new > torch.finfo(torch.float32).tiny)).all(dim=1)
    return torch.where(is_sound[:, None], new, grid.scale)


def row_errors(dense: Tensor, weight: Tensor, hessian: Tensor) -> Tensor:
    """The square of ‖(W − Ŵ) X‖ for each row, in float64: (out, in) twice, (in, in) → (out,)."""
    change = weight.double() - dense.double()
    return ((change @ hessian.double()) * change).sum(dim=1).clamp(min=0)


def _is_better(dense: Tensor, weight: Tensor, other: Tensor, hessian: Tensor) -> Tensor:
    """Which rows are finite and have a smaller error than those of the other weight: (out,) bool."""
    errors, others = row_errors(dense, weight, hessian), row_errors(dense, other, hessian)
    return torch.isfinite(weight).all(dim=1) & (errors < others)
