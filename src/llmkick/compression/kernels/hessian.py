"""Second moments of a layer's inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from llmkick.compression.kernels.factor import HessianFactor, Unfactored, factors_together
from llmkick.compression.kernels.moments import add_moments, sums_of_squares
from llmkick.errors import ConfigError, NumericalError
from llmkick.models.finite import all_finite


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
            self._factors[act_order] = self._unfactored(act_order).factor()
        return self._factors[act_order]

    @staticmethod
    def factors(several: Sequence[InputStatistics], *, act_order: bool = False) -> list[HessianFactor]:
        """`factor` of several statistics of one width. A GPU factorises those at once that have no factor yet."""
        missing = [one for one in dict.fromkeys(several) if act_order not in one._factors]
        has_all = len(missing) > 1 and all(one.has_hessian for one in missing)
        if has_all and not is_checked_at_once(missing[0]._collected().device):
            InputStatistics.check_finite(missing)
            found = factors_together([one._unfactored(act_order) for one in missing])
            for one, factor in zip(missing, found, strict=True):
                one._factors[act_order] = factor
        return [one.factor(act_order=act_order) for one in several]

    def _unfactored(self, act_order: bool) -> Unfactored:
        if act_order or not self.has_hessian:
            return Unfactored.of(self.hessian(), act_order=act_order, name=self.name)
        # From the upper triangle alone: one matrix less in memory.
        self.check_finite([self])
        sums, share = self._collected(), 2 / self._counted_sequences()
        return Unfactored(
            reversed_hessian=lambda: sums.flip(0, 1).mul_(share),
            diagonal=sums.diagonal() * share, dead=sums.diagonal() == 0, order=None, name=self.name,
        )  # fmt: skip

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
