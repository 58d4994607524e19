"""Tasks under another name, so that one task can be in a study several times, with different settings."""

from __future__ import annotations

import copy
from typing import Any

from llmkick.tasks.task import Task


def renamed(task: Task, name: str) -> Task:
    """Return the task with another name; it has the same items, and `registry_name` returns its name before."""
    kind: Any = type(task)
    # A subclass, because the protocols of a task are told by its class, and a name can be a property.
    members = {
        "name": property(lambda _self: name),
        "registry_name": registry_name(task),
        "__module__": kind.__module__,
        "__doc__": kind.__doc__,
    }
    other = copy.copy(task)
    object.__setattr__(other, "__class__", type(kind.__name__, (kind,), members))  # built-in tasks are frozen
    return other


def registry_name(task: Task) -> str:
    """Return the name under which the registry has a task, whatever a study calls it."""
    return str(getattr(task, "registry_name", task.name))
