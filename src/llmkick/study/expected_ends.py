"""After how many of their steps the parts of a run are expected to end, by all that was seen of its cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llmkick.statistics.item_order import EARLY_LOOKS, LATER_LOOK_ITEMS, LOOK_ITEMS
from llmkick.study.expected_losses import SENSITIVITY, SENSITIVITY_OF_CHOICES, Belief, Losses
from llmkick.study.expected_stop import StopSettings, items_until_decided
from llmkick.study.parts import Part, PartState

# How much of what the dense model is expected to be above chance is believed before it has answered.
EXPECTED_ABOVE_CHANCE = 0.5
# More items than any task has.
MOST_ITEMS = 1e7

Floats = NDArray[np.float64]


class ExpectedEnds:
    """The number of steps after which each part is expected to end."""

    def __init__(self, states: Sequence[PartState]) -> None:
        self._cells: dict[str, list[PartState]] = defaultdict(list)  # compared cells with early stopping, by task
        self._dense: dict[str, PartState] = {}
        for state in states:
            if state.part.is_reference:
                self._dense[_task(state.part)] = state
            elif state.part.stop is not None and state.part.steps:
                self._cells[_task(state.part)].append(state)
        self._states = states
        self._ends: dict[str, tuple[Floats, Floats]] = {}  # possible steps and their probabilities
        for state, belief in self._believed():
            self._ends[state.part.key] = self._possible_ends(state, belief)

    def _believed(self) -> list[tuple[PartState, Belief]]:
        """The cells whose end is open, with what is believed of their losses."""
        cells = [state for of_task in self._cells.values() for state in of_task]
        waiting = [state for state in cells if not state.is_ended and self._has_signal(state)]
        if not waiting:
            return []
        beliefs = self._losses(cells).of_cells([_place(state) for state in waiting])
        for index, state in enumerate(waiting):
            if state.loss is not None:
                # What the cell shows itself counts in full, and so not among the others.
                others = self._losses(cells, without=state).of_cells([_place(state)])[0]
                beliefs[index] = others.with_loss(state.loss, state.loss_error)
        return list(zip(waiting, beliefs, strict=True))

    def _losses(self, cells: Sequence[PartState], *, without: PartState | None = None) -> Losses:
        rises = {state.part.recipe: state.part.severity for state in cells}
        chances = {_task(state.part): state.part.stop.chance for state in cells if state.part.stop is not None}
        losses = Losses(
            rises, {task: SENSITIVITY_OF_CHOICES if chance else SENSITIVITY for task, chance in chances.items()}
        )
        for state in self._states:
            if state.rise is not None and state.part.recipe in rises:
                losses.see_rise(state.part.recipe, state.rise)
        for state in cells:
            if state.loss is not None and state is not without and self._has_signal(state):
                losses.see_loss(*_place(state), state.loss, state.loss_error)
        return losses

    def _has_signal(self, state: PartState) -> bool:
        dense = self._dense.get(_task(state.part))
        return dense is None or dense.has_signal

    def _possible_ends(self, state: PartState, belief: Belief) -> tuple[Floats, Floats]:
        part, losses = state.part, belief.losses()
        assert part.stop is not None
        accuracy = self._accuracy(state)
        variance = self._variance(state, part.stop, accuracy)
        if variance is None:
            places, known = _usual_ends(round(accuracy, 2), part.stop)
            ends = np.exp(np.interp(losses[0], places, known))
        else:
            ends = _ends(losses[0], accuracy, part.stop, variance)
        # A cell that asked more than a loss needs will see it at one of the next looks, if that is the loss.
        look = LOOK_ITEMS if state.position < EARLY_LOOKS * LOOK_ITEMS else LATER_LOOK_ITEMS
        soonest = state.position + (look if state.position else 0)
        return np.clip(ends, min(soonest, part.steps), part.steps), losses[1]

    def _accuracy(self, state: PartState) -> float:
        chance = state.part.stop.chance if state.part.stop is not None else 0.0
        dense = self._dense.get(_task(state.part))
        if dense is None or dense.accuracy is None:
            return chance + EXPECTED_ABOVE_CHANCE * (1 - chance)
        return min(0.99, max(chance + 0.02, dense.accuracy))

    @staticmethod
    def _variance(state: PartState, stop: StopSettings, accuracy: float) -> float | None:
        """The variance of an item that a cell showed itself, once it asked enough of them."""
        if state.loss is None or not state.loss_error or state.position < 3 * LOOK_ITEMS:
            return None
        return (state.loss_error * (accuracy - stop.chance)) ** 2 * state.position

    def steps(self, state: PartState) -> float:
        """The number of steps after which a part is expected to end."""
        part = state.part
        if part.is_reference:
            return self._reference_steps(state)
        if state.is_ended:
            return state.position
        if part.stop is None or not part.steps:
            return part.steps
        if part.key not in self._ends:  # no signal: that is the verdict, after the first batch
            return max(state.position, min(part.steps, LOOK_ITEMS))
        ends, weights = self._ends[part.key]
        return float(ends @ weights)

    def _reference_steps(self, state: PartState) -> float:
        """The dense model is asked as far as the longest of the cells that are compared with it."""
        if not state.has_signal:
            return state.position if state.is_ended else state.part.steps
        cells = self._cells[_task(state.part)]
        waiting = [self._ends[other.part.key] for other in cells if other.part.key in self._ends]
        if not waiting:
            return state.position if state.is_ended or cells else state.part.steps
        # The mean of the largest of independent values: the integral of one minus the product of their distributions.
        grid = (np.arange(50) + 0.5) * state.part.steps / 50
        below = np.prod([[float(weights[ends <= at].sum()) for at in grid] for ends, weights in waiting], axis=0)
        return max(state.position, state.part.steps * float((1 - below).mean()))


def _ends(losses: Floats, accuracy: float, stop: StopSettings, variance: float | None) -> Floats:
    found = [items_until_decided(float(loss), accuracy, stop, variance=variance) for loss in losses]
    return np.array(found, dtype=np.float64).clip(max=MOST_ITEMS)


@lru_cache(maxsize=256)
def _usual_ends(accuracy: float, stop: StopSettings) -> tuple[Floats, Floats]:
    """Losses (places,) and the logarithms of the items until the verdict (places,), to interpolate between."""
    # Denser where a little more or less changes much.
    losses = np.unique([0.0, *np.geomspace(1e-3, 0.999, 48), *(stop.margin + np.linspace(-0.03, 0.03, 25)).clip(0)])
    return losses, np.log(_ends(losses, accuracy, stop, None))


def _task(part: Part) -> str:
    return part.pool[1]


def _place(state: PartState) -> tuple[str, str]:
    return state.part.recipe, _task(state.part)
