"""Second moments of a layer's inputs, and the factor of their inverse that SparseGPT and GPTQ work with."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from llmkick.errors import ConfigError, NumericalError
from llmkick.models.finite import all_finite

DAMPING = 0.01  # share of the mean diagonal added to the diagonal, as in both papers' code
DAMPING_TRIES = 4  # 0.01, 0.1, 1, 10: beyond that the inputs no longer matter
PANEL, PANEL_CPU = 256, 128  # columns of the second moments computed at a time
LEAF = 128  # a triangle of this size is inverted directly
STRIP = 192  # rows or columns of a triangle multiplied at a time: what is 0 beyond its diagonal is left out
CACHED_VALUES = 2**18  # inputs squared at a time on a CPU: 1 MiB in float32, which its cache holds


@dataclass(frozen=True, kw_only=True)
class InverseFactor:
    """What SparseGPT and GPTQ need to know of the inputs."""

    upper: Tensor  # (in, in) float32, upper triangular U with UᵀU = H⁻¹, rows and columns in `order`
    dead: Tensor  # (in,) bool, inputs that are always 0
    order: Tensor | None  # (in,) the inputs in the order they are worked on; None: as they come
    damping: float  # share of the mean diagonal that had to be added


class InputStatistics:
    """Sums over all calibration tokens of one layer input, in float32 and on the inputs' device.

    Always Σ x² of each input, which Wanda needs; with `hessian=True` also Σ x xᵀ, whose diagonal that is. It is summed
    on its own all the same: the diagonal of a matrix product differs in its last bits, and what Wanda prunes must not
    depend on whether GPTQ is served by the same pass.
    One object serves all layers that share the input, and factorises only once for them.
    """

    def __init__(self, width: int, *, hessian: bool, name: str = "input") -> None:
        self.width = width
        self.name = name
        self.sequences = 0
        self.tokens = 0
        self.has_hessian = hessian
        self._squares: Tensor | None = None  # (in,)
        self._sums: Tensor | None = None  # (in, in) of which only the upper triangle is filled, with `hessian`
        self._factors: dict[bool, InverseFactor] = {}

    def add(self, inputs: Tensor) -> None:
        """Take in a batch (sequences, tokens, in), any floating dtype; NumericalError unless it is finite."""
        if inputs.dim() != 3 or inputs.shape[2] != self.width:
            shape = tuple(inputs.shape)
            raise ConfigError(f"{self.name}: inputs {shape} are not (sequences, tokens, {self.width})")
        if not inputs.is_floating_point():
            raise ConfigError(f"{self.name}: inputs are {inputs.dtype}; activations in floating point are needed")
        rows = inputs.detach().reshape(-1, self.width)
        if self._squares is None:
            self._squares = torch.zeros(self.width, dtype=torch.float32, device=rows.device)
            if self.has_hessian:
                self._sums = torch.zeros(self.width, self.width, dtype=torch.float32, device=rows.device)
        self._squares += _sums_of_squares(rows)
        if self._sums is not None:
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

    def factor(self, *, act_order: bool = False) -> InverseFactor:
        """The factor of the inverse Hessian; computed once and kept."""
        if act_order not in self._factors:
            if act_order:
                self._factors[act_order] = factorise(self.hessian(), act_order=True, name=self.name)
            else:
                self._factors[act_order] = self._factor_as_they_come()
        return self._factors[act_order]

    def _factor_as_they_come(self) -> InverseFactor:
        """As `factorise(self.hessian())`, without a second full matrix: the upper triangle alone is needed."""
        if not self.has_hessian:
            self.hessian()  # says what is wrong
        sums, share = self._collected(), 2 / self._counted_sequences()
        upper, used = _inverse_factor(
            lambda: sums.flip(0, 1).mul_(share), sums.diagonal() * share, DAMPING, name=self.name
        )
        return InverseFactor(upper=upper, dead=sums.diagonal() == 0, order=None, damping=used)

    def _collected(self) -> Tensor:
        if self._sums is None:
            raise NumericalError(f"{self.name}: no calibration input has reached this layer")
        return self._sums

    def _counted_sequences(self) -> int:
        if self.tokens == 0:
            raise NumericalError(f"{self.name}: no calibration token has reached this layer")
        return self.sequences

    def _square_sums(self) -> Tensor:
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
) -> InverseFactor:
    """Factor of the inverse of H (in, in), with act-order the inputs of the largest H_jj first."""
    dead = hessian.diagonal() == 0
    order = None
    if act_order:
        order = hessian.diagonal().masked_fill(dead, 1).argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
    upper, used = inverse_factor(hessian, damping, name=name)
    return InverseFactor(upper=upper, dead=dead, order=order, damping=used)


def inverse_factor(hessian: Tensor, damping: float = DAMPING, *, name: str = "input") -> tuple[Tensor, float]:
    """Upper triangular U with UᵀU = (H + λI)⁻¹, and the damping used: (in, in) → (in, in) float32.

    λ = damping · mean(diag H). Dead inputs (H_jj = 0) count as H_jj = 1. When H + λI is not positive definite
    in float32, ten times the damping is tried, three times at most; then NumericalError.
    """
    return _inverse_factor(lambda: hessian.float().flip(0, 1), hessian.diagonal(), damping, name=name)


def _inverse_factor(
    reversed_hessian: Callable[[], Tensor], diagonal: Tensor, damping: float, *, name: str
) -> tuple[Tensor, float]:
    """As `inverse_factor`, given a way to make H with both axes reversed, of which the lower triangle is read.

    Never are there more than two matrices of that size beside the one it is made from.
    """
    diagonal = diagonal.masked_fill(diagonal == 0, 1).float()
    # With both axes reversed, the lower Cholesky factor L of H becomes an upper R, H = RRᵀ; so U = R⁻¹.
    # One factorisation and half an inverse instead of two factorisations and a full inverse.
    for attempt in range(DAMPING_TRIES):
        used = damping * 10**attempt
        matrix = reversed_hessian()
        if attempt == 0 and not all_finite(matrix):
            raise NumericalError(f"{name}: the Hessian holds NaN or Inf; the sums of squared inputs exceed float32")
        matrix.diagonal().copy_((diagonal + used * diagonal.mean()).flip(0))
        lower, failed = torch.linalg.cholesky_ex(matrix)
        del matrix
        if not bool(failed):
            upper = invert_lower_(lower).flip(0, 1)
            if all_finite(upper):
                return upper, used
    raise NumericalError(
        f"{name}: the Hessian cannot be factorised, even with {used:g} of its mean diagonal added;"
        " give more calibration tokens or look for inputs of very different size"
    )


def invert_lower_(lower: Tensor) -> Tensor:
    """Inverse of a lower triangular matrix, in place, by halves: a third of the arithmetic of solving for I."""
    size = lower.shape[0]
    if size <= LEAF:
        identity = torch.eye(size, dtype=lower.dtype, device=lower.device)
        return lower.copy_(torch.linalg.solve_triangular(lower, identity, upper=False))
    half = size // 2
    first, second, corner = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    invert_lower_(first)
    invert_lower_(second)
    # [[A, 0], [B, C]]⁻¹ has −C⁻¹ B A⁻¹ in its lower left corner.
    product = torch.empty_like(corner)
    for start in range(0, half, STRIP):  # of A⁻¹ only what is not above its diagonal
        strip = slice(start, start + STRIP)
        product[:, strip] = corner[:, start:] @ first[start:, strip]
    for start in range(0, size - half, STRIP):
        rows = second[start : start + STRIP, : start + STRIP]
        corner[start : start + STRIP] = (rows @ product[: start + STRIP]).neg_()
    return lower
