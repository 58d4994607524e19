"""The variants of a study, its cells (variant × task), and the run keys of their records."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llmkick.compression.recipe import Dense, Recipe
from llmkick.models.engine.version import ENGINE_VERSION
from llmkick.study.spec.axes import CalibrationSetting
from llmkick.study.spec.study import Study
from llmkick.tasks.evaluate import BATCH_ITEMS
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.registry import full_key
from llmkick.tasks.task import ReadByReference, Task


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The dense model, a recipe with its calibration seed if it needs calibration, or an external model.

    An external model has a `reference` (folder, file, hub id, server) and a `name` for the tables, and so has a level
    of a calibration axis. `propagate` tells whether each block is calibrated on the compressed blocks before it.
    `calibration` is None for a study's only setting.
    """

    recipe: Recipe = field(default_factory=Dense)
    seed: int | None = None
    propagate: bool = True
    reference: str = ""
    name: str = ""
    calibration: CalibrationSetting | None = None

    @property
    def is_dense(self) -> bool:
        """Whether the variant is the dense model, the reference of all comparisons."""
        return isinstance(self.recipe, Dense) and not self.reference

    @property
    def is_recipe(self) -> bool:
        """Whether the variant is a recipe that compresses the dense model."""
        return not isinstance(self.recipe, Dense)

    @property
    def label(self) -> str:
        """The name in tables and in the journal's column `recipe`."""
        return self.name or str(self.recipe)

    def __str__(self) -> str:
        return self.label if self.seed is None else f"{self.label} (seed {self.seed})"


def variants_of(study: Study) -> Iterator[Variant]:
    """Yield the dense model, the recipes with every level of the calibration's axes, and the external models.

    A method without calibration has no seed and no level, and runs once.
    """
    yield Variant()
    for level in study.recipe_levels():
        for seed in study.seeds if level.recipe.needs_calibration else (None,):
            yield Variant(
                recipe=level.recipe,
                seed=seed,
                propagate=study.propagate,
                name=level.label if level.axes else "",
                calibration=level.calibration if level.axes else None,
            )
    for name, reference in study.labelled_others().items():
        yield Variant(reference=reference, name=name)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One variant on one task. `run_key` is a hash of all inputs that can change a score."""

    variant: Variant
    task: Task
    run_key: str


def cells_of(
    variant: Variant,
    tasks: Sequence[Task],
    *,
    weights: Mapping[str, object],
    prompting: Prompting,
    reference: Mapping[str, object] | None = None,
    batches: Mapping[str, object] | None = None,
    conversations: Mapping[str, object] | None = None,
) -> list[Cell]:
    """Return the cells of a variant; `weights` holds the inputs that determine its weights.

    `prompting` is the prompting style of the study. `reference` identifies the dense model, which reads the answers of
    some tasks. `batches` describes the batches of tasks whose items are not asked in the default order.
    `conversations` holds inputs that change answers only of tasks that are asked as conversations.
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
                    **((conversations or {}) if style_of(task, prompting) == "chat" else {}),
                }
            ),
        )
        for task in tasks
    ]


def style_of(task: Task, prompting: Prompting) -> Prompting:
    """Return the prompting style of a task: the style that the task requires, or else the study's `prompting`."""
    return task.prompting or prompting


def digest_of(value: object) -> str:
    """Return the SHA-256 of a value as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
