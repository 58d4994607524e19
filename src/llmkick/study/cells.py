"""The variants of a study, its cells (variant × task), and the keys under which their records are kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmkick.compression.recipe import Dense, Recipe
from llmkick.models.engine.runner import ENGINE_VERSION
from llmkick.study.spec.study import Study
from llmkick.tasks.evaluate import BATCH_ITEMS
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.registry import full_key
from llmkick.tasks.task import ReadByReference, Task


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The dense model, a recipe with a calibration seed where it needs one, or a model made elsewhere.

    The last has a `reference` (folder, file, hub id, server) and the `name` that tables call it. `propagate`: whether
    each block is calibrated on the compressed blocks before it.
    """

    recipe: Recipe = field(default_factory=Dense)
    seed: int | None = None
    propagate: bool = True
    reference: str = ""
    name: str = ""

    @property
    def is_dense(self) -> bool:
        """Whether it is the model that all others are compared with."""
        return isinstance(self.recipe, Dense) and not self.reference

    @property
    def is_recipe(self) -> bool:
        """Whether it is made here from the dense model."""
        return not isinstance(self.recipe, Dense)

    @property
    def label(self) -> str:
        """What tables and the journal's column `recipe` call it."""
        return self.name or str(self.recipe)

    def __str__(self) -> str:
        return self.label if self.seed is None else f"{self.label} (seed {self.seed})"


def variants_of(study: Study) -> Iterator[Variant]:
    """Dense first, recipes, then other models; a method without calibration has no seed and runs once."""
    yield Variant()
    for recipe in study.parsed_recipes():
        for seed in study.seeds if recipe.needs_calibration else (None,):
            yield Variant(recipe=recipe, seed=seed, propagate=study.propagate)
    for name, reference in study.labelled_others().items():
        yield Variant(reference=reference, name=name)


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
