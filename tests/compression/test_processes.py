"""Two processes give the weights of one; what fails in one fails in all, with one error."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from compressing import Silent
from llmkick.compression.kernels import hessian
from llmkick.compression.storage.compress_to_disk import CalibrationPlan, Form, compress_checkpoint
from llmkick.compression.walk import batches
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.processes import joined_processes
from llmkick.compression.walk.solved_layer import solvers
from llmkick.errors import KickError, NumericalError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import weights_digest
from processes import run_commands, run_kick, run_processes
from speeds import others_slow
from toy import save_toy, toy_model

LENGTH = 30
# architecture, recipe, windows, propagate: experts, transposed layers, shared weights, states that are handed on; more
# processes than windows, unequal parts, chains, and recipes that need no calibration.
CASES = [
    ("llama", "wanda@0.5", 7, True),
    ("llama", "sparsegpt@0.5+4b", 6, False),
    ("llama", "gptq@4b-g8", 1, True),
    ("llama", "magnitude@0.25", 3, True),
    ("gpt2", "gptq@4b-g8", 6, True),
    ("mixtral", "sparsegpt@2:4", 6, True),
    ("mixtral", "wanda@0.5+gptq@4b-g8", 5, True),
    ("zamba", "wanda@2:4", 6, True),
    ("gemma4", "gptq@4b", 6, True),
]
# Each of two processes has one batch: sums of two terms, whose order does not matter.
EXACT = [("llama", "wanda@0.5", 2, True), ("mixtral", "wanda@2:4", 2, False), ("qwen2", "rtn@3b", 2, True)]


def windows(sequences: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(0).integers(0, 284, (sequences, LENGTH))


def layers_of(model: TransformersModel) -> dict[str, torch.Tensor]:
    blocks = decoder_blocks(model.network)
    return {layer.name: layer.weight.contiguous() for block in blocks for layer in block.layers}


def compress_cases(rank: int, cases: list[Any], folder: str) -> dict[int, Any]:
    batches.BATCH_TOKENS = LENGTH
    reports = {}
    for number, architecture, recipe, sequences, propagate in cases:
        model, report = compress(
            toy_model(architecture), recipe, calibration=windows(sequences), propagate=propagate,
            keep=Path(folder) / f"kept-{number}" if number % 2 else None, allow_partial=True,
        )  # fmt: skip
        save_file(layers_of(model), f"{folder}/{number}-{rank}.safetensors")
        layers = [[layer.name, layer.tokens, layer.relative_output_error] for layer in report.layers]
        reports[number] = {
            "digest": report.digest, "info": model.info.digest, "layers": layers, "warnings": report.warnings
        }  # fmt: skip
    return reports


# Of the others, one of each kind runs every time.
QUICK = {2, 4, 5, 9}
TRIED = [
    pytest.param(number, id="-".join(map(str, case)), marks=() if number in QUICK else pytest.mark.slow)
    for number, case in enumerate(CASES + EXACT)
]


@pytest.fixture(scope="module")
def together(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes made of each case that is asked for."""
    folder = tmp_path_factory.mktemp("together")
    asked = {item.callspec.params.get("number") for item in request.session.items if hasattr(item, "callspec")}
    cases = [(number, *case) for number, case in enumerate(CASES + EXACT) if number in asked]
    return folder, run_processes(compress_cases, folder / "run", cases, str(folder))


@pytest.mark.parametrize("number", TRIED)
def test_two_processes_give_the_weights_of_one(
    together: tuple[Path, list[dict[str, Any]]], number: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(batches, "BATCH_TOKENS", LENGTH)
    folder, reports = together
    first, second = (of_rank[str(number)] for of_rank in reports)
    assert first == second
    assert first["digest"] == first["info"]
    architecture, recipe, sequences, propagate = (CASES + EXACT)[number]
    model, report = compress(
        toy_model(architecture), recipe, calibration=windows(sequences), propagate=propagate, allow_partial=True
    )
    assert [layer[:2] for layer in first["layers"]] == [[layer.name, layer.tokens] for layer in report.layers]
    alone = layers_of(model)
    for rank in range(2):
        weights = load_file(folder / f"{number}-{rank}.safetensors")
        assert weights.keys() == alone.keys()
        if (architecture, recipe, sequences, propagate) in EXACT:
            assert all(torch.equal(weights[name], weight) for name, weight in alone.items())
            continue
        # A sum that is rounded in another way can move a weight to the next point of its grid, and few do.
        values, others = (torch.cat([w.flatten() for _, w in sorted(each.items())]) for each in (weights, alone))
        assert ((values - others).abs() > 1e-4 * others.abs().max()).float().mean() < 0.01
    said = [warning for warning in first["warnings"] if "2 processes" in warning]
    assert len(said) == (0 if recipe.startswith(("magnitude", "rtn")) else 1)
    assert [warning for warning in first["warnings"] if warning not in said] == list(report.warnings)
    for (_, _, error), layer in zip(first["layers"], report.layers, strict=True):
        expected = layer.relative_output_error
        assert error == (None if expected is None else pytest.approx(expected, rel=0.3, abs=1e-3))


def test_layers_are_shared_out_by_their_work():
    inputs, shapes = ["a", "a", "b", "c", "c"], [(8, 8), (8, 8), (8, 8), (8, 8), (8, 8)]
    assert solvers(inputs, shapes, 2) == [0, 0, 0, 1, 1] or solvers(inputs, shapes, 2) == [0, 0, 1, 1, 1]
    assert solvers(["q", "d"], [(8, 8), (8, 64)], 2) == [1, 0]
    assert set(solvers(range(6), [(8, 8)] * 6, 3)) == {0, 1, 2}
    assert solvers(inputs, shapes, 1) == [0] * 5


# Failures


FAILURES = {
    "numbers": ("NumericalError: process 1 of 2 (counted from 0) failed: column 3 is NaN", "the same"),
    "bug": (
        "KickError: process 1 of 2 (counted from 0) failed: ZeroDivisionError: no such thing",
        "ZeroDivisionError: no such thing",
    ),
    "recipe": ("ConfigError: wanda@3:7: model.layers.0.self_attn.q_proj has 16 inputs", "the same"),
    "killed": ("KickError: another of the 2 processes has ended", None),
}


def fail(rank: int, folder: str) -> None:
    """Fail in one way after another, the last of which ends the second process."""
    add, texts = hessian.InputStatistics.add, {}
    for how in FAILURES:

        def failing(self: Any, inputs: torch.Tensor, how: str = how) -> None:
            if rank == 1 and how == "numbers":
                raise NumericalError("column 3 is NaN")
            if rank == 1 and how == "bug":
                raise ZeroDivisionError("no such thing")
            if rank == 1 and how == "killed":
                os._exit(9)
            add(self, inputs)

        hessian.InputStatistics.add = failing  # type: ignore[method-assign]
        try:
            compress(toy_model("llama"), "wanda@3:7" if how == "recipe" else "wanda@0.5", calibration=windows(4))
        except (KickError, ZeroDivisionError) as error:
            texts[how] = f"{type(error).__name__}: {error}"
        Path(folder, f"texts-{rank}.json").write_text(json.dumps(texts))


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    folder = tmp_path_factory.mktemp("failures")
    run_processes(fail, folder / "run", str(folder))
    return [json.loads((folder / f"texts-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("how", FAILURES)
def test_what_fails_in_one_fails_in_all(failures: list[dict[str, str]], how: str):
    first, second = FAILURES[how]
    assert failures[0][how].startswith(first)
    assert failures[1].get(how) == (failures[0][how] if second == "the same" else second)


def meet(rank: int) -> list[Any]:
    values: list[Any] = []
    with joined_processes() as processes, processes.together():
        values.append(processes.gather([rank, "ä" * rank, 0.1]))
        values.append(processes.from_first({"of": rank}))
        tensor = torch.tensor([1.5, rank], dtype=torch.bfloat16)
        processes.hand_out(tensor, 1)
        values.append(tensor.tolist())
        total = torch.full((2, 2), float(rank + 1))
        processes.add_up(total)
        values.append(total.tolist())
    return values


def test_messages_and_tensors(tmp_path: Path):
    expected = [[[0, "", 0.1], [1, "ä", 0.1], [2, "ää", 0.1]], {"of": 0}, [1.5, 1.0], [[6.0, 6.0], [6.0, 6.0]]]
    assert run_processes(meet, tmp_path / "run", count=3) == [expected] * 3


# Checkpoints


FORMS: dict[str, list[Form]] = {"llama": ["folder", "packed", "compressed-tensors"], "mixtral": ["folder", "packed"]}


def compress_folders(rank: int, folder: str, architecture: str) -> list[Any]:
    os.environ["LLMKICK_CACHE"] = f"{folder}/cache-{rank}"
    digests: list[Any] = []
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "observer": Silent()}
    plan, out = CalibrationPlan(source="pocket", sequences=4, length=16), Path(folder)
    for form in FORMS[architecture]:
        report = compress_checkpoint(
            str(out / "model"), "gptq@4b-g8", out / form, form=form, calibration=plan, **options
        )
        digests.append(report.digest)
    # A packed model is loaded whole.
    report = compress_checkpoint(str(out / "packed"), "wanda@0.5", out / "again", calibration=plan, **options)
    digests.append(report.digest)
    return digests


@pytest.mark.parametrize("architecture", others_slow(FORMS, ["llama"]))
def test_only_the_first_process_writes(tmp_path: Path, architecture: str):
    save_toy(tmp_path / "model", architecture)
    digests, others = run_processes(compress_folders, tmp_path / "run", str(tmp_path), architecture)
    assert digests == others
    assert len(set(digests)) == 2  # of both models, whatever the form
    for form, digest in zip((*FORMS[architecture], "again"), digests, strict=True):
        folder = tmp_path / form
        assert json.loads((folder / "llmkick_compression.json").read_text())["digest"] == digest
        if form != "compressed-tensors":
            assert weights_digest(load_model(str(folder), dtype="float32").network) == digest
    assert not list(tmp_path.glob(".*"))
    assert list((tmp_path / "cache-0" / "compressed").glob("*/block-*"))
    assert not list((tmp_path / "cache-1").rglob("*.safetensors"))


def compress_shared(rank: int, source: str, out: str) -> None:
    os.environ["LLMKICK_CACHE"] = f"{out}/cache-{rank}"
    plan = CalibrationPlan(source="pocket", sequences=2, length=16)
    compress_checkpoint(source, "wanda@0.5", Path(out) / "out", calibration=plan, device="cpu", observer=Silent())


@pytest.mark.slow
def test_weights_that_blocks_share_are_refused_from_files(tmp_path: Path):
    save_toy(tmp_path / "model", "zamba")
    answers = run_processes(compress_shared, tmp_path / "run", str(tmp_path / "model"), str(tmp_path))
    assert [answer["error"] for answer in answers] == ["ConfigError"] * 2
    assert answers[0]["text"] == answers[1]["text"]
    assert "run one process" in answers[0]["text"]


def torchrun(*arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "llmkick"]
    environment = {**os.environ, "LLMKICK_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=240
    )


OPTIONS = ("--calibration", "pocket", "--sequences", 4, "--length", 32, "--dtype", "float32", "--device", "cpu")


@pytest.mark.slow
def test_torchrun_compresses_and_goes_on(tmp_path: Path):
    save_toy(tmp_path / "model", "llama")
    options = (tmp_path / "model", "sparsegpt@2:4+4b", *OPTIONS)
    done = torchrun("compress", *options, "-o", tmp_path / "out", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("zeros in") == 1
    assert done.stdout.count("2 processes") == 1
    report = json.loads((tmp_path / "out" / "llmkick_compression.json").read_text())
    # As if it had been killed after the first block.
    (state_file,) = (tmp_path / "cache" / "compressed").glob("*/compression.json")
    state = json.loads(state_file.read_text())
    layers = [layer for layer in state["tally"]["layers"] if ".layers.0." in layer["name"]]
    state |= {"finished": 1, "report": None, "digests": {}, "tally": {**state["tally"], "layers": layers}}
    state_file.write_text(json.dumps(state))
    for block in (1, 2):
        (state_file.parent / f"block-{block:05d}.safetensors").unlink()
    again = torchrun("compress", *options, "-o", tmp_path / "again", cache=tmp_path / "cache")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "again" / "llmkick_compression.json").read_text())["digest"] == report["digest"]
    weights = load_file(tmp_path / "out" / "model.safetensors"), load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("compress", "nowhere/at-all", "wanda@0.5", *OPTIONS), "nowhere/at-all", marks=pytest.mark.slow),
        pytest.param(
            ("compress", "nowhere", "wanda@0.5", "--device", "balanced"),
            "'balanced' spreads one model over all GPUs",
            marks=pytest.mark.slow,
        ),
        (("compress", "nowhere", "wonder@0.5", *OPTIONS), "unknown method 'wonder'"),
        (("run", "study.toml"), "kick run runs in one process; torchrun can start kick compress"),
    ],
)
def test_one_process_says_an_error(tmp_path: Path, arguments: tuple[object, ...], message: str):
    # What torchrun gives to the processes that it starts.
    shared = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "TORCHELASTIC_RUN_ID": "1",
    }
    shared |= {"LLMKICK_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    ranks = [{**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
    first, second = run_commands(run_kick, tmp_path / "said", ranks, *arguments, "-o", tmp_path / "out")
    assert [first.code, second.code] in ([2, 2], [1, 1])
    assert first.err.count("error: ") == 1
    assert message in first.err
    assert second.err == ""
    assert not (tmp_path / "out").exists()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
