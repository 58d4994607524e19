"""What "undecided" is worth: the smallest true loss that the items at hand would call "not matching"."""

from __future__ import annotations

from dataclasses import replace

from scipy import optimize

from llmkick.statistics.mean import MeanTest
from llmkick.statistics.verdict import PairedScores, loss_test

DETECTION_POWER = 0.8


def detectable_loss(scores: PairedScores, test: MeanTest | None, margin: float, alpha: float) -> float | None:
    """The smallest loss called "not matching" in 80 % of draws that spread like these scores; None beyond all.

    `test` is the one at the margin, None where nothing can be decided.
    """
    dense = scores.means[0]
    if not dense or test is None:
        return None
    loss: float | None = margin + (test.critical(alpha) + test.critical(1 - DETECTION_POWER)) / dense
    if not scores.binary:
        even = _even_loss(scores, margin, alpha)
        loss = None if loss is None or even is None else max(loss, even)
    return loss if loss is not None and loss <= 1 else None


def _even_loss(scores: PairedScores, margin: float, alpha: float) -> float | None:
    """The loss from which on the test rejects, when every item keeps the same share of its dense score.

    A few graded scores that lie close together still leave room for one that was not seen. The test allows for it, so
    a loss well beyond their spread can be undecided.
    """
    mean, low = float(scores.dense.mean()), scores.low
    most = 1 - low / mean

    def p_below(loss: float) -> float:
        share = (most - loss) / most
        even = low + (scores.dense - low) * share
        return loss_test(replace(scores, compressed=even[None]), margin).p_below

    if most <= margin or p_below(most) >= alpha:
        return None
    return float(optimize.brentq(lambda loss: p_below(loss) - alpha, margin, most, xtol=1e-4))
