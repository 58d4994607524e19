"""After how many items a cell with early stopping is expected to end, and how much a recipe is expected to lose."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmkick.compression.recipe import NM, Dense, Recipe, Recovered, steps_of
from llmkick.statistics.betting import STAKES
from llmkick.statistics.early_stopping import BETS_SHARE
from llmkick.statistics.item_order import LATER_LOOK_ITEMS, LOOK_ITEMS

# Rise of the logarithm of perplexity of a model of MODEL_PARAMETERS, by bits, and at half of the weights pruned, by
# whether the method looks at the inputs. Measured with the built-in model (benchmarks/results/seventeen-recipes.md).
RISES_BY_BITS = {2: 8.0, 3: 1.4, 4: 0.28, 5: 0.07, 6: 0.02, 8: 0.005}
RISE_OF_A_HALF, RISE_OF_A_HALF_BLIND = 0.86, 3.0
# The rise grows with this power of the share of zeros, and is so many times larger for a pattern of N of M.
SPARSITY_POWER, RISE_OF_A_PATTERN = 3.5, 2.2
# Larger models lose less: with the power -0.3 of their size the rises above become those of LLaMA-7B in
# arXiv:2306.11695 (wanda 0.25, 2:4 0.71) and arXiv:2210.17323 (4 bits 0.07, 3 bits 0.4).
MODEL_PARAMETERS, SIZE_POWER = 1.35e8, -0.3
UNKNOWN_PARAMETERS = 10**9
# The share of the rise that is left after a recovery, roughly.
AFTER_RECOVERY = 0.6
# The least rise of a recipe that changes anything, and the rise of a model of which nothing is known.
LEAST_RISE, UNKNOWN_RISE = 0.003, 0.1
# From this number of items on, half a later look is asked after the decision; before, half an early one. Decisions that
# are expected between 64 and 96 items came by 64 in simulated runs.
LATER_BY = 3 * LOOK_ITEMS
# The logarithm of what bets lose because their money is spread over several stakes.
SPREAD_COST = 1.4
# The correlation of the answers about one passage, story or conversation.
CORRELATION = 0.1


@dataclass(frozen=True, kw_only=True)
class StopSettings:
    """The early stopping rule of a cell: the margin, the error rate, the chance level, and the items of a bet.

    bet_items: the mean size of the clusters that are asked and bet on as a whole, 1 without clusters.
    family_size: of the claims of a match that are corrected together, by which the alpha of a match is divided.
    """

    margin: float = 0.05
    alpha: float = 0.05
    chance: float = 0.0
    bet_items: float = 1.0
    family_size: int = 1


def expected_rise(recipe: Recipe, parameters: int) -> float:
    """By how much a recipe is expected to raise the logarithm of perplexity of a model with so many parameters."""
    if isinstance(recipe, Dense):
        return LEAST_RISE
    rise: float = 0.0
    for step in steps_of(recipe):
        if step.bits is not None:
            nearest = min(RISES_BY_BITS, key=lambda bits, of=step.bits: abs(bits - of))  # type: ignore[misc]
            rise += RISES_BY_BITS[nearest]
        if step.sparsity is not None:
            half = RISE_OF_A_HALF if step.needs_calibration else RISE_OF_A_HALF_BLIND
            pattern = RISE_OF_A_PATTERN if any(isinstance(part, NM) for part in step.parts) else 1.0
            rise += half * pattern * (2 * step.sparsity) ** SPARSITY_POWER
    size: float = (max(parameters or UNKNOWN_PARAMETERS, 1e6) / MODEL_PARAMETERS) ** SIZE_POWER
    return max(LEAST_RISE, rise * size * (AFTER_RECOVERY if isinstance(recipe, Recovered) else 1.0))


def items_until_decided(loss: float, accuracy: float, stop: StopSettings, *, variance: float | None = None) -> float:
    """The number of items after which bets on a true relative loss decide about the margin; infinite at the margin.

    accuracy: that of the dense model. variance: the measured variance of t = c − (1 − margin)·d of an item, times the
    design effect of clusters; None to expect it from the loss.

    Bets with the best of the rule's stakes λ gain E[log(1 + λ·t)] each, until they have log(1 / alpha) and SPREAD_COST
    for the money on the other stakes. An item has the four outcomes of two answers; a cluster's mean is taken as
    normal. Simulated runs of the rule end after this number of items on average, within a quarter
    (`tests/study/test_expected_stop.py`).
    """
    above_chance = max(0.02, accuracy - stop.chance)
    if above_chance * abs(loss - stop.margin) < 1e-6:
        return math.inf
    values, weights = _outcomes(loss, accuracy, stop, variance)
    values = values if loss < stop.margin else -values
    largest = 1 - stop.margin * stop.chance if loss > stop.margin else 1 - stop.margin + stop.margin * stop.chance
    gains = np.log1p(np.outer(STAKES / largest, np.clip(values, -largest, None))) @ weights
    if gains.max() <= 0:
        return math.inf
    alpha = stop.alpha / stop.family_size if loss < stop.margin else stop.alpha
    bets = (SPREAD_COST - math.log(BETS_SHARE * alpha)) / float(gains.max())
    items = bets * stop.bet_items
    return max(LOOK_ITEMS, items + (LOOK_ITEMS if items < LATER_BY else LATER_LOOK_ITEMS) / 2)


def _outcomes(
    loss: float, accuracy: float, stop: StopSettings, variance: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What t of a bet can be, and how likely each value is: for an item the values of two right or wrong answers."""
    net, kept = loss * (accuracy - stop.chance), 1 - stop.margin
    # Besides the net loss some answers change both ways: about 2 % at 8 bits, more for what loses more.
    gained = (0.02 + 0.1 * math.sqrt(max(0.0, loss))) * (1 - min(1.0, max(0.0, loss)))
    if variance is not None and stop.bet_items == 1:
        gained = (variance - kept**2 * net) / (1 + kept**2)
    gained = min(max(0.002, gained, 0.002 - net), 1 - accuracy, accuracy - net)
    lost, at_chance = gained + net, stop.margin * stop.chance
    values = np.array([1 - kept, -kept, 1.0, 0.0]) - at_chance
    weights = np.array([accuracy - lost, lost, gained, 1 - accuracy - gained]).clip(0.0)
    weights /= weights.sum()
    if stop.bet_items == 1:
        return values, weights
    mean = float(values @ weights)
    spread = variance
    if spread is None:
        spread = float((values - mean) ** 2 @ weights) * (1 + CORRELATION * (stop.bet_items - 1))
    third = math.sqrt(3 * spread / stop.bet_items)
    return np.array([mean - third, mean, mean + third]), np.array([1 / 6, 2 / 3, 1 / 6])
