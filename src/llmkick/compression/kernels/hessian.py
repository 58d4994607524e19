"""Second moments of a layer's inputs, and the factorisation of them that SparseGPT and GPTQ use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmkick.compression.kernels.moments import add_moments, sums_of_squares
from llmkick.errors import ConfigError, NumericalError
from llmkick.models.finite import all_finite

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


class InputStatistics:
    """Sums over all calibration tokens of one layer input, in float32 and on the inputs' device.

    It sums x² of each input, which Wanda needs, and with `hessian=True` x xᵀ. The squares are the diagonal of x xᵀ, but
    are summed separately unless no recipe needs them (`squares=False`): the diagonal of a matrix product differs in its
    last bits, and Wanda must prune the same weights whether or not GPTQ shares the pass.
    One object serves all layers that share the input, and computes the factor only once for them.
    """

    def __init__(self, width: int, *, hessian: bool, squares: bool = True, name: str = "input") -> None:
        self.width = width
        self.name = name
        self.sequences = 0
        self.tokens = 0
        self.has_hessian = hessian
        self._sums_squares = squares or not hessian
        self._squares: Tensor | None = None  # (in,)
        self._sums: Tensor | None = None  # (in, in) of which only the upper triangle is filled, with `hessian`
        self._factors: dict[bool, HessianFactor] = {}
        self._is_checked = True

    def add(self, inputs: Tensor) -> None:
        """Add a batch (sequences, tokens, in) of any floating dtype.

        Raises ConfigError for another shape or dtype, NumericalError when the batch or its squares are not finite; on a
        GPU, which should not wait after each batch, the error comes from `check_finite` or the first use.
        """
        if inputs.dim() != 3 or inputs.shape[2] != self.width:
            shape = tuple(inputs.shape)
            raise ConfigError(f"{self.name}: inputs {shape} are not (sequences, tokens, {self.width})")
        if not inputs.is_floating_point():
            raise ConfigError(f"{self.name}: inputs are {inputs.dtype}; activations in floating point are needed")
        rows = inputs.detach().reshape(-1, self.width)
        if self._sums_squares:
            squares = sums_of_squares(rows)
            self._squares = squares if self._squares is None else self._squares + squares
        if self.has_hessian:
            if self._sums is None:
                self._sums = torch.zeros(self.width, self.width, dtype=torch.float32, device=rows.device)
            add_moments(self._sums, rows)
        self._factors.clear()
        self.sequences += inputs.shape[0]
        self.tokens += rows.shape[0]
        # NaN and Inf of the inputs reach the sums of squares, which are much smaller than the inputs, and stay there.
        self._is_checked = is_checked_at_once(rows.device)
        if self._is_checked and not all_finite(self._square_sums()):
            raise NumericalError(f"{self.name}: {_describe_not_finite(rows)}")

    def pool(self, add_up: Callable[[Tensor], None], *, sequences: int, tokens: int, device: torch.device) -> None:
        """Become the statistics of several processes, of which each has seen a part of the inputs, or nothing.

        add_up: replaces a tensor by the sum of those of all processes. sequences, tokens: those of all. device: of the
        inputs.
        """
        if self._sums_squares:
            if self._squares is None:
                self._squares = torch.zeros(self.width, dtype=torch.float32, device=device)
            add_up(self._squares)
        if self.has_hessian:
            if self._sums is None:
                self._sums = torch.zeros(self.width, self.width, dtype=torch.float32, device=device)
            add_up(self._sums)
        self._factors.clear()
        self.sequences, self.tokens, self._is_checked = sequences, tokens, False

    @staticmethod
    def check_finite(several: Iterable[InputStatistics]) -> None:
        """Raise NumericalError that names the first of several statistics whose sums are not finite.

        A GPU is waited for once, not for each of them.
        """
        unchecked = [one for one in several if not one._is_checked]
        flags: dict[torch.device, list[Tensor]] = {}
        for one in unchecked:
            sums = one._square_sums()
            flags.setdefault(sums.device, []).append(torch.isfinite(sums).all())
        finite = {device: iter(torch.stack(some).tolist()) for device, some in flags.items()}
        for one in unchecked:
            one._is_checked = next(finite[one._square_sums().device])
            if not one._is_checked:
                raise NumericalError(f"{one.name}: {_describe_sums(one._square_sums())}")

    def mean_square(self) -> Tensor:
        """Σ x² / sequences of each input: (in,) float32. Half the diagonal of `hessian()`; called s in Wanda's code."""
        self.check_finite([self])
        return self._square_sums() / self._counted_sequences()

    def hessian(self) -> Tensor:
        """H = 2/sequences · Σ x xᵀ: (in, in) float32."""
        if not self.has_hessian:
            raise ConfigError(f"{self.name}: only Σ x² was collected; use InputStatistics(…, hessian=True)")
        self.check_finite([self])
        moments = self._collected().triu().mul_(2 / self._counted_sequences())
        return moments.add_(moments.triu(1).T)

    def factor(self, *, act_order: bool = False) -> HessianFactor:
        """The factor of the Hessian, which is computed once. Errors as in `factorise`."""
        if act_order not in self._factors:
            if act_order:
                self._factors[act_order] = factorise(self.hessian(), act_order=True, name=self.name)
            else:
                self._factors[act_order] = self._factor_unordered()
        return self._factors[act_order]

    def _factor_unordered(self) -> HessianFactor:
        """The same as `factorise(self.hessian())` with one matrix less in memory: from the upper triangle alone."""
        if not self.has_hessian:
            self.hessian()  # raises the error
        self.check_finite([self])
        sums, share = self._collected(), 2 / self._counted_sequences()
        unit, size, used = _factor(lambda: sums.flip(0, 1).mul_(share), sums.diagonal() * share, DAMPING, self.name)
        return HessianFactor(unit=unit, size=size, dead=sums.diagonal() == 0, order=None, damping=used)

    def _collected(self) -> Tensor:
        if self._sums is None:
            raise NumericalError(f"{self.name}: no calibration input has reached this layer")
        return self._sums

    def _counted_sequences(self) -> int:
        if self.tokens == 0:
            raise NumericalError(f"{self.name}: no calibration token has reached this layer")
        return self.sequences

    def _square_sums(self) -> Tensor:
        if self._squares is None and self._sums is not None:
            return self._sums.diagonal()
        if self._squares is None:
            raise NumericalError(f"{self.name}: no calibration input has reached this layer")
        return self._squares


def is_checked_at_once(device: torch.device) -> bool:
    """Whether sums are checked after each batch, which would make a GPU wait."""
    return device.type == "cpu"


def _describe_sums(sums: Tensor) -> str:
    column = int((~torch.isfinite(sums)).nonzero()[0])
    return (
        f"inputs are NaN or Inf, or too large to be squared in float32, the first of them in column {column};"
        " run the model in bfloat16 or float32 (float16 overflows at 65504)"
    )


def _describe_not_finite(rows: Tensor) -> str:
    bad = ~torch.isfinite(rows)
    if not bool(bad.any()):
        return "the inputs' squares exceed float32; look for activations of 1e17 and more"
    column = int(bad.any(dim=0).nonzero()[0])
    return (
        f"{int(bad.sum())} of {bad.numel()} inputs are NaN or Inf, the first of them in column {column};"
        " run the model in bfloat16 or float32 (float16 overflows at 65504)"
    )


def factorise(
    hessian: Tensor, *, act_order: bool = False, damping: float = DAMPING, name: str = "input"
) -> HessianFactor:
    """Factor of H + λI for H (in, in), λ = damping · mean(diag H); with act-order the largest H_jj come first.

    Dead inputs (H_jj = 0) count as H_jj = 1. If H + λI is not positive definite in float32, the damping is multiplied
    by ten, up to three times. Raises NumericalError when that does not help or H is not finite.
    """
    dead = hessian.diagonal() == 0
    order = None
    if act_order:
        order = hessian.diagonal().masked_fill(dead, 1).argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
    unit, size, used = _factor(lambda: hessian.float().flip(0, 1), hessian.diagonal(), damping, name)
    return HessianFactor(unit=unit, size=size, dead=dead, order=order, damping=used)


def _factor(
    reversed_hessian: Callable[[], Tensor], diagonal: Tensor, damping: float, name: str
) -> tuple[Tensor, Tensor, float]:
    """`unit`, `size` and the damping used.

    reversed_hessian: makes H with both axes reversed; its lower triangle is enough. A function, because each attempt
    destroys its matrix: there are at most two matrices of this size beside the one that H is made from.
    """
    diagonal = diagonal.masked_fill(diagonal == 0, 1).float()
    # With both axes reversed, the lower Cholesky factor becomes an upper R with H = RRᵀ; M has its columns to scale.
    for attempt in range(DAMPING_TRIES):
        used = damping * 10**attempt
        matrix = reversed_hessian()
        matrix.diagonal().copy_((diagonal + used * diagonal.mean()).flip(0))
        lower, failed = torch.linalg.cholesky_ex(matrix)
        del matrix
        if not bool(failed):
            size = lower.diagonal().flip(0)
            unit = lower.flip(0, 1).div_(size)
            if all_finite(unit.T):  # contiguous, unlike `unit`
                return unit, size, used
        if attempt == 0 and not all_finite(reversed_hessian()):
            raise NumericalError(f"{name}: the Hessian holds NaN or Inf; the sums of squared inputs exceed float32")
    raise NumericalError(
        f"{name}: the Hessian cannot be factorised, even with {used:g} of its mean diagonal added;"
        " give more calibration tokens or look for inputs of very different size"
    )
