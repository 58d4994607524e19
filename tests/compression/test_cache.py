"""The cache of compressed models: by content, within its limit, never in the way of who is using it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage import cache
from llmkick.compression.storage.cache import entry_bytes, still_needed
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.finished_blocks import STATE_FILE, FinishedBlocks, count_finished
from llmkick.errors import ConfigError
from llmkick.files import clear_cache
from toy import toy_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SPARE_BYTES", 0)
    return tmp_path / "cache" / "compressed"


def fill(recipe: str, used: float, needed: int = 1000) -> Path:
    """Compress a toy by a recipe into the cache, last used at a time."""
    windows = np.random.default_rng(0).integers(0, 284, (2, 16))
    model = toy_model()
    from llmkick.compression.walk.calibration import as_calibration
    from llmkick.compression.walk.compression_key import kept_key

    key = kept_key(model.info, model.device, parse_recipe(recipe), as_calibration(windows), propagate=True)
    with cache.entry_for(key, needed) as folder:
        assert folder is not None
        compress(model, recipe, calibration=windows, keep=folder)
    for file in (folder, *folder.iterdir()) if folder.exists() else ():
        os.utime(file, (used, used))
    return folder


@pytest.mark.parametrize(
    ("text", "expected"),
    [("20GB", 20 * 10**9), ("1.5 gb", 1_500_000_000), ("500MB", 5 * 10**8), ("0", 0), ("1TB", 10**12), ("12B", 12)],
)
def test_the_limit_is_a_size(monkeypatch: pytest.MonkeyPatch, text: str, expected: int):
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", text)
    assert cache.limit_bytes() == expected


@pytest.mark.parametrize("text", ["much", "-1GB", "20 apples", ""])
def test_other_limits_are_refused(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", text)
    with pytest.raises(ConfigError, match=r"LLMKICK_CACHE_LIMIT is .*; write a size such as 20GB"):
        cache.limit_bytes()


def test_entries_are_described_and_the_last_used_comes_first():
    fill("rtn@4b", used=1000)
    fill("wanda@2:4", used=2000)
    found = cache.entries()
    assert [(entry.recipe, entry.complete, entry.blocks) for entry in found] == [
        ("wanda@2:4", True, 3),
        ("rtn@4b", True, 3),
    ]
    assert all(entry.size == sum(file.stat().st_size for file in entry.folder.iterdir()) for entry in found)
    assert found[0].model == toy_model().info.name


def test_the_least_recently_used_go_first(monkeypatch: pytest.MonkeyPatch):
    old, middle, new = (fill(recipe, used) for recipe, used in (("rtn@2b", 1e6), ("rtn@3b", 2e6), ("rtn@4b", 3e6)))
    sizes = {entry.folder: entry.size for entry in cache.entries()}
    gone = cache.trim(sizes[middle] + sizes[new])
    assert [entry.folder for entry in gone] == [old]
    assert not old.exists()
    # Using one again keeps it.
    fill("rtn@3b", used=4e6)
    assert [entry.folder for entry in cache.trim(sizes[middle])] == [new]
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", f"{sizes[middle]}B")
    fill("rtn@2b", used=5e6)
    assert [entry.recipe for entry in cache.entries()] == ["rtn@2b"]


def test_what_does_not_fit_is_not_kept(monkeypatch: pytest.MonkeyPatch, own_cache: Path):
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", "1MB")
    with cache.entry_for({"recipe": "x"}, 1_000_001) as folder:
        assert folder is None
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", "0")
    with cache.entry_for({"recipe": "x"}, 1) as folder:
        assert folder is None
    monkeypatch.delenv("LLMKICK_CACHE_LIMIT")
    monkeypatch.setattr(cache, "SPARE_BYTES", 10**18)  # a disk almost full
    with cache.entry_for({"recipe": "x"}, 1) as folder:
        assert folder is None
    assert not any(path.is_dir() for path in own_cache.iterdir())


def test_an_entry_in_use_is_neither_trimmed_nor_cleared():
    used = fill("rtn@4b", used=1000)
    from filelock import FileLock

    with FileLock(used.with_suffix(".lock")):
        assert cache.trim(0) == []
        assert not cache.remove(used)
        assert used.exists()
    assert cache.remove(used)
    assert not used.exists()


def test_an_unfinished_or_unreadable_entry_is_listed(own_cache: Path):
    (own_cache / "abc").mkdir(parents=True)
    (own_cache / "abc" / "compression.json").write_text("{")
    (entry,) = cache.entries()
    assert (entry.recipe, entry.complete, entry.blocks) == ("unknown", False, 0)


# Where no lock can be had


def test_a_file_system_without_locks_keeps_nothing_and_says_so(monkeypatch: pytest.MonkeyPatch, own_cache: Path):
    def no_locks(_handle: int, _operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    left = fill("rtn@4b", used=1000)  # while there were locks
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.warns(cache.NoLocks, match=rf"{own_cache} .* without locks: .* not kept .*CACHE_LIMIT=0") as said,
        cache.entry_for({"recipe": "x"}, 1) as folder,
    ):
        assert folder is None
    assert said[0].filename == __file__
    assert cache.remove(left)
    assert not left.exists()


def test_a_cache_that_cannot_be_written_is_one_line(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    def read_only(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    left = fill("rtn@4b", used=1000)
    monkeypatch.setattr(os, "open", read_only)
    for use in (lambda: cache.entry_for({"recipe": "x"}, 1).__enter__(), lambda: cache.remove(left)):
        with pytest.raises(ConfigError, match=r"cannot write the cache: .*; set LLMKICK_CACHE to another folder"):
            use()
    monkeypatch.undo()
    assert left.exists()


def test_an_error_of_the_work_in_an_entry_stays_what_it_is():
    with pytest.raises(OSError, match="of the work") as error, cache.entry_for({"recipe": "x"}, 1):
        raise OSError("of the work")
    assert type(error.value) is OSError
    with pytest.raises(OSError, match="of the work"), cache.entry_on_its_way():
        raise OSError("of the work")


def test_a_compression_that_is_not_kept_is_not_cleared_while_it_runs(own_cache: Path):
    with cache.entry_on_its_way() as folder, ThreadPoolExecutor(1) as pool:
        (folder / "block").write_text("")
        assert pool.submit(clear_cache, cache.ON_ITS_WAY).result() == [folder]
        assert (folder / "block").exists()
    assert list((own_cache.parent / cache.ON_ITS_WAY).iterdir()) == []


# Room


def test_an_entry_that_has_begun_is_gone_on_with(monkeypatch: pytest.MonkeyPatch):
    key = {"recipe": "x"}
    with cache.entry_for(key, 1000) as folder:
        assert folder is not None
        (folder / STATE_FILE).write_text("{}")
    monkeypatch.setattr(cache, "SPARE_BYTES", 10**18)  # a disk almost full
    with cache.entry_for(key, 1000) as again:
        assert again == folder
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", "500B")
    with cache.entry_for(key, 1000) as again:
        assert again == folder
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", "0")  # without a cache
    with cache.entry_for(key, 1000) as again:
        assert again is None


def test_the_state_of_a_training_is_gone_on_with_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """While it trains, a model has no finished block."""
    key = {"recipe": "x+lora"}
    with cache.entry_for(key, 1000) as folder:
        assert folder is not None
        (folder / "training.safetensors").write_bytes(b"state")
    assert cache.progress_in(folder) == (0, True) > cache.progress_in(tmp_path)
    monkeypatch.setattr(cache, "SPARE_BYTES", 10**18)
    with cache.entry_for(key, 1000) as again:
        assert again == folder


def test_what_is_about_to_be_written_to_the_same_disk_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1500))
    with cache.entry_for({"recipe": "x"}, 1000, besides=500) as folder:
        assert folder is not None
    with cache.entry_for({"recipe": "x"}, 1000, besides=501) as folder:
        assert folder is None


@pytest.mark.parametrize("recipe", ["rtn@4b-g8", "wanda@2:4", "magnitude@0.5", "sparsegpt@0.5+4b", "rtn@4b+eora-r2"])
def test_the_size_of_an_entry_is_known_before(recipe: str):
    folder = fill(recipe, used=1000)
    model = toy_model()
    blocks = decoder_blocks(model.network)
    layers = [layer for block in blocks for layer in block.layers]
    finished = json.loads((folder / STATE_FILE).read_text())
    assert finished["report"]["stored_bytes"] == pytest.approx(entry_bytes(parse_recipe(recipe), blocks), rel=0.02)
    assert len(finished["report"]["layers"]) == len(layers)
    assert still_needed(folder, 900, len(blocks)) == 0
    (folder / STATE_FILE).write_text(json.dumps({**finished, "finished": 1}))
    assert still_needed(folder, 900, len(blocks)) == 600
    assert still_needed(folder.parent / "none", 900, len(blocks)) == 900


# Stopped while it is deleted


def test_an_entry_whose_deletion_was_stopped_counts_no_blocks(monkeypatch: pytest.MonkeyPatch):
    folder = fill("rtn@4b", used=1000)

    def stopped(path: Path, **_: object) -> None:
        (path / "block-00000.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        cache.remove(folder)
    monkeypatch.undo()
    assert (folder / "block-00001.safetensors").exists()
    assert count_finished(folder) == 0
    assert FinishedBlocks(folder, {}).count == 0


def test_entries_that_another_process_deletes_meanwhile_are_left_out(monkeypatch: pytest.MonkeyPatch):
    one, other = fill("rtn@4b", used=1000), fill("rtn@3b", used=1000)
    describe = cache._describe

    def late(folder: Path) -> cache.Entry:
        shutil.rmtree(one, ignore_errors=True)
        return describe(folder)

    monkeypatch.setattr(cache, "_describe", late)
    assert [entry.folder for entry in cache.entries()] == [other]
