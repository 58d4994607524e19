"""The files of a model's folder that are not its weights: which of them travel with a compressed model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from llmkick.errors import ModelError
from llmkick.models.checkpoints.packed_folder import MANIFEST
from llmkick.models.checkpoints.references import SOURCE_FILE

REPORT_FILE = "llmkick_compression.json"
CONFIG = "config.json"
MODEL_CARDS = ("readme.md", "model_card.md", "modelcard.md")
# Written anew: the configuration without what was true of the old weights only, and our own files.
_WRITTEN_ANEW = {CONFIG, REPORT_FILE, SOURCE_FILE, MANIFEST}
# How the weights of the source were quantized or adapted; those of a compressed model are stored in another way.
_OF_OLD_WEIGHTS = {
    *("hf_quant_config.json", "quantize_config.json", "quant_config.json", "quantization_config.json"),
    "adapter_config.json",
}
_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pth?|ckpt|h5|hdf5|keras|msgpack|onnx|onnx_data|pb|tflite|mlmodel|gguf|ggml|ggjt|llamafile|"
    r"tensors|np[yz]|pkl|pickle|joblib|ot|pdparams|params|nemo|dduf|engine|plan|trt|tar|gz|tgz|zip|7z|xz|zst)"
    r"|.*\.index(\..+)?\.json|openvino.*|.*\.imatrix",
    re.IGNORECASE,
)
_CODE = re.compile(r".*\.(py|pyc|pyi|ipynb|so|dll|dylib|sh|bat|ps1|exe)", re.IGNORECASE)
# Binary files that are no weights: tokenizers, and what a model card or a licence shows.
_BINARY = re.compile(
    r".*\.(model|spm|vocab|tiktoken)|tokenizer\.model.*|.*\.(png|jpe?g|gif|webp|svg|pdf|ico)", re.IGNORECASE
)
# Folders of small files that transformers reads: further chat templates, and tokenizers of a processor.
_FOLDERS = re.compile(r"additional_chat_templates|(.*_)?tokenizer|licen[cs]es?", re.IGNORECASE)
# No tokenizer comes near; a larger file is not one of the small files that describe a model.
MOST_BYTES = 200_000_000
_SAMPLE = 8192


def travelling_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The files that travel, as paths relative to the folder, and a line for each file that a reader might miss.

    They are all regular files that are no weights, no code, not hidden and not written anew: configurations,
    tokenizer, chat templates, processor files, licences, the model card. Links count as the files they lead to.
    """
    files: list[Path] = []
    notes: list[str] = []
    for path in _candidates(folder):
        name = path.relative_to(folder)
        if path.is_symlink() and not path.exists():
            notes.append(f"not copied: {name} is a link to a file that is not there")
        elif not path.is_file() or path.name in _WRITTEN_ANEW | _OF_OLD_WEIGHTS or _WEIGHTS.fullmatch(path.name):
            continue
        elif _CODE.fullmatch(path.name):
            notes.append(f"not copied: {name} is code; a model is read and written without running any")
        elif path.stat().st_size > MOST_BYTES:
            notes.append(f"not copied: {name} has more than {MOST_BYTES // 1_000_000} MB")
        elif _BINARY.fullmatch(path.name) or _is_text(path):
            files.append(name)
        else:
            notes.append(f"not copied: {name} is a binary file of no known kind")
    return files, notes


def copy_file(source: Path, target: Path) -> None:
    """Copy the contents of a file, also of a linked one. Raises ModelError when it cannot be read."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ModelError(f"{source} belongs to the model but cannot be copied: {error}") from error


def _candidates(folder: Path) -> Iterator[Path]:
    """Entries of the folder and of the folders inside that may hold files of a model, hidden ones left out."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            # A link to a folder may lead anywhere.
            if _FOLDERS.fullmatch(path.name) and not path.is_symlink():
                yield from (inner for inner in sorted(path.iterdir()) if not inner.name.startswith("."))
        else:
            yield path


def _is_text(path: Path) -> bool:
    """Whether a file looks like text, in whatever encoding of bytes."""
    try:
        with path.open("rb") as stream:
            return b"\0" not in stream.read(_SAMPLE)
    except OSError as error:
        raise ModelError(f"{path} belongs to the model but cannot be read: {error}") from error
