"""Compressed models shared between machines: whole, checked, and never trusted blindly."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from llmkick.compression.storage import shared_store as module
from llmkick.compression.storage.shared_store import LISTING, ArtifactStore, name_of
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.finished_blocks import STATE_FILE, count_finished
from llmkick.errors import ConfigError, ModelError
from toy import toy_model

KEY = {"weights": "abc", "recipe": "wanda@2:4"}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    folder = tmp_path / "finished"
    compress(toy_model(), "wanda@2:4", calibration=np.arange(4, 132).reshape(4, 32), keep=folder)
    return folder


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """A folder, and a file system that only fsspec knows."""
    return ArtifactStore(
        str(tmp_path / "shared" / "models") if request.param == "folder" else f"memory://{tmp_path.name}"
    )


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_what_is_put_comes_back_byte_for_byte(store: ArtifactStore, finished: Path, tmp_path: Path):
    store.check()
    other = tmp_path / "other"
    other.mkdir()
    assert not store.fetch(KEY, other)
    store.put(KEY, finished)
    assert store.fetch(KEY, other)
    assert files(other) == files(finished)
    assert not store.fetch({**KEY, "weights": "def"}, other)


def test_what_is_there_stays_unless_it_is_put_anew(store: ArtifactStore, finished: Path, tmp_path: Path):
    store.put(KEY, finished)
    first = files(finished)
    (finished / STATE_FILE).write_text("{}")
    other = tmp_path / "other"
    other.mkdir()
    store.put(KEY, finished)
    store.fetch(KEY, other)
    assert files(other) == first
    store.put(KEY, finished, anew=True)
    store.fetch(KEY, other)
    assert (other / STATE_FILE).read_text() == "{}"


@pytest.mark.parametrize("damage", ["altered", "missing", "listing"])
def test_what_is_damaged_is_refused_and_leaves_nothing(
    store: ArtifactStore, finished: Path, tmp_path: Path, damage: str
):
    store.put(KEY, finished)
    system, root = fsspec.core.url_to_fs(store.url)
    place = f"{root}/{name_of(KEY)}"
    block = f"{place}/block-00001.safetensors"
    if damage == "altered":
        content = bytearray(system.cat_file(block))
        content[-1] ^= 1
        system.pipe_file(block, bytes(content))
    elif damage == "missing":
        system.rm_file(block)
    else:
        system.pipe_file(f"{place}/{LISTING}", b"{ half")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ModelError, match=f"the shared compressed model {name_of(KEY)} is damaged"):
        store.fetch(KEY, other)
    assert list(other.iterdir()) == []


def test_what_is_linked_to_an_earlier_copy_stays_as_it_is(store: ArtifactStore, finished: Path, tmp_path: Path):
    """A folder in compact form shares the files of the cache, where they are replaced."""
    store.put(KEY, finished)
    other, linked = tmp_path / "other", tmp_path / "packed-block-00001.safetensors"
    other.mkdir()
    store.fetch(KEY, other)
    os.link(other / "block-00001.safetensors", linked)
    written = linked.read_bytes()
    shutil.copyfile(finished / "block-00000.safetensors", finished / "block-00001.safetensors")
    store.put(KEY, finished, anew=True)
    assert store.fetch(KEY, other)
    assert files(other) == files(finished)
    assert linked.read_bytes() == written


def test_a_fetch_that_is_stopped_leaves_a_folder_that_counts_no_blocks(
    store: ArtifactStore, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store.put(KEY, finished)
    other = tmp_path / "other"
    shutil.copytree(finished, other)  # a compression that had begun here
    monkeypatch.setattr(module, "sha256_of_file", stop)
    with pytest.raises(KeyboardInterrupt):
        store.fetch(KEY, other)
    assert count_finished(other) == 0


def stop(_file: Path) -> str:
    raise KeyboardInterrupt


def test_names_in_a_listing_stay_inside_the_folder(store: ArtifactStore, finished: Path, tmp_path: Path):
    store.put(KEY, finished)
    system, root = fsspec.core.url_to_fs(store.url)
    place = f"{root}/{name_of(KEY)}"
    listing = json.loads(system.cat_file(f"{place}/{LISTING}"))
    system.pipe_file(f"{place}/{LISTING}", json.dumps({"../escaped.txt": listing[STATE_FILE]}).encode())
    system.pipe_file(f"{root}/escaped.txt", b"outside")
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(ModelError, match="damaged"):
        store.fetch(KEY, other)
    assert not (tmp_path / "escaped.txt").exists()


# Places that cannot be used


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"^--artifacts .*/models cannot be written: .*; give a folder that every"):
        ArtifactStore(str(tmp_path / "file" / "models")).check()


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path):
    (tmp_path / "shared").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        ArtifactStore(str(tmp_path / "shared" / "models")).check()


def test_an_unknown_kind_of_url_and_a_missing_package_are_said():
    with pytest.raises(ConfigError, match=r"^--artifacts nowhere://x cannot be written: .*nowhere"):
        ArtifactStore("nowhere://x").check()
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"^--artifacts s3://bucket/x: Install s3fs"):
            ArtifactStore("s3://bucket/x").check()


def test_a_place_that_loses_what_it_is_given_is_refused(monkeypatch: pytest.MonkeyPatch):
    class Forgetful:
        def __getattr__(self, _name: str) -> Any:
            return lambda *_arguments, **_options: b"other"

    monkeypatch.setattr(module.ArtifactStore, "_open", lambda _self: (Forgetful(), "x"))
    with pytest.raises(ConfigError, match="gives back other bytes than were written there"):
        ArtifactStore("memory://x").check()


def test_a_password_is_never_shown():
    assert ArtifactStore("ftp://me:secret@host/models").shown == "ftp://host/models"
    assert ArtifactStore("s3://bucket/models").shown == "s3://bucket/models"
    assert ArtifactStore("/mnt/models").shown == "/mnt/models"
    with pytest.raises(ConfigError) as refused:
        ArtifactStore("nowhere://me:secret@host/models").check()
    assert "secret" not in str(refused.value)
