"""Time of a compression outside its arithmetic: python benchmarks/overhead.py [--scale "0.3 B"] [--write TITLE].

Makes a random-weight Llama-shaped checkpoint in bfloat16 and compresses it to a folder and in compact form, each in a
process of its own with an empty cache. Reports the seconds by stage, and the time outside forwards and kernels beside a
plain copy: reading every tensor of the checkpoint and writing it again with safetensors.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from memory import SHAPES, make_checkpoint, peak

RESULTS = Path(__file__).parent / "results" / "overhead.md"
RECIPES = ("rtn@8b", "magnitude@0.5", "wanda@2:4")
FORMS = ("folder", "packed")
OTHER_FORMS = ("compressed-tensors",)  # for recipes with integers
TARGETS = {"folder": 2, "packed": 3}
# Stage → functions whose time it is, without that of the stages inside them. What is not there in a version is skipped.
STAGES = {
    "forwards": ("walk.calibration_pass:CalibrationPass.record", "walk.calibration_pass:CalibrationPass.advance"),
    "kernels": (
        "walk.weight:check_finite",
        "walk.weight:compress_with_statistics",
        "walk.weight:relative_output_error",
        "walk.weight:output_squares",
    ),
    "reading": (
        "models.checkpoints.weight_files:read_tensor",
        "walk.streamed_blocks:StreamedBlocks._read_all",
        "walk.streamed_blocks:StreamedBlocks._map",
    ),
    "hashing": (
        "models.weights:digest_of",
        "models.weights:PartedDigest.add",
        "models.checkpoints.packed:_checksum",
        "files:sha256_of_file",
    ),
    "packing": (
        "models.checkpoints.packed:pack",
        "models.checkpoints.packed:unpack",
        "models.checkpoints.packed:codes_of",
        "storage.integer_layers:IntegerLayers.tensors_of",
    ),
    "writing": (
        "safetensors.torch:save_file",
        "os:fsync",
        "models.checkpoints.packed_file:write_packed",
        "models.checkpoints.tensor_writer:TensorWriter._write",
        "models.checkpoints.tensor_writer:TensorWriter.close",
    ),
    "calibration text": ("walk.calibration:calibrate",),
}


class Stages:
    """Seconds by stage; a stage inside another does not count for the outer one. Threads are told apart."""

    def __init__(self) -> None:
        self.main: Counter[str] = Counter()
        self.behind: Counter[str] = Counter()  # in other threads than the main one
        self._thread = threading.local()

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time added to the stage."""

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            open_stages = self._thread.__dict__.setdefault("open", [])
            inside = [0.0]
            open_stages.append(inside)
            started = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                seconds = time.perf_counter() - started
                open_stages.pop()
                counter = self.main if threading.current_thread() is threading.main_thread() else self.behind
                counter[stage] += seconds - inside[0]
                if open_stages:
                    open_stages[-1][0] += seconds

        return call

    def install(self) -> None:
        """Time the functions of STAGES, wherever they were imported."""
        for stage, places in STAGES.items():
            for place in places:
                self._install(stage, place)

    def _install(self, stage: str, place: str) -> None:
        import importlib

        module_name, _, path = place.partition(":")
        if module_name.split(".")[0] not in ("os", "safetensors"):
            packages = {"walk": "llmkick.compression.", "storage": "llmkick.compression."}
            module_name = packages.get(module_name.split(".")[0], "llmkick.") + module_name
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError:
            return
        owner_name, _, name = path.rpartition(".")
        owner = getattr(module, owner_name) if owner_name else module
        function = getattr(owner, name, None)
        if function is None:
            return
        replacement = self.timed(stage, function)
        setattr(owner, name, replacement)
        for other in list(sys.modules.values()):
            if getattr(other, "__name__", "").startswith("llmkick") and getattr(other, name, None) is function:
                setattr(other, name, replacement)


class Quiet:
    """An observer that shows nothing."""

    def stage(self, title: str, total: int) -> None:
        """Nothing."""

    def advance(self, done: int) -> None:
        """Nothing."""


def work(source: str, recipe: str, form: str, out: str, text: str, device: str) -> None:
    """In a separate process: compress, and print the seconds by stage and the peak memory."""
    from llmkick.compression.storage.compress_to_disk import CalibrationPlan, compress_checkpoint

    stages = Stages()
    stages.install()
    plan = CalibrationPlan(source=text, sequences=8, length=128)
    started = time.perf_counter()
    report = compress_checkpoint(
        source, recipe, Path(out), form=form, calibration=plan, dtype="bfloat16", device=device, observer=Quiet()
    )  # type: ignore[call-overload]
    total = time.perf_counter() - started
    print(
        json.dumps(
            {
                "total": total,
                "main": stages.main,
                "behind": stages.behind,
                "digest": report.digest,
                "peak": peak(),
            }
        )
    )


def plain_copy(source: Path, target: Path) -> float:
    """Seconds to read every tensor and write it again with safetensors, file by file."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    target.mkdir()
    started = time.perf_counter()
    for file in sorted(source.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118
        save_file(tensors, target / file.name, metadata={"format": "pt"})
    seconds = time.perf_counter() - started
    shutil.rmtree(target)
    return seconds


def measure(source: Path, recipe: str, form: str, temporary: Path, text: Path) -> dict[str, Any]:
    """Run `work` in a process with an empty cache."""
    out, cache = temporary / "out", temporary / "cache"
    command = [sys.executable, __file__, "--work", str(source), recipe, form, str(out), str(text)]
    environment = {**os.environ, "LLMKICK_CACHE": str(cache)}
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    shutil.rmtree(out)
    shutil.rmtree(cache, ignore_errors=True)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result


def row(recipe: str, form: str, result: dict[str, Any], copy: float) -> str:
    """A line of the table."""
    main, behind = Counter(result["main"]), Counter(result["behind"])
    arithmetic = main["forwards"] + main["kernels"]
    named = sum(main.values())
    outside = result["total"] - arithmetic - main["calibration text"]
    cells = [
        f"{main[stage] + behind[stage]:.1f}"
        for stage in ("forwards", "kernels", "reading", "hashing", "packing", "writing")
    ]
    other = result["total"] - named
    return (
        f"| {recipe} | {form} | {' | '.join(cells)} | {other:.1f} | {result['total'] - main['calibration text']:.1f} "
        f"| **{outside:.1f}** | {copy:.1f} | **{outside / copy:.1f}** | {TARGETS.get(form, '–')} "
        f"| {result['peak'] / 1e9:.2f} GB | {result['digest'][:12]} |"
    )


HEAD = (
    "| recipe | form | forwards | kernels | reading | hashing | packing | writing | other and waiting | all "
    "| outside arithmetic | plain copy | ratio | target | peak memory | digest |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", choices=[shape.name for shape in SHAPES], default="3.1 B", help="size of the model")
    parser.add_argument("--recipe", action="append", help=f"others than {', '.join(RECIPES)}")
    parser.add_argument("--form", action="append", choices=FORMS + OTHER_FORMS, help="one of the forms")
    parser.add_argument("--folder", type=Path, help="where the files go (three times the size of the model)")
    parser.add_argument("--write", metavar="TITLE", help=f"append the table to {RESULTS} under this title")
    parser.add_argument("--work", nargs=5, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu", help=argparse.SUPPRESS)  # of --work
    options = parser.parse_args()
    if options.work:
        work(*options.work, options.device)
        return
    lines = [HEAD]
    shape = next(shape for shape in SHAPES if shape.name == options.scale)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        source, text = Path(temporary) / "model", Path(temporary) / "text.txt"
        make_checkpoint(shape, source)
        text.write_text(" ".join(f"The number {number} follows {number - 1}." for number in range(1, 2000)))
        for recipe in options.recipe or RECIPES:
            for form in options.form or FORMS:
                copies = [plain_copy(source, Path(temporary) / "copy")]  # before and after: the machine may be busy
                result = measure(source, recipe, form, Path(temporary), text)
                copies.append(plain_copy(source, Path(temporary) / "copy"))
                lines.append(row(recipe, form, result, sum(copies) / len(copies)))
                print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(table)
    if options.write:
        with RESULTS.open("a", encoding="utf-8") as stream:
            stream.write(f"\n## {options.write}\n\n{describe(shape.parameters)}\n\n{table}\n")


def describe(parameters: int) -> str:
    """Command, commit, size and hardware."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    arguments = " ".join(f'"{argument}"' if " " in argument else argument for argument in sys.argv)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"`python {arguments}` · commit {commit} · {time.strftime('%Y-%m-%d')} · {parameters / 1e9:.2f} B parameters, "
        f"{2 * parameters / 1e9:.2f} GB · {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads · load of the machine {load}"
    )


if __name__ == "__main__":
    main()
