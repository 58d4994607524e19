"""The command that measures everything on a GPU, run on a toy without one."""

from __future__ import annotations

import itertools
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from processes import run_commands

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Behind the standard library: there is a statistics.py among the benchmarks.
    monkeypatch.setattr(sys, "path", [*sys.path, str(BENCHMARKS)])
    import gpu

    return gpu


def test_several_weights_at_once_are_compared(gpu: Any):
    import gpu_kernels

    rows = gpu_kernels.alike_rows(torch.device("cpu"), tiny=True)
    assert all(row["equal_plain"] and row["same_as_cpu"] > 0.98 for row in rows), rows
    assert {row["weight"] for row in rows} == {"8 × 37 × 64"}


def run_program(*command: str) -> None:
    """`python PROGRAM ARGUMENTS`."""
    sys.argv, sys.path[0] = list(command), str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


def test_the_command_works_on_a_toy(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    import gpu_files

    numbers = itertools.count()

    def forked(command: list[str], *, env: dict[str, str], **_options: Any) -> Any:
        (done,) = run_commands(run_program, tmp_path / f"process {next(numbers)}", [env], *command[1:])
        assert done.code == 0, done.err
        return SimpleNamespace(stdout=done.out)

    monkeypatch.setattr(gpu_files, "subprocess", SimpleNamespace(run=forked, PIPE=None))
    before = transformers.logging.get_verbosity()
    recipes = ["magnitude@0.5", "wanda@2:4", "gptq@4b"]
    try:
        code = gpu.main(["--device", "cpu", "--tiny", "--recipes", ",".join(recipes), "--out", str(tmp_path)])
    finally:
        transformers.logging.set_verbosity(before)
    results = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))
    text = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert code == 0
    assert capsys.readouterr().out == text
    assert results["notes"] == []
    kernels = results["kernels"]["recipes"]
    assert all(row["same_as_cpu"] == 1 and row["error_ratio"] in (1, None) for row in kernels)
    compression = results["compression"]["recipes"]
    assert [row["recipe"] for row in compression] == recipes
    for row in compression:
        assert sum(row["stages"].values()) == pytest.approx(row["seconds"])
        assert (row["stages"]["factors"] > 0) == (row["recipe"] == "gptq@4b")
        assert min(row["stages"][stage] for stage in ("forwards", "statistics", "weights", "error", "digest")) > 0
        assert 0 < row["floor"] < row["seconds"]
        assert sum(row["floors"].values()) == pytest.approx(row["floor"])
        assert row["floors"].keys() <= row["stages"].keys()
        assert f"| `{row['recipe']}` | {row['seconds']:.2f} |" in text
    files = results["files"]["recipes"]
    assert [(row["recipe"], row["form"]) for row in files] == [("wanda@2:4", "folder"), ("wanda@2:4", "packed")]
    assert all(0 < row["outside"] < row["seconds"] for row in files), files
    assert all(row["stages"]["packing"] > 0 for row in files), files
    assert results["scoring"]["scoring"]["largest_difference"] < 0.2
    assert results["scoring"]["options"]["largest_difference"] < 0.5
    for name, items in (("scoring", 4), ("options", 4), ("generation", 4)):
        assert results["scoring"][name]["items"] == items
        peers = {"llmkick without CUDA graphs"} if name == "generation" else set()
        assert set(results["scoring"][name]["seconds"]) == {"llmkick", "transformers", *peers}
        assert f"## {name.capitalize()}: 4 " in text


def test_what_is_wrong_fails_and_what_is_slow_does_not(gpu: Any):
    row = {"recipe": "gptq@4b", "equal_plain": True, "error_ratio": 1.001}
    good = {"recipes": [row], "moments": {"difference": 1e-7}}
    assert gpu.failures({"kernels": good, "scoring": {"scoring": {"largest_difference": 0.1}}}) == []
    assert gpu.failures({}) == []
    for bad in ({"equal_plain": False}, {"error_ratio": 1.3}, {"error_ratio": 0.5}):
        assert len(gpu.failures({"kernels": {**good, "recipes": [{**row, **bad}]}})) == 1
    assert len(gpu.failures({"kernels": {**good, "moments": {"difference": 0.01}}})) == 1
    for part in ("scoring", "options"):
        assert len(gpu.failures({"scoring": {part: {"largest_difference": 3.0}}})) == 1


def test_without_a_gpu_the_command_says_how_to_try_it(gpu: Any, capsys: pytest.CaptureFixture[str]):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(SystemExit) as ended:
        gpu.main([])
    assert ended.value.code == 2
    assert "`--device cpu --tiny` tries the command without one" in capsys.readouterr().err
