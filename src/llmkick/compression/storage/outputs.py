"""The forms in which a compressed model is written into a folder: while it is compressed, or from finished blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmkick.compression.recipe import Recipe
from llmkick.compression.storage.compressed_tensors import StreamedIntegers, save_compressed_tensors
from llmkick.compression.storage.folder import StreamedFolder, StreamedPacked, report_of, save_folder, save_packed
from llmkick.compression.storage.peft_adapter import StreamedAdapter, save_adapter
from llmkick.compression.storage.stored_model import StoredModel
from llmkick.compression.storage.target import StreamedTarget
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.report import CompressionReport
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.transformers_model import TransformersModel

Form = Literal["folder", "packed", "compressed-tensors", "adapter"]


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is to be written: the folder, its form, how the model is stored in it, and the recipe."""

    folder: Path
    form: Form
    stored: StoredModel
    recipe: Recipe

    def streamed(self, meta_model: MetaModel, *, besides: int, blocks: int) -> StreamedTarget:
        """The folder that is written while the model is compressed.

        besides: bytes that are written to the same disk meanwhile. blocks: about those of the finished blocks, where
        the folder cannot share their files.
        """
        folder, recipe, stored = self.folder, self.recipe, self.stored
        match self.form:
            case "folder":
                return StreamedFolder(meta_model, folder, besides=besides, stored=stored)
            case "packed":
                room = besides + blocks
                return StreamedPacked(meta_model, folder, recipe=str(recipe), besides=room, stored=stored)
            case "compressed-tensors":
                return StreamedIntegers(meta_model, folder, recipe=recipe, besides=besides, stored=stored)
            case "adapter":
                return StreamedAdapter(meta_model, folder, recipe=recipe, besides=besides, stored=stored)

    def save(self, model: MetaModel | TransformersModel, finished: FinishedBlocks) -> CompressionReport:
        """Write the folder from all finished blocks. model: the compressed one, or the meta model."""
        match self.form:
            case "packed":
                return save_packed(model, finished, self.folder)
            case "compressed-tensors":
                return save_compressed_tensors(model, self.recipe, finished, self.folder)
            case "adapter":
                return save_adapter(model, self.recipe, finished, self.folder)
            case "folder":
                assert isinstance(model, TransformersModel), "a meta model is written while it is compressed"
                return save_folder(model, report_of(finished), self.folder)
