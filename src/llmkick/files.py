"""File utilities: the cache folder, locks, checksums, and atomic writes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs
from filelock import FileLock, Timeout

from llmkick.errors import ConfigError, DataError

# What `flock` answers on a file system without locks, such as NFS without its lock service.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
# A hidden file in the cache that was changed in so many seconds is being written, and will be renamed.
_YOUNG_SECONDS = 3600


def cache_folder(part: str) -> Path:
    """The folder for one kind of cached file: under $LLMKICK_CACHE, or the user's cache directory.

    Raises ConfigError when the folder is not there and cannot be made. Whether it can be written is seen when it is,
    see `writing_cache`: a folder that cannot may still hold what is wanted.
    """
    root = os.environ.get("LLMKICK_CACHE") or platformdirs.user_cache_dir("llmkick")
    folder = Path(root) / part
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot make the cache folder {folder}: {error}; set LLMKICK_CACHE to another") from error
    return folder


def named_path(text: str) -> Path:
    """The path that a user named, with ~ resolved.

    Raises ConfigError for ~ of an unknown user, a name longer than a file's may be, and a folder that cannot be read.
    """
    try:
        path = Path(text).expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there is no such user"
        shown = text if len(text) <= 100 else f"{text[:100]}…"
        raise ConfigError(f"{shown!r} cannot be looked up: {reason}") from error
    return path


def is_there(text: str) -> bool:
    """Whether a text names a file or folder that can be looked up here."""
    try:
        return named_path(text).exists()
    except ConfigError:
        return False


@contextlib.contextmanager
def writing_cache() -> Iterator[None]:
    """An error while the cache is written becomes a ConfigError, which says to choose another folder for it."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise ConfigError(f"cannot write the cache: {error}; set LLMKICK_CACHE to another folder") from error


def write_cached(file: Path, text: str) -> None:
    """Write a text file of the cache atomically. Raises ConfigError when it cannot be written."""
    with writing_cache():
        write_text_atomically(file, text)


def check_cache() -> None:
    """Raise ConfigError when the cache, or the folder of a kind of file in it, cannot be written."""
    for folder in (cache_folder(""), *_parts()):
        with writing_cache(), tempfile.TemporaryFile(dir=folder):
            pass


def cache_sizes() -> dict[str, int]:
    """Bytes of each kind of cached file. Files that another process deletes meanwhile do not count."""
    return {part.name: sum(map(_size, _files_in(part))) for part in _parts()}


def _parts() -> list[Path]:
    return sorted(path for path in cache_folder("").iterdir() if path.is_dir())


def _files_in(folder: Path) -> Iterator[Path]:
    # Unlike `Path.rglob`, this leaves out a folder that is gone.
    return (Path(inside, name) for inside, _, names in os.walk(folder) for name in names)


def _size(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size
    return 0


def clear_cache(part: str) -> list[Path]:
    """Delete all cached files of one kind, except those that a process is writing, which are returned.

    These are what is locked (see `lock_of`) and hidden files that were changed in the last hour. A file system without
    locks does not tell what is locked. Raises ConfigError when something cannot be deleted.
    """
    folder = cache_folder(part)
    with writing_cache():
        found = sorted({path.with_name(path.name.removesuffix(".lock")) for path in folder.iterdir()})
        return [path for path in found if not _delete_unused(path)]


def _delete_unused(path: Path) -> bool:
    """Delete a file or folder and its lock. False when it is being written."""
    if path.name.startswith(".") and path.is_file() and _age(path) < _YOUNG_SECONDS:
        return False
    lock = lock_of(path)
    try:
        # Without its lock file nobody uses it: `temporary_folder` makes that first.
        with locked(lock, blocking=False) if lock.exists() else contextlib.nullcontext():
            with contextlib.suppress(FileNotFoundError):  # another process may clear the cache too
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            lock.unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def _age(file: Path) -> float:
    """Seconds since a file was changed; infinite for one that is gone."""
    with contextlib.suppress(FileNotFoundError):
        return time.time() - file.stat().st_mtime
    return float("inf")


def lock_of(path: Path) -> Path:
    """The lock file of a file or folder in the cache, which is beside it."""
    return path.with_name(f"{path.name}.lock")


@contextlib.contextmanager
def locked(file: Path, *, blocking: bool = True) -> Iterator[bool]:
    """Hold the lock of a lock file. Yields whether it is held: False on a file system without locks.

    Raises filelock.Timeout when another process holds it, unless `blocking`, and OSError when the file cannot be made.
    """
    lock = FileLock(file, blocking=blocking)
    try:
        lock.acquire()
    except NotImplementedError:  # of an older filelock, for ENOSYS
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield lock.is_locked
    finally:
        lock.release()  # does nothing if it is not held


@contextlib.contextmanager
def temporary_folder(place: Path, name: str = "") -> Iterator[Path]:
    """A new hidden folder in a folder of the cache, deleted at the end. `clear_cache` leaves it meanwhile."""
    place.mkdir(parents=True, exist_ok=True)
    folder = place / f".{name}-{secrets.token_hex(6)}"
    with locked(lock_of(folder)):
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            lock_of(folder).unlink(missing_ok=True)


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
    """A temporary sibling that becomes `target`, a folder of the cache, when the block ends without an error.

    Two processes may build the same entry of the cache: the first to finish wins, both are identical. For a folder of
    the user's see `llmkick.output_folder`.
    """
    with temporary_folder(target.parent, target.name) as temporary:
        yield temporary
        # It is private until then; a result's folder follows the user's umask like any other.
        temporary.chmod(0o777 & ~_umask())
        try:
            temporary.replace(target)
        except OSError:
            if not (target.is_dir() and any(target.iterdir())):
                raise


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
