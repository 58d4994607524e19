"""Folders and files that appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llmkick.files import new_folder


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
