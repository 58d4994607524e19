"""A compressed model on disk: a Hugging Face folder that any tool loads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from llmkick.compression.outcome import CompressionReport
from llmkick.errors import ConfigError
from llmkick.models.files import new_folder, require_space
from llmkick.models.language_model import TransformersModel

REPORT_FILE = "llmkick_compression.json"


def check_target(folder: Path) -> None:
    """Raise ConfigError when a model cannot be written there: never overwrite what somebody has."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; choose another folder")


def save_folder(model: TransformersModel, report: CompressionReport, folder: Path) -> None:
    """Write weights (zeros and rounded values in the model's dtype), tokenizer and report, whole or not at all.

    Raises ConfigError when the folder is taken or the disk too small.
    """
    check_target(folder)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.network.parameters())
    require_space(folder, size + 50_000_000, f"saving {model.info.name}")
    if folder.exists():
        folder.rmdir()
    with new_folder(folder) as temporary:
        model.network.save_pretrained(temporary)
        model.tokenizer.save_pretrained(temporary)
        text = json.dumps(asdict(report), indent=1, ensure_ascii=False)
        (temporary / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
