"""What would make a long study shorter, in the words of its file and of the command line."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from llmkick.study.expected_work import ExpectedWork
from llmkick.study.parts import Part
from llmkick.study.spec.axes import calibration_settings
from llmkick.study.spec.study import Study

# A part of this share of the expected seconds is worth a word.
WORTH_SHARE = 0.15
# A task with more items than this gives a verdict with fewer of them, as a rule.
ENOUGH_ITEMS = 100


def advice_for(study: Study, work: ExpectedWork, *, calibrated: bool) -> list[str]:
    """The settings that would save the most, those that save more first."""
    seconds = {kind: _seconds(work.parts, kind) for kind in ("ask", "compress", "calibrate")}
    total = sum(seconds.values()) or 1.0
    advice: list[str] = []
    if seconds["ask"] >= WORTH_SHARE * total:
        advice += advice_on_tasks([part for part in work.parts if part.pool[0] == "ask"], study)
    if seconds["compress"] >= WORTH_SHARE * total and calibrated:
        most = max(setting.sequences for setting in calibration_settings(study.calibration))
        if most > 8:
            advice.append(f"fewer calibration sequences (now {most})")
        if len(study.seeds) > 1:
            advice.append(f"fewer calibration seeds (now {len(study.seeds)})")
        if study.propagate and len(study.recipes) > 2:
            advice.append("propagate = false, which compresses all recipes in one pass")
    return advice


def advice_on_tasks(parts: Sequence[Part], study: Study | None = None) -> list[str]:
    """The settings of tasks that would save the most: items, early stopping, shots."""
    tasks: dict[str, float] = {}
    items: dict[str, float] = {}
    for part in parts:
        tasks[part.pool[1]] = tasks.get(part.pool[1], 0.0) + part.steps * part.cost
        items[part.pool[1]] = max(items.get(part.pool[1], 0.0), part.steps)
    total = sum(tasks.values()) or 1.0
    longest = max(tasks, key=lambda name: tasks[name], default="")
    advice = []
    if longest and items[longest] > ENOUGH_ITEMS:
        share = f", {tasks[longest] / total:.0%} of the asking" if len(tasks) > 1 else ""
        advice.append(f"--limit {ENOUGH_ITEMS} ({longest} has {items[longest]:,.0f} items{share})")
    elif longest and len(tasks) > 1 and tasks[longest] > 0.5 * total:
        advice.append(f"without {longest}, which is {tasks[longest] / total:.0%} of the asking")
    if study is not None and study.stop == "never" and (study.recipes or study.others):
        advice.append('stop = "decided" (--stop decided), which asks until the verdict is known')
    if _shows_solved_questions(tasks, study):
        advice.append("fewer shots (shots = 0)")
    return advice


def _shows_solved_questions(tasks: Collection[str], study: Study | None) -> bool:
    """Whether a task shows solved questions before each question, and their number is no axis of the study."""
    if study is None:
        return "multiple_choice:letter" in tasks
    specs = [spec for spec in study.tasks if spec.name.partition(":")[0] == "multiple_choice"]
    shown = {task.name for task in (x.make() for x in specs if not isinstance(x.shots, list)) if task.key["shots"]}
    return not shown.isdisjoint(tasks)


def _seconds(parts: Sequence[Part], kind: str) -> float:
    return sum(part.steps * part.cost for part in parts if part.pool[0] == kind)
