"""Second moments of a layer's inputs, and the factor of them that SparseGPT and GPTQ work with."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmkick.errors import ConfigError, NumericalError
from llmkick.models.finite import all_finite

DAMPING = 0.01  # share of the mean diagonal added to the diagonal, as in both papers' code
DAMPING_TRIES = 4  # 0.01, 0.1, 1, 10: beyond that the inputs no longer matter
PANEL, PANEL_CPU = 256, 128  # columns of the second moments computed at a time
CACHED_VALUES = 2**19  # inputs squared at a time on a CPU: 2 MiB in float32, which its caches hold


@dataclass(frozen=True, kw_only=True)
class HessianFactor:
    """What SparseGPT and GPTQ need to know of the inputs: H + λI = M · diag(size²) · Mᵀ.

    Both papers' code works with the upper Cholesky factor of H⁻¹, U = diag(size)⁻¹ M⁻¹. The same weights come out
    without an inverse when a column's error is counted from its original value instead of the one it had when its
    turn came (QuIP, arXiv 2307.13304, theorem 6). So 1/U_jj is `size` and no H⁻¹ is ever made.
    """

    unit: Tensor  # (in, in) float32, upper triangular M with ones on its diagonal, rows and columns in `order`
    size: Tensor  # (in,) float32, in `order`; squared: what is left of H_jj once later inputs have made up for input j
    dead: Tensor  # (in,) bool, inputs that are always 0
    order: Tensor | None  # (in,) the inputs in the order they are worked on; None: as they come
    damping: float  # share of the mean diagonal that had to be added
    _inverses: dict[tuple[int, int], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def inverse_within(self, start: int, stop: int) -> Tensor:
        """Inverse of M's transposed block at these inputs: (stop − start, same), kept for others that share them."""
        if (start, stop) not in self._inverses:
            triangle = self.unit[start:stop, start:stop].T
            identity = torch.eye(stop - start, dtype=triangle.dtype, device=triangle.device)
            inverse = torch.linalg.solve_triangular(triangle, identity, upper=False, unitriangular=True)
            self._inverses[start, stop] = inverse
        return self._inverses[start, stop]

    def without_dead(self, weight: Tensor) -> Tensor:
        """The weight in float32 with those of dead inputs at 0: (out, in) → same, which may be the weight itself."""
        return weight.float().masked_fill(self.dead, 0) if bool(self.dead.any()) else weight.float()


class InputStatistics:
    """Sums over all calibration tokens of one layer input, in float32 and on the inputs' device.

    Σ x² of each input, which Wanda needs, and with `hessian=True` Σ x xᵀ, whose diagonal that is. It is summed on its
    own all the same, unless nobody asks for it (`squares=False`): the diagonal of a matrix product differs in its last
    bits, and what Wanda prunes must not depend on whether GPTQ is served by the same pass.
    One object serves all layers that share the input, and factorises only once for them.
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

    def add(self, inputs: Tensor) -> None:
        """Take in a batch (sequences, tokens, in), any floating dtype; NumericalError unless it is finite."""
        if inputs.dim() != 3 or inputs.shape[2] != self.width:
            shape = tuple(inputs.shape)
            raise ConfigError(f"{self.name}: inputs {shape} are not (sequences, tokens, {self.width})")
        if not inputs.is_floating_point():
            raise ConfigError(f"{self.name}: inputs are {inputs.dtype}; activations in floating point are needed")
        rows = inputs.detach().reshape(-1, self.width)
        if self._sums_squares:
            squares = _sums_of_squares(rows)
            self._squares = squares if self._squares is None else self._squares + squares
        if self.has_hessian:
            if self._sums is None:
                self._sums = torch.zeros(self.width, self.width, dtype=torch.float32, device=rows.device)
            exact = rows.device.type == "cpu" and rows.dtype == torch.bfloat16
            with _products_of_bfloat16() if exact else contextlib.nullcontext():
                _add_upper_moments(self._sums, rows.float())
        self._factors.clear()
        self.sequences += inputs.shape[0]
        self.tokens += rows.shape[0]
        # NaN and Inf survive in the sums of squares, which are far fewer than the inputs.
        if not all_finite(self._square_sums()):
            raise NumericalError(f"{self.name}: {_what_is_not_finite(rows)}")

    def mean_square(self) -> Tensor:
        """Σ x² / sequences for each input: (in,) float32. Wanda's s; half the diagonal of `hessian()`."""
        return self._square_sums() / self._counted_sequences()

    def hessian(self) -> Tensor:
        """H = 2/sequences · Σ x xᵀ: (in, in) float32."""
        if not self.has_hessian:
            raise ConfigError(f"{self.name}: only Σ x² was collected; use InputStatistics(…, hessian=True)")
        moments = self._collected().triu().mul_(2 / self._counted_sequences())
        return moments.add_(moments.triu(1).T)

    def factor(self, *, act_order: bool = False) -> HessianFactor:
        """The factor of the Hessian; computed once and kept."""
        if act_order not in self._factors:
            if act_order:
                self._factors[act_order] = factorise(self.hessian(), act_order=True, name=self.name)
            else:
                self._factors[act_order] = self._factor_as_they_come()
        return self._factors[act_order]

    def _factor_as_they_come(self) -> HessianFactor:
        """As `factorise(self.hessian())`, without a second full matrix: the upper triangle alone is needed."""
        if not self.has_hessian:
            self.hessian()  # says what is wrong
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


def _sums_of_squares(rows: Tensor) -> Tensor:
    """Σ x² of each input in float32: (tokens, in) → (in,).

    A CPU spends most of the time on fetching pages for the squares of all rows: 8,192 × 1,536 on one core take
    60 ms at once and 4.4 ms by pieces. A GPU is better off with one call.
    """
    at_once = max(1, CACHED_VALUES // rows.shape[1]) if rows.device.type == "cpu" else len(rows)
    sums = torch.zeros(rows.shape[1], dtype=torch.float32, device=rows.device)
    for piece in torch.split(rows, max(1, at_once)):
        sums += piece.float().square().sum(dim=0)
    return sums


def _add_upper_moments(moments: Tensor, rows: Tensor) -> None:
    """Add the upper triangle of rowsᵀ rows, by panels: (in, in) in place, (tokens, in).

    Half the work of the full product for wide inputs. 2,048 × 1,536 on one core: 94 ms the full product, 58 ms these
    panels, 50 ms with `_products_of_bfloat16`, as much as the symmetric update of scipy's BLAS, which runs on the CPU
    only and brings a second pool of threads into the process.
    """
    width = PANEL_CPU if rows.device.type == "cpu" else PANEL
    for start in range(0, rows.shape[1], width):
        panel = rows[:, start : start + width]
        moments[start : start + width, start:].addmm_(panel.T, rows[:, start:])


@contextlib.contextmanager
def _products_of_bfloat16() -> Iterator[None]:
    """Let oneDNN multiply float32 matrices as bfloat16, and sum in float32: exact when their values are bfloat16's.

    Processors with bfloat16 tiles then multiply several times faster; on others oneDNN's own float32 product is used,
    which for these shapes beats the usual one by a seventh. The setting is the process's: a float32 product of
    another thread would be rounded while this lasts, so it lasts for the sums alone.
    """
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before


def _what_is_not_finite(rows: Tensor) -> str:
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
    """Factor of H (in, in) with λ = damping · mean(diag H) added; with act-order the inputs of the largest H_jj first.

    Dead inputs (H_jj = 0) count as H_jj = 1. When H + λI is not positive definite in float32, ten times the damping is
    tried, three times at most; then NumericalError.
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
    """`unit`, `size` and the damping used, given a way to make H with both axes reversed, its lower triangle at least.

    Unless an attempt fails there are never more than two matrices of that size beside the one it is made from.
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
            if all_finite(unit.T):  # lies in memory in that order
                return unit, size, used
        if attempt == 0 and not all_finite(reversed_hessian()):
            raise NumericalError(f"{name}: the Hessian holds NaN or Inf; the sums of squared inputs exceed float32")
    raise NumericalError(
        f"{name}: the Hessian cannot be factorised, even with {used:g} of its mean diagonal added;"
        " give more calibration tokens or look for inputs of very different size"
    )
