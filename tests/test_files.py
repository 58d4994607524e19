"""Folders and files that appear complete or not at all, and the cache beside processes that use it."""

from __future__ import annotations

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmkick import files
from llmkick.errors import ConfigError
from llmkick.files import (
    cache_folder,
    cache_sizes,
    check_cache,
    clear_cache,
    is_there,
    lock_of,
    locked,
    named_path,
    new_folder,
    temporary_folder,
    write_cached,
)


def test_a_path_that_a_user_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named_path("~/model") == tmp_path / "model"
    assert (is_there("~"), is_there("~/model")) == (True, False)
    for text, reason in (("x" * 300, "too long"), ("~no-such-user/x", "there is no such user")):
        assert not is_there(text)
        with pytest.raises(ConfigError, match=f"cannot be looked up: .*{reason}"):
            named_path(text)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("LLMKICK_CACHE", str(folder))
    return folder


def test_a_new_folder_follows_the_umask(tmp_path: Path):
    before = os.umask(0o022)
    try:
        with new_folder(tmp_path / "out") as folder:
            (folder / "a").write_text("a")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_first_of_two_wins(tmp_path: Path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("second")
        with new_folder(tmp_path / "out") as other:
            (other / "a").write_text("first")
    assert (tmp_path / "out" / "a").read_text() == "first"


def test_a_folder_that_cannot_be_put_in_place_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_path: Path, _target: Path) -> None:
        raise OSError("no")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no"), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_but_empty_is_no_finished_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()

    def busy(_path: Path, _target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "replace", busy)
    with pytest.raises(OSError, match="busy"), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("a")


# Locks


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int):
    def no_locks(_handle: int, _operation: int) -> None:
        raise OSError(number, os.strerror(number))

    with locked(tmp_path / "a.lock") as is_held:
        assert is_held
    monkeypatch.setattr(fcntl, "flock", no_locks)
    for blocking in (True, False):
        with locked(tmp_path / "a.lock", blocking=blocking) as is_held:
            assert not is_held


def test_an_older_filelock_without_locks_gives_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_locks(_lock: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(files.FileLock, "_acquire", no_locks)
    with locked(tmp_path / "a.lock") as is_held:
        assert not is_held


def test_a_lock_file_that_cannot_be_made_is_an_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), locked(tmp_path / "file" / "a.lock"):
        pass


# The cache


def clear_elsewhere(part: str) -> list[Path]:
    """Another thread has locks of its own, as another process has."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(clear_cache, part).result()


def test_what_is_being_written_is_not_cleared(cache: Path):
    part = cache_folder("converted")
    (part / "old").mkdir()
    (part / "old" / "weights").write_text("old")
    (part / "file").write_text("old")
    (part / ".file-abc").write_text("being written")
    with temporary_folder(part, "entry") as folder:
        (folder / "weights").write_text("half")
        left = clear_elsewhere("converted")
        assert (folder / "weights").read_text() == "half"
        assert sorted(left) == sorted([folder, part / ".file-abc"])
        assert {path.name for path in part.iterdir()} == {folder.name, lock_of(folder).name, ".file-abc"}
    assert [path.name for path in part.iterdir()] == [".file-abc"]
    os.utime(part / ".file-abc", (0, 0))  # of a process that was killed
    assert clear_cache("converted") == []
    assert list(part.iterdir()) == []


def test_what_a_killed_process_left_is_cleared(cache: Path):
    left = cache_folder("on-its-way") / ".-abc"
    left.mkdir()
    (left / "block").write_text("")
    lock_of(left).touch()
    (left.parent / ".-gone.lock").touch()
    assert clear_cache("on-its-way") == []
    assert list(left.parent.iterdir()) == []


def test_an_entry_can_be_made_while_the_cache_is_cleared(cache: Path):
    with new_folder(cache_folder("converted") / "entry") as folder:
        (folder / "a").write_text("a")
        assert clear_elsewhere("converted") == [folder]
    assert (cache / "converted" / "entry" / "a").read_text() == "a"


def test_files_that_vanish_meanwhile_do_not_count(cache: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("a", "b"):
        (cache_folder("calibration") / name).write_text("12345")
    walk = os.walk

    def late(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for found in walk(folder):
            (cache / "calibration" / "a").unlink()
            yield found

    monkeypatch.setattr(os, "walk", late)
    assert cache_sizes() == {"calibration": 5}


@pytest.mark.parametrize("part", ["", "compressed"])
def test_a_cache_that_cannot_be_written_is_said_with_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch, part: str
):
    cache_folder("compressed")
    check_cache()
    make = tempfile.TemporaryFile

    def read_only(*, dir: Path) -> object:  # noqa: A002 - its name
        if dir == cache / part:
            raise PermissionError(errno.EACCES, "Permission denied", str(dir))
        return make(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with pytest.raises(ConfigError, match=r"cannot write the cache: .*Permission denied.*; set LLMKICK_CACHE to anot"):
        check_cache()


def test_a_file_of_the_cache_that_cannot_be_written(cache: Path):
    (cache / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot write the cache: .*; set LLMKICK_CACHE to another folder"):
        write_cached(cache / "file" / "a.json", "{}")
