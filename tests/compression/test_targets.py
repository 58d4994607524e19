"""Where a compression writes: what stopped goes on, what cannot be written is refused before any work."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file

from compressing import Silent, compressed
from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage import cache, compress_to_disk
from llmkick.compression.storage.cache import entry_bytes
from llmkick.compression.storage.compress_to_disk import CalibrationPlan, Form, compress_checkpoint
from llmkick.compression.storage.target import OTHER_BYTES
from llmkick.compression.walk import recipe_output
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.finished_blocks import STATE_FILE, DamagedBlocksError
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.meta_model import load_meta_model
from llmkick.models.weights import weights_digest
from speeds import others_slow
from toy import save_toy


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SPARE_BYTES", 0)
    return tmp_path / "cache" / "compressed"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_toy(tmp_path / "model")
    return tmp_path / "model"


class Stopped(Exception):  # noqa: N818
    pass


class Watching(Silent):
    """Calls a function with the number of finished blocks."""

    def __init__(self, watch: Callable[[int], None]) -> None:
        self._watch = watch

    def advance(self, done: int) -> None:
        self._watch(done)


def compress_watched(model: Path, folder: Path, watch: Callable[[int], None], form: Form = "folder") -> str:
    plan = CalibrationPlan(sequences=2, length=16)
    report = compress_checkpoint(
        str(model), "magnitude@0.5", folder, form=form, calibration=plan, dtype="float32", observer=Watching(watch)
    )
    return report.digest


def stop_at_one(done: int) -> None:
    if done == 1:
        raise Stopped


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The numbers of the blocks whose layers were compressed, in order."""
    blocks: list[str] = []
    solve = recipe_output.compress_with_statistics

    def counted(*arguments: object, name: str, **options: object) -> object:
        blocks.append(name.split(".")[2])
        return solve(*arguments, name=name, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(recipe_output, "compress_with_statistics", counted)
    return blocks


def set_full(monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """A disk on which the cache finds no room, or room again."""
    monkeypatch.setattr(cache, "SPARE_BYTES", 10**18 if full else 0)


# What stopped goes on


@pytest.mark.parametrize("full_at_first", [True, False])
def test_a_stopped_compression_goes_on_wherever_there_is_room_now(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, solved: list[str], full_at_first: bool
):
    set_full(monkeypatch, full_at_first)
    with pytest.raises(Stopped):
        compress_watched(model, tmp_path / "out", stop_at_one)
    assert len(list(tmp_path.glob(".out.*.partial"))) == full_at_first
    solved.clear()
    set_full(monkeypatch, not full_at_first)
    digest = compress_watched(model, tmp_path / "out", lambda _: None)
    assert "0" not in solved
    assert "2" in solved
    assert digest == weights_digest(load_model(str(tmp_path / "out"), dtype="float32").network)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model", "out"]


def test_a_finished_compression_is_used_on_a_full_disk(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, solved: list[str]
):
    digest = compress_watched(model, tmp_path / "one", lambda _: None)
    solved.clear()
    set_full(monkeypatch, True)
    assert compress_watched(model, tmp_path / "two", lambda _: None) == digest
    assert solved == []


def test_what_was_begun_beside_the_target_is_deleted_when_the_cache_has_more(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, solved: list[str]
):
    set_full(monkeypatch, True)
    with pytest.raises(Stopped):
        compress_watched(model, tmp_path / "out", stop_at_one)
    set_full(monkeypatch, False)
    compress_watched(model, tmp_path / "other", lambda _: None)
    solved.clear()
    compress_watched(model, tmp_path / "out", lambda _: None)
    assert solved == []
    assert not list(tmp_path.glob(".out.*"))


# The folder that is asked for


def test_the_current_folder_can_be_the_target(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    digest = compress_watched(model, Path(), lambda _: None)
    assert Path("config.json").is_file()  # seen by who stayed in the folder
    assert weights_digest(load_model(str(tmp_path / "out"), dtype="float32").network) == digest
    assert [path.name for path in Path().iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("form", ["folder", "packed"])
@pytest.mark.parametrize("full", [True, False])
def test_an_empty_folder_is_filled_and_nothing_is_written_beside_it(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, form: Form, full: bool
):
    """It may be a mount point, and the folder around it not ours to write to."""
    set_full(monkeypatch, full)
    around = tmp_path / "around"
    (around / "out").mkdir(parents=True)
    before = (around / "out").stat().st_ino

    def watch(_done: int) -> None:
        assert [path.name for path in around.iterdir()] == ["out"]

    compress_watched(model, around / "out", watch, form)
    assert [path.name for path in around.iterdir()] == ["out"]
    assert (around / "out").stat().st_ino == before
    compressed(model, tmp_path / "new", form)
    files = [{path.name for path in folder.iterdir()} for folder in (around / "out", tmp_path / "new")]
    assert files[0] == files[1]


def test_a_killed_compression_into_an_empty_folder_goes_on(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, solved: list[str]
):
    set_full(monkeypatch, True)
    (tmp_path / "out").mkdir()
    for left in ("out/.llmkick.new.partial", "out/.llmkick.weights.partial", ".out.weights.partial"):
        (tmp_path / left).mkdir()  # as SIGKILL leaves it
    with pytest.raises(Stopped):
        compress_watched(model, tmp_path / "out", stop_at_one)
    solved.clear()
    compress_watched(model, tmp_path / "out", lambda _: None)
    assert "0" not in solved
    assert not list((tmp_path / "out").glob(".*"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model", "out"]


def test_a_link_to_an_empty_folder_is_followed(tmp_path: Path, model: Path):
    (tmp_path / "disk").mkdir()
    for name, to in (("there", "disk"), ("gone", "elsewhere")):
        (tmp_path / name).symlink_to(tmp_path / to)
        compressed(model, tmp_path / name)
        assert (tmp_path / to / "config.json").is_file()
        assert (tmp_path / name).is_symlink()


@pytest.mark.parametrize("folder", ["file/out", "/proc/out", "/proc/self"])
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, folder: str
):
    if not Path("/proc/self").exists():
        pytest.skip("there is no /proc")
    (tmp_path / "file").write_text("")

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(compress_to_disk, "load_meta_model", load)
    with pytest.raises(ConfigError, match=f"{folder} (cannot be written|exists and is not empty).*another folder"):
        compressed(model, tmp_path / folder)


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 1)() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("name", ["", "out", "new/out"])
def test_a_folder_of_somebody_else_is_refused_before_any_work(tmp_path: Path, model: Path, name: str):
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        compressed(model, tmp_path / "theirs" / name)


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_a_target_that_another_command_is_writing_is_refused(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, full: bool, is_there: bool
):
    set_full(monkeypatch, full)
    target, refused = tmp_path / "out", list[str]()
    if is_there:
        target.mkdir()

    def watch(done: int) -> None:
        # Another thread has locks of its own, as another command has.
        with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError) as error:
            pool.submit(compressed, model, target, recipe="rtn@4b").result()
        refused.append(str(error.value))
        if done == 2:
            target.mkdir(exist_ok=True)  # by somebody else

    digest = compress_watched(model, target, watch)
    assert len(refused) >= 3
    assert set(refused) == {f"another command is writing {target}; wait until it has ended, or choose another folder"}
    assert weights_digest(load_model(str(target), dtype="float32").network) == digest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model", "out"]
    with pytest.raises(ConfigError, match="exists and is not empty"):
        compressed(model, target, recipe="rtn@4b")


def test_a_folder_that_came_meanwhile_is_not_replaced(tmp_path: Path, model: Path):
    def watch(_done: int) -> None:
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "theirs").write_text("")

    with pytest.raises(ConfigError, match="exists and is not empty"):
        compress_watched(model, tmp_path / "out", watch)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["theirs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model", "out"]


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("form", ["folder", "packed"])
def test_all_files_are_on_the_disk_before_the_finished_blocks_are_deleted(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, form: Form, is_there: bool
):
    set_full(monkeypatch, True)
    target, synced, left = tmp_path / "out", set[int](), list[str]()
    if is_there:
        target.mkdir()
    sync, delete = os.fsync, compress_to_disk.delete_blocks

    def noted(handle: int) -> None:
        sync(handle)
        synced.add(os.fstat(handle).st_ino)

    def deleting(folder: Path) -> None:
        assert (target / "config.json").is_file()
        ours = [path for path in target.iterdir() if not path.name.startswith(".")]
        paths = [target if is_there else target.parent, *ours]
        left.extend(path.name for path in paths if path.stat().st_ino not in synced)
        delete(folder)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(compress_to_disk, "delete_blocks", deleting)
    compressed(model, target, form)
    assert left == []


# Room


@pytest.mark.parametrize("one_disk", [True, False])
def test_what_the_target_and_the_finished_blocks_take_is_added_up(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, one_disk: bool
):
    meta_model = load_meta_model(str(model), dtype="float32")
    blocks = entry_bytes(parse_recipe("magnitude@0.5"), decoder_blocks(meta_model.model.network))
    free = meta_model.bytes + OTHER_BYTES + blocks // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(compress_to_disk, "on_one_disk", lambda *_: one_disk)
    if not one_disk:
        compressed(model, tmp_path / "out")
        return
    with pytest.raises(ConfigError, match=r"saving model needs \d+ MB in .*out, but only \d+ MB are free"):
        compressed(model, tmp_path / "out")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free + blocks))
    compressed(model, tmp_path / "out")
    # Of finished blocks nothing is to be written.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    compressed(model, tmp_path / "again")


def test_the_cache_leaves_room_for_the_target(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
):
    meta_model = load_meta_model(str(model), dtype="float32")
    blocks = entry_bytes(parse_recipe("magnitude@0.5"), decoder_blocks(meta_model.model.network))
    monkeypatch.setattr(cache, "SPARE_BYTES", OTHER_BYTES + 1)
    needed = meta_model.bytes + OTHER_BYTES + blocks
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
    compressed(model, tmp_path / "out")
    assert not list(own_cache.glob("*/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed + 1))
    compressed(model, tmp_path / "again")
    assert len(list(own_cache.glob(f"*/{STATE_FILE}"))) == 1


def test_blocks_that_get_no_second_name_take_room_twice(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a file system without hard links, or between two mounts of one."""
    meta_model = load_meta_model(str(model), dtype="float32")
    parts = decoder_blocks(meta_model.model.network)
    blocks = entry_bytes(parse_recipe("magnitude@0.5"), parts)
    rest = meta_model.bytes - sum(layer.weight.nbytes for block in parts for layer in block.layers)
    needed = rest + OTHER_BYTES + 2 * blocks

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
        with pytest.raises(ConfigError, match="but only"):
            compressed(model, tmp_path / "out", "packed")
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed))
        compressed(model, tmp_path / "out", "packed")
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - blocks))
    compressed(model, tmp_path / "linked", "packed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "linked", "model", "out"]


def test_the_matrices_of_an_adapter_take_room_too(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = "gptq@3b-g8+eora-r4"
    monkeypatch.setattr(compress_to_disk, "on_one_disk", lambda *_: False)
    compressed(model, tmp_path / "out", "adapter", recipe)
    size = sum(t.nbytes for file in (tmp_path / "out").rglob("*.safetensors") for t in load_file(file).values())
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size + OTHER_BYTES - 1))
    with pytest.raises(ConfigError, match="but only"):
        compressed(model, tmp_path / "again", "adapter", recipe)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size + OTHER_BYTES))
    compressed(model, tmp_path / "again", "adapter", recipe)


# Finished blocks that are damaged

FORMS = ["folder", "packed", "compressed-tensors"]


def lose(file: Path) -> None:
    file.unlink()


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:200])


def alter(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


DAMAGES = [
    *((form, damage) for form in FORMS for damage in (lose, cut)), ("folder", alter), ("compressed-tensors", alter),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "damage"),
    others_slow(DAMAGES, [("folder", lose), ("folder", alter), ("packed", cut), ("compressed-tensors", alter)]),
)
def test_a_damaged_entry_is_named_with_the_folder_to_delete(
    tmp_path: Path, model: Path, own_cache: Path, form: Form, damage: Callable[[Path], None]
):
    if form == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    compressed(model, tmp_path / "out", form, "rtn@4b")
    (block,) = own_cache.glob("*/block-00001.safetensors")
    whole = block.read_bytes()
    block.unlink()  # it may be linked to what was written
    block.write_bytes(whole)
    damage(block)
    with pytest.raises(DamagedBlocksError, match=rf"block-00001\.safetensors.*: delete the folder {block.parent}"):
        compressed(model, tmp_path / "again", form, "rtn@4b")
    shutil.rmtree(block.parent)
    compressed(model, tmp_path / "again", form, "rtn@4b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "cache", "model", "out"]


def test_files_that_cannot_all_be_moved_leave_an_empty_target(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
):
    """The same command is not refused afterwards: what was moved into the folder is gone again."""
    target = tmp_path / "out"
    target.mkdir()
    replace = Path.replace

    def full(self: Path, other: Path) -> Path:
        if other == target.resolve() / "config.json":
            raise OSError(errno.EIO, "Input/output error")
        return replace(self, other)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="Input/output error"):
        compress_watched(model, target, lambda _: None)
    assert not list(target.iterdir())
    monkeypatch.undo()
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    compress_watched(model, target, lambda _: None)
    assert (target / "config.json").is_file()
