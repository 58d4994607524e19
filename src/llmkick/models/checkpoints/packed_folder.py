"""The folder of a packed model: the list of its files, and the state dict in them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkick.errors import ModelError
from llmkick.models.checkpoints.packed_file import FORMAT, READABLE, read_placed

MANIFEST = "llmkick_packed.json"


def write_manifest(folder: Path, files: Sequence[str], **facts: Any) -> None:
    """Write the list of packed files, in order, that make up the model in a folder."""
    text = json.dumps({"format": FORMAT, "files": list(files), **facts}, indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def packed_files(folder: Path) -> list[str]:
    """The names of the packed files in a folder, in order. Raises ModelError for another format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        form, files = manifest["format"], [str(name) for name in manifest["files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / MANIFEST} cannot be read ({error}): make the folder again") from error
    if form not in READABLE:
        raise ModelError(f"{folder} is packed in format {form}; this version reads up to {FORMAT}: update llmkick")
    return files


def unpack_folder(folder: Path) -> dict[str, Tensor]:
    """The state dict of the packed model in a folder. Raises ModelError naming the file and the weight."""
    files = [folder / name for name in packed_files(folder)]
    weights: dict[str, Tensor] = {}
    experts: dict[str, dict[int, Tensor]] = {}
    flat: set[str] = set()
    for file in files:
        for _, place, weight in read_placed(file):
            stored = weight.t().contiguous() if place.transposed else weight
            if place.expert is None:
                weights[place.parameter] = stored
                continue
            experts.setdefault(place.parameter, {})[place.expert] = stored
            flat |= {place.parameter} if place.flat else set()
    for parameter, members in experts.items():
        together = torch.stack([members[number] for number in range(len(members))])
        weights[parameter] = together.flatten(0, 1) if parameter in flat else together
    return weights
