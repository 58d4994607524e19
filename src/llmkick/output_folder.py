"""The folder that a command writes into: checked before, claimed while it is written, complete or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from llmkick.errors import ConfigError
from llmkick.files import naming

# Folders of ours inside a target that was there before.
_OURS = re.compile(r"\.llmkick\..*\.partial")


def check_target(folder: Path) -> None:
    """Raise ConfigError when the folder cannot be written, or is not empty: existing files are never overwritten."""
    try:
        target = folder.resolve()
        if target.exists() and (not target.is_dir() or not all(_OURS.fullmatch(p.name) for p in target.iterdir())):
            raise ConfigError(f"{folder} exists and is not empty; choose another folder")
        place = next(path for path in (target, *target.parents) if path.exists())
        tempfile.TemporaryDirectory(prefix=".llmkick.", suffix=".partial", dir=place).cleanup()
    except (OSError, RuntimeError) as error:  # a RuntimeError for links that lead in a circle
        raise ConfigError(f"{folder} cannot be written ({error}); choose another folder") from error


def hidden_folders(folder: Path, name: str) -> tuple[Path, Path]:
    """The hidden folder for what is on its way to a target, then where it is if the target has come or gone since.

    Inside a target that is there: it may be a mount point, or all that this user may write to. Otherwise beside it.
    """
    target = folder.resolve()
    inside, beside = target / f".llmkick.{name}.partial", target.parent / f".{target.name}.{name}.partial"
    return (inside, beside) if target.is_dir() else (beside, inside)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """While the context lasts, no other command writes to this target.

    The same thread may claim a target again inside. The system frees the claim of a process that is killed. A file
    system that knows no locks gives none. Raises ConfigError while another command has the target.
    """
    places = hidden_folders(folder, "lock")
    made = [parent for parent in places[0].parents if not parent.exists()]
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_empty, made)
        places[0].parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(_locked(places[0], folder))
        if places[1].exists():  # the target has come or gone since another command began
            stack.enter_context(_locked(places[1], folder))
        yield


@contextlib.contextmanager
def filling(folder: Path, *, last: str = "") -> Iterator[Path]:
    """A temporary folder that becomes `folder`, or whose files move into it, when the block ends without an error.

    A folder that is there may be a mount point, or that in which the user's shell is, and so is not replaced. last: the
    file without which nothing opens the folder, moved when all others are there. Raises ConfigError where others have
    written into the folder: their files are never overwritten.
    """
    folder = folder.resolve()
    temporary, _ = hidden_folders(folder, "new")
    is_inside = temporary.parent == folder
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    temporary.mkdir(parents=True)
    moved: list[Path] = []
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            make_durable(path)
        check_target(folder)  # it may have come, or have been filled, meanwhile
        if not is_inside:
            temporary.replace(folder)
            make_durable(folder.parent)
            return
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == last):
            moved.append(path.replace(folder / path.name))
        make_durable(folder)
    except BaseException:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _locked(place: Path, folder: Path) -> Iterator[None]:
    """Lock a file, which is deleted at the end."""
    lock = FileLock(place, is_singleton=True, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigError(
            f"another command is writing {folder}; wait until it has ended, or choose another folder"
        ) from error
    except (NotImplementedError, OSError):  # of a file system without locks
        yield
        return
    try:
        yield
    finally:
        if lock.lock_counter == 1:
            # While it is locked: afterwards it may be that of another command.
            with contextlib.suppress(OSError):
                place.unlink()
        lock.release()


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the inner ones first, as far as they are empty."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def make_durable(path: Path) -> None:
    """Have a file, or the names in a folder, survive a power failure, where the system can do that."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # not every system opens folders
        return
    try:
        with naming(path):
            os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES):
            raise
    finally:
        os.close(handle)
