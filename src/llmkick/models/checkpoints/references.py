"""Resolution of a model reference (built-in name, folder, hub id, .gguf file) to files on disk and their digest."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from llmkick.errors import ConfigError, ModelError, one_line
from llmkick.files import cache_folder, named_path, new_folder, require_space, sha256_of_file, writing_cache
from llmkick.models.checkpoint import Checkpoint
from llmkick.models.checkpoints.builtin import BUILTIN_MODELS, builtin_gguf
from llmkick.models.checkpoints.gguf_files import (
    PART,
    cannot_write,
    convert_gguf,
    converted_bytes,
    gguf_precision,
    refuse_part,
)
from llmkick.models.checkpoints.gguf_reading import read_once
from llmkick.models.checkpoints.hub_files import fetch_model, fetch_small_files, refuse_unread
from llmkick.models.checkpoints.packed_folder import MANIFEST
from llmkick.models.checkpoints.quantized import (
    method_of,
    precision_of,
    quantization_of,
    require_description,
    require_reader,
)
from llmkick.models.checkpoints.weight_files import TensorFiles, refuse_unreadable
from llmkick.models.plugin_models import VLLM, plugin_of
from llmkick.models.server_scheme import is_server

# Part of the name of converted folders: raise it whenever the conversion changes.
CONVERSION_VERSION = 6
# Bytes beside the weights: the vocabulary, the headers, and what others write meanwhile.
CONVERSION_MARGIN = 200 * 10**6
SOURCE_FILE = "llmkick_source.json"
# Settings of a converted folder that say what wrote it and how: no answer depends on them.
OF_THE_WRITER = frozenset({"transformers_version", "is_local", "local_files_only"})


def locate(reference: str) -> Checkpoint:
    """Find (fetch or convert when needed) the files behind a model reference.

    `reference` is a built-in name, a local Hugging Face folder, a `.gguf` file, or a hub id
    (`owner/name`, optionally `owner/name@revision`).
    Raises ModelError when there is nothing readable behind it, ConfigError for a server.
    """
    if is_server(reference):
        raise ConfigError(
            f"{reference} is a server: its weights are not here. It can be asked (kick eval, kick compare; "
            "llmkick.models.server.server.connect from Python), not loaded or compressed"
        )
    if reference in BUILTIN_MODELS:
        model = BUILTIN_MODELS[reference]
        return _from_gguf(builtin_gguf(reference), name=reference, revision=model.version, pinned=model.gguf_sha256)
    path = named_path(reference)
    if path.suffix.lower() == ".gguf":
        if not path.is_file() and not path.is_symlink():
            raise ModelError(f"there is no file {path}")
        return _from_gguf(path, name=path.stem, revision="")
    if path.is_dir():
        return _from_folder(path, name=path.resolve().name, revision="")
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference):
        return _from_hub(reference)
    plugin = plugin_of(reference)
    if plugin is VLLM:
        raise ConfigError(
            f"{reference} is run by vLLM, which only answers (kick eval, kick compare); to load or compress the model, "
            f"give {reference.partition(':')[2]!r}"
        )
    if plugin is not None:
        raise ModelError(f"{reference} comes from a plug-in and has no files to work on; `kick eval` can ask it")
    raise ModelError(
        f"unknown model {reference!r}: not a built-in ({', '.join(sorted(BUILTIN_MODELS))}), "
        "not a folder or .gguf file on this machine, and not a hub id such as owner/name"
    )


def small_files(reference: str) -> Path:
    """The folder of a model; of a hub model without its weights, which are not fetched.

    Raises the errors of `locate` for a built-in model or a GGUF file, and those of the hub.
    """
    path = named_path(reference)
    if path.is_dir():
        return path
    if reference in BUILTIN_MODELS or path.suffix.lower() == ".gguf":
        return locate(reference).folder
    repository, _, revision = reference.partition("@")
    return fetch_small_files(repository, revision or None)


def _from_folder(folder: Path, *, name: str, revision: str, digest: str = "") -> Checkpoint:
    """The checkpoint in a folder; `digest` is given for a converted GGUF file, and computed otherwise."""
    if (folder / "config.json").is_symlink():
        refuse_unreadable(folder / "config.json")
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is not a Hugging Face model folder: it has no config.json")
    stated, packed = quantization_of(folder), (folder / MANIFEST).is_file()
    files = TensorFiles(folder)
    if not packed:
        require_description(files, stated)
    require_reader(name, stated)
    return Checkpoint(
        name=name,
        revision=revision,
        folder=folder,
        digest=digest or _digest(folder, files.files),
        source_precision=_source_precision(folder, precision_of(stated)),
        packed=packed,
        quantization=method_of(stated),
        stored_bytes=files.stored_bytes,
    )


def _source_precision(folder: Path, stored: str) -> str:
    """The precision of the file that a folder was converted from; `stored`, its own, where it was not converted."""
    if not (folder / SOURCE_FILE).is_file():
        return stored
    try:
        return str(json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))["source_precision"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / SOURCE_FILE} is damaged ({error}): delete the folder {folder}") from error


def _digest(folder: Path, weights: list[Path]) -> str:
    """Hex sha256 over all files of the folder that can change an answer."""
    texts = [path for pattern in ("*.json", "*.jinja", "*.model", "*.txt") for path in folder.glob(pattern)]
    for path in texts:
        refuse_unreadable(path)
    total = hashlib.sha256()
    for path in sorted({*weights, *texts}):
        total.update(f"{path.name}\0{sha256_of_file(path)}\n".encode())
    return total.hexdigest()


def _from_hub(reference: str) -> Checkpoint:
    repository, _, revision = reference.partition("@")
    try:
        folder = fetch_model(repository, revision or None)
    except Exception as error:
        raise ModelError(
            f"cannot get {reference!r} from the hub, and it is not cached: {one_line(error)}\n"
            "Check the name and the network (a gated model: accept its terms on the hub, then `hf auth login`), or "
            f"give a local folder, a .gguf file or a built-in ({', '.join(sorted(BUILTIN_MODELS))})"
        ) from error
    refuse_unread(repository, folder)
    return _from_folder(folder, name=repository, revision=folder.name)


def _from_gguf(path: Path, *, name: str, revision: str, pinned: str = "") -> Checkpoint:
    refuse_unreadable(path)
    if PART.search(path.name):
        refuse_part(path)
    digest = sha256_of_file(path)
    if pinned and digest != pinned:
        raise ModelError(f"{path} has sha256 {digest}, expected {pinned}: it is damaged, delete it to fetch it anew")
    # transformers makes the folder: another version may make another one of the same file.
    version = importlib.metadata.version("transformers")
    target = cache_folder("converted") / f"{digest[:16]}-v{CONVERSION_VERSION}-transformers-{version}"
    if not _is_whole(target):
        if target.exists():  # altered, or cut short by a full disk: the GGUF file can be converted again
            with writing_cache():
                shutil.rmtree(target)
        with read_once():
            _convert(path, target, digest)
    return _converted(target, path, name=name, revision=revision, digest=_converted_digest(target))


def _converted_digest(folder: Path) -> str:
    """Hex sha256 over what a GGUF file was converted to: another version may make another model of the same file."""
    files = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))["files"]
    total = hashlib.sha256()
    for name, digest in sorted(files.items()):
        total.update(f"{name}\0{_digest_of_settings(folder / name) or digest}\n".encode())
    return total.hexdigest()


def _digest_of_settings(path: Path) -> str:
    """Hex sha256 of settings without those that say how they were written; "" for a file without any of these."""
    if path.suffix != ".json":
        return ""
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict) or not values.keys() & OF_THE_WRITER:
        return ""
    settings = {name: value for name, value in values.items() if name not in OF_THE_WRITER}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _convert(path: Path, target: Path, digest: str) -> None:
    """Make a folder in the cache from a GGUF file."""
    refuse_part(path)
    precision = gguf_precision(path)
    require_space(target, converted_bytes(path) + CONVERSION_MARGIN, f"converting {path.name}")
    try:
        with new_folder(target) as folder:
            convert_gguf(path, folder)
            files = {file.name: sha256_of_file(file) for file in sorted(folder.iterdir()) if file.is_file()}
            source = {"file": path.name, "digest": digest, "source_precision": precision, "files": files}
            (folder / SOURCE_FILE).write_text(json.dumps(source, indent=1), encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, target, error) from error


def _converted(folder: Path, source: Path, *, name: str, revision: str, digest: str) -> Checkpoint:
    """The checkpoint in a folder that was made from a GGUF file, whose size is the stored size."""
    checkpoint = _from_folder(folder, name=name, revision=revision, digest=digest)
    return replace(checkpoint, stored_bytes=source.stat().st_size)


def _is_whole(folder: Path) -> bool:
    """Whether a converted folder still contains the files that were written to it, weights and all others."""
    try:
        files = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))["files"]
        return bool(files) and all(sha256_of_file(folder / name) == expected for name, expected in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
