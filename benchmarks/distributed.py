"""A study on Ray workers against the same one here: python benchmarks/distributed.py [--items N] [--write].

The built-in model, three recipes, two tasks: in this process, on one Ray worker, and on two, each run in a process of
its own with an empty cache of compressed models. Reports wall and processor time, what Ray adds to a cell, how long a
call takes, and whether records and results are the same.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "distributed.md"
WAYS = {"local": 0, "ray, 1 worker": 1, "ray, 2 workers": 2}
RECIPES = ["magnitude@0.25", "wanda@0.5", "gptq@4b-g128"]
TASKS = ["factoid_qa", "multiple_choice:cloze"]
CALLS = 200


def study(items: int) -> dict[str, Any]:
    return {
        "name": "distributed",
        "model": "smollm2-135m-instruct",
        "device": "cpu",
        "recipes": RECIPES,
        "tasks": [{"name": name, "limit": items} for name in TASKS],
        "calibration": {"sequences": 4, "length": 128},
    }


def run_one(way: str, items: int, out: Path) -> None:
    """One of the ways, in this process; its measurements are written beside its results."""
    import psutil
    import torch

    from llmkick.study.run import run_study
    from llmkick.study.running.executor import LocalExecutor

    torch.set_num_threads(1)
    started = time.perf_counter()
    measured: dict[str, Any] = {}
    if way == "local":
        run_study(study(items), out=out, executor=LocalExecutor())
        measured["processor"] = time.process_time()
    else:
        import ray

        from llmkick.study.cluster.ray_executor import RayExecutor

        class Measured(RayExecutor):
            def load(self, *arguments: Any) -> Any:
                began = time.perf_counter()
                model = super().load(*arguments)
                measured["ready"] = time.perf_counter() - began
                return model

            def close(self) -> None:
                if "calls" not in measured:
                    processes = [h.worker_info.process for h in self.handles if h.worker_info is not None]
                    used = [sum(psutil.Process(process).cpu_times()[:2]) for process in processes]
                    measured["processor"] = time.process_time() + sum(used)
                    measured["finished"] = time.perf_counter()
                    measured["calls"] = [call_seconds(self.handles[0]) for _ in range(CALLS)]
                super().close()

        # Two processors, whatever else the machine has: as many workers of one thread each as are asked for.
        os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_worker_niceness="0")
        ray.init(address="local", num_cpus=WAYS[way], include_dashboard=False, log_to_driver=False, logging_level=40)
        started = time.perf_counter()
        run_study(study(items), out=out, executor=Measured())
        ray.shutdown()
    measured["wall"] = measured.pop("finished", time.perf_counter()) - started
    (out / "measured.json").write_text(json.dumps(measured))


def call_seconds(handle: Any) -> float:
    """A call that has nothing to answer: what is left is the way there and back."""
    started = time.perf_counter()
    handle.call("answer", "dense", "logprobs", [])
    return time.perf_counter() - started


def prepared_cache(folder: Path) -> Path:
    """A cache with the built-in model and its calibration text, and no compressed models."""
    import platformdirs

    known = Path(os.environ.get("LLMKICK_CACHE") or platformdirs.user_cache_dir("llmkick"))
    folder.mkdir()
    for part in ("builtin", "converted", "processor", "calibration"):
        if (known / part).exists():
            (folder / part).symlink_to(known / part)
    return folder


def content(folder: Path) -> dict[str, Any]:
    values = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {key: value for key, value in values.items() if key not in ("timing", "environment")}


def records(folder: Path) -> Any:
    from llmkick.study.journal.journal import Journal

    journal = Journal(folder, read_only=True)
    frame = journal.records()
    journal.close()
    return frame.to_json(orient="records", double_precision=15)  # where a missing seed equals another, as NaN does not


def measure(items: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for number, way in enumerate(WAYS):
            out = Path(place) / f"run-{number}"
            variables = {**os.environ, "LLMKICK_CACHE": str(prepared_cache(Path(place) / f"cache-{number}"))}
            variables["OMP_NUM_THREADS"] = "1"
            command = [sys.executable, __file__, "--one", way, "--items", str(items), "--out", str(out)]
            subprocess.run(command, check=True, env=variables)
            row = {"way": way, **json.loads((out / "measured.json").read_text())}
            first = Path(place) / "run-0"
            row["same"] = records(out) == records(first) and content(out) == content(first)
            timing = json.loads((out / "results.json").read_text(encoding="utf-8"))["timing"]["seconds"]
            row["cells"] = sum(timing["evaluate"].values()) + sum(timing["compress"].values())
            rows.append(row)
            print(row["way"], {k: v for k, v in row.items() if k not in ("way", "calls")}, flush=True)
    return rows


def report(rows: list[dict[str, Any]], items: int) -> str:
    import torch

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    cells = (1 + len(RECIPES)) * len(TASKS)
    load = os.getloadavg()[2]
    lines = [
        "# A study on Ray workers against the same one in one process",
        "",
        f"`python benchmarks/distributed.py --items {items} --write` · commit {commit.stdout.strip()} · "
        f"{time.strftime('%Y-%m-%d')} · {os.cpu_count()} cores, {platform.machine()}, torch {torch.__version__}, "
        f"one thread a worker; {load:.0f} processes wanted the cores meanwhile (15 minutes' load)",
        "",
        f"Built-in model, {', '.join(RECIPES)}, {' and '.join(TASKS)}, {items} items each: {cells} cells.",
        "",
        "| where | wall s | until the first worker is ready, s | asking and compressing, s | processor s | "
        "records and results |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ready = f"{row['ready']:.1f}" if "ready" in row else "–"
        same = "–" if row["way"] == "local" else "the same" if row["same"] else "**DIFFERENT**"
        lines.append(
            f"| {row['way']} | {row['wall']:.1f} | {ready} | {row['cells']:.1f} | {row['processor']:.1f} | {same} |"
        )
    one = rows[1]
    calls = sorted(one["calls"])
    more = (one["processor"] - rows[0]["processor"]) / cells
    lines += [
        "",
        f"A call to a worker and back, with nothing to answer: {1000 * calls[len(calls) // 2]:.1f} ms (median of "
        f"{len(calls)}; nine of ten below {1000 * calls[len(calls) * 9 // 10]:.1f} ms). A cell makes one a batch of 64 "
        f"items, and one to compress. Processor time that one worker takes more than this process alone, start "
        f"included: {more:.2f} s a cell.",
        "",
        "Asking and compressing is summed over the workers; the processor time is of this process and all workers, "
        "their start (torch, transformers, the model) included.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=12)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--one", choices=list(WAYS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    if arguments.one:
        run_one(arguments.one, arguments.items, arguments.out)
        return
    text = report(measure(arguments.items), arguments.items)
    print(text)
    if arguments.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
