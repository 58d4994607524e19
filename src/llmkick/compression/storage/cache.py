"""The cache of compressed models: the same model, recipe and calibration are never compressed twice.

An entry is a folder of finished blocks, named by the hash of everything that determines the weights; a compression that
was stopped continues in it. When the limit is reached, the least recently used entries are deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from llmkick.compression.walk.finished_blocks import STATE_FILE
from llmkick.errors import ConfigError
from llmkick.files import cache_folder

PART = "compressed"
LIMIT_VARIABLE = "LLMKICK_CACHE_LIMIT"
DEFAULT_LIMIT = "20GB"
# Free disk space that the cache leaves to others.
SPARE_BYTES = 2_000_000_000


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
def entry_for(key: Mapping[str, Any], needed_bytes: int) -> Iterator[Path | None]:
    """The folder of a compression, locked while the context lasts; None when the limit or the disk has no room.

    needed_bytes: the approximate size of the entry. If another process works at the same compression, wait for it.
    Afterwards the least recently used entries are deleted until all fit the limit.
    """
    free = shutil.disk_usage(cache_folder(PART)).free
    if needed_bytes > limit_bytes() or needed_bytes + SPARE_BYTES > free:
        yield None
        return
    folder = folder_of(key)
    with FileLock(folder.with_suffix(".lock")):
        folder.mkdir(exist_ok=True)
        yield folder
        if (folder / STATE_FILE).exists():
            os.utime(folder / STATE_FILE)
    trim()


def folder_of(key: Mapping[str, Any]) -> Path:
    """The folder of the compression with this key."""
    return cache_folder(PART) / name_of(key)


def name_of(key: Mapping[str, Any]) -> str:
    """The name of a compression: a hash of its key."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def entries() -> list[Entry]:
    """All entries, the most recently used first. An unreadable folder counts as an unfinished entry."""
    described = [_describe(folder) for folder in cache_folder(PART).iterdir() if folder.is_dir()]
    return sorted(described, key=lambda entry: entry.used, reverse=True)


def _describe(folder: Path) -> Entry:
    state: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    report, key = state.get("report"), state.get("key", {})
    size, used = 0, folder.stat().st_mtime
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process may have deleted it
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
    """Delete an entry. False when another process is using it."""
    lock = FileLock(folder.with_suffix(".lock"), blocking=False)
    try:
        with lock:
            shutil.rmtree(folder, ignore_errors=True)
    except TimeoutError:
        return False
    return True
