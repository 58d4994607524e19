"""The test of a verdict on many simulated samples of one study."""

from __future__ import annotations

import numpy as np

from llmkick.statistics.verdict import PairedScores, loss_test


class SimulatedTest:
    """`loss_test` at a margin, asked of thousands of samples.

    The test of independent right-or-wrong answers depends on four counts: samples with the same counts are tested once.
    """

    def __init__(self, *, margin: float, alpha: float, chance: float) -> None:
        self.margin, self.alpha, self.chance = margin, alpha, chance
        self._tested: dict[tuple[float, ...], tuple[float, float]] = {}

    def matches(self, scores: PairedScores) -> bool:
        """Whether the loss is shown to be below the margin."""
        return self._p_values(scores)[0] < self.alpha

    def fails(self, scores: PairedScores) -> bool:
        """Whether the loss is shown to be above the margin."""
        return self._p_values(scores)[1] < self.alpha

    def _p_values(self, scores: PairedScores) -> tuple[float, float]:
        """One-sided p of a loss of at least, and of at most, the margin; 1 without a dense score above chance."""
        if scores.dense.mean() <= self.chance:
            return 1.0, 1.0
        counts = _counts(scores)
        if counts is not None and counts in self._tested:
            return self._tested[counts]
        test = loss_test(scores, self.margin, self.chance)
        p_values = test.p_above, test.p_below
        if counts is not None:
            self._tested[counts] = p_values
        return p_values


def _counts(scores: PairedScores) -> tuple[float, ...] | None:
    """What the test depends on if items are independent, right or wrong, and answered with one seed; otherwise None."""
    items = scores.dense.size
    if len(scores.compressed) > 1 or scores.clusters < items or not scores.binary:
        return None
    right, kept = scores.dense == scores.high, scores.compressed[0] == scores.high
    both = np.count_nonzero(right & kept)
    return scores.low, scores.high, items, int(np.count_nonzero(right)), int(np.count_nonzero(kept)), int(both)
