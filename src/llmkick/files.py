"""File utilities: the cache folder, checksums, and atomic writes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from llmkick.errors import ConfigError, DataError


def cache_folder(part: str) -> Path:
    """The folder for one kind of cached file: under $LLMKICK_CACHE, or the user's cache directory.

    Raises ConfigError when the folder cannot be made or written.
    """
    root = os.environ.get("LLMKICK_CACHE") or platformdirs.user_cache_dir("llmkick")
    folder = Path(root) / part
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the cache folder {folder}: {error}; set LLMKICK_CACHE to another") from error
    return folder


def cache_sizes() -> dict[str, int]:
    """Bytes of each kind of cached file."""
    parts = sorted(path for path in cache_folder("").iterdir() if path.is_dir())
    return {part.name: sum(f.stat().st_size for f in part.rglob("*") if f.is_file()) for part in parts}


def clear_cache(part: str) -> None:
    """Delete all cached files of one kind."""
    shutil.rmtree(cache_folder(part))


def sha256_of_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """Raise ConfigError when the file system of `folder` has less than `needed_bytes` free."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise ConfigError(
            f"{purpose} needs {needed_bytes / 1e6:,.0f} MB in {folder}, but only {free / 1e6:,.0f} MB are free"
        )


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `target` only when the block ends without an error."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        # mkdtemp makes folders private; a result's folder follows the user's umask like any other.
        temporary.chmod(0o777 & ~_umask())
        try:
            temporary.replace(target)
        except OSError:
            # Two processes may build the same entry: the first to finish wins, both are identical.
            if not target.exists():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write_text_atomically(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write UTF-8 text atomically: a reader never sees a partial file, even after a crash.

    `errors` is passed to the encoder, as in `open`. Raises OSError when the file cannot be written; the old file
    is then unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors=errors, newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; a result file follows the user's umask like any other.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write a text file atomically; returns its path. Raises DataError when it cannot be written."""
    try:
        # A lone surrogate in a model's answer has no UTF-8 encoding, so it is written as an escape.
        write_text_atomically(path, text, errors="backslashreplace")
    except OSError as error:
        raise DataError(f"cannot write {path}: {error}") from error
    return path


@contextlib.contextmanager
def naming(file: Path) -> Iterator[None]:
    """An OSError while this file is written names it; that of a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = str(file)
        raise
