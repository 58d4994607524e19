"""What every contender's process shares: the job it is given, the clock, the memory it took, what it hands back.

Runs in the environments of the peers too: torch, transformers, safetensors and numpy, nothing of ours.
"""

import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

Json = dict[str, Any]


class Level(NamedTuple):
    """A recipe of this benchmark, taken apart."""

    method: str
    sparsity: float | None
    bits: int | None
    group: int | None  # inputs that share a grid; None: a whole row


def parse(recipe: str) -> Level:
    """`wanda@0.5`, `sparsegpt@0.5`, `gptq@4b`, `gptq@4b-g64`."""
    found = re.fullmatch(r"(wanda|sparsegpt)@(0?\.\d+)|(gptq)@(\d)b(?:-g(\d+))?", recipe)
    if found is None:
        raise SystemExit(f"recipe {recipe!r} is not one this benchmark compares: wanda@S, sparsegpt@S, gptq@Nb[-gN]")
    method, sparsity, gptq, bits, group = found.groups()
    if method:
        return Level(method, float(sparsity), None, None)
    return Level(gptq, None, int(bits), int(group) if group else None)


def read_job() -> Json:
    """The job named on the command line; torch gets its number of threads."""
    job: Json = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(job["threads"])
    return job


def answer(job: Json, **facts: Any) -> None:
    """Leave the result where the driver looks for it."""
    Path(job["result"]).write_text(json.dumps(facts), encoding="utf-8")


def load_network(job: Json) -> Any:
    """The dense network in the job's dtype, checked to be the one that the other contenders have."""
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(
        job["folder"], dtype=getattr(torch, job["dtype"]), local_files_only=True
    ).eval()
    check_dense(network, job)
    return network


@torch.no_grad()
def check_dense(network: Any, job: Json) -> None:
    """Another release of transformers may read a configuration differently, and silently make another model."""
    ids = torch.from_numpy(load_tokens(job)[:1])
    loss = float(network(input_ids=ids, labels=ids).loss)
    if abs(loss - job["dense_loss"]) > 0.02 * job["dense_loss"]:
        raise SystemExit(f"loads as another model: loss {loss:.4f} on the first window, not {job['dense_loss']:.4f}")


def load_tokens(job: Json) -> Any:
    """Calibration windows (sequences, tokens), int64."""
    return np.load(job["tokens"], allow_pickle=False)


def linears(network: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside decoder blocks, by name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear) and ".layers." in f".{name}"}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came out: of wall clock, or with BENCHMARK_CLOCK=cpu those this process computed.

    With one thread the second is what a machine with nothing else to do would take, whatever else runs on this one.
    """
    clock = time.process_time if os.environ.get("BENCHMARK_CLOCK") == "cpu" else time.perf_counter
    start = clock()
    result = work()
    return clock() - start, result


def peak_bytes() -> int:
    """The most memory this process has held, model and imports included."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, free of what the parent held when it forked
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def hand_back(job: Json, seconds: float, weights: dict[str, Tensor], packages: tuple[str, ...]) -> None:
    """Store the compressed weights, {layer name: (out, in)}, for one scorer to judge all alike."""
    peak = peak_bytes()
    save_file({name: weight.detach().contiguous() for name, weight in weights.items()}, job["weights"])
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    answer(
        job,
        seconds=seconds,
        peak=peak,
        layers=len(weights),
        sparsity=zeros / sum(weight.numel() for weight in weights.values()),
        versions={name: version(name) for name in packages},
    )
