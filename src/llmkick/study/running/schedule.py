"""The schedule that assigns cells to workers, in the same order for one local worker and for many remote workers."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from llmkick.study.cells import Cell, Variant

# Number of failed attempts after which a cell is given up, and of machines that refuse it.
ATTEMPTS, REFUSALS = 3, 2


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A cell that was given up, with the number of attempts and the reason of the last failure."""

    cell: Cell
    attempts: int
    reason: str

    def __str__(self) -> str:
        tried = f" after {self.attempts} attempts" if self.attempts > 1 else ""
        return f"{self.cell.variant} on {self.cell.task.name} was given up{tried}: {self.reason}"

    def as_row(self) -> dict[str, object]:
        """Return the entry of the failure in results.json."""
        variant = self.cell.variant
        where = {"recipe": variant.label, "seed": variant.seed, "task": self.cell.task.name}
        return {**where, "attempts": self.attempts, "reason": self.reason}


class OtherWeightsError(Exception):
    """A compression produced weights that differ from the weights that other workers use for the same variant."""


@dataclass(kw_only=True)
class Schedule:
    """Hands out the `pending` cells of a study one by one, in the order of `cells`.

    A worker first gets cells of the variant whose model it has loaded. It then gets cells of the first variant that no
    worker has started. If compressed models are `shared`, it then gets cells of variants that other workers have
    started and that are `made`. If they are not, a variant stays with the worker that has started it until that worker
    is lost, because another machine could make other weights. The dense cell of a task comes before the other cells of
    the task, because they are compared with it. What has failed on a machine is first tried on another one, if the
    workers have said on which machines they are (`join`). The schedule is thread-safe.
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
        self._starters: dict[Variant, str] = {}  # the worker that has started a variant, while it lives
        self._attempts: Counter[str] = Counter()
        self._machines: dict[str, str] = {}  # of the workers that live
        self._failed_on: defaultdict[str, set[str]] = defaultdict(set)  # machines by cell …
        self._refusals: defaultdict[str, dict[str, str]] = defaultdict(
            dict
        )  # … and the reasons of those that refuse it
        self._made: set[Variant] = set()
        self._stopped = False

    def given_up(self) -> set[str]:
        """Return the run keys of the cells that were given up."""
        return {failure.cell.run_key for failure in self.failures}

    def take(self, worker: str, loaded: Variant | None) -> Cell | None:
        """Return the next cell for a worker that has loaded the model of a variant.

        Blocks until a cell is ready; returns None when all cells are done or the schedule is stopped.
        """
        with self._changed:
            while not self._stopped and (self._waiting or self._taken):
                cell = self._choose(worker, loaded)
                if cell is not None:
                    self._drop([cell])
                    self._taken[worker] = cell
                    if not cell.variant.is_dense:
                        self._starters.setdefault(cell.variant, worker)
                    return cell
                self._changed.wait()
            return None

    def _choose(self, worker: str, loaded: Variant | None) -> Cell | None:
        taken = list(self._taken.values())
        unsettled_dense = {cell.task.name for cell in (*self._waiting, *taken) if cell.variant.is_dense}
        ready = [cell for cell in self._waiting if cell.variant.is_dense or cell.task.name not in unsettled_dense]
        ready = [cell for cell in ready if self._is_open(cell, worker, loaded)]
        begun = [cell.variant for cell in taken if not cell.variant.is_dense]
        of_loaded = [cell for cell in ready if cell.variant == loaded]
        fresh = [cell for cell in ready if cell.variant not in begun]
        begun_and_made = [cell for cell in ready if cell.variant in self._made]
        return next(iter([*of_loaded, *fresh, *begun_and_made]), None)

    def _is_open(self, cell: Cell, worker: str, loaded: Variant | None) -> bool:
        """Whether a worker may take a cell: its variant is not another worker's, and no other machine is to try it."""
        failed, machine = self._failed_on[cell.run_key], self._machines.get(worker, worker)
        if machine in failed and not set(self._machines.values()) <= failed:
            return False
        # Only variants with a finished model: two workers that compress one variant could get different bits.
        is_loadable = self.shared and (cell.variant == loaded or cell.variant in self._made)
        return is_loadable or self._starters.get(cell.variant, worker) == worker

    def join(self, worker: str, machine: str) -> None:
        """Record that a worker works, or will, on a machine."""
        with self._changed:
            self._machines[worker] = machine
            self._give_up_refused()
            self._changed.notify_all()

    def leave(self, worker: str, *, is_at_fault: bool = False) -> None:
        """Record that a worker has ended. With `is_at_fault`, what its machine has refused counts no more."""
        with self._changed:
            machine = self._machines.pop(worker, worker)
            if is_at_fault:
                for reasons in self._refusals.values():
                    reasons.pop(machine, None)
            if self._machines:
                self._give_up_refused()
            self._changed.notify_all()

    def has_other_machines(self, worker: str) -> bool:
        """Whether workers on other machines than this worker's live."""
        with self._changed:
            return set(self._machines.values()) > {self._machines.get(worker, worker)}

    def made(self, variant: Variant) -> None:
        """Record that the compressed model of a variant is kept where other workers can load it."""
        with self._changed:
            self._made.add(variant)
            self._changed.notify_all()

    def done(self, worker: str) -> None:
        """Record that a worker has filled its cell."""
        with self._changed:
            del self._taken[worker]
            self._changed.notify_all()

    def failed(self, worker: str, reason: str, *, final: bool) -> None:
        """Record that a worker could not fill its cell.

        The cell is tried again, up to ATTEMPTS times, unless the failure is `final`. A failure that is not final is the
        loss of the worker, so the variants that it has started are free for others. If a dense cell is given up, the
        other cells of its task are given up too, because they have no reference for the comparison.
        """
        with self._changed:
            if not final:
                self._starters = {variant: name for variant, name in self._starters.items() if name != worker}
            cell = self._taken.pop(worker)
            self._attempts[cell.run_key] += 1
            self._failed_on[cell.run_key].add(self._machines.get(worker, worker))
            if final or self._attempts[cell.run_key] >= ATTEMPTS:
                self._note_failures([cell], reason)
                if cell.variant.is_dense:
                    self._give_up_task(cell.task.name)
            else:
                self._put_back([cell])
            self._changed.notify_all()

    def refused(self, worker: str, reason: str, *, whole_variant: bool) -> None:
        """Record that a worker refused its cell, or the whole variant, for a reason that may be its machine's.

        A cell is given up when REFUSALS machines have refused it, or all that are left.
        """
        with self._changed:
            cell, machine = self._taken.pop(worker), self._machines.get(worker, worker)
            self._attempts[cell.run_key] += 1
            self._put_back([cell])
            if self._starters.get(cell.variant) == worker:
                del self._starters[cell.variant]
            for other in [other for other in self._waiting if whole_variant and other.variant == cell.variant] or [
                cell
            ]:
                self._failed_on[other.run_key].add(machine)
                self._refusals[other.run_key][machine] = reason
            self._give_up_refused()
            self._changed.notify_all()

    def _give_up_refused(self) -> None:
        living = set(self._machines.values())
        for cell in list(self._waiting):
            reasons = self._refusals[cell.run_key]
            if reasons and (len(reasons) >= REFUSALS or living <= set(reasons)):
                self._give_up([cell], list(reasons.values())[-1])
                if cell.variant.is_dense:
                    self._give_up_task(cell.task.name)

    def left_to_another(self, worker: str) -> None:
        """Record that a worker has other weights than the one that works on the same variant, which keeps the variant.

        The cell waits for that worker; this is no attempt.
        """
        with self._changed:
            cell = self._taken.pop(worker)
            owners = [name for name, taken in self._taken.items() if taken.variant == cell.variant]
            self._starters.pop(cell.variant, None)
            if owners:
                self._starters[cell.variant] = owners[0]
                self._made.discard(cell.variant)
            self._put_back([cell])
            self._changed.notify_all()

    def _give_up_task(self, task: str) -> None:
        lost = [cell for cell in self._waiting if cell.task.name == task]
        self._give_up(lost, "the dense model's cell of this task failed")

    def give_up_variant(self, variant: Variant, reason: str) -> None:
        """Give up all waiting cells of a variant whose model cannot be made."""
        with self._changed:
            self._give_up([cell for cell in self._waiting if cell.variant == variant], reason)
            self._changed.notify_all()

    def _give_up(self, cells: Sequence[Cell], reason: str) -> None:
        self._drop(cells)
        self._note_failures(cells, reason)

    def _note_failures(self, cells: Collection[Cell], reason: str) -> None:
        """Add failures and keep them in the order of the cells, independent of the order of the events."""
        new = [Failure(cell=cell, attempts=self._attempts[cell.run_key], reason=reason) for cell in cells]
        self.failures = sorted([*self.failures, *new], key=lambda failure: self._place[failure.cell.run_key])

    def _drop(self, cells: Collection[Cell]) -> None:
        keys = {cell.run_key for cell in cells}
        self._waiting = [cell for cell in self._waiting if cell.run_key not in keys]

    def reopen(self, cells: Sequence[Cell]) -> None:
        """Put cells whose records were dropped back on the schedule."""
        with self._changed:
            ours = {cell.run_key for cell in self.cells}
            scheduled = {cell.run_key for cell in (*self._waiting, *self._taken.values())}
            self._put_back([cell for cell in cells if cell.run_key in ours - scheduled])
            self._changed.notify_all()

    def _put_back(self, cells: Collection[Cell]) -> None:
        self._waiting = sorted([*self._waiting, *cells], key=lambda cell: self._place[cell.run_key])

    def is_alone(self, worker: str) -> bool:
        """Return whether no other worker has a cell of the same variant."""
        with self._changed:
            taken = self._taken.get(worker)
            variant = None if taken is None else taken.variant
            return all(cell.variant != variant for other, cell in self._taken.items() if other != worker)

    @property
    def left(self) -> int:
        """The number of cells that are neither filled nor given up."""
        with self._changed:
            return len(self._waiting) + len(self._taken)

    @property
    def is_stopped(self) -> bool:
        """Whether the schedule is stopped."""
        return self._stopped

    def stop(self) -> None:
        """Stop the schedule: `take` returns None from now on."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
