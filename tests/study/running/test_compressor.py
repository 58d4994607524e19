"""The compressor of a study: its cache saves work, and is in nobody's way when it is damaged, full or of no use."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llmkick.compression.recipe import Recipe, with_training
from llmkick.compression.recoveries import Training
from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage import cache
from llmkick.compression.storage.cache import entry_bytes, folder_of
from llmkick.compression.storage.shared_store import ArtifactStore
from llmkick.compression.training.trainer import Trainer
from llmkick.compression.walk import finished_blocks
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.compression_key import kept_key
from llmkick.compression.walk.finished_blocks import STATE_FILE, count_finished
from llmkick.errors import ModelError
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import weights_digest
from llmkick.study.progress import Silent
from llmkick.study.running import compressor as module
from llmkick.study.running.compressor import StudyCompressor
from speeds import others_slow
from toy import toy_model

WINDOWS = Calibration(tokens=np.random.default_rng(0).integers(5, 200, (4, 24)), source="test", seed=3)
RECOVERED = with_training(parse_recipe("wanda@0.5+lora-r4"), Training(steps=2))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SPARE_BYTES", 0)


def compressor_of(
    model: TransformersModel, *, propagate: bool = True, store: ArtifactStore | None = None
) -> StudyCompressor:
    return StudyCompressor(model=model, propagate=propagate, observer=Silent(), warnings=[], store=store)


def entry_of(model: TransformersModel, recipe: Recipe, *, propagate: bool = True) -> Path:
    return folder_of(kept_key(model.info, model.device, recipe, WINDOWS, propagate=propagate))


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Contents of the files, and when they were written; the state of an entry is touched whenever it is used."""
    return {
        path.name: (0 if path.name == STATE_FILE else path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.iterdir()
    }


def alter(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)


# What is not the fault of the cache


def test_an_error_of_the_model_leaves_the_cache_alone(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("peft")
    model = toy_model()
    base = entry_of(model, parse_recipe("wanda@0.5"))
    monkeypatch.setattr(Trainer, "loss_of", lambda *_: float("nan"))
    compressor = compressor_of(model)
    compressor.compressed(parse_recipe("wanda@0.5"), 0, WINDOWS)
    before = files(base)
    assert count_finished(base) == 3
    with pytest.raises(ModelError, match="NaN or Inf before any training"):
        compressor.compressed(RECOVERED, 0, WINDOWS)
    assert compressor.warnings == []
    assert files(base) == before


class NeverRuns(nn.Module):
    """A wide layer beside a block's own that text does not reach."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.image = block, nn.Linear(64, 64)

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        states: Tensor = self.block(*arguments, **keywords)
        return states


@pytest.mark.parametrize("together", [True, False])
def test_text_that_does_not_reach_a_layer_is_an_error_at_once(together: bool):
    model = toy_model()
    model.network.model.layers = nn.ModuleList(NeverRuns(block) for block in model.network.model.layers)
    compressor = compressor_of(model, propagate=not together)
    recipes = [parse_recipe(text) for text in ("wanda@0.5", "wanda@2:4")]

    def go() -> None:
        if together:
            compressor.compress_together([(recipe, WINDOWS) for recipe in recipes], 0)
        else:
            compressor.compressed(recipes[0], 0, WINDOWS)

    with pytest.raises(ModelError, match="calibration text does not reach"):
        go()
    assert compressor.warnings == []


# Damage


DAMAGED = [(parts, missing) for parts in (("keep",), ("base",), ("keep", "base")) for missing in (True, False)]


@pytest.mark.parametrize(("damaged", "missing"), others_slow(DAMAGED, [DAMAGED[0], DAMAGED[3], DAMAGED[5]]))
def test_only_what_is_damaged_is_made_anew(damaged: Sequence[str], missing: bool):
    pytest.importorskip("peft")
    model = toy_model()
    compressor = compressor_of(model)
    _, report = compressor.compressed(RECOVERED, 0, WINDOWS)
    folders = {"keep": entry_of(model, RECOVERED), "base": entry_of(model, parse_recipe("wanda@0.5"))}
    before = files(folders["base"])
    for name in damaged:
        file = folders[name] / "block-00001.safetensors"
        if missing:
            file.unlink()
        else:
            alter(file)
    if damaged == ("base",):  # it is read only where the recovered model is to be made
        shutil.rmtree(folders["keep"])
    _, again = compressor.compressed(RECOVERED, 0, WINDOWS)
    assert again.digest == report.digest
    assert len(compressor.warnings) == len(damaged)
    assert all("the cached model was damaged and was made anew" in warning for warning in compressor.warnings)
    if "base" not in damaged:
        assert files(folders["base"]) == before


# Room


def test_a_disk_that_gets_full_costs_the_cache_and_not_the_study(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    model, recipe = toy_model(), parse_recipe("wanda@0.5")
    expected, report = compress(model, recipe, calibration=WINDOWS)
    write = finished_blocks.write_packed

    def full(file: Path, *weights: Any) -> None:
        if file.name == "block-00001.safetensors":
            raise OSError(28, "No space left on device", str(file))
        write(file, *weights)

    monkeypatch.setattr(finished_blocks, "write_packed", full)
    compressor = compressor_of(model, store=ArtifactStore(str(tmp_path / "store")))
    found, again = compressor.compressed(recipe, 0, WINDOWS)
    assert again.digest == report.digest
    state, wanted = found.network.state_dict(), expected.network.state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    (warning,) = compressor.warnings
    assert "wanda@0.5: the model is not kept in the cache" in warning
    assert "block-00001.safetensors" in warning
    monkeypatch.undo()


def test_a_training_whose_blocks_find_no_room_is_not_trained_again(monkeypatch: pytest.MonkeyPatch):
    model = toy_model()
    _, report = compress(model, RECOVERED, calibration=WINDOWS)
    write, run, runs = finished_blocks.write_packed, Trainer.run, list[int]()

    def full(file: Path, *weights: Any) -> None:
        if file.parent == entry_of(model, RECOVERED):
            raise OSError(28, "No space left on device", str(file))
        write(file, *weights)

    def counted(trainer: Trainer) -> Any:
        runs.append(1)
        return run(trainer)

    monkeypatch.setattr(finished_blocks, "write_packed", full)
    monkeypatch.setattr(Trainer, "run", counted)
    compressor = compressor_of(model)
    found, again = compressor.compressed(RECOVERED, 0, WINDOWS)
    assert len(runs) == 1
    assert again.digest == report.digest == weights_digest(found.network)
    (warning,) = compressor.warnings
    assert "the model is not kept in the cache" in warning


def test_a_disk_that_gets_full_ends_a_pass_but_not_the_study(monkeypatch: pytest.MonkeyPatch):
    model = toy_model()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(finished_blocks, "write_packed", full)
    compressor = compressor_of(model, propagate=False)
    recipes = [parse_recipe(text) for text in ("wanda@0.5", "wanda@2:4")]
    compressor.compress_together([(recipe, WINDOWS) for recipe in recipes], 0)
    for recipe in recipes:
        _, report = compressor.compressed(recipe, 0, WINDOWS)
        assert report.digest == compress(model, recipe, calibration=WINDOWS, propagate=False)[1].digest


@pytest.mark.parametrize("short", [0, 1])
def test_a_pass_needs_room_for_all_its_models(monkeypatch: pytest.MonkeyPatch, short: int):
    model = toy_model()
    recipes = [parse_recipe(text) for text in ("wanda@0.5", "wanda@2:4", "gptq@4b")]
    sizes = [entry_bytes(recipe, decoder_blocks(model.network)) for recipe in recipes]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=sum(sizes) - short))
    passes: list[int] = []
    monkeypatch.setattr(module, "compress_into", lambda _model, jobs, **_: passes.append(len(jobs)))
    compressor_of(model, propagate=False).compress_together([(recipe, WINDOWS) for recipe in recipes], 0)
    assert passes == ([] if short else [3])


def test_a_store_that_cannot_be_written_costs_the_others_and_not_the_study(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ArtifactStore, "put", full)
    compressor = compressor_of(toy_model(), store=ArtifactStore(str(tmp_path / "store")))
    _, report = compressor.compressed(parse_recipe("wanda@0.5"), 0, WINDOWS)
    assert report.recipe == "wanda@0.5"
    (warning,) = compressor.warnings
    assert "was not shared ([Errno 28] No space left on device)" in warning
