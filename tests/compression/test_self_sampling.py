"""Sampling as a GPU does it: one allocation, steps of a fixed shape, and few waits; the text is that of a CPU."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llmkick.compression.walk import self_sampling
from llmkick.compression.walk.self_sampling import is_sampled, self_sampled
from llmkick.errors import ConfigError, NumericalError
from llmkick.models.engine import fixed_steps, kv_cache
from llmkick.models.engine.batch_budget import MemoryShortage
from llmkick.models.engine.fixed_steps import FixedSteps
from llmkick.models.engine.kv_cache import can_reuse_cache
from llmkick.models.engine.network import is_plain_sdpa
from llmkick.models.engine.runner import Runner
from toy import toy_model
from waits import OnDevice, Waits


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(self_sampling, "cache_folder", lambda name: tmp_path)
    return tmp_path


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[FixedSteps | None]:
    """From here on, a CPU samples as a GPU does; returns what is made of the batches that can have fixed steps."""
    made: list[FixedSteps | None] = []
    of = FixedSteps.of

    def noted(*arguments: Any, **options: Any) -> FixedSteps | None:
        made.append(of(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(FixedSteps, "of", noted)
    monkeypatch.setattr(self_sampling, "_allocates_once", lambda model, length: can_reuse_cache(model.network, length))
    monkeypatch.setattr(self_sampling, "suits_fixed_steps", lambda network, _: is_plain_sdpa(network))
    return made


# Whether the network decodes in fixed steps: windows and states of their own keep ordinary ones.
ARCHITECTURES = {
    "llama": True,
    "gpt2": True,
    "gemma": True,
    "opt": True,
    "mistral": False,
    "gemma3": False,
    "mamba": False,
}


def test_text_is_kept_although_the_cache_was_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "calibration"
    monkeypatch.setattr(self_sampling, "cache_folder", lambda name: folder)
    tokens = self_sampled(toy_model(), sequences=2, length=40, seed=0)
    shutil.rmtree(folder)

    def deleted(_done: int, _total: int) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    assert np.array_equal(self_sampled(toy_model(), sequences=2, length=40, seed=0, progress=deleted), tokens)
    (file,) = folder.iterdir()
    assert np.array_equal(np.load(file), tokens)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(self_sampling, "cache_folder", lambda name: tmp_path / "file")
    with pytest.raises(ConfigError, match=r"cannot write the cache: .*; set LLMKICK_CACHE to another folder"):
        self_sampled(toy_model(), sequences=1, length=8, seed=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_text_is_that_of_a_growing_cache(architecture: str, cache: Path, monkeypatch: pytest.MonkeyPatch):
    model = toy_model(architecture)
    expected = self_sampled(model, sequences=3, length=60, seed=4)
    for file in cache.iterdir():
        file.unlink()
    made = as_on_a_gpu(monkeypatch)
    assert np.array_equal(self_sampled(model, sequences=3, length=60, seed=4), expected)
    assert [steps is not None for steps in made] == [True] * ARCHITECTURES[architecture]


def test_text_that_was_begun_goes_on_in_fixed_steps(cache: Path, monkeypatch: pytest.MonkeyPatch):
    model = toy_model()
    expected = self_sampled(model, sequences=3, length=90, seed=4)
    for file in cache.iterdir():
        file.unlink()
    made = as_on_a_gpu(monkeypatch)

    def stop(done: int, _: int) -> None:
        if done >= 3 * 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        self_sampled(model, sequences=3, length=90, seed=4, progress=stop)
    assert np.array_equal(self_sampled(model, sequences=3, length=90, seed=4), expected)
    assert len(made) == 2
    assert None not in made


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_keys_and_values_are_allocated_once(architecture: str, monkeypatch: pytest.MonkeyPatch):
    as_on_a_gpu(monkeypatch)
    grown: list[int] = []
    grow = kv_cache._grown

    def noted(buffer: torch.Tensor, used: int, columns: int) -> torch.Tensor:
        grown.append(columns)
        return grow(buffer, used, columns)

    monkeypatch.setattr(kv_cache, "_grown", noted)
    model = toy_model(architecture)
    self_sampled(model, sequences=2, length=100, seed=0)
    assert grown == [100] * 2 * 3  # keys and values of three layers


@pytest.mark.parametrize("is_fixed", [True, False])
def test_text_that_follows_nan_is_never_kept(is_fixed: bool, cache: Path, monkeypatch: pytest.MonkeyPatch):
    model = toy_model()
    whole = self_sampled(model, sequences=2, length=80, seed=1)
    for file in cache.iterdir():
        file.unlink()
    monkeypatch.setattr(self_sampling, "KEEP_EVERY", 8)
    if is_fixed:
        as_on_a_gpu(monkeypatch)
    last_logits, calls = Runner.last_logits, list[int]()

    def failing(self: Runner, *arguments: Any, **options: Any) -> torch.Tensor:
        logits = last_logits(self, *arguments, **options)
        calls.append(1)
        return logits.fill_(torch.nan) if len(calls) == 28 else logits  # once, and in one row of the text

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "last_logits", failing)
        with pytest.raises(NumericalError, match="toy-llama gives NaN or Inf"):
            self_sampled(model, sequences=2, length=80, seed=1)
    (partial,) = cache.iterdir()
    kept = np.load(partial)
    assert kept.shape == (2, 25)
    assert np.array_equal(kept, whole[:, :25])
    assert np.array_equal(self_sampled(model, sequences=2, length=80, seed=1), whole)


def test_nan_in_the_last_tokens_keeps_no_text(cache: Path, monkeypatch: pytest.MonkeyPatch):
    model = toy_model()
    last_logits, calls = Runner.last_logits, list[int]()

    def failing(self: Runner, *arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        logits = last_logits(self, *arguments, **options)
        return logits.fill_(torch.inf) if len(calls) == 10 else logits

    monkeypatch.setattr(Runner, "last_logits", failing)
    with pytest.raises(NumericalError):
        self_sampled(model, sequences=2, length=12, seed=1)
    assert list(cache.iterdir()) == []


def test_a_gpu_is_waited_for_where_text_is_kept_only(monkeypatch: pytest.MonkeyPatch):
    model = toy_model()
    as_on_a_gpu(monkeypatch)
    expected = self_sampled(model, sequences=2, length=70, seed=1)
    waits, forward, read = Waits(), Runner.forward, self_sampling.read

    def on_a_device(self: Runner, *arguments: Any, **options: Any) -> Any:
        return forward(self, *arguments, **options).as_subclass(OnDevice)

    def noted(numbers: torch.Tensor) -> torch.Tensor:
        waits.places.append("read")
        return read(numbers.as_subclass(torch.Tensor))

    monkeypatch.setattr(Runner, "forward", on_a_device)
    monkeypatch.setattr(self_sampling, "read", noted)
    monkeypatch.setattr(self_sampling, "_read", lambda *_: np.zeros((0, 70), dtype=np.int64))
    with waits:
        assert np.array_equal(self_sampled(model, sequences=2, length=70, seed=1), expected)
    # At positions 16, 32, 48 and 64 and the last one; and once where a fixed step is compared with an ordinary one.
    assert waits.places.count("_sample") == 5
    assert waits.places.count("read") == 5
    assert waits.places.count("_is_alike") == 1
    assert len(waits.places) == 11


def test_cached_text_needs_no_forward_of_a_model_that_is_not_in_memory():
    """The experts of mixtral in float32 cannot run on the meta device at all."""
    size = {"sequences": 2, "length": 10, "seed": 3}
    expected = self_sampled(toy_model("mixtral"), **size)
    model = toy_model("mixtral")
    model.network.to("meta")
    assert model.device.type == "meta"
    assert is_sampled(model, **size)
    assert np.array_equal(self_sampled(model, **size), expected)
    assert np.array_equal(self_sampled(model, **{**size, "sequences": 1}), expected[:1])
    with pytest.raises(ConfigError, match="toy-mixtral is not in memory"):
        self_sampled(model, **{**size, "sequences": 3})


def test_text_of_one_way_of_sampling_is_not_continued_in_the_other(cache: Path, monkeypatch: pytest.MonkeyPatch):
    model, size = toy_model(), {"length": 10, "seed": 3}
    key = f"{model.info.digest}\0float32\0{10}\0{3}\0{2}"  # of texts that are cached already
    before = cache / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
    self_sampled(model, sequences=2, **size)
    assert list(cache.iterdir()) == [before]
    strange = np.full((2, 10), 7)
    np.save(before, strange)
    with monkeypatch.context() as patch:
        as_on_a_gpu(patch)
        assert not is_sampled(model, sequences=2, **size)
        other = self_sampled(model, sequences=3, **size)
    assert not np.array_equal(other[:2], strange)
    assert np.array_equal(np.load(before), strange)
    assert np.array_equal(self_sampled(model, sequences=2, **size), strange)
    # A model that is not in memory finds either: its own device's first, and the other where that is too short.
    model.network.to("meta")
    for has_cuda, first in ((False, strange), (True, other[:2])):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_cuda=has_cuda: has_cuda)
        assert np.array_equal(self_sampled(model, sequences=2, **size), first)
        assert np.array_equal(self_sampled(model, sequences=3, **size), other)


@pytest.mark.parametrize("is_shortage", [True, False])
def test_a_refusal_while_sampling_changes_no_answer(is_shortage: bool, cache: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor does an earlier refusal change the sampling: a run that goes on in a new process gives the same."""
    model, size = toy_model(), {"sequences": 2, "length": 60, "seed": 4}
    expected = self_sampled(model, **size)
    made, cuda = as_on_a_gpu(monkeypatch), torch.device("cuda")

    def refused(*_: Any) -> bool:
        if is_shortage:
            raise torch.OutOfMemoryError("the graph has no room")
        return False

    with monkeypatch.context() as patch:
        patch.setattr(FixedSteps, "_record", refused)
        if is_shortage:
            with pytest.warns(MemoryShortage, match="sampling calibration text: memory ran short on cpu"):
                found = self_sampled(model, **size)
        else:
            found = self_sampled(model, **size)
    assert np.array_equal(found, expected)
    assert made == [None]
    assert model.notes == ()
    assert fixed_steps.can_fix_steps(model.network, cuda)
    fixed_steps._refused.add(model.network)
    self_sampled(model, **{**size, "seed": 5})
    assert made[1] is not None
