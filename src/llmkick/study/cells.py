"""The cells of a study, variant × task, and the keys under which their records are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkick.models.batching import ENGINE_VERSION
from llmkick.study.variants import Variant
from llmkick.tasks.asking import BATCH_ITEMS
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.registry import full_key
from llmkick.tasks.task import ReadByReference, Task


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant on one task. `run_key` hashes everything that could change a score."""

    variant: Variant
    task: Task
    run_key: str


def cells_of(
    variant: Variant,
    tasks: Sequence[Task],
    *,
    weights: Mapping[str, Any],
    prompting: Prompting,
    reference: Mapping[str, Any] | None = None,
    batches: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """The cells of a variant; `weights` is what decides its weights, `prompting` how it is asked.

    `reference` identifies the dense model, which reads the answers of some tasks. `batches` holds, for tasks whose
    items are not asked in their own order, in which batches they are.
    """
    return [
        Cell(
            variant=variant,
            task=task,
            run_key=digest_of(
                {
                    **weights,
                    "seed": variant.seed,
                    "task": full_key(task),
                    "prompting": style_of(task, prompting),
                    "engine": ENGINE_VERSION,
                    "batch": (batches or {}).get(task.name, BATCH_ITEMS),
                    **({"reference": reference} if isinstance(task, ReadByReference) else {}),
                }
            ),
        )
        for task in tasks
    ]


def style_of(task: Task, prompting: Prompting) -> Prompting:
    """How a task is asked in a study whose own style is `prompting`: some tasks allow one only."""
    return task.prompting or prompting


def digest_of(value: Any) -> str:
    """sha256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
