"""Streaming, keeping and resuming give the bits of the walk in memory; what is written opens again everywhere."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from compressing import compressed
from forwards import count_forwards
from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage.folder import StreamedFolder, report_of, save_folder, save_packed
from llmkick.compression.walk import batches, finished_blocks, recipe_output
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import Calibration, as_calibration
from llmkick.compression.walk.compress import compress, compress_many
from llmkick.compression.walk.compress_into import Job, compress_into
from llmkick.compression.walk.compression_key import kept_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.network_parts import NetworkPart
from llmkick.compression.walk.streaming import compress_streamed
from llmkick.errors import ConfigError, ModelError, NumericalError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.meta_model import load_meta_model
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import weights_digest
from speeds import others_slow
from toy import save_toy, toy_model

STREAMED = ("llama", "qwen2", "gemma", "gemma3", "mistral", "opt", "gpt2", "llama4", "dbrx", "gemma4", "zamba",
    "mixtral", "gpt_neox", "qwen2_moe", "deepseek_v3", "gpt_oss", "minimax")  # fmt: skip
RECIPES = ("wanda@0.5", "wanda@2:4", "gptq@4b-g8", "sparsegpt@0.5+4b", "rtn@3b", "magnitude@0.25")


def windows(sequences: int = 7, length: int = 30) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(0).integers(0, 284, (sequences, length))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_TOKENS", 65)


class Stopped(Exception):  # noqa: N818
    pass


def stop_after(blocks: int) -> Any:
    def progress(done: int, _total: int) -> None:
        if done == blocks:
            raise Stopped

    return progress


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a toy of each architecture, written once. Nothing writes into it."""
    folder = tmp_path_factory.mktemp("models")

    @functools.cache
    def made(architecture: str) -> Path:
        save_toy(folder / architecture, architecture)
        return folder / architecture

    return made


@pytest.fixture(scope="module")
def model_of(folder_of: Callable[[str], Path]) -> Callable[..., TransformersModel]:
    """The toy of each architecture in a dtype, loaded once. Compressing leaves its weights alone."""
    return functools.cache(lambda architecture, dtype="float32": load_model(str(folder_of(architecture)), dtype=dtype))


# What streams depends on the architecture, the dtype and on what is propagated, and the weights on the recipe.
WALKS = [
    *((architecture, "float32", False, "gptq@4b-g8") for architecture in STREAMED),  # True: below, to disk
    *((architecture, "bfloat16", True, "sparsegpt@0.5") for architecture in STREAMED),
    ("llama", "float32", True, "wanda@2:4"),
    ("mixtral", "bfloat16", False, "wanda@2:4"),
]
# Tests of weights that are shared, and of what is handed on, stream these.
STREAMED_ELSEWHERE = ("zamba", "gemma4")
# One dtype for each architecture, in turns.
HALF_OF_THE_WALKS = [
    walk for walk in WALKS if walk[0] != "zamba" and (walk[0] in STREAMED[::2]) == (walk[1] == "float32")
]
LIKE_LLAMA = ("qwen2", "gemma", "mistral")


@pytest.mark.parametrize(("architecture", "dtype", "propagate", "text"), others_slow(WALKS, HALF_OF_THE_WALKS))
def test_streamed_bits_are_those_in_memory(
    tmp_path: Path, folder_of: Any, model_of: Any, architecture: str, dtype: str, propagate: bool, text: str
):
    model = model_of(architecture, dtype)
    meta_model = load_meta_model(str(folder_of(architecture)), dtype=dtype)
    assert meta_model.info == model.info
    assert meta_model.obstacle is None
    expected, report = compress(model, text, calibration=windows(), propagate=propagate)
    finished = compress_streamed(
        meta_model, parse_recipe(text), tmp_path / "kept", calibration=as_calibration(windows()), propagate=propagate
    )
    assert finished.report is not None
    assert finished.report.digest == report.digest == expected.info.digest
    assert finished.report.layers == report.layers
    # Nothing stays in memory.
    assert all(parameter.is_meta for parameter in meta_model.model.network.parameters())


@pytest.mark.parametrize(
    "architecture", others_slow(STREAMED, [one for one in STREAMED if one not in STREAMED_ELSEWHERE + LIKE_LLAMA])
)
def test_what_is_streamed_to_disk_opens_as_the_same_model(
    tmp_path: Path, folder_of: Any, model_of: Any, architecture: str
):
    model = model_of(architecture)
    expected, report = compress(model, "gptq@3b-g8", calibration=windows())
    meta_model = load_meta_model(str(folder_of(architecture)), dtype="float32")
    with StreamedFolder(meta_model, tmp_path / "folder") as target:
        finished = compress_streamed(
            meta_model, parse_recipe("gptq@3b-g8"), tmp_path / "kept", calibration=as_calibration(windows()),
            sink=target.put,
        )  # fmt: skip
        target.finish(report_of(finished))
    assert report_of(finished).layers == report.layers
    save_packed(meta_model, finished, tmp_path / "packed")
    ids = torch.from_numpy(windows())
    for out in (tmp_path / "folder", tmp_path / "packed"):
        again = load_model(str(out), dtype="float32")
        assert weights_digest(again.network) == weights_digest(expected.network) == report.digest
        with torch.no_grad():
            assert torch.equal(again.network(ids).logits, expected.network(ids).logits)
        assert again.tokenize("the cat") == model.tokenize("the cat")
        assert json.loads((out / "llmkick_compression.json").read_text())["recipe"] == "gptq@3b-g8"
    # And for any other tool.
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    assert weights_digest(plain) == weights_digest(expected.network)


# Each way to store a weight with one architecture, and with the others those that lie in groups along the inputs.
PACKED = [
    *(("llama", text) for text in RECIPES),
    *((other, text) for other in ("gpt2", "qwen2", "mixtral") for text in ("wanda@2:4", "gptq@4b-g8")),
    ("mixtral", "sparsegpt@0.5+4b"),
]


@pytest.mark.parametrize(("architecture", "text"), PACKED)
def test_a_packed_model_opens_as_the_same_model(tmp_path: Path, model_of: Any, architecture: str, text: str):
    model = model_of(architecture)
    expected, report = compress(model, text, calibration=windows(), keep=tmp_path / "kept")
    finished = kept_blocks(
        model.info, model.device, parse_recipe(text), as_calibration(windows()), tmp_path / "kept", propagate=True
    )
    save_packed(model, finished, tmp_path / "out")
    again = load_model(str(tmp_path / "out"), dtype="float32")
    assert weights_digest(again.network) == report.digest == weights_digest(expected.network)
    blocks = sum(file.stat().st_size for file in (tmp_path / "out").glob("packed-block-*"))
    assert report.stored_bytes <= blocks <= report.stored_bytes + 2500 * len(report.layers)  # and its headers


def test_an_original_that_was_rounded_is_remembered(tmp_path: Path):
    save_toy(tmp_path / "model")
    (tmp_path / "model" / "llmkick_source.json").write_text('{"source_precision": "Q4_1"}')
    model = load_model(str(tmp_path / "model"), dtype="float32")
    compressed, report = compress(model, "rtn@4b")
    save_folder(compressed, report, tmp_path / "out")
    assert load_model(str(tmp_path / "out")).info.source_precision == "Q4_1"


# Stopped and resumed


STOPPED = list(product((True, False), (True, False), ("kept", "lost", "not kept")))
STOPPED_QUICKLY = [*STOPPED[:6], (False, True, "kept"), (False, False, "not kept")]


@pytest.mark.parametrize(("propagate", "streamed", "states"), others_slow(STOPPED, STOPPED_QUICKLY))
def test_a_stopped_compression_goes_on_at_its_block(
    tmp_path: Path, folder_of: Any, model_of: Any, monkeypatch: pytest.MonkeyPatch, propagate: bool, streamed: bool,
    states: str,
):  # fmt: skip
    if states != "not kept":
        monkeypatch.setattr(finished_blocks, "STATES_SECONDS", 0)
        monkeypatch.setattr(finished_blocks, "STATES_TIMES_WRITTEN", 0)
    model = model_of("llama")
    expected, report = compress(model, "gptq@4b-g8", calibration=windows(), propagate=propagate)
    meta_model = load_meta_model(str(folder_of("llama")), dtype="float32")

    def go(progress: Any) -> FinishedBlocks:
        recipe, calibration = parse_recipe("gptq@4b-g8"), as_calibration(windows())
        if streamed:
            return compress_streamed(
                meta_model, recipe, tmp_path / "kept", calibration=calibration, propagate=propagate, progress=progress
            )
        found, _ = compress(
            model, recipe, calibration=calibration, propagate=propagate, progress=progress, keep=tmp_path / "kept"
        )
        assert weights_digest(found.network) == found.info.digest
        return kept_blocks(model.info, model.device, recipe, calibration, tmp_path / "kept", propagate=propagate)

    for done in (1, 2):
        with pytest.raises(Stopped):
            go(stop_after(done))
        assert len(list((tmp_path / "kept").glob("hidden-*"))) == (states != "not kept")
        if states == "lost":
            for file in (tmp_path / "kept").glob("hidden-*"):
                file.write_bytes(file.read_bytes()[:50])
    solved: list[str] = []
    solve = recipe_output.compress_with_statistics
    monkeypatch.setattr(
        recipe_output, "compress_with_statistics", lambda *a, **k: (solved.append(k["name"]), solve(*a, **k))[1]
    )
    told: list[int] = []
    finished = go(lambda done, _: told.append(done))
    assert told == [2, 3]
    assert {name.split(".")[2] for name in solved} == {"2"}  # no block is compressed twice
    assert finished.report is not None
    assert finished.report.digest == report.digest == expected.info.digest
    assert (finished.report.layers, finished.report.warnings) == (report.layers, report.warnings)
    assert not list((tmp_path / "kept").glob("hidden-*"))
    solved.clear()
    assert go(None).report == finished.report
    assert not solved


@pytest.mark.parametrize("propagate", [True, False])
@pytest.mark.parametrize("streamed", [True, False])
def test_hidden_states_of_an_earlier_block_are_enough(
    tmp_path: Path, folder_of: Any, model_of: Any, monkeypatch: pytest.MonkeyPatch, propagate: bool, streamed: bool
):
    model = model_of("llama")
    _, expected = compress(model, "wanda@2:4", calibration=windows(), propagate=propagate)
    meta_model = load_meta_model(str(folder_of("llama")), dtype="float32")

    def go(progress: Any) -> str:
        arguments: dict[str, Any] = {"propagate": propagate, "progress": progress}
        recipe, calibration = parse_recipe("wanda@2:4"), as_calibration(windows())
        if streamed:
            kept = compress_streamed(meta_model, recipe, tmp_path / "kept", calibration=calibration, **arguments)
            return report_of(kept).digest
        return compress(model, recipe, calibration=calibration, keep=tmp_path / "kept", **arguments)[1].digest

    monkeypatch.setattr(finished_blocks, "STATES_TIMES_WRITTEN", 0)
    for done, seconds in ((1, 0), (2, 1e9)):
        monkeypatch.setattr(finished_blocks, "STATES_SECONDS", seconds)
        with pytest.raises(Stopped):
            go(stop_after(done))
    assert [file.name for file in (tmp_path / "kept").glob("hidden-*")] == ["hidden-00001.safetensors"]
    calls: list[int] = []
    count_forwards(monkeypatch, calls)
    assert go(None) == expected.digest
    assert calls == [1] * 4 + [2] * 4  # four batches: block 1 is run again, block 2 is recorded


@pytest.mark.parametrize("sink", [True, False])
def test_a_resumed_compression_gives_all_tensors_to_the_sink_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: bool
):
    save_toy(tmp_path / "model", "gpt2")
    meta_model = load_meta_model(str(tmp_path / "model"), dtype="float32")
    recipe, calibration = parse_recipe("gptq@4b-g8"), as_calibration(windows())
    with pytest.raises(Stopped):
        compress_streamed(
            meta_model, recipe, tmp_path / "kept", calibration=calibration, progress=stop_after(2),
            sink=(lambda _: None) if sink else None,
        )  # fmt: skip
    if not sink:  # as an earlier version left it
        file = tmp_path / "kept" / "compression.json"
        state = json.loads(file.read_text())
        del state["digests"]
        file.write_text(json.dumps(state))
    given: dict[str, torch.Tensor] = {}

    def take(part: NetworkPart) -> None:
        assert not given.keys() & part.tensors.keys()
        given.update({name: tensor.clone() for name, tensor in part.tensors.items()})

    finished = compress_streamed(meta_model, recipe, tmp_path / "kept", calibration=calibration, sink=take)
    model = load_model(str(tmp_path / "model"), dtype="float32")
    expected, report = compress(model, recipe, calibration=windows())
    assert report_of(finished).digest == report.digest
    state_dict = expected.network.state_dict()
    assert given.keys() == state_dict.keys() - meta_model.tied.keys()
    assert all(torch.equal(tensor, state_dict[name]) for name, tensor in given.items())


def test_a_folder_of_another_compression_is_not_mixed(tmp_path: Path):
    model = toy_model()
    compress(model, "wanda@0.5", calibration=windows(), keep=tmp_path)
    with pytest.raises(ConfigError, match=r"holds another compression \(wanda@0\.5\)"):
        compress(model, "wanda@2:4", calibration=windows(), keep=tmp_path)
    with pytest.raises(ConfigError, match="holds another compression"):
        compress(model, "wanda@0.5", calibration=windows()[:3], keep=tmp_path)


def test_a_damaged_state_is_named(tmp_path: Path):
    (tmp_path / "compression.json").write_text("{")
    with pytest.raises(ModelError, match=r"compression\.json is damaged .* delete the folder"):
        compress(toy_model(), "rtn@4b", keep=tmp_path)


def test_a_full_disk_leaves_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from llmkick.compression.walk import finished_blocks as finished

    model, written = toy_model(), finished.write_packed

    def full(file: Path, *weights: Any) -> None:
        if file.name == "block-00001.safetensors":
            raise OSError(28, "No space left on device")
        written(file, *weights)

    monkeypatch.setattr(finished, "write_packed", full)
    with pytest.raises(OSError, match="No space left"):
        compress(model, "wanda@0.5", calibration=windows(), keep=tmp_path)
    monkeypatch.setattr(finished, "write_packed", written)
    expected, _ = compress(model, "wanda@0.5", calibration=windows())
    found, _ = compress(model, "wanda@0.5", calibration=windows(), keep=tmp_path)
    assert found.info.digest == expected.info.digest


@pytest.mark.parametrize("room", ["none", "for one"])
@pytest.mark.parametrize("propagate", [True, False])
def test_hidden_states_that_find_no_room_do_not_end_the_walk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: str, propagate: bool
):
    monkeypatch.setattr(finished_blocks, "STATES_SECONDS", 0)
    monkeypatch.setattr(finished_blocks, "STATES_TIMES_WRITTEN", 0)
    write, tried = finished_blocks.write_tensors, list[str]()

    def full(file: Path, tensors: Any) -> None:
        tried.append(file.name)
        if room == "none" or list(file.parent.glob("hidden-*")):
            raise OSError(28, "No space left on device")
        write(file, tensors)

    monkeypatch.setattr(finished_blocks, "write_tensors", full)
    model = toy_model()
    expected, _ = compress(model, "wanda@0.5", calibration=windows(), propagate=propagate)
    found, _ = compress(
        model, "wanda@0.5", calibration=windows(), propagate=propagate, keep=tmp_path / "kept", progress=None
    )
    assert found.info.digest == expected.info.digest
    one, two = "hidden-00001.safetensors", "hidden-00002.safetensors"
    assert tried == ([one] if room == "none" else [one, two, two])
    with pytest.raises(Stopped):
        compress(
            model, "wanda@0.5", calibration=windows(), propagate=propagate, keep=tmp_path / "stopped",
            progress=stop_after(2),
        )  # fmt: skip
    assert [file.name for file in (tmp_path / "stopped").glob("hidden-*")] == ([] if room == "none" else [two])
    again, _ = compress(model, "wanda@0.5", calibration=windows(), propagate=propagate, keep=tmp_path / "stopped")
    assert again.info.digest == expected.info.digest


# One pass for many recipes

SWEEP = ("wanda@0.25", "wanda@2:4", "sparsegpt@0.5", "gptq@4b", "gptq@3b-g8-act", "rtn@4b", "magnitude@0.5", "dense")


def jobs(folders: dict[str, Path]) -> list[Job]:
    text = as_calibration(windows())
    return [Job(recipe=parse_recipe(recipe), windows=text, folder=folder) for recipe, folder in folders.items()]


# How batches are cut does not depend on the architecture.
@pytest.mark.parametrize(
    ("architecture", "batch_tokens", "texts"),
    [
        ("llama", None, ("wanda@0.5", "sparsegpt@0.5", "gptq@4b", "rtn@4b")),
        pytest.param("llama", 24, ("wanda@0.5", "gptq@4b"), marks=pytest.mark.slow),
        ("gpt2", 24, ("sparsegpt@0.5", "gptq@4b")),
        pytest.param("mixtral", None, ("wanda@0.5", "sparsegpt@0.5"), marks=pytest.mark.slow),
        ("mixtral", 24, ("gptq@4b",)),
        pytest.param("zamba", None, ("wanda@0.5", "sparsegpt@0.5", "gptq@4b", "rtn@4b"), marks=pytest.mark.slow),
        pytest.param("zamba", 24, ("wanda@0.5", "sparsegpt@0.5", "gptq@4b", "rtn@4b"), marks=pytest.mark.slow),
    ],
)
def test_many_numbers_of_windows_in_one_pass_are_each_as_alone(
    tmp_path: Path,
    architecture: str,
    batch_tokens: int | None,
    texts: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
):
    """Counts that share all their batches and counts that share none: sums of the same terms in the same order."""
    if batch_tokens is not None:
        monkeypatch.setattr(batches, "BATCH_TOKENS_CPU", batch_tokens)
    model = toy_model(architecture)
    whole = as_calibration(windows())
    together = [
        Job(
            recipe=parse_recipe(text),
            windows=replace(whole, tokens=whole.tokens[:count]),
            folder=tmp_path / f"{text}-{count}",
        )
        for text in texts
        for count in (1, 3, len(whole.tokens))
    ]
    with pytest.raises(Stopped):
        compress_into(model, together, allow_partial=True, progress=stop_after(1))
    for job, report in zip(together, compress_into(model, together, allow_partial=True), strict=True):
        _, alone = compress(model, job.recipe, calibration=job.windows, propagate=False, allow_partial=True)
        assert report.digest == alone.digest
        assert report.layers == alone.layers
        assert report.calibration == alone.calibration


def test_a_pass_runs_every_batch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    count_forwards(monkeypatch, calls)
    whole = as_calibration(windows())
    together = [
        Job(
            recipe=parse_recipe("wanda@0.5"),
            windows=replace(whole, tokens=whole.tokens[:count]),
            folder=tmp_path / str(count),
        )
        for count in (2, len(whole.tokens))
    ]
    compress_into(toy_model(), together)
    assert len(calls) == len(set(calls)) * len(batches_of(whole, 2, len(whole.tokens)))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_a_pass_reads_no_block_back_for_its_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str):
    def read_back(file: Path) -> Any:
        raise AssertionError(f"{file} was read back")

    monkeypatch.setattr(finished_blocks, "read_checked", read_back)
    model, texts = toy_model(architecture), ("wanda@2:4", "rtn@4b", "dense")
    reports = compress_into(model, jobs({text: tmp_path / text for text in texts}))
    for text, report in zip(texts, reports, strict=True):
        assert report.digest == compress(model, text, calibration=windows(), propagate=False)[1].digest


def batches_of(whole: Calibration, *counts: int) -> set[tuple[int, int]]:
    """The batches of each number of windows on its own, each batch once."""
    blocks = decoder_blocks(toy_model().network)
    spans: set[tuple[int, int]] = set()
    for count in counts:
        start = 0
        part = replace(whole, tokens=whole.tokens[:count])
        cut = batches.calibration_batches(part, blocks, torch.device("cpu"), for_errors_only=False)
        for batch in cut.batches:
            spans.add((start, start := start + len(batch)))
    return spans


def test_windows_of_two_texts_are_no_pass(tmp_path: Path):
    whole = as_calibration(windows())
    other = replace(whole, tokens=whole.tokens[::-1][:2])
    recipe = parse_recipe("wanda@0.5")
    pair = [Job(recipe=recipe, windows=w, folder=tmp_path / str(n)) for n, w in enumerate((whole, other))]
    with pytest.raises(ConfigError, match="the beginning of one text"):
        compress_into(toy_model(), pair)


@pytest.mark.parametrize(
    ("architecture", "sweep"),
    [
        ("llama", SWEEP),
        ("gpt2", ("wanda@2:4", "gptq@4b", "rtn@4b", "dense")),
        pytest.param("mixtral", ("wanda@0.25", "sparsegpt@0.5", "gptq@3b-g8-act", "dense"), marks=pytest.mark.slow),
    ],
    ids=["llama", "gpt2", "mixtral"],
)
def test_many_recipes_in_one_pass_are_each_as_alone(tmp_path: Path, architecture: str, sweep: tuple[str, ...]):
    model = toy_model(architecture)
    alone = [compress(model, text, calibration=windows(), propagate=False) for text in sweep]
    together = compress_many(model, sweep, calibration=windows())
    kept = compress_into(model, jobs({t: tmp_path / t for t in sweep if t != "dense"}))
    for (one, report), (other, another) in zip(alone, together, strict=True):
        assert report.layers == another.layers
        assert report.warnings == another.warnings
        assert one.info.digest == other.info.digest == weights_digest(other.network)
    assert [report.digest for report in kept] == [report.digest for _, report in alone[:-1]]
    assert weights_digest(model.network) == model.info.digest


def test_many_recipes_cost_one_pass(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    count_forwards(monkeypatch, calls)
    compress_many(toy_model(), ["wanda@0.25", "wanda@2:4", "gptq@4b", "sparsegpt@0.5"], calibration=windows())
    assert calls == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]  # four batches a block


def test_a_stopped_pass_goes_on_for_every_recipe(tmp_path: Path):
    model = toy_model()
    folders = {text: tmp_path / text for text in ("wanda@0.25", "gptq@4b", "rtn@4b-g12")}
    with pytest.raises(Stopped):
        compress_into(model, jobs(folders), progress=stop_after(2))
    # One of them got a block further before the power went.
    reports = compress_into(model, jobs(folders))
    for text, report in zip(folders, reports, strict=True):
        expected, alone = compress(model, text, calibration=windows(), propagate=False)
        assert report.digest == expected.info.digest
        assert (report.layers, report.warnings) == (alone.layers, alone.warnings)


# What cannot be done


def test_what_cannot_be_assembled_from_the_files_cannot_be_streamed(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    save_toy(tmp_path / "model", "mixtral")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if ".1.block_sparse_moe.experts.0.w1" in name))  # one expert less
    save_file(tensors, file, metadata={"format": "pt"})
    meta_model = load_meta_model(str(tmp_path / "model"))
    assert meta_model.obstacle is not None
    assert "out of other tensors" in meta_model.obstacle
    with pytest.raises(ModelError, match="cannot be read block by block"):
        compress_streamed(meta_model, parse_recipe("rtn@4b"), tmp_path / "kept", calibration=None)


def test_damaged_weights_are_named_before_they_are_used(tmp_path: Path):
    from safetensors.torch import load_file, save_file

    save_toy(tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    meta_model = load_meta_model(str(tmp_path / "model"))
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.up_proj\.weight hold NaN"):
        compress_streamed(meta_model, parse_recipe("rtn@4b"), tmp_path / "kept", calibration=None)
    assert all(parameter.is_meta for parameter in meta_model.model.network.parameters())


@pytest.mark.parametrize("architecture", ["mixtral", "llama"])
def test_a_model_that_must_be_loaded_whole_asks_for_what_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str
):
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    save_toy(tmp_path / "model", architecture)
    compressed(tmp_path / "model", tmp_path / "packed", "packed")
    size = load_meta_model(str(tmp_path / "packed"), dtype="float32").bytes
    stored = sum(file.stat().st_size for file in (tmp_path / "packed").glob("packed-*"))
    needed = size + stored + 1.7 * size
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=needed - 1000))
    with pytest.raises(ConfigError, match=r"needs 0\.0 GB on .*must be loaded whole: it is already packed"):
        compressed(tmp_path / "packed", tmp_path / "out", recipe="magnitude@0.75")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=needed + 1000))
    compressed(tmp_path / "packed", tmp_path / "out", recipe="magnitude@0.75")
    # What is read block by block asks for nothing.
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    compressed(tmp_path / "model", tmp_path / "again", recipe="magnitude@0.75")
