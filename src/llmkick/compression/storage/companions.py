"""What a compressed folder holds beside weights and configuration: the other files of its source, with a note."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from llmkick.compression.storage.model_card import with_note
from llmkick.compression.storage.source_files import MODEL_CARDS, copy_file, travelling_files
from llmkick.compression.walk.report import CompressionReport
from llmkick.models.checkpoint import Checkpoint
from llmkick.models.transformers_model import TransformersModel

_HUB_CACHE = re.compile(r"models--(.+?)--(.+)")


def write_companions(model: TransformersModel, report: CompressionReport, folder: Path, form: str) -> list[str]:
    """Copy the files of the model's source that are no weights; the model card gets a note of what was done.

    form: how the weights are stored, for the note. Returns a line for each file that was left out. A model that came
    from no folder gets its tokenizer and its settings for generation.
    """
    if model.checkpoint is None:
        model.tokenizer.save_pretrained(folder)
        if model.network.generation_config is not None:
            model.network.generation_config.save_pretrained(folder)
        return []
    source = model.checkpoint.folder
    files, notes = travelling_files(source)
    for name in files:
        copy_file(source / name, folder / name)
    for card in sorted(name for name in files if str(name).lower() in MODEL_CARDS)[:1]:
        note = _note(model, report, form)
        (folder / card).write_bytes(with_note((folder / card).read_bytes(), note, _base_model(model.checkpoint)))
    return notes


def _note(model: TransformersModel, report: CompressionReport, form: str) -> str:
    source = model.info.name + (f", revision {model.info.revision}" if model.info.revision else "")
    calibrated = "" if report.calibration_source is None else f", calibrated on {report.calibration_source}"
    version = importlib.metadata.version("llmkick")
    return (
        f"## Compression\n\n"
        f"The weights in this folder are compressed by llmkick {version}. The text above describes the model "
        f"before compression.\n\n"
        f"- source: {source}\n"
        f"- recipe: `{report.recipe}`{calibrated}\n"
        f"- zeros in {len(report.layers)} compressed layers: {report.realised_sparsity:.1%}\n"
        f"- stored as: {form}\n"
    )


def _base_model(checkpoint: Checkpoint) -> str:
    """The name of the source on the hub; empty where it is not known, as for a folder of one's own."""
    for part in reversed(checkpoint.folder.absolute().parts):
        cached = _HUB_CACHE.fullmatch(part)
        if cached is not None:
            return f"{cached[1]}/{cached[2]}"
    return checkpoint.name if "/" in checkpoint.name else ""
