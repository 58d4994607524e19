"""Replacing the columns of a weight one by one, while the later columns compensate for each error.

The core that SparseGPT and GPTQ share: they differ only in what replaces a column. Several weights of one shape can be
swept at once: each tensor then has a first dimension more, which shapes show as "…".
"""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from llmkick.compression.kernels.factor import HessianFactor
from llmkick.compression.kernels.replacement import Replacement, replace_plainly

BLOCK = 128  # the errors of so many columns are added to the columns after the block in one wide matrix product
PANEL = 32  # on a CPU, the errors of so many columns are added to the rest of their block in one narrow matrix product
NO_MASK = torch.empty(0, 0, dtype=torch.bool, device="cpu")
NO_NUMBER = torch.empty(0, dtype=torch.int64, device="cpu")
NO_GRIDS = (NO_NUMBER, *(torch.empty(0, 0, dtype=torch.float32, device="cpu"),) * 3)

Chooser = Callable[[int, int], Replacement]
# Replaces columns of (values, dense, errors, unit), as `replace_plainly` does.
Replacer = Callable[[Tensor, Tensor, Tensor, Tensor, Replacement], None]


class Columns:
    """A weight during the sweep, held as Wᵀ (…, in, out) in the factor's order, so that a column of W is contiguous."""

    def __init__(self, weight: Tensor, factor: HessianFactor) -> None:
        """weight: (…, out, in) float32, which is not changed."""
        self._factor = factor
        self._dense = in_order(weight.mT, factor.order).contiguous()
        self._values = self._dense  # copied in `sweep`, when the caller has freed the weight

    def weight(self) -> Tensor:
        """The weight with all replacements so far: (…, out, in)."""
        order = self._factor.order
        return in_order(self._values, None if order is None else order.argsort()).mT.contiguous()

    def settled(self, start: int, stop: int) -> Tensor:
        """The optimal values of these columns, given the columns before them: (…, stop − start, out).

        Valid when all columns before `start` are replaced, and none from it on.
        """
        dense, inverse = self._dense[..., start:stop, :], self._factor.inverse_within(start, stop)
        add_product = torch.addmm if dense.dim() == 2 else torch.baddbmm
        return add_product(dense, inverse, self._values[..., start:stop, :] - dense)

    def sweep(self, choose: Replacement | Chooser, *, group: int = 1) -> None:
        """Replace all columns in order, by a replacement of them all, or of some as `choose(start, stop)` gives it.

        `choose` is called for each run of `group` columns, when all columns before `start` are replaced; with groups of
        1 for BLOCK columns at a time.

        The error of a replaced column is e = q − w, its new value less its original value. Column j is replaced when
        it is w_j − Σ e_i M_ij over all columns i before it. These sums are vector products within a run and matrix
        products beyond it.
        """
        self._values = self._dense.clone()
        if isinstance(choose, Replacement) and choose.lowest is not None:
            group = choose.lowest.group
        if self._values.dim() == 2 and is_compiled_for(self._values.device):
            self._sweep_by_panels(choose.part if isinstance(choose, Replacement) else choose, group)
        else:
            self._sweep_by_blocks(choose, group)

    def _sweep_by_panels(self, choose: Chooser, group: int) -> None:
        """Small runs, and narrow products within a block, which stay in the caches of a processor."""
        values, unit = self._values, self._factor.unit
        run_width = group if 1 < group <= PANEL else PANEL
        errors = torch.empty_like(values[:BLOCK])
        replacer = CompiledReplacer(values, self._dense, errors, unit)
        for start, stop in spans(0, len(values), BLOCK, group):
            replacer.first = start
            for first, last in spans(start, stop, PANEL, group):
                for a, b in spans(first, last, run_width, group):
                    if a == start if group == 1 else a % group == 0:
                        end = stop if group == 1 else min(a + group, len(values))
                        replacer.choose(self._with_mask(choose(a, end), a, end), a)
                    replacer.replace(a, b)
                    _spread(values[b:last], unit[a:b, b:last], errors[a - start : b - start])
                _spread(values[last:stop], unit[first:last, last:stop], errors[first - start : last - start])
            _spread(values[stop:], unit[start:stop, stop:], errors[: stop - start])

    def _with_mask(self, replacement: Replacement, start: int, stop: int) -> Replacement:
        """The replacement of one group, with a mask in place of the rule that chooses its lowest weights."""
        if replacement.lowest is None:
            return replacement
        zeroed = replacement.lowest.zeroed(self.settled(start, stop))
        return Replacement(zeroed=zeroed, grids=replacement.grids)

    def _sweep_by_blocks(self, choose: Replacement | Chooser, group: int) -> None:
        """Runs as long as `choose` allows, up to a whole block: a GPU is given few steps, and waits for nothing."""
        values, unit, columns = self._values, self._factor.unit, self._values.shape[-2]
        errors = values.new_empty(*values.shape[:-2], min(BLOCK, columns), values.shape[-1])
        replace = replacer_for(values.device)
        chosen, replacement = 0, choose if isinstance(choose, Replacement) else Replacement()
        run_width = BLOCK if isinstance(choose, Replacement) or group == 1 else min(group, BLOCK)
        for start, stop in spans(0, columns, BLOCK, group):
            for a, b in spans(start, stop, run_width, group):
                if not isinstance(choose, Replacement) and (group == 1 or a % group == 0):
                    chosen, replacement = a, choose(a, b if group == 1 else min(a + group, columns))
                run, run_errors = slice(a, b), errors[..., a - start : b - start, :]
                own = replacement.part(a - chosen, b - chosen)
                replace(values[..., run, :], self._dense[..., run, :], run_errors, unit[..., run, run], own)
                _spread(values[..., b:stop, :], unit[..., run, b:stop], run_errors)
            _spread(values[..., stop:, :], unit[..., start:stop, stop:], errors[..., : stop - start, :])


def in_order(rows: Tensor, order: Tensor | None) -> Tensor:
    """Rows (…, in, out) in an order (…, in); None: as they are."""
    if order is None:
        return rows
    return rows[order] if order.dim() == 1 else rows.take_along_dim(order[..., None], dim=-2)


def _spread(values: Tensor, unit: Tensor, errors: Tensor) -> None:
    """Compensate errors (…, replaced, out) in later columns (…, later, out), in place; unit: (…, replaced, later)."""
    if not values.shape[-2]:
        return
    if values.dim() == 2:
        values.addmm_(unit.T, errors, alpha=-1)
    else:
        values.baddbmm_(unit.mT, errors, alpha=-1)


def spans(start: int, stop: int, width: int, group: int) -> list[tuple[int, int]]:
    """start … stop in pieces of at most `width` that cut no group; a group wider than that starts a new piece."""
    whole = width // group * group or group
    return [
        (piece, min(piece + width, first + whole, stop))
        for first in range(start, stop, whole)
        for piece in range(first, min(first + whole, stop), width)
    ]


class CompiledReplacer:
    """Replaces the columns of a block on a CPU, run by run; each error is compensated in the later columns of its run.

    values, dense: (columns, out), the weight at work and the original weight. unit: (columns, columns), M. errors:
    (columns of a block, out), the errors of the columns from `first` on, which are filled in.
    """

    def __init__(self, values: Tensor, dense: Tensor, errors: Tensor, unit: Tensor) -> None:
        # Imported with the first weight, because the import loads the compiler.
        from llmkick.compression.kernels.compiled import replace_columns

        self.first = 0
        self._replace_columns = replace_columns
        self._arrays = [matrix.numpy() for matrix in (values, dense, errors, unit)]

    def choose(self, replacement: Replacement, start: int) -> None:
        """Set the replacement of the columns from `start` on; its lowest weights are in a mask already."""
        self._start = start
        zeroed = NO_MASK if replacement.zeroed is None else replacement.zeroed
        grids = replacement.grids
        rounding = NO_GRIDS if grids is None else (grids.number, grids.scale, grids.low, grids.high)
        self._rule = [each.numpy() for each in (zeroed, *rounding)]

    def replace(self, start: int, stop: int) -> None:
        """Replace these columns, one after another."""
        self._replace_columns(*self._arrays, *self._rule, start, stop, self.first, self._start)


def is_compiled_for(device: torch.device) -> bool:
    """Whether the loop over columns runs as compiled code of the processor."""
    return device.type == "cpu"


@cache
def replacer_for(device: torch.device) -> Replacer:
    """What replaces columns on a device that is no CPU: one kernel where it runs and is exact, or plain operations.

    The kernel is tried on a small example first. Warns where it cannot be used.
    """
    if device.type != "cuda":
        return replace_plainly
    try:
        from llmkick.compression.kernels.fused import replace_columns, try_on

        try_on(device)
    except Exception as error:  # noqa: BLE001 - a package, a compiler or a driver may be missing or fail
        warnings.warn(
            f"SparseGPT and GPTQ replace columns one by one on {device}, because the kernel that does it at once does "
            f"not run ({type(error).__name__}: {error}); the weights are the same, but it takes much longer. The "
            "kernel needs the package triton, a C compiler and an NVIDIA GPU",
            stacklevel=2,
        )
        return replace_plainly
    return replace_columns
