"""The parts of a run, such as a cell or a compression, and what was done and seen of each."""

from __future__ import annotations

from dataclasses import dataclass

from llmkick.study.expected_stop import StopSettings

# The share of the seconds of a part that its steps took at least, however long its start was expected to take.
LEAST_STEP_SHARE = 0.1
# The longest start, in seconds, that the first steps of a part are believed to hold.
LONGEST_START = 1.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a run: `steps` steps (items, blocks, tokens) of `cost` expected seconds each.

    pool: from the kind of work to the parts that take alike, such as ("ask", "factoid_qa", "dense"). stop: for a cell
    with early stopping, which may end before its last step, the settings of its rule. is_reference: with early
    stopping, the cell of the dense model, which is asked as far as the other cells of its task need it. recipe: what
    the cells of a recipe have in common, whatever the calibration seed; severity: by how much it is expected to raise
    the logarithm of the perplexity. model: parts of a model of unknown size share a factor of their own.
    chance: how likely it is that the part is done at all, if nothing of it was done yet. start: expected seconds before
    the first step, or what the first `start_steps` steps take more than later ones.
    """

    key: str
    pool: tuple[str, ...]
    steps: float
    cost: float
    stop: StopSettings | None = None
    is_reference: bool = False
    recipe: str = ""
    severity: float = 0.1
    model: str = ""
    chance: float = 1.0
    start: float = 0.0
    start_steps: float = 0.0

    def start_until(self, steps: float) -> float:
        """The seconds of the start that so many steps have taken."""
        return self.start * min(1.0, steps / self.start_steps) if self.start_steps else self.start


@dataclass(kw_only=True)
class PartState:
    """What was done of a part: steps in earlier sessions and in this one, and the seconds of this session.

    first_steps, first_seconds: of this session's first report of steps, which holds the start of the part.

    What was seen in a cell: `accuracy` and `has_signal` (above chance as far as can be told) of the dense model, the
    relative `loss` of another one with its standard error, the `rise` of the logarithm of its perplexity.
    """

    part: Part
    earlier: float = 0.0
    done: float = 0.0
    seconds: float = 0.0
    first_steps: float = 0.0
    first_seconds: float = 0.0
    is_begun: bool = False
    is_ended: bool = False
    accuracy: float | None = None
    has_signal: bool = True
    loss: float | None = None
    loss_error: float = 0.0
    rise: float | None = None

    def add(self, steps: float, seconds: float) -> None:
        """Count steps that were done, and their time."""
        self.done += steps
        self.seconds += seconds
        if steps and not self.first_steps:
            self.first_steps, self.first_seconds = self.done, self.seconds

    @property
    def step_seconds(self) -> float:
        """The seconds of the steps of this session, without the start."""
        return max(self.seconds - self._start, LEAST_STEP_SHARE * self.seconds)

    @property
    def _start(self) -> float:
        """The seconds of the start: as expected where many steps share it, else what the first steps took longer."""
        if self.part.start_steps:
            return self.part.start_until(self.position) - self.part.start_until(self.earlier)
        if not self.part.start:
            return 0.0
        later, shown = self.done - self.first_steps, 0.0
        if later > 0:
            shown = self.first_seconds - self.first_steps * (self.seconds - self.first_seconds) / later
        # Code is compiled and memory found in the first steps; the more steps there are, the less of it is believed.
        believed = LONGEST_START * (1 - self.position / self.part.steps)
        return max(0.0, shown, min(believed, self.seconds - self.done * self.part.cost))

    def start_left(self, end: float) -> float:
        """The seconds of the start that are left, if the part ends after so many steps."""
        if self.is_ended or (self.seconds and not self.part.start_steps):
            return 0.0
        done = self.part.start_until(self.position) if self.part.start_steps else 0.0
        return max(0.0, self.part.start_until(end) - done)

    @property
    def position(self) -> float:
        """The number of steps that are done, in this session and before."""
        return min(self.part.steps, self.earlier + self.done)
