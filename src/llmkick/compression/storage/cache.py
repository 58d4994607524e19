"""The cache of compressed models: the same model, recipe and calibration are never compressed twice.

An entry is a folder of finished blocks, named by the hash of everything that determines the weights; a compression that
was stopped continues in it. When the limit is reached, the least recently used entries are deleted.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import Timeout

from llmkick.compression.recipe import Recipe, Recovered, is_trained
from llmkick.compression.recoveries import LowRank
from llmkick.compression.training.state import STATE_FILE as TRAINING_FILE
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.finished_blocks import STATE_FILE, count_finished, delete_blocks
from llmkick.compression.walk.size import compact_bytes
from llmkick.errors import ConfigError
from llmkick.files import cache_folder, lock_of, locked, temporary_folder, writing_cache

PART = "compressed"
ON_ITS_WAY = "on-its-way"
LIMIT_VARIABLE = "LLMKICK_CACHE_LIMIT"
DEFAULT_LIMIT = "20GB"
# Free disk space that the cache leaves to others.
SPARE_BYTES = 2_000_000_000
# Of a value in the matrices of a recovery, which are in half precision.
BYTES_OF_MATRICES = 2


class NoLocks(UserWarning):
    """A file system without locks, on which compressed models are not kept."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A compressed model in the cache: its size in bytes, the number of finished blocks, when it was last used.

    complete: all blocks are finished and the report is there.
    """

    folder: Path
    recipe: str
    model: str
    dtype: str
    size: int
    blocks: int
    complete: bool
    used: datetime


def limit_bytes() -> int:
    """Bytes that compressed models may take: $LLMKICK_CACHE_LIMIT, such as 20GB or 500MB; 0 keeps none.

    Raises ConfigError for a text that is not a size.
    """
    text = os.environ.get(LIMIT_VARIABLE, DEFAULT_LIMIT).strip()
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(TB|GB|MB|B)?", text, re.IGNORECASE)
    if match is None:
        raise ConfigError(f"{LIMIT_VARIABLE} is {text!r}; write a size such as 20GB, 500MB or 0")
    unit = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "B": 1}[(match[2] or "B").upper()]
    return int(float(match[1]) * unit)


@contextlib.contextmanager
def entry_for(key: Mapping[str, Any], needed_bytes: int, *, besides: int = 0) -> Iterator[Path | None]:
    """The folder of a compression, locked while the context lasts; None when the limit or the disk has no room.

    None, with a warning, also on a file system without locks, where another process might delete what this one uses.
    needed_bytes: the approximate size of the entry. besides: what else is about to be written to the same disk. An
    entry that has begun is gone on with, however much room is left. If another process works at the same compression,
    wait for it. Afterwards the least recently used entries are deleted until all fit the limit. Raises ConfigError when
    the cache cannot be written.
    """
    folder, limit = folder_of(key), limit_bytes()
    has_room = needed_bytes <= limit and needed_bytes + besides + SPARE_BYTES <= shutil.disk_usage(folder.parent).free
    if limit == 0 or not (has_room or has_begun(folder)):
        yield None
        return
    with contextlib.ExitStack() as stack:
        with writing_cache():
            has_lock = stack.enter_context(locked(lock_of(folder)))
            if has_lock:
                folder.mkdir(parents=True, exist_ok=True)
        if not has_lock:
            warnings.warn(
                f"{folder.parent} is on a file system without locks: compressed models are not kept there. Set "
                f"LLMKICK_CACHE to a folder on another, or {LIMIT_VARIABLE}=0 to keep none",
                NoLocks,
                stacklevel=3,
            )
            yield None
            return
        yield folder
        with contextlib.suppress(OSError):
            os.utime(folder / STATE_FILE)
    trim()


@contextlib.contextmanager
def entry_on_its_way() -> Iterator[Path]:
    """A folder for a compression that is not kept: of this process alone, and gone at the end.

    Raises ConfigError when the cache cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with writing_cache():
            folder = stack.enter_context(temporary_folder(cache_folder(ON_ITS_WAY)))
        yield folder


def has_begun(folder: Path) -> bool:
    """Whether a folder holds finished blocks or the state of a training, from which a compression goes on."""
    return progress_in(folder) > (0, False) or (folder / STATE_FILE).is_file()


def progress_in(folder: Path) -> tuple[int, bool]:
    """How far the compression in a folder is: its finished blocks, and whether it holds the state of a training."""
    return count_finished(folder), (folder / TRAINING_FILE).is_file()


def entry_bytes(recipe: Recipe, blocks: Sequence[Block]) -> int:
    """About the size of an entry: the compressed layers in compact form, and the matrices of a recovery."""
    shapes = [layer.weight.shape for block in blocks for layer in block.layers]
    itemsize = max((layer.weight.element_size() for block in blocks for layer in block.layers), default=0)
    sparsity = recipe.sparsity or 0.0
    size = sum(compact_bytes((rows, columns), itemsize, recipe, sparsity) for rows, columns in shapes)
    matrices = matrices_bytes(recipe, blocks)
    # A training also keeps, in float32, the values now and at its best, and two moments of them.
    return size + matrices + (4 * 4 * matrices // BYTES_OF_MATRICES if is_trained(recipe) else 0)


def matrices_bytes(recipe: Recipe, blocks: Sequence[Block]) -> int:
    """Bytes of the two matrices that a recovery keeps beside each layer; 0 for a recipe that keeps none."""
    if not isinstance(recipe, Recovered) or not isinstance(recipe.recovery, LowRank):
        return 0
    shapes = (layer.weight.shape for block in blocks for layer in block.layers)
    return BYTES_OF_MATRICES * sum(recipe.recovery.rank * (rows + columns) for rows, columns in shapes)


def still_needed(folder: Path, needed_bytes: int, blocks: int) -> int:
    """What is still to be written of an entry of about this size and so many blocks."""
    return needed_bytes * max(0, blocks - count_finished(folder)) // blocks


def on_one_disk(one: Path, other: Path) -> bool:
    """Whether two folders, which need not be there yet, take the space of one file system."""
    return _device(one) == _device(other)


def _device(folder: Path) -> int:
    whole = folder.absolute()
    return next(path.stat().st_dev for path in (whole, *whole.parents) if path.exists())


def is_full(error: OSError) -> bool:
    """Whether an error says that a disk, or a user's share of it, has no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def folder_of(key: Mapping[str, Any]) -> Path:
    """The folder of the compression with this key."""
    return cache_folder(PART) / name_of(key)


def name_of(key: Mapping[str, Any]) -> str:
    """The name of a compression: a hash of its key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def entries() -> list[Entry]:
    """All entries, the most recently used first. An unreadable folder counts as an unfinished entry."""
    described = []
    for folder in cache_folder(PART).iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may have deleted it
            if folder.is_dir():
                described.append(_describe(folder))
    return sorted(described, key=lambda entry: entry.used, reverse=True)


def _describe(folder: Path) -> Entry:
    state: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    report, key = state.get("report"), state.get("key", {})
    size, used = 0, folder.stat().st_mtime
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size, used = size + file.stat().st_size, max(used, file.stat().st_mtime)
    return Entry(
        folder=folder,
        recipe=str(key.get("recipe", "unknown")),
        model="" if report is None else str(report["model"]),
        dtype=str(key.get("dtype", "")),
        size=size,
        blocks=int(state.get("finished", 0)),
        complete=report is not None,
        used=datetime.fromtimestamp(used, UTC),
    )


def trim(limit: int | None = None) -> list[Entry]:
    """Delete the least recently used entries until the others fit the limit, except those in use.

    limit: in bytes, by default `limit_bytes()`. Returns the deleted entries.
    """
    kept, deleted = 0, []
    limit = limit_bytes() if limit is None else limit
    for entry in entries():
        if kept + entry.size <= limit:
            kept += entry.size
        elif remove(entry.folder):
            deleted.append(entry)
    return deleted


def remove(folder: Path) -> bool:
    """Delete an entry. False when another process is using it: none does on a file system without locks.

    Raises ConfigError when the cache cannot be written.
    """
    try:
        with writing_cache(), locked(lock_of(folder), blocking=False):
            delete_blocks(folder)
    except Timeout:
        return False
    return True
