"""A ratio of two sums over items, as the share of lost items that returned: its interval and its test against 0."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from llmkick.statistics.mean import UnobservedMoments, mean_test
from llmkick.statistics.variance import Codes, Floats, Range
from llmkick.statistics.verdict import where_rejected


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A share, or a difference of shares, with its two-sided interval at the level 1 − alpha.

    What cannot be computed is None, and `reason` says why. `p` is the two-sided p-value of H0: the ratio is 0. It is
    below alpha exactly if the interval excludes 0.
    """

    value: float | None
    interval: Range | None = None
    p: float | None = None
    reason: str = ""


def ratio_of_sums(part: Floats, whole: Floats, cluster: Codes, *, reach: Range, alpha: float, nothing: str) -> Ratio:
    """Σ part / Σ whole over (seeds, items), where every part lies in reach · whole; `nothing` is the reason if Σ is 0.

    The ratio is ρ where the mean of part − ρ · whole is 0 (Fieller 1954). That mean is tested by `mean_test`, so
    clusters and seeds count as they do in a verdict. Both bounds use the cautious side of the test, each at alpha / 2.
    Items of which there is nothing in any seed add 0 to both sums and are left out: only the others inform the ratio.
    """
    counted = (whole > 0).any(axis=0)
    if not counted.any():
        return Ratio(value=None, reason=nothing)
    terms = _Terms(part[:, counted], whole[:, counted], np.unique(cluster[counted], return_inverse=True)[1], reach)
    value = float(terms.part.sum() / terms.whole.sum())
    if terms.cluster.max() == 0:
        unit = "item" if terms.cluster.size == 1 else "cluster"
        return Ratio(value=value, reason=f"only one {unit}: no interval")
    low, high = reach
    has_sign = low < 0
    tested = 0.0 if has_sign else value  # a share is not tested: it cannot be below 0
    lower = where_rejected(terms.p_above, value, alpha / 2, limit=low, margin=tested)
    upper = where_rejected(terms.p_below, value, alpha / 2, limit=high, margin=tested)
    return Ratio(
        value=value,
        interval=(low if lower is None else lower, high if upper is None else upper),
        p=min(1.0, 2 * min(terms.p_above(0.0), terms.p_below(0.0))) if has_sign else None,
    )


@dataclass(frozen=True)
class _Terms:
    """The terms of both sums, of the items that count."""

    part: Floats  # (seeds, items)
    whole: Floats  # (seeds, items)
    cluster: Codes  # (items,)
    reach: Range

    def p_above(self, ratio: float) -> float:
        """One-sided p of H0: the ratio is at most this."""
        return self._p(self.part - ratio * self.whole, [end - ratio for end in self.reach])

    def p_below(self, ratio: float) -> float:
        """One-sided p of H0: the ratio is at least this; the mirror image of `p_above`."""
        return self._p(ratio * self.whole - self.part, [ratio - end for end in reversed(self.reach)])

    def _p(self, values: Floats, ends: Sequence[float]) -> float:
        low, high = (self._moments(end) for end in ends)
        return mean_test(values, self.cluster, (low, high), binary=self._binary).p_above

    def _moments(self, end: float) -> UnobservedMoments:
        """Moments of items all of whose part lies at one end of its range."""
        weight = self.whole.mean(axis=0)
        return UnobservedMoments(end * float(weight.mean()), end**2 * float((weight**2).mean()))

    @property
    def _binary(self) -> bool:
        """Whether every item is lost or not, returned or not."""
        return bool(np.isin(self.part, (-1.0, 0.0, 1.0)).all() and np.isin(self.whole, (0.0, 1.0)).all())
