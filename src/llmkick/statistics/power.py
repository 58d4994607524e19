"""Power of a verdict: its probability, the number of items it needs, and the smallest loss that items detect.

Before a run, the model is a binary score per item: `accuracy` of the dense model, `discordance` (the share of items
that exactly one of the two models gets right) and a true relative loss r, so that lost − gained = r · accuracy. The
functions use the normal approximation to the test of `verdict`; `design_effect` is the variance of a mean over
clustered items divided by that over independent items. After a
run, `observed_detectable_loss` uses the variance of the scores.
"""

import math
from dataclasses import replace

from scipy import optimize, stats

from llmkick.errors import ConfigError
from llmkick.statistics.mean import MeanTest
from llmkick.statistics.verdict import PairedScores, loss_test

POWER = 0.8  # the customary probability of the right verdict


def verdict_power(
    items: int,
    accuracy: float,
    *,
    loss: float = 0.0,
    discordance: float = 0.1,
    margin: float = 0.05,
    alpha: float = 0.05,
    design_effect: float = 1.0,
) -> float:
    """Probability of the right verdict: "matching" for a loss below the margin, "not matching" above it."""
    _check(accuracy=accuracy, discordance=discordance, margin=margin, alpha=alpha, loss=loss)
    if items < 1:
        raise ConfigError(f"{items} items have no power; give at least 1")
    deviation, assumed = _standard_deviations(accuracy, loss, discordance, margin)
    distance = accuracy * abs(margin - loss) * math.sqrt(items / design_effect) - stats.norm.isf(alpha) * assumed
    return float(stats.norm.cdf(distance / deviation)) if deviation > 0 else float(distance > 0)


def items_needed(
    accuracy: float,
    *,
    loss: float = 0.0,
    discordance: float = 0.1,
    margin: float = 0.05,
    alpha: float = 0.05,
    power: float = POWER,
    design_effect: float = 1.0,
) -> int:
    """The number of items that give the right verdict with probability `power`."""
    _check(accuracy=accuracy, discordance=discordance, margin=margin, alpha=alpha, loss=loss, power=power)
    if loss == margin:
        raise ConfigError(f"a loss of exactly the margin ({margin}) is never decided; give another loss")
    deviation, assumed = _standard_deviations(accuracy, loss, discordance, margin)
    needed = float(stats.norm.isf(alpha) * assumed + stats.norm.ppf(power) * deviation) / (accuracy * (margin - loss))
    return max(1, math.ceil(design_effect * needed**2))


def smallest_detectable_loss(
    items: int,
    accuracy: float,
    *,
    discordance: float = 0.1,
    margin: float = 0.05,
    alpha: float = 0.05,
    power: float = POWER,
    design_effect: float = 1.0,
) -> float | None:
    """The smallest true relative loss called "not matching" with probability `power`; None if no loss is."""

    def excess(loss: float) -> float:
        chance = verdict_power(
            items,
            accuracy,
            loss=loss,
            discordance=discordance,
            margin=margin,
            alpha=alpha,
            design_effect=design_effect,
        )
        return chance - power

    _check(accuracy=accuracy, discordance=discordance, margin=margin, alpha=alpha, power=power)
    return float(optimize.brentq(excess, margin, 1.0)) if excess(1.0) > 0 else None


def observed_detectable_loss(scores: PairedScores, test: MeanTest | None, margin: float, alpha: float) -> float | None:
    """The smallest loss called "not matching" in 80 % of draws with the variance of these scores; None if no loss is.

    `test` is the test at the margin, None if nothing can be decided.
    """
    dense = scores.means[0]
    if not dense or test is None:
        return None
    loss: float | None = margin + (test.critical(alpha) + test.critical(1 - POWER)) / dense
    if not scores.binary:
        even = _even_loss(scores, margin, alpha)
        loss = None if loss is None or even is None else max(loss, even)
    return loss if loss is not None and loss <= 1 else None


def _even_loss(scores: PairedScores, margin: float, alpha: float) -> float | None:
    """The smallest loss that the test rejects if every item keeps the same share of its dense score.

    The test allows for graded scores that were not observed. If a few scores lie close together, it can therefore leave
    a loss undecided that is well beyond their standard error.
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


def _standard_deviations(accuracy: float, loss: float, discordance: float, margin: float) -> tuple[float, float]:
    """Standard deviation of t, and the one that the test assumes, which is at least that of a loss at the margin."""
    deviation = math.sqrt(max(0.0, _item_variance(accuracy, loss, discordance, margin)))
    return deviation, max(deviation, math.sqrt(_item_variance(accuracy, margin, discordance, margin)))


def _item_variance(accuracy: float, loss: float, discordance: float, margin: float) -> float:
    """Variance of t = c − (1 − margin)·d of an item; the discordance is at least what the loss needs."""
    net = loss * accuracy
    changed = max(discordance, net)
    lost, gained = (changed + net) / 2, (changed - net) / 2
    # Only wrong items can be gained, and only right items can be lost.
    gained = min(gained, 1 - accuracy, accuracy - net)
    lost = gained + net
    kept = 1 - margin
    square = margin**2 * (accuracy - lost) + kept**2 * lost + gained
    return square - (accuracy * (margin - loss)) ** 2


def _check(**shares: float) -> None:
    """Raise ConfigError unless every argument is a share; accuracy, margin, alpha and power exclude 0."""
    for name, value in shares.items():
        closed_below = name in ("discordance", "loss")
        closed_above = name in ("discordance", "loss", "accuracy")
        if not (0 < value < 1 or (value == 0 and closed_below) or (value == 1 and closed_above)):
            raise ConfigError(f"{name}={value} is out of range; give a share between 0 and 1")
