"""What a study asks: the dense model first, then everything that is compared with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llmkick.compression.recipe import Dense, Recipe
from llmkick.study.config import Study


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The dense model, or a recipe with a calibration seed where it needs calibration."""

    recipe: Recipe
    seed: int | None = None

    @property
    def is_dense(self) -> bool:
        """Whether it is the model that all others are compared with."""
        return isinstance(self.recipe, Dense)

    @property
    def label(self) -> str:
        """What tables and the journal's column `recipe` call it."""
        return str(self.recipe)

    def __str__(self) -> str:
        return self.label if self.seed is None else f"{self.label} (seed {self.seed})"


def variants_of(study: Study) -> Iterator[Variant]:
    """Dense first; a method without calibration has no seed and runs once."""
    yield Variant(recipe=Dense())
    for recipe in study.parsed_recipes():
        for seed in study.seeds if recipe.needs_calibration else (None,):
            yield Variant(recipe=recipe, seed=seed)
