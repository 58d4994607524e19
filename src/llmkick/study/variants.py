"""What a study asks: the dense model first, then everything that is compared with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from llmkick.compression.recipe import Dense, Recipe
from llmkick.study.config import Study


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The dense model, a recipe with a calibration seed where it needs one, or a model made elsewhere.

    The last has a `reference` (folder, file, hub id, server) and the `name` that tables call it.
    """

    recipe: Recipe = field(default_factory=Dense)
    seed: int | None = None
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
            yield Variant(recipe=recipe, seed=seed)
    for name, reference in study.labelled_others().items():
        yield Variant(reference=reference, name=name)
