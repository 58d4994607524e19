"""The built-in model behind a server against the same model here: do greedy answers agree, and how fast is each?

    python benchmarks/servers.py transformers
    python benchmarks/servers.py llama-cpp [--python PYTHON_WITH_LLAMA_CPP]

Items a second are of `evaluate` on factoid_qa, elapsed and by processor time (which other work on the machine does
not change); the server's start is not counted.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from llmkick.models.checkpoints.builtin import builtin_gguf
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.references import locate
from llmkick.models.server.server import connect
from llmkick.models.server.settings import ServerSettings
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.registry import get_task
from real_servers import free_port, llama_cpp_command, running, transformers_command

MODEL = "smollm2-135m-instruct"


def timed(model: Any, task: Any, prompting: str, cpu: Callable[[], float]) -> tuple[dict[str, Any], float, float]:
    """Records by item, and items a second: elapsed, and by the processor time that `cpu` tells."""
    started, before = time.perf_counter(), cpu()
    records = evaluate(model, task, prompting=prompting)
    elapsed, spent = time.perf_counter() - started, cpu() - before
    return {record.item_id: record for record in records}, len(records) / elapsed, len(records) / spent


def main(
    kind: str,
    items: int = 20,
    dtype: str = "float32",
    concurrency: int = 2,
    prompting: str = "raw",
    gguf: Annotated[Path | None, typer.Option(help="of llama-cpp: another file than the built-in one")] = None,
    python: Annotated[str, typer.Option(help="an interpreter that has llama_cpp")] = sys.executable,
) -> None:
    task, port = get_task("factoid_qa", limit=items), free_port()
    here = load_model(MODEL, dtype=dtype, device="cpu")
    evaluate(here, get_task("factoid_qa", limit=1), prompting=prompting)  # what is loaded at first use
    ours, our_speed, our_cpu = timed(here, task, prompting, time.process_time)
    if kind == "transformers":
        name = str(locate(MODEL).folder)
        command = transformers_command(Path(name), port, dtype=dtype)
    else:
        name, command = "smol", llama_cpp_command(gguf or builtin_gguf(MODEL), port, python=python)
    with running(command, port) as started:
        server = connect(f"openai:{started.url}#{name}", ServerSettings(timeout=600, concurrency=concurrency))
        print(f"capabilities: {server.capabilities}; context {server.max_tokens}")
        theirs, their_speed, their_cpu = timed(server, task, prompting, started.cpu_seconds)
    same = [key for key in ours if ours[key].response == theirs[key].response]
    scores = [sum(record.score or 0 for record in some.values()) / len(some) for some in (ours, theirs)]
    print(f"{kind}, {prompting}, {dtype} here: {len(same)} of {len(ours)} answers alike, "
          f"{sum(ours[key].score == theirs[key].score for key in ours)} scores alike; "
          f"accuracy {scores[0]:.2f} here, {scores[1]:.2f} served; "
          f"{our_speed:.2f} items/s here, {their_speed:.2f} served ({concurrency} at once); "
          f"{our_cpu:.2f} and {their_cpu:.2f} a second of processor time")  # fmt: skip
    for key in ours:
        if key not in same:
            why = theirs[key].unscored_reason or ""
            print(f"  {key}: here {ours[key].response!r}, served {theirs[key].response!r} {why}")


if __name__ == "__main__":
    typer.run(main)
