"""What would make a long run shorter: settings of a study, each with a value and a reason."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from llmkick.study.expected_work import ExpectedWork
from llmkick.study.parts import Part
from llmkick.study.spec.axes import calibration_settings
from llmkick.study.spec.study import Study

# A part of this share of the expected seconds is worth a word.
WORTH_SHARE = 0.15
# A task with more items than this gives a verdict on large losses with fewer of them.
ENOUGH_ITEMS = 100
# With fewer calibration sequences than this the statistics of a layer are thin.
FEW_SEQUENCES = 16

# The keys of a study file that advice is about. "tasks": the task `value` could be left out.
Setting = Literal["limit", "tasks", "stop", "shots", "sequences", "source", "seeds", "propagate"]


@dataclass(frozen=True, kw_only=True)
class Advice:
    """A setting that would make a run shorter: its value as in a study file, and what it saves."""

    setting: Setting
    value: str
    reason: str

    def __str__(self) -> str:
        """The advice in the words of a study file."""
        change = f"without {self.value}" if self.setting == "tasks" else f"{self.setting} = {self.value}"
        return f"{change} ({self.reason})"


def advice_for(study: Study, work: ExpectedWork, *, calibrated: bool) -> list[Advice]:
    """The settings that would save the most. calibrated: whether a recipe of the study is."""
    kinds = ("ask", "compress", "calibrate")
    seconds = {kind: seconds_of([part for part in work.parts if part.pool[0] == kind]) for kind in kinds}
    total = sum(seconds.values()) or 1.0
    advice: list[Advice] = []
    if seconds["ask"] >= WORTH_SHARE * total:
        advice += advice_on_tasks([part for part in work.parts if part.pool[0] == "ask"], study)
    if calibrated and seconds["calibrate"] >= WORTH_SHARE * total and not isinstance(study.calibration.source, list):
        advice.append(advice_on_source(seconds["calibrate"] / total))
    if calibrated and seconds["compress"] >= WORTH_SHARE * total:
        advice += _advice_on_compressions(study)
    return advice


def advice_on_source(share: float) -> Advice:
    """The calibration text that needs no sampling, where sampling takes this share of the time."""
    reason = f"sampling the model's own text is {share:.0%} of the work"
    return Advice(setting="source", value='"pocket"', reason=reason)


def advice_on_sequences(now: int) -> list[Advice]:
    """Fewer calibration windows, where there are more than a few."""
    if now <= FEW_SEQUENCES:
        return []
    return [Advice(setting="sequences", value=str(FEW_SEQUENCES), reason=f"now {now}")]


def _advice_on_compressions(study: Study) -> list[Advice]:
    advice: list[Advice] = []
    if not isinstance(study.calibration.sequences, list):
        advice += advice_on_sequences(max(setting.sequences for setting in calibration_settings(study.calibration)))
    if len(study.seeds) > 1:
        advice.append(Advice(setting="seeds", value=f"[{study.seeds[0]}]", reason=f"now {len(study.seeds)} seeds"))
    if study.propagate and len(study.recipes) > 2:
        advice.append(Advice(setting="propagate", value="false", reason="compresses all recipes in one pass"))
    return advice


def advice_on_tasks(parts: Sequence[Part], study: Study | None = None) -> list[Advice]:
    """The settings of tasks that would save the most: items, early stopping, shots."""
    tasks: dict[str, float] = {}
    items: dict[str, float] = {}
    for part in parts:
        tasks[part.pool[1]] = tasks.get(part.pool[1], 0.0) + part.steps * part.cost
        items[part.pool[1]] = max(items.get(part.pool[1], 0.0), part.steps)
    total = sum(tasks.values()) or 1.0
    longest = max(tasks, key=lambda name: tasks[name], default="")
    share = f"{tasks[longest] / total:.0%} of the asking" if longest else ""
    advice = []
    if longest and items[longest] > ENOUGH_ITEMS:
        reason = f"{longest} has {items[longest]:,.0f} items" + (f", {share}" if len(tasks) > 1 else "")
        advice.append(Advice(setting="limit", value=str(ENOUGH_ITEMS), reason=f"{reason}; fewer decide less"))
    elif longest and len(tasks) > 1 and tasks[longest] > 0.5 * total:
        advice.append(Advice(setting="tasks", value=longest, reason=share))
    if study is not None and study.stop == "never" and (study.recipes or study.others):
        advice.append(Advice(setting="stop", value='"decided"', reason="asks until the verdict is known"))
    if _shows_solved_questions(tasks, study):
        advice.append(Advice(setting="shots", value="0", reason="no solved questions before each question"))
    return advice


def _shows_solved_questions(tasks: Collection[str], study: Study | None) -> bool:
    """Whether a task shows solved questions before each question, and their number is no axis of the study."""
    if study is None:
        return "multiple_choice:letter" in tasks
    specs = [spec for spec in study.tasks if spec.name.partition(":")[0] == "multiple_choice"]
    shown = {task.name for task in (x.make() for x in specs if not isinstance(x.shots, list)) if task.key["shots"]}
    return not shown.isdisjoint(tasks)


def seconds_of(parts: Sequence[Part]) -> float:
    """The expected seconds of these parts."""
    return sum(part.steps * part.cost for part in parts)
