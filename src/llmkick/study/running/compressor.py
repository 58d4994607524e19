"""Compressing the models of a study, with reuse of compressed models from the cache and the shared store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from llmkick.compression.recipe import Recipe, Recovered, is_trained
from llmkick.compression.storage.cache import (
    entry_bytes,
    entry_for,
    entry_on_its_way,
    folder_of,
    is_full,
    progress_in,
    still_needed,
)
from llmkick.compression.storage.shared_store import ArtifactStore
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.compress import compress_in_processes
from llmkick.compression.walk.compress_into import Job, compress_into
from llmkick.compression.walk.compression_key import artifact_key, kept_blocks, kept_key
from llmkick.compression.walk.finished_blocks import DamagedBlocksError, NotKeptError, delete_blocks
from llmkick.compression.walk.processes import ALONE
from llmkick.compression.walk.report import CompressionReport
from llmkick.errors import ConfigError, ModelError
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

        A damaged cache entry adds a warning and is rebuilt. A full disk adds a warning, and the model is not cached.
        If the cache and the store hold different models, the model with the `expected` digest is used.
        """

        def go(keep: Path | None, base: Path | None) -> tuple[TransformersModel, CompressionReport]:
            return compress_in_processes(
                ALONE,
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
        with self._folder_for(recipe, calibration) as keep, self._folder_for_base(recipe, calibration, keep) as base:
            if keep is None:
                return go(None, None)
            sound = self._recall(recipe, calibration, key, keep, expected)
            try:
                result, mended = self._mending(recipe, go, keep, base)
            except NotKeptError as error:
                return error.result
            if result is not None:
                self._share(recipe, key, keep, anew=mended or not sound)
                return result
        return go(None, None)

    def is_kept(self, recipe: Recipe, calibration: Calibration | None) -> bool:
        """Whether others can load a compressed model: from the store, or without one from this machine's cache."""
        key = self._kept_key(recipe, calibration)
        if self.store is not None:
            return self.store.has(key)
        return progress_in(folder_of(key))[1]

    def _share(self, recipe: Recipe, key: Mapping[str, object], keep: Path, *, anew: bool) -> None:
        """Put a finished model into the store, if there is one; the study itself does not need it there."""
        if self.store is None:
            return
        try:
            self.store.put(key, keep, anew=anew)
        except OSError as error:
            self.warnings.append(f"{recipe}: other machines cannot use this model, which was not shared ({error})")

    def _mending(
        self,
        recipe: Recipe,
        go: Callable[[Path | None, Path | None], tuple[TransformersModel, CompressionReport]],
        keep: Path,
        base: Path | None,
    ) -> tuple[tuple[TransformersModel, CompressionReport] | None, bool]:
        """Return the result of a compression into these folders, and whether one of them was damaged and emptied.

        There is no result if the disk is full. Raises NotKeptError with it where that happens after a training.
        """
        emptied: set[Path] = set()
        while True:
            try:
                return go(keep, base), bool(emptied)
            except DamagedBlocksError as error:
                damaged = error.folder
                if damaged is None or damaged in emptied or damaged not in (keep, base):
                    raise
                self.warnings.append(f"{recipe}: the cached model was damaged and was made anew ({error})")
            except OSError as error:
                if not is_full(error):
                    raise
                self.warnings.append(f"{recipe}: the model is not kept in the cache ({error})")
                if isinstance(error, NotKeptError):
                    raise
                return None, bool(emptied)
            delete_blocks(damaged)
            emptied.add(damaged)

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
        with suppress(DamagedBlocksError):  # the caller rebuilds a damaged entry
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
    def _folder_for(self, recipe: Recipe, calibration: Calibration | None) -> Iterator[Path | None]:
        """Yield the cache folder of a model, or a temporary folder if the cache is full and a store needs the model.

        Yield None if the cache is full and there is no store.
        """
        base = self._to_write(recipe.base, calibration) if isinstance(recipe, Recovered) and is_trained(recipe) else 0
        with entry_for(self._kept_key(recipe, calibration), self._entry_bytes(recipe), besides=base) as keep:
            if keep is not None or self.store is None:
                yield keep
                return
            with entry_on_its_way() as folder:
                yield folder

    @contextlib.contextmanager
    def _folder_for_base(
        self, recipe: Recipe, calibration: Calibration | None, keep: Path | None
    ) -> Iterator[Path | None]:
        """Yield the folder of the compression that a trained recovery begins with; None where it is not needed."""
        if not is_trained(recipe) or keep is None:
            yield None
            return
        assert isinstance(recipe, Recovered), recipe
        key, besides = self._kept_key(recipe.base, calibration), self._to_write(recipe, calibration)
        with entry_for(key, self._entry_bytes(recipe.base), besides=besides) as base:
            if base is not None:
                yield base
                return
            with entry_on_its_way() as folder:
                yield folder

    def compress_together(self, recipes: Sequence[tuple[Recipe, Calibration | None]], seed: int | None) -> None:
        """Compress all recipes, each with its windows, in one pass and cache the models, if the cache has room.

        One pass is enough because without propagation the calibration statistics do not depend on the recipe, and
        those of fewer windows are sums of fewer terms. Recipes that are trained are left out: they begin with others.
        """
        recipes = [(recipe, calibration) for recipe, calibration in recipes if not is_trained(recipe)]
        keys = [self._kept_key(recipe, calibration) for recipe, calibration in recipes]
        sizes = [self._entry_bytes(recipe) for recipe, _ in recipes]
        to_write = [self._to_write(recipe, calibration) for recipe, calibration in recipes]
        with ExitStack() as stack:
            # All processes take the locks in the same order, so that two studies cannot deadlock.
            order = sorted(range(len(keys)), key=lambda place: folder_of(keys[place]).name)
            folders = {}
            for place in order:
                besides = sum(to_write) - to_write[place]
                folders[place] = stack.enter_context(entry_for(keys[place], sizes[place], besides=besides))
            jobs = [
                Job(recipe=recipe, windows=calibration, folder=folder)
                for place, (recipe, calibration) in enumerate(recipes)
                if (folder := folders[place]) is not None
            ]
            if len(jobs) < len(keys):
                return  # the cache has no room: the recipes are compressed one by one
            try:
                compress_into(
                    self.model,
                    jobs,
                    seed=seed or 0,
                    allow_partial=self.allow_partial,
                    progress=lambda done, _total: self.observer.advance(done),
                )
            except DamagedBlocksError:
                pass  # `compressed` repairs damaged entries one by one
            except OSError as error:
                if not is_full(error):  # `compressed` does without the cache
                    raise

    def _kept_key(self, recipe: Recipe, calibration: Calibration | None) -> dict[str, object]:
        return kept_key(self.model.info, self.model.device, recipe, calibration, propagate=self.propagate)

    def _entry_bytes(self, recipe: Recipe) -> int:
        return entry_bytes(recipe, decoder_blocks(self.model.network))

    def _to_write(self, recipe: Recipe, calibration: Calibration | None) -> int:
        """About how many bytes of a compression are not in the cache yet."""
        folder, blocks = folder_of(self._kept_key(recipe, calibration)), decoder_blocks(self.model.network)
        return still_needed(folder, entry_bytes(recipe, blocks), len(blocks))
