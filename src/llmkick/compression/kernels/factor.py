"""The Cholesky factor of a Hessian that SparseGPT and GPTQ use, of one or of several at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmkick.errors import NumericalError
from llmkick.models.finite import all_finite, is_finite

DAMPING = 0.01  # share of the mean diagonal added to the diagonal, as in both papers' code
DAMPING_TRIES = 4  # 0.01, 0.1, 1, 10: beyond that the inputs no longer matter


@dataclass(frozen=True, kw_only=True)
class HessianFactor:
    """What SparseGPT and GPTQ need to know of the inputs: H + λI = M · diag(size²) · Mᵀ.

    The code of both papers uses the upper Cholesky factor of H⁻¹, U = diag(size)⁻¹ M⁻¹. The same weights result
    without an inverse if the error of a column is its difference from the original column, not from the column as
    updated until its turn (QuIP, arXiv 2307.13304, theorem 6). Then 1/U_jj is `size`, and H⁻¹ is never computed.

    The factors of several weights are one, with a first dimension more in each tensor, see `stacked_factors`.
    """

    unit: Tensor  # (in, in) float32: M, upper triangular with ones on its diagonal, rows and columns in `order`
    size: Tensor  # (in,) float32, in `order`; size²: the part of H_jj that later inputs cannot compensate
    dead: Tensor  # (in,) bool, the inputs that are always 0
    order: Tensor | None  # (in,) the order in which the inputs are processed; None: from first to last
    damping: float  # λ as a share of the mean diagonal of H
    _inverses: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def inverse_within(self, start: int, stop: int) -> Tensor:
        """Inverse of the transposed diagonal block of M at these inputs: (stop − start, same). It is cached."""
        if (start, stop) not in self._inverses:
            triangle = self.unit[..., start:stop, start:stop].mT
            identity = torch.eye(stop - start, dtype=triangle.dtype, device=triangle.device)
            inverse = torch.linalg.solve_triangular(triangle, identity, upper=False, unitriangular=True)
            self._inverses[start, stop] = inverse
        return self._inverses[start, stop]

    def without_dead(self, weight: Tensor) -> Tensor:
        """The weight in float32 with 0 for dead inputs: (…, out, in) → same, which may be the given tensor itself."""
        # Only a CPU knows at once whether there are any.
        is_needed = self.dead.device.type != "cpu" or bool(self.dead.any())
        return weight.float().masked_fill(self.dead[..., None, :], 0) if is_needed else weight.float()


def stacked_factors(factors: Sequence[HessianFactor]) -> HessianFactor:
    """The factors of several weights as one; all of them have an order, or none. The damping is the largest."""
    orders = [factor.order for factor in factors if factor.order is not None]
    return HessianFactor(
        unit=torch.stack([factor.unit for factor in factors]),
        size=torch.stack([factor.size for factor in factors]),
        dead=torch.stack([factor.dead for factor in factors]),
        order=torch.stack(orders) if orders else None,
        damping=max(factor.damping for factor in factors),
    )


@dataclass(frozen=True, kw_only=True)
class Unfactored:
    """A Hessian that is yet to be factorised.

    reversed_hessian: makes H (in, in) with both axes reversed; its lower triangle is enough. A function, because each
    attempt destroys its matrix: there are at most two matrices of this size beside the one that H is made from.
    diagonal, dead, order: (in,) as in the factor. name: for messages.
    """

    reversed_hessian: Callable[[], Tensor]
    diagonal: Tensor
    dead: Tensor
    order: Tensor | None
    name: str = "input"

    @classmethod
    def of(cls, hessian: Tensor, *, act_order: bool = False, name: str = "input") -> Unfactored:
        """H (in, in), in the order of GPTQ's act-order if that is wanted."""
        dead = hessian.diagonal() == 0
        order = None
        if act_order:
            order = hessian.diagonal().masked_fill(dead, 1).argsort(descending=True, stable=True)
            hessian = hessian[order][:, order]
        return cls(
            reversed_hessian=lambda: hessian.float().flip(0, 1),
            diagonal=hessian.diagonal(), dead=dead, order=order, name=name,
        )  # fmt: skip

    def damped(self, damping: float) -> Tensor:
        """H + λI with both axes reversed, where dead inputs (H_jj = 0) count as H_jj = 1."""
        diagonal = self.diagonal.masked_fill(self.diagonal == 0, 1).float()
        matrix = self.reversed_hessian()
        matrix.diagonal().copy_((diagonal + damping * diagonal.mean()).flip(0))
        return matrix

    def factor(self, damping: float = DAMPING) -> HessianFactor:
        """The factor of H + λI. Errors and damping as in `factorise`."""
        for attempt in range(DAMPING_TRIES):
            used = damping * 10**attempt
            lower, failed = torch.linalg.cholesky_ex(self.damped(used))
            unit, size = _unit_and_size(lower)
            # What comes next depends on it, so a GPU is waited for once in each attempt.
            if bool((failed == 0) & is_finite(unit.T)):  # contiguous, unlike `unit`
                return self._factor_of(unit, size, used)
            if attempt == 0 and not all_finite(self.reversed_hessian()):
                raise NumericalError(
                    f"{self.name}: the Hessian holds NaN or Inf; the sums of squared inputs exceed float32"
                )
        raise NumericalError(
            f"{self.name}: the Hessian cannot be factorised, even with {used:g} of its mean diagonal added;"
            " give more calibration tokens or look for inputs of very different size"
        )

    def _factor_of(self, unit: Tensor, size: Tensor, damping: float) -> HessianFactor:
        return HessianFactor(unit=unit, size=size, dead=self.dead, order=self.order, damping=damping)


def factorise(
    hessian: Tensor, *, act_order: bool = False, damping: float = DAMPING, name: str = "input"
) -> HessianFactor:
    """Factor of H + λI for H (in, in), λ = damping · mean(diag H); with act-order the largest H_jj come first.

    Dead inputs (H_jj = 0) count as H_jj = 1. If H + λI is not positive definite in float32, the damping is multiplied
    by ten, up to three times. Raises NumericalError when that does not help or H is not finite.
    """
    return Unfactored.of(hessian, act_order=act_order, name=name).factor(damping)


def factors_together(several: Sequence[Unfactored]) -> list[HessianFactor]:
    """The factors of Hessians of one width, by one Cholesky decomposition, for which a GPU is waited for once.

    Those that need more damping are factorised again, one by one. Errors as in `factorise`.
    """
    lower, failed = torch.linalg.cholesky_ex(torch.stack([one.damped(DAMPING) for one in several]))
    units, sizes = _unit_and_size(lower)
    del lower
    is_done = (failed == 0) & torch.isfinite(units).flatten(1).all(1)
    return [
        one._factor_of(unit, size, DAMPING) if done else one.factor()
        for one, unit, size, done in zip(several, units, sizes, is_done.tolist(), strict=True)
    ]


def _unit_and_size(lower: Tensor) -> tuple[Tensor, Tensor]:
    """M and its scale, from the lower Cholesky factor (…, in, in) of H with both axes reversed.

    With both axes reversed, the lower factor becomes an upper R with H = RRᵀ; M has its columns to scale.
    """
    size = lower.diagonal(dim1=-2, dim2=-1).flip(-1)
    return lower.flip(-2, -1).div_(size[..., None, :]), size
