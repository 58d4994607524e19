"""Which cell is filled next, by whom: the same order for one worker in this process and for many elsewhere."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from llmkick.study.cells import Cell, Variant

# A cell whose worker was lost this often is given up.
ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that was given up: what happened last, and how often it was tried."""

    cell: Cell
    attempts: int
    reason: str

    def __str__(self) -> str:
        tried = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        return f"{self.cell.variant} on {self.cell.task.name} was given up{tried}: {self.reason}"

    def as_row(self) -> dict[str, object]:
        """A failure as results.json lists it."""
        variant = self.cell.variant
        where = {"recipe": variant.label, "seed": variant.seed, "task": self.cell.task.name}
        return {**where, "attempts": self.attempts, "reason": self.reason}


class OtherWeightsError(Exception):
    """A model came out with other weights than those that others are at work with."""


@dataclass(kw_only=True)
class Schedule:
    """The cells of a study in order, of which those that are `pending` are handed out one by one.

    A worker goes on with the variant whose model it has; then it begins the first that nobody has begun, and then,
    where compressed models are `shared`, it helps with what others have begun. A task's dense cell comes before all
    others of that task: it is what they are compared with. Any number of threads may ask.
    """

    cells: Sequence[Cell]
    pending: Sequence[Cell]
    shared: bool = True
    failures: list[Failure] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: list[Cell] = list(self.pending)
        self._place = {cell.run_key: index for index, cell in enumerate(self.cells)}
        self._taken: dict[str, Cell] = {}  # by worker
        self._attempts: Counter[str] = Counter()
        self._made: list[Variant] = []
        self._stopped = False

    def given_up(self) -> set[str]:
        """The run keys of cells that could not be filled."""
        return {failure.cell.run_key for failure in self.failures}

    def take(self, worker: str, loaded: Variant | None) -> Cell | None:
        """The next cell for a worker that has a variant's model at hand; waits for one, None when all is done."""
        with self._changed:
            while not self._stopped and (self._waiting or self._taken):
                cell = self._choose(loaded)
                if cell is not None:
                    self._drop([cell])
                    self._taken[worker] = cell
                    return cell
                self._changed.wait()
            return None

    def _choose(self, loaded: Variant | None) -> Cell | None:
        taken = list(self._taken.values())
        unsettled_dense = {cell.task.name for cell in (*self._waiting, *taken) if cell.variant.is_dense}
        ready = [cell for cell in self._waiting if cell.variant.is_dense or cell.task.name not in unsettled_dense]
        begun = [cell.variant for cell in taken if not cell.variant.is_dense]
        own = [cell for cell in ready if cell.variant == loaded]
        fresh = [cell for cell in ready if cell.variant not in begun]
        # Only with what is already made: two that compress the same at once could come to other bits.
        begun_and_made = [cell for cell in ready if self.shared and cell.variant in self._made]
        return next(iter([*own, *fresh, *begun_and_made]), None)

    def made(self, variant: Variant) -> None:
        """A variant's compressed model is made: others can recall it."""
        with self._changed:
            self._made.append(variant)
            self._changed.notify_all()

    def done(self, worker: str) -> None:
        """A worker has filled its cell."""
        with self._changed:
            del self._taken[worker]
            self._changed.notify_all()

    def failed(self, worker: str, reason: str, *, final: bool) -> None:
        """A worker could not fill its cell: it is tried again, up to ATTEMPTS times unless that is `final`.

        Without its dense cell a task's other cells have nothing to be compared with: they are given up too.
        """
        with self._changed:
            cell = self._taken.pop(worker)
            self._attempts[cell.run_key] += 1
            if final or self._attempts[cell.run_key] >= ATTEMPTS:
                self._note_failures([cell], reason)
                if cell.variant.is_dense:
                    self._give_up_task(cell.task.name)
            else:
                self._put_back([cell])
            self._changed.notify_all()

    def _give_up_task(self, task: str) -> None:
        lost = [cell for cell in self._waiting if cell.task.name == task]
        self._give_up(lost, "the dense model's cell of this task failed")

    def give_up_variant(self, variant: Variant, reason: str) -> None:
        """No waiting cell of a variant can be filled: its model cannot be made."""
        with self._changed:
            self._give_up([cell for cell in self._waiting if cell.variant == variant], reason)
            self._changed.notify_all()

    def _give_up(self, cells: Sequence[Cell], reason: str) -> None:
        self._drop(cells)
        self._note_failures(cells, reason)

    def _note_failures(self, cells: Collection[Cell], reason: str) -> None:
        """Failures are in the order of the cells, whichever worker was first to fail."""
        new = [Failure(cell=cell, attempts=self._attempts[cell.run_key], reason=reason) for cell in cells]
        self.failures = sorted([*self.failures, *new], key=lambda failure: self._place[failure.cell.run_key])

    def _drop(self, cells: Collection[Cell]) -> None:
        keys = {cell.run_key for cell in cells}
        self._waiting = [cell for cell in self._waiting if cell.run_key not in keys]

    def reopen(self, cells: Sequence[Cell]) -> None:
        """Cells whose records were dropped are to be filled again."""
        with self._changed:
            ours = {cell.run_key for cell in self.cells}
            known = {cell.run_key for cell in (*self._waiting, *self._taken.values())}
            self._put_back([cell for cell in cells if cell.run_key in ours - known])
            self._changed.notify_all()

    def _put_back(self, cells: Collection[Cell]) -> None:
        self._waiting = sorted([*self._waiting, *cells], key=lambda cell: self._place[cell.run_key])

    def is_alone(self, worker: str) -> bool:
        """Whether nobody else is at work on the variant of a worker's cell."""
        with self._changed:
            own = self._taken.get(worker)
            variant = None if own is None else own.variant
            return all(cell.variant != variant for other, cell in self._taken.items() if other != worker)

    @property
    def left(self) -> int:
        """Cells that are neither filled nor given up."""
        with self._changed:
            return len(self._waiting) + len(self._taken)

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more is handed out."""
        return self._stopped

    def stop(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
