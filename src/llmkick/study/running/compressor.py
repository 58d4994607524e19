"""Compressing the models of a study, with reuse of compressed models from the cache and the shared store."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from llmkick.compression.recipe import Recipe, Recovered, is_trained
from llmkick.compression.storage.cache import entry_for, folder_of
from llmkick.compression.storage.shared_store import ArtifactStore
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.compress_into import Job, compress_into
from llmkick.compression.walk.keys import artifact_key, kept_blocks, kept_key
from llmkick.compression.walk.report import CompressionReport
from llmkick.errors import ConfigError, ModelError
from llmkick.files import cache_folder
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.progress import Observer


@dataclass(frozen=True, kw_only=True)
class StudyCompressor:
    """Compresses one model with the recipes of a study and appends messages for the reader to `warnings`.

    If there is a `store`, the compressor shares finished models with other machines through it.
    """

    model: TransformersModel
    propagate: bool
    observer: Observer
    warnings: list[str]
    allow_partial: bool = False
    store: ArtifactStore | None = None

    def __post_init__(self) -> None:
        model: object = self.model  # a plug-in may return any LanguageModel
        if not isinstance(model, TransformersModel):
            raise ConfigError(
                f"{self.model.info.name} is a {type(model).__name__}, whose weights cannot be compressed; "
                "`kick eval` can ask it"
            )

    def key(self, recipe: Recipe, calibration: Calibration | None) -> dict[str, object]:
        """Return all inputs that determine the compressed weights."""
        return artifact_key(self.model.info, self.model.device, recipe, calibration, propagate=self.propagate)

    def compressed(
        self, recipe: Recipe, seed: int | None, calibration: Calibration | None, *, expected: str | None = None
    ) -> tuple[TransformersModel, CompressionReport]:
        """Return the cached model, or compress the model and cache the result.

        A damaged cache entry adds a warning and is rebuilt. If the cache and the store hold different models, the
        model with the `expected` digest is used.
        """

        def go(keep: Path | None, base: Path | None) -> tuple[TransformersModel, CompressionReport]:
            return compress(
                self.model,
                recipe,
                calibration=calibration,
                seed=seed or 0,
                propagate=self.propagate,
                allow_partial=self.allow_partial,
                progress=lambda done, _total: self.observer.advance(done),
                keep=keep,
                base=base,
            )

        key = self._kept_key(recipe, calibration)
        with self._folder_for(key) as keep, self._folder_for_base(recipe, calibration, keep) as base:
            sound = keep is None or self._recall(recipe, calibration, key, keep, expected)
            try:
                result = go(keep, base)
            except ModelError as error:
                if keep is None:
                    raise
                self.warnings.append(f"{recipe}: the cached model was damaged and was made anew ({error})")
                for folder in (keep, base):
                    for file in () if folder is None else folder.iterdir():
                        file.unlink()
                result, sound = go(keep, base), False
            if self.store is not None and keep is not None:
                self.store.put(key, keep, anew=not sound)
            return result

    def _recall(
        self,
        recipe: Recipe,
        calibration: Calibration | None,
        key: Mapping[str, object],
        keep: Path,
        expected: str | None,
    ) -> bool:
        """Copy a model that another machine has finished into the folder; return False if that model is damaged."""
        if self.store is None:
            return True
        with suppress(ModelError):  # the caller rebuilds a damaged entry
            arguments = (self.model.info, self.model.device, recipe, calibration, keep)
            report = kept_blocks(*arguments, propagate=self.propagate).report
            if report is not None and expected in (None, report.digest):
                return True
        try:
            self.store.fetch(key, keep)
        except ModelError as error:
            self.warnings.append(f"{recipe}: {error}; it was made anew")
            return False
        return True

    @contextlib.contextmanager
    def _folder_for(self, key: Mapping[str, object]) -> Iterator[Path | None]:
        """Yield the cache folder of a model, or a temporary folder if the cache is full and a store needs the model.

        Yield None if the cache is full and there is no store.
        """
        with entry_for(key, self._weight_bytes()) as keep:
            if keep is not None or self.store is None:
                yield keep
                return
            with tempfile.TemporaryDirectory(dir=cache_folder("on-its-way")) as folder:
                yield Path(folder)

    @contextlib.contextmanager
    def _folder_for_base(
        self, recipe: Recipe, calibration: Calibration | None, keep: Path | None
    ) -> Iterator[Path | None]:
        """Yield the folder of the compression that a trained recovery begins with; None where it is not needed."""
        if not is_trained(recipe) or keep is None:
            yield None
            return
        assert isinstance(recipe, Recovered), recipe
        with entry_for(self._kept_key(recipe.base, calibration), self._weight_bytes()) as base:
            if base is not None:
                yield base
                return
            with tempfile.TemporaryDirectory(dir=cache_folder("on-its-way")) as folder:
                yield Path(folder)

    def compress_together(self, recipes: Sequence[tuple[Recipe, Calibration | None]], seed: int | None) -> None:
        """Compress all recipes, each with its windows, in one pass and cache the models, if the cache has room.

        One pass is enough because without propagation the calibration statistics do not depend on the recipe, and
        those of fewer windows are sums of fewer terms. Recipes that are trained are left out: they begin with others.
        """
        recipes = [(recipe, calibration) for recipe, calibration in recipes if not is_trained(recipe)]
        keys = [self._kept_key(recipe, calibration) for recipe, calibration in recipes]
        with ExitStack() as stack:
            # All processes take the locks in the same order, so that two studies cannot deadlock.
            order = sorted(range(len(keys)), key=lambda place: folder_of(keys[place]).name)
            folders = {place: stack.enter_context(entry_for(keys[place], self._weight_bytes())) for place in order}
            jobs = [
                Job(recipe=recipe, windows=calibration, folder=folder)
                for place, (recipe, calibration) in enumerate(recipes)
                if (folder := folders[place]) is not None
            ]
            if len(jobs) < len(keys):
                return  # the cache has no room: the recipes are compressed one by one
            with suppress(ModelError):  # `compressed` repairs damaged entries one by one
                compress_into(
                    self.model,
                    jobs,
                    seed=seed or 0,
                    allow_partial=self.allow_partial,
                    progress=lambda done, _total: self.observer.advance(done),
                )

    def _kept_key(self, recipe: Recipe, calibration: Calibration | None) -> dict[str, object]:
        return kept_key(self.model.info, self.model.device, recipe, calibration, propagate=self.propagate)

    def _weight_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.model.network.parameters())
