"""The cache of compressed models: by content, within its limit, never in the way of who is using it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from llmkick.compression.storage import cache
from llmkick.compression.walk.compress import compress
from llmkick.errors import ConfigError
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
    from llmkick.compression.registry import parse_recipe
    from llmkick.compression.walk.calibration import as_calibration
    from llmkick.compression.walk.keys import kept_key

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
