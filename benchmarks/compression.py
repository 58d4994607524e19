"""The walk over the blocks compared with the obvious procedure and two peers: benchmarks/compression.py [--write].

One run compares on the same model, calibration windows and recipes: llmkick ("ours"); the obvious procedure
(peers/obvious.py: float32, one sequence at a time, an H for every linear layer, two Cholesky factorisations, a Python
loop over columns); llmcompressor and gptqmodel where they install. Each compression runs in a separate process with the
same number of threads; the order changes from seed to seed. The time is that of the compression alone, without loading
and saving. The same scorer computes the perplexity of all results in float32. Nothing else should run on the machine;
on a busy machine measure with `--threads 1 --clock cpu`.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from peers.running import ROOT, Bench, Failed, peer_python
from peers.tables import contenders_table, criteria_table, floor_table, met, solve_table, table

from llmkick.files import cache_folder

# Groups of 128 do not divide the built-in model's 576 inputs, which llmcompressor refuses: whole rows for the peers.
RECIPES = ("wanda@0.5", "sparsegpt@0.5", "gptq@4b-g128", "gptq@4b")


class Contender(NamedTuple):
    """A contender: its script, and its dtype if it is not the dtype that llmkick picks for this machine."""

    script: str
    dtype: str | None = None
    methods: tuple[str, ...] = ("wanda", "sparsegpt", "gptq")


OURS = {
    "ours": Contender("ours.py"),
    "ours, float32": Contender("ours.py", "float32"),
    "obvious": Contender("obvious.py", "float32"),
}
PEERS = {
    "llmcompressor": Contender("llmcompressor_oneshot.py"),
    "gptqmodel": Contender("gptqmodel_quantize.py", methods=("gptq",)),
}


def say(text: str) -> None:
    """Print progress to stderr, apart from the report."""
    sys.stderr.write(text + "\n")


def plan(options: argparse.Namespace, peers: list[str]) -> Iterator[tuple[int, str, str]]:
    """Every (seed, recipe, contender); the order of contenders is rotated by one from seed to seed."""
    contenders = [*options.contenders, *peers]
    for seed in range(options.seeds):
        rotated = contenders[seed % len(contenders) :] + contenders[: seed % len(contenders)]
        for recipe in options.recipes:
            for name in rotated:
                peer = PEERS.get(name)
                if peer and (seed >= options.peer_seeds or recipe.partition("@")[0] not in peer.methods):
                    continue
                yield seed, recipe, name


def compete(bench: Bench, options: argparse.Namespace, start: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the plan: the result of each run, or its error."""
    pythons: dict[str, str] = {}
    broken: dict[str, str] = {}
    for name in options.peers:
        try:
            pythons[name] = peer_python(name, cache_folder("benchmarks"), say)
        except Failed as failure:
            broken[name] = f"does not install: {failure}"
            say(f"{name} {broken[name]}")
    runs = []
    for seed, recipe, name in plan(options, options.peers):
        contender = {**OURS, **PEERS}[name]
        if name == "ours, float32" and start["dtype"] == "float32":
            continue  # that is what ours is on this machine
        run = {"seed": seed, "recipe": recipe, "contender": name, "dtype": contender.dtype or start["dtype"]}
        weights = str(bench.work / "weights.safetensors")
        try:
            if name in broken:
                raise Failed(broken[name])
            run |= bench.run(
                contender.script,
                python=pythons.get(name, sys.executable),
                recipe=recipe,
                dtype=run["dtype"],
                tokens=start["windows"][str(seed)],
                dense_loss=start["losses"][seed],
                weights=weights,
            )
            run |= bench.run("score.py", weights=weights)
            say(f"seed {seed} {recipe} {name}: {run['seconds']:.1f} s, perplexity {run['perplexity']:.2f}")
        except Failed as failure:
            run["error"] = str(failure)
            say(f"seed {seed} {recipe} {name}: {failure}")
        runs.append(run)
    return runs


def processor() -> str:
    """The name of the processor, as far as the system gives it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str:
    """The current commit, with a mark if files differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True).stdout.strip()
    return f"{head or 'unknown'}{' with changes' if changed else ''}"


def head(options: argparse.Namespace, start: dict[str, Any], dense: dict[str, Any], machine: dict[str, Any]) -> str:
    """The head of the report: command, machine, model and calibration."""
    command = " ".join(["python benchmarks/compression.py", *sys.argv[1:]])
    speeds = ", ".join(f"{name} {flops / 1e9:.0f} GFLOP/s" for name, flops in sorted(machine["flops"].items()))
    return (
        f"# Compression: time and memory at equal quality\n\n"
        f"`{command}` · commit {commit()} · {datetime.datetime.now(datetime.UTC):%Y-%m-%d}\n\n"
        f"{processor()}, {os.cpu_count()} cores, {options.threads} threads, seconds of {options.clock} · "
        f"Python {platform.python_version()}\n\n"
        f"{options.model}, {options.sequences} × {options.length} calibration tokens ({options.calibration}), "
        f"seeds 0 to {options.seeds - 1}; peers on the first {options.peer_seeds}. "
        f"Dense perplexity {dense['perplexity']:.2f} on {dense['scored']:,} tokens of our own texts, in float32 "
        f"as everywhere below.\n\n"
        f"Measured at best: {speeds}; copying {machine['bandwidth'] / 1e9:.1f} GB/s."
    )


def versions_table(start: dict[str, Any], runs: list[dict[str, Any]]) -> str:
    """The packages in the environment of every contender."""
    versions = {"ours, obvious": start["versions"]}
    versions |= {run["contender"]: run["versions"] for run in runs if run["contender"] in PEERS and "versions" in run}
    rows = [[who, ", ".join(f"{name} {number}" for name, number in what.items())] for who, what in versions.items()]
    return table(["environment", "packages"], rows)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a model with Llama's names of layers")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seeds", type=int, default=3, help="calibration seeds, each a run of everything")
    parser.add_argument("--calibration", default="self", help="source of the windows, as of llmkick.calibrate")
    parser.add_argument("--only", default=",".join(RECIPES), help="recipes, or methods of the default ones")
    parser.add_argument("--peers", default=",".join(PEERS), help="none, or some of the default")
    parser.add_argument("--peer-seeds", type=int, default=1, help="seeds that the peers run")
    parser.add_argument("--contenders", default=";".join(OURS), help="some of the default, with semicolons")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--clock", choices=("wall", "cpu"), default="wall", help="cpu, with one thread: right on a busy machine too"
    )
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for one process")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each kernel in the solve alone")
    parser.add_argument(
        "--solve-runs", type=int, default=5, help="processes that time the solve, of which the middle counts"
    )
    parser.add_argument("--solve-only", action="store_true", help="time the solve alone, and print its table")
    parser.add_argument("--text-windows", type=int, default=0, help="windows of text to score; 0: all")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/compression.md")
    options = parser.parse_args()
    options.recipes = [
        recipe
        for wish in options.only.split(",")
        for recipe in ([wish] if "@" in wish else [r for r in RECIPES if r.startswith(f"{wish}@")])
    ]
    # The processes start in another folder.
    for name in ("model", "calibration"):
        path = Path(getattr(options, name)).expanduser()
        setattr(options, name, str(path.resolve()) if path.exists() else getattr(options, name))
    options.contenders = options.contenders.split(";")
    options.peers = [] if options.peers == "none" else options.peers.split(",")
    unknown = [name for name in options.peers if name not in PEERS]
    unknown += [name for name in options.contenders if name not in OURS]
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu adds up all threads; give --threads 1")
    os.environ["BENCHMARK_CLOCK"] = options.clock
    counts = (options.seeds, options.sequences, options.threads, options.repeats, options.solve_runs)
    if options.solve_only and options.write:
        parser.error("--write keeps a whole report; leave --solve-only out")
    if unknown or not options.recipes or min(counts) < 1:
        parser.error(f"nothing to do: recipes {options.only}, peers of {', '.join(PEERS)} or none, counts from 1")
    return options


def solve_part(bench: Bench, options: argparse.Namespace, start: dict[str, Any]) -> str:
    """Compare the kernels alone, in several processes."""
    processes = []
    for number in range(options.solve_runs):
        say(f"the solve alone, {number + 1} of {options.solve_runs}")
        run = bench.run(
            "solve.py",
            recipes=options.recipes,
            repeats=options.repeats,
            dtype="float32",
            tokens=start["windows"]["0"],
            dense_loss=start["losses"][0],
        )
        processes.append(run["rows"])
    return (
        "## The solve alone\n\nThe same weights and the same H, of the middle block; the least of the repeats of a "
        f"process, of {options.solve_runs} processes the one with the middle ratio. Factors are shared by linears with "
        "one input in ours, made for each in the obvious procedure: that shows in the block.\n\n"
        + solve_table(processes)
    )


def report(bench: Bench, options: argparse.Namespace) -> str:
    """Run everything and return the report as Markdown."""
    start = bench.run(
        "prepare.py",
        model=options.model,
        calibration=options.calibration,
        sequences=options.sequences,
        length=options.length,
        seeds=options.seeds,
    )
    if options.solve_only:
        return solve_part(bench, options, start)
    dense = bench.run("score.py", weights="")
    runs = compete(bench, options, start)
    solved = solve_part(bench, options, start)
    machine = bench.run("machine.py", dtype=start["dtype"])
    sizes = {"sequences": options.sequences, "length": options.length}
    return "\n\n".join(
        [
            head(options, start, dense, machine),
            "## Whole compressions",
            contenders_table(runs, options.recipes, [*options.contenders, *options.peers]),
            f"## Targets\n\nA target is {met(True)} or {met(False)}; {met(None)} where this run cannot tell.",
            criteria_table(runs, options.recipes),
            solved,
            "## The floor",
            "Two forwards of each block (the first without its last linear, the last block once), the statistics,"
            " the solve; each at the best speed this machine showed, or at that of its memory where that takes longer.",
            floor_table(runs, options.recipes, start, machine, **sizes),
            "## Environments",
            versions_table(start, runs),
        ]
    )


def main() -> None:
    """Run everything, print the report, write it with --write."""
    options = arguments()
    with tempfile.TemporaryDirectory(prefix="compression-") as work:
        shared = {"folder": f"{work}/dense", "text_windows": options.text_windows}
        bench = Bench(work=Path(work), threads=options.threads, timeout=options.timeout, shared=shared)
        text = report(bench, options) + "\n"
    sys.stdout.write(text)
    if options.write:
        target = Path(__file__).parent / "results" / "compression.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
