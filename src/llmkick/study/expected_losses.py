"""What is believed of the losses of recipes on tasks, before and while they are measured.

A loss L of a recipe on a task is written y = log(−log(1 − L)): the logarithm of how severe the recipe is plus that of
how sensitive the task is, L = 1 − exp(−sensitivity · rise). The severity of a recipe is the rise of the logarithm of
its perplexity, measured or expected. With the sensitivities below the formula tells the losses in
benchmarks/results/seventeen-recipes.md within about a factor of 1.5. All unknowns are normal, and so what is measured
of any cell changes what is believed of all others: of the same recipe, of the same task, and of the whole run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# How strongly the loss of a task follows the perplexity: for answers that are written, and for choices.
SENSITIVITY, SENSITIVITY_OF_CHOICES = 1.8, 0.5
# Standard deviations of what is believed, as logarithms: of all severities of a run together, of one recipe, of the
# sensitivity of a task, of a single cell beside these, and of a measured rise as a measure of the severity.
RUN_SPREAD, RECIPE_SPREAD, TASK_SPREAD, CELL_SPREAD, RISE_SPREAD = 0.4, 0.45, 0.5, 0.3, 0.2
# Perplexity that changes by less than this says that it hardly changes.
LEAST_MEASURED_RISE = 0.004
# A loss is believed to be at most this.
LARGEST_LOSS = 0.98
LEAST_LOSS = 0.002


@dataclass(frozen=True, kw_only=True)
class Belief:
    """A normal belief about y = log(−log(1 − loss))."""

    mean: float
    variance: float

    def losses(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Some losses and their probabilities: (nodes,), (nodes,)."""
        y = self.mean + math.sqrt(self.variance) * _NODES
        return 1 - np.exp(-np.exp(np.clip(y, -12.0, 1.6))), _WEIGHTS

    def with_loss(self, loss: float, error: float) -> Belief:
        """The belief after a loss of this very cell was measured."""
        y, variance = measured(loss, error)
        precision = 1 / self.variance + 1 / variance
        return Belief(mean=(self.mean / self.variance + y / variance) / precision, variance=1 / precision)


_NODES, _raw = np.polynomial.hermite_e.hermegauss(21)
_WEIGHTS: NDArray[np.float64] = _raw / _raw.sum()


def measured(loss: float, error: float) -> tuple[float, float]:
    """A measured loss and its standard error as y and the variance of y.

    A loss of nothing, or a gain, is as little loss as its error lets believe.
    """
    error = max(error, 0.005)
    least = min(LARGEST_LOSS, max(loss, 0.5 * error, LEAST_LOSS))
    fallen = -math.log1p(-least)
    return math.log(fallen), (error / max(1e-3, (1 - least) * fallen)) ** 2


class Losses:
    """Beliefs about all cells of a run.

    rises: the expected rise of each recipe. sensitivities: the expected one of each task.
    """

    def __init__(self, rises: Mapping[str, float], sensitivities: Mapping[str, float]) -> None:
        self._recipes = {recipe: 1 + place for place, recipe in enumerate(rises)}
        self._tasks = {task: 1 + len(rises) + place for place, task in enumerate(sensitivities)}
        self._rises = {recipe: math.log(rise) for recipe, rise in rises.items()}
        self._sensitivities = {task: math.log(value) for task, value in sensitivities.items()}
        spreads = [RUN_SPREAD, *[RECIPE_SPREAD] * len(rises), *[TASK_SPREAD] * len(sensitivities)]
        self._precision: NDArray[np.float64] = np.diag([spread**-2 for spread in spreads])
        self._weighted: NDArray[np.float64] = np.zeros(len(spreads))

    def see_rise(self, recipe: str, rise: float) -> None:
        """A recipe raised the logarithm of the perplexity by this."""
        least = max(rise, LEAST_MEASURED_RISE)
        # A few windows tell a small rise badly.
        variance = RISE_SPREAD**2 + (LEAST_MEASURED_RISE / least) ** 2
        self._add([0, self._recipes[recipe]], math.log(least) - self._rises[recipe], variance)

    def see_loss(self, recipe: str, task: str, loss: float, error: float) -> None:
        """A recipe lost this on a task."""
        y, variance = measured(loss, error)
        self._add(self._of(recipe, task), y - self._expected(recipe, task), variance + CELL_SPREAD**2)

    def of_cells(self, cells: Sequence[tuple[str, str]]) -> list[Belief]:
        """What is believed of the losses of cells, each a recipe and a task."""
        if not cells:
            return []
        covariance = np.linalg.inv(self._precision)
        mean = covariance @ self._weighted
        beliefs = []
        for recipe, task in cells:
            at = self._of(recipe, task)
            variance = float(covariance[np.ix_(at, at)].sum()) + CELL_SPREAD**2
            beliefs.append(Belief(mean=self._expected(recipe, task) + float(mean[at].sum()), variance=variance))
        return beliefs

    def _of(self, recipe: str, task: str) -> list[int]:
        return [0, self._recipes[recipe], self._tasks[task]]

    def _expected(self, recipe: str, task: str) -> float:
        return self._rises[recipe] + self._sensitivities[task]

    def _add(self, places: Sequence[int], value: float, variance: float) -> None:
        for place in places:
            self._weighted[place] += value / variance
            for other in places:
                self._precision[place, other] += 1 / variance
