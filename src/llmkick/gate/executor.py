"""The executor of a gate: the reference is a recorded model, and a task ends when its wall time is used up."""

from __future__ import annotations

from dataclasses import dataclass

from llmkick.gate.deadline import Deadline, TimeSpentError
from llmkick.gate.recorded_model import RecordedModel
from llmkick.models.language_model import LanguageModel
from llmkick.study.cells import Cell
from llmkick.study.progress import Observer, StepObserver
from llmkick.study.running.context import StudyContext
from llmkick.study.running.executor import HERE, LocalExecutor, RecordWriter
from llmkick.study.running.schedule import Schedule
from llmkick.study.spec.study import Study

OUT_OF_TIME = "the minutes of the budget ran out"


@dataclass(kw_only=True)
class GateExecutor(LocalExecutor):
    """Fills the cells one after another, and gives a cell up when its share of the time is over."""

    reference: RecordedModel
    deadline: Deadline

    def load(self, study: Study, observer: Observer) -> LanguageModel:
        """Return the recorded reference, which opens its model when an answer is missing."""
        self.observer: Observer = StepObserver(observer=observer, on_step=lambda _done: self.deadline.check())
        self.model = self.reference
        return self.model

    def run(self, schedule: Schedule, context: StudyContext, writer: RecordWriter) -> None:
        """Fill the cells one after another; `schedule.failures` lists those whose time was over."""
        loaded, model = None, self.model
        while (cell := schedule.take(HERE, loaded)) is not None:
            if cell.variant != loaded:
                loaded, model = cell.variant, self.model  # frees the previous model
                if not cell.variant.is_dense:
                    model = writer.open_external_model(cell.variant)
            in_time = self._fill(cell, model, schedule.left, writer)
            # A cell of the reference has no end of its own: what it lacks, the cell of the candidate asks for.
            filled = in_time or cell.variant.is_dense or context.evaluation.is_complete(cell)
            if filled:
                schedule.done(HERE)
            else:
                schedule.failed(HERE, OUT_OF_TIME, final=True)
            writer.close_cell(cell, filled=filled)

    def _fill(self, cell: Cell, model: LanguageModel, cells_left: int, writer: RecordWriter) -> bool:
        """Ask the items of a cell; return whether that took no longer than it may."""
        try:
            self.deadline.begin_turn(cells_left)
            writer.fill(cell, model, self.model, self.observer)
        except TimeSpentError:
            return False
        return True
