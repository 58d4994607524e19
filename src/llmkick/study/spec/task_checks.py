"""Checks of a study's tasks: every task can be made, and every name is of one task."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmkick.errors import KickError
from llmkick.study.spec.axes import task_levels
from llmkick.study.spec.sections import TaskSpec, refuse_axis
from llmkick.study.spec.source_lines import LocatedError


def check_tasks(specs: Sequence[TaskSpec]) -> None:
    """Raise ConfigError for a task that cannot be made with every level of its axes, and for a name of two tasks."""
    names: list[str] = []
    for index, spec in enumerate(specs):
        if isinstance(spec.shots, list):
            refuse_axis(("tasks", index, "shots"), spec.shots)
        _check_id(spec, index)
        try:
            of_spec = [level.spec.make().name for level in task_levels([spec])]
        except KickError as error:
            # An error message of get_task begins with the key of the wrong value, or with "unknown" and the key.
            key = re.match(rf"(?:unknown )?({'|'.join(TaskSpec.model_fields)}|option '\w+'|)", str(error))
            blamed = (key[1] if key else "").removeprefix("option ").strip("'") or "name"
            raise LocatedError(str(error), ("tasks", index, blamed)) from error
        for name in of_spec:
            if name in names:
                raise LocatedError(f"{name} is listed twice; give each an `id` of its own", ("tasks", index))
        names += of_spec


def _check_id(spec: TaskSpec, index: int) -> None:
    if spec.id is not None and not re.fullmatch(r"[\w.:+@-]([\w.:+@ -]*[\w.:+@-])?", spec.id):
        raise LocatedError(
            f"{spec.id!r} is not a name for a task: letters, digits, _ . : + @ - and spaces inside",
            ("tasks", index, "id"),
        )
