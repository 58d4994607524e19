"""Power of a verdict: its probability, the number of items it needs, and the smallest loss that items detect.

The model is a binary score per item: `accuracy` of the dense model, `discordance` (the share of items that exactly one
of the two models gets right) and a true relative loss r of the part above chance, so that lost − gained =
r · (accuracy − chance). The functions use the normal approximation to the test of `verdict`, which holds for many
independent items; `design_effect` is the variance of a mean over clustered items divided by that over independent
items. For a design as it is (clusters, seeds, graded scores) there is a simulation in `design`. After a run,
`observed_detectable_loss` uses the variance of the scores.
"""

import math
from dataclasses import replace

from scipy import optimize, special

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
    chance: float = 0.0,
    design_effect: float = 1.0,
) -> float:
    """Probability of the right verdict: "matching" for a loss below the margin, "not matching" above it."""
    _check(chance, accuracy=accuracy, discordance=discordance, margin=margin, alpha=alpha, loss=loss)
    if items < 1:
        raise ConfigError(f"{items} items have no power; give at least 1")
    deviation, assumed = _standard_deviations(accuracy, chance, loss, discordance, margin)
    net = (accuracy - chance) * abs(margin - loss)
    distance = net * math.sqrt(items / design_effect) + special.ndtri(alpha) * assumed
    return float(special.ndtr(distance / deviation)) if deviation > 0 else float(distance > 0)


def items_needed(
    accuracy: float,
    *,
    loss: float = 0.0,
    discordance: float = 0.1,
    margin: float = 0.05,
    alpha: float = 0.05,
    power: float = POWER,
    chance: float = 0.0,
    design_effect: float = 1.0,
) -> int:
    """The number of items that give the right verdict with probability `power`."""
    _check(chance, accuracy=accuracy, discordance=discordance, margin=margin, alpha=alpha, loss=loss, power=power)
    if loss == margin:
        raise ConfigError(f"a loss of exactly the margin ({margin}) is never decided; give another loss")
    deviation, assumed = _standard_deviations(accuracy, chance, loss, discordance, margin)
    needed = float(special.ndtri(power) * deviation - special.ndtri(alpha) * assumed) / (
        (accuracy - chance) * (margin - loss)
    )
    return max(1, math.ceil(design_effect * needed**2))


def smallest_detectable_loss(
    items: int,
    accuracy: float,
    *,
    discordance: float = 0.1,
    margin: float = 0.05,
    alpha: float = 0.05,
    power: float = POWER,
    chance: float = 0.0,
    design_effect: float = 1.0,
) -> float | None:
    """The smallest true relative loss called "not matching" with probability `power`; None if no loss is."""

    def excess(loss: float) -> float:
        probability = verdict_power(
            items,
            accuracy,
            loss=loss,
            discordance=discordance,
            margin=margin,
            alpha=alpha,
            chance=chance,
            design_effect=design_effect,
        )
        return probability - power

    _check(chance, accuracy=accuracy, discordance=discordance, margin=margin, alpha=alpha, power=power)
    check_power(power, alpha)
    return float(optimize.brentq(excess, margin, 1.0)) if excess(1.0) > 0 else None


def observed_detectable_loss(
    scores: PairedScores, test: MeanTest | None, *, margin: float, alpha: float, chance: float = 0.0
) -> float | None:
    """The smallest loss called "not matching" in 80 % of draws with the variance of these scores; None if no loss is.

    `test` is the test at the margin, None if nothing can be decided.
    """
    if test is None or not scores.dense.size or scores.dense.mean() <= chance:
        return None
    excess = float(scores.dense.mean()) - chance
    loss: float | None = margin + (test.critical(alpha, test.df) + test.critical(1 - POWER, test.df)) / excess
    if not scores.binary:
        even = _even_loss(scores, margin, alpha, chance)
        loss = None if loss is None or even is None else max(loss, even)
    return loss if loss is not None and loss <= 1 else None


def _even_loss(scores: PairedScores, margin: float, alpha: float, chance: float) -> float | None:
    """The smallest loss that the test rejects if every item keeps the same share of its dense score.

    The test allows for graded scores that were not observed. If a few scores lie close together, it can therefore leave
    a loss undecided that is well beyond their standard error.
    """
    mean, low = float(scores.dense.mean()), scores.low
    most = (mean - low) / (mean - chance)

    def p_below(loss: float) -> float:
        even = low + (scores.dense - low) * (most - loss) / most
        return loss_test(replace(scores, compressed=even[None]), margin, chance).p_below

    if most <= margin or p_below(most) >= alpha:
        return None
    return float(optimize.brentq(lambda loss: p_below(loss) - alpha, margin, most, xtol=1e-4))


def _standard_deviations(
    accuracy: float, chance: float, loss: float, discordance: float, margin: float
) -> tuple[float, float]:
    """Standard deviation of t, and the one that the test assumes, which is at least that of a loss at the margin."""
    deviation = math.sqrt(max(0.0, _item_variance(accuracy, chance, loss, discordance, margin)))
    return deviation, max(deviation, math.sqrt(_item_variance(accuracy, chance, margin, discordance, margin)))


def changes(accuracy: float, net: float, discordance: float) -> tuple[float, float]:
    """Shares of items lost and gained, at least as many as a net loss needs."""
    changed = max(discordance, net)
    # Only wrong items can be gained, and only right items can be lost.
    gained = min((changed - net) / 2, 1 - accuracy, accuracy - net)
    return gained + net, gained


def _item_variance(accuracy: float, chance: float, loss: float, discordance: float, margin: float) -> float:
    """Variance of t = c − (1 − margin)·d of an item."""
    net = loss * (accuracy - chance)
    lost, gained = changes(accuracy, net, discordance)
    kept = 1 - margin
    square = margin**2 * (accuracy - lost) + kept**2 * lost + gained
    return square - (margin * accuracy - net) ** 2


def check_power(power: float, alpha: float) -> None:
    """Raise ConfigError for a power that a loss of exactly the margin, which alpha is the limit for, would reach."""
    if power <= alpha:
        raise ConfigError(f"power {power} must be above alpha, {alpha}: a test decides as often by mistake")


def _check(chance: float, **shares: float) -> None:
    """Raise ConfigError unless every argument is a share and chance is below the accuracy.

    Accuracy, margin, alpha and power exclude 0.
    """
    for name, value in shares.items():
        closed_below = name in ("discordance", "loss")
        closed_above = name in ("discordance", "loss", "accuracy")
        if not (0 < value < 1 or (value == 0 and closed_below) or (value == 1 and closed_above)):
            raise ConfigError(f"{name}={value} is out of range; give a share between 0 and 1")
    if not 0 <= chance < shares["accuracy"]:
        raise ConfigError(f"chance {chance} must be 0 or more and below the accuracy {shares['accuracy']}")
