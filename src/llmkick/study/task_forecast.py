"""The forecast of asking one model tasks, without a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmkick.models.language_model import LanguageModel
from llmkick.study.advice import advice_on_tasks
from llmkick.study.announcement import Announcement, announce
from llmkick.study.cells import Variant
from llmkick.study.expected_work import asking, cell_key
from llmkick.study.forecast import Forecast
from llmkick.study.model_speed import measured_speed
from llmkick.tasks.prompting import resolve_prompting
from llmkick.tasks.task import Item, Task


def forecast_tasks(
    model: LanguageModel, tasks: Sequence[Task], items: Mapping[str, Sequence[Item]], *, prompting: str
) -> tuple[Forecast, Announcement]:
    """Forecast the answers of a loaded model to all items of these tasks, and announce them."""
    styles = {task.name: resolve_prompting(model, prompting, required=task.prompting) for task in tasks}
    speed = measured_speed(model)
    work = asking(model, tasks, items, styles, [Variant()], speed=speed)
    forecast = Forecast(work.parts, is_rated=speed is not None)
    return forecast, announce(work, forecast, advice=advice_on_tasks(work.parts))


def task_key(task: Task) -> str:
    """The key of the part that asks a task."""
    return cell_key(Variant(), task.name)
