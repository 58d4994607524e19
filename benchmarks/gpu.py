"""The whole of llmkick on one GPU, in under 8 minutes and without downloads: benchmarks/gpu.py [--write].

Four parts: the kernels beside those of the CPU; a random model of Llama-2-7B's shape, some blocks of it, compressed
by each method, with the seconds of each stage beside the least that the arithmetic and the memory traffic take at the
speeds measured here; the same blocks from disk to disk, with the time outside arithmetic beside a plain copy; scoring
and generation by a whole model of that shape, beside transformers and, where it is installed, vLLM. Writes a JSON
file and a table. `--device cpu --tiny` runs the same on a toy in seconds: it shows that the command works, its
figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from gpu_compression import compression_part
from gpu_files import files_part
from gpu_kernels import kernels_part
from gpu_machine import Machine, synchronise
from gpu_model import LLAMA_2_7B, TOY
from gpu_scoring import scoring_part
from peers.tables import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
LONGEST = 465.0  # seconds, after which vLLM is stopped
NOISE = 0.5  # nats by which rounding to bfloat16 may move a log-probability


def say(text: str) -> None:
    """Print progress to stderr, apart from the report."""
    sys.stderr.write(text + "\n")


def commit() -> str:
    """The current commit, with a mark if files differ from it."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def device_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All parts; one that fails, or for which there is no time, is a note."""
    started, device = time.perf_counter(), torch.device(options.device)
    shape = TOY if options.tiny else LLAMA_2_7B
    machine = Machine.measured(device, size=256 if options.tiny else 8192)
    results: dict[str, Any] = {
        "command": " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]),
        "commit": commit(),
        "device": device_name(device),
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {"transformers": transformers.__version__},
        "measured": {"flops": machine.flops, "bandwidth": machine.bandwidth},
        "shape": shape.__dict__,
        "notes": [],
    }
    with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
        parts: dict[str, Callable[[], Any]] = {
            "kernels": lambda: kernels_part(device, tiny=options.tiny),
            "compression": lambda: compression_part(shape, options, machine, started + 60 * options.minutes / 2, say),
            "files": lambda: files_part(shape, options, machine, Path(folder) / "files", say),
            "scoring": lambda: scoring_part(shape, options, machine, Path(folder), started + LONGEST, say),
        }
        for name, part in parts.items():
            spent = time.perf_counter() - started
            if spent > 60 * options.minutes:
                results["notes"].append(f"{name}: not run, because {spent:.0f} s were spent")
                continue
            say(f"{name}, after {spent:.0f} s")
            try:
                results[name] = part()
            except Exception as error:
                if options.tiny:
                    raise
                results["notes"].append(f"{name}: {type(error).__name__}: {error}")
            release(device)
    results["seconds"] = time.perf_counter() - started
    return results


def release(device: torch.device) -> None:
    """Give memory of the part before back, so that the next one has it."""
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.empty_cache()


def report(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    measured, shape = results["measured"], results["shape"]
    speeds = ", ".join(f"{name} {flops / 1e12:.3g} TFLOP/s" for name, flops in measured["flops"].items())
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    parts = [
        f"# On a GPU\n\n`{results['command']}` · commit {results['commit']} · {results['seconds']:.0f} s\n\n"
        f"{results['device']} · {versions}",
        f"Measured at best: {speeds}; copying {measured['bandwidth'] / 1e9:.4g} GB/s. "
        f"Model: random, in the shape of {shape['name']}.",
    ]
    if "kernels" in results:
        parts += kernels_report(results["kernels"])
    if "compression" in results:
        parts += compression_report(results["compression"], shape["blocks"])
    if "files" in results:
        parts += files_report(results["files"], shape["blocks"])
    if "scoring" in results:
        for name in ("scoring", "options", "generation"):
            parts += speed_report(name, results["scoring"][name])
    parts += [f"Note: {note}" for note in [*results["notes"], *results.get("scoring", {}).get("notes", [])]]
    return "\n\n".join(parts) + "\n"


def kernels_report(results: dict[str, Any]) -> list[str]:
    moments = results["moments"]
    header = ["kernel", "weight", "as the plain loop, to the bit", "entries as on the CPU", "output error, CPU = 1"]
    rows = [
        [
            f"`{row['recipe']}`",
            row["weight"],
            "–" if row["equal_plain"] is None else "yes" if row["equal_plain"] else "**no**",
            f"{row['same_as_cpu']:.4%}",
            "–" if row["error_ratio"] is None else f"{row['error_ratio']:.4f}",
        ]
        for row in results["recipes"]
    ]
    return [
        f"## Kernels\n\nColumns are replaced by {results['replacer']}. H of {moments['dtype']} inputs "
        f"is a product of {moments['product']}, apart from that in float64 by {moments['difference']:.1e}.",
        table(header, rows),
    ]


def compression_report(results: dict[str, Any], blocks: int) -> list[str]:
    stages = list(results["recipes"][0]["stages"])
    rows = []
    for row in results["recipes"]:
        floors = row["floors"]
        seconds = [
            f"{row['stages'][stage]:.2f}" + (f" ({floors[stage]:.2f})" if stage in floors else "") for stage in stages
        ]
        total = [f"{row['seconds']:.2f}", f"{row['floor']:.2f}", f"{row['seconds_of_all_blocks']:.0f}"]
        rows.append([f"`{row['recipe']}`", *total, *seconds])
    return [
        f"## Compression\n\nSeconds for {results['blocks']} blocks, {results['sequences']} × {results['length']} "
        "tokens, and of each stage. Floor, in brackets that of the stage: the arithmetic, or the memory traffic where "
        "that takes longer.",
        table(["recipe", "seconds", "floor", f"in proportion, all {blocks} blocks", *stages], rows),
        *(f"{recipe} was left out: half of the time was spent." for recipe in results["left_out"]),
    ]


def files_report(results: dict[str, Any], blocks: int) -> list[str]:
    rows = [
        [
            f"`{row['recipe']}`",
            row["form"],
            f"{row['seconds']:.2f}",
            f"{row['outside']:.2f}",
            f"{row['outside'] / results['copy']:.1f}",
            f"{row['outside_of_all_blocks']:.0f}",
            *(f"{seconds:.2f}" for seconds in row["stages"].values()),
        ]
        for row in results["recipes"]
    ]
    head = ["recipe", "form", "seconds", "outside arithmetic", "÷ copy", f"in proportion, all {blocks} blocks"]
    return [
        f"## From disk to disk\n\n{results['bytes'] / 1e9:.2f} GB, 8 × 128 tokens; a plain copy takes "
        f"{results['copy']:.2f} s. Outside arithmetic: without forwards, kernels and the calibration text. Stages in "
        "threads beside the main one are in the columns of stages.",
        table([*head, *results["recipes"][0]["stages"]], rows),
    ]


def speed_report(name: str, result: dict[str, Any]) -> list[str]:
    rows = [
        [side, f"{seconds:.2f}", f"{result['items'] / seconds:.1f}", f"{result['tokens'] / seconds:.0f}"]
        for side, seconds in result["seconds"].items()
    ]
    return [
        f"## {name.capitalize()}: {result['items']} {result['what']}\n\n{result['agreement']} "
        f"Floor: {result['floor']:.2f} s.",
        table(["", "seconds", f"{result['what']}/s", "tokens/s"], rows),
    ]


def failures(results: dict[str, Any]) -> list[str]:
    """What is wrong, not slow: kernels that differ."""
    rows = results.get("kernels", {}).get("recipes", [])
    wrong = [f"{row['recipe']}: not as the plain loop" for row in rows if row["equal_plain"] is False]
    wrong += [
        f"{row['recipe']}: the output error is {row['error_ratio']:.3f} times that of the CPU"
        for row in rows
        if row["error_ratio"] is not None and not 0.98 <= row["error_ratio"] <= 1.02
    ]
    for part in ("scoring", "options"):
        apart = results.get("scoring", {}).get(part, {}).get("largest_difference", 0.0)
        wrong += [] if apart < NOISE else [f"{part}: log-probabilities are apart by {apart:.3g} nats"]
    moments = results.get("kernels", {}).get("moments", {"difference": 0.0})
    return wrong + (["H: not in float32"] if moments["difference"] > 1e-4 else [])


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a toy of each, to try the command")
    parser.add_argument("--blocks", type=int, default=4, help="blocks that are compressed by each method")
    parser.add_argument("--sequences", type=int, default=128, help="calibration windows")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a window")
    parser.add_argument("--recipes", help="with commas; default: one of each kind")
    parser.add_argument("--questions", type=int, default=128, help="questions to score, and prompts to continue")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens that each prompt is continued by")
    parser.add_argument(
        "--minutes", type=float, default=6.5, help="no part begins after so many, no compression after half of them"
    )
    parser.add_argument("--out", type=Path, help="folder for gpu.json and gpu.md; default: the current one")
    parser.add_argument("--write", action="store_true", help="write them to benchmarks/results")
    options = parser.parse_args(given)
    if options.tiny:
        options.blocks, options.sequences, options.length = 2, 4, 48
        options.questions, options.new_tokens = 4, 3
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; `--device cpu --tiny` tries the command without one")
    if options.write and options.tiny:
        parser.error("the figures of a toy mean nothing: leave --tiny or --write out")
    return options


def main(given: list[str] | None = None) -> int:
    """Measure, print the report, write both files; 1 if a kernel is wrong."""
    options = arguments(given)
    transformers.logging.set_verbosity_error()
    results = measure(options)
    folder = RESULTS if options.write else options.out or Path.cwd()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = report(results)
    sys.stdout.write(text)
    (folder / "gpu.md").write_text(text, encoding="utf-8")
    wrong = failures(results)
    for line in wrong:
        say(f"wrong: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
