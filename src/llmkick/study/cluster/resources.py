"""The resources of a Ray cluster: connecting in bounded time, and the size and number of workers."""

from __future__ import annotations

import logging
import math
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from llmkick.errors import ConfigError, one_line
from llmkick.models.precision import BALANCED, DTYPES
from llmkick.study.cluster.remote_model import RemoteModelSpec
from llmkick.study.running.preparation import copies_beside
from llmkick.study.spec.study import Study

# Timeouts in seconds for the connection, for the status of the cluster, and for a place on it.
CONNECT_SECONDS, STATUS_SECONDS, ROOM_SECONDS = 5.0, 30.0, 120.0
# Memory of a worker in units of the dense model's size: the dense model, and 0.1 for intermediate results of it and of
# the compressed model. Beside that a worker holds one compressed model, and never more than one block of a second one,
# or what a training takes.
HELD = 1.2
# Bytes for code, tokenizer, and activations of small models.
BASE_BYTES = 1_000_000_000


# A node of a cluster in the format of `ray.nodes()`.
Node = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Demand:
    """The Ray resources that one worker needs; memory in bytes."""

    cpus: int
    gpus: int
    memory: int

    @property
    def device(self) -> str:
        """The device for the worker's model, as `load_model` names it."""
        return "cpu" if self.gpus == 0 else "cuda" if self.gpus == 1 else "balanced"

    @property
    def options(self) -> dict[str, object]:
        """The resource options of a Ray actor."""
        memory = {"memory": self.memory} if self.gpus == 0 else {}
        return {"num_cpus": self.cpus, "num_gpus": self.gpus, **memory}

    def __str__(self) -> str:
        wanted = f"{self.cpus} CPU{'s' * (self.cpus != 1)}"
        if self.gpus:
            return f"{self.gpus} GPU{'s' * (self.gpus != 1)} and {wanted}"
        return f"{wanted} and {self.memory / 1e9:.1f} GB of memory"


def demand(
    *, weight_bytes: int, threads: int, gpu_bytes: int | None, cpus_a_gpu: int = 1, copies: float = 1.0
) -> Demand:
    """Return the demand of a worker for a model of `weight_bytes` bytes, and `copies` of it for what is made of it.

    The number of GPUs follows from `gpu_bytes`, the memory of one GPU; None means CPUs only.
    """
    needed = int((HELD + copies) * weight_bytes + BASE_BYTES)
    if gpu_bytes is None:
        return Demand(cpus=threads, gpus=0, memory=needed)
    gpus = max(1, math.ceil(needed / gpu_bytes))
    return Demand(cpus=gpus * cpus_a_gpu, gpus=gpus, memory=needed)


def worker_count(nodes: Sequence[Node], wanted: Demand) -> int:
    """Return the number of workers with the demand `wanted` that fit on the nodes.

    Raises ConfigError if no node has room for a worker; the message lists the resources of the nodes.
    """
    resources = [node["Resources"] for node in nodes]
    count = sum(_fitting(of_node, wanted) for of_node in resources)
    if count == 0:
        have = "; ".join(sorted({_described(of_node) for of_node in resources})) or "nothing"
        raise ConfigError(
            f"a worker needs {wanted}, and no node of the Ray cluster has that (nodes: {have}). "
            "Fewer threads: set OMP_NUM_THREADS; less memory: a smaller dtype; or add a larger node"
        )
    return count


def _fitting(node: Mapping[str, float], wanted: Demand) -> int:
    limits = [node.get("CPU", 0) // wanted.cpus]
    limits.append(node.get("GPU", 0) // wanted.gpus if wanted.gpus else node.get("memory", 0) // wanted.memory)
    return int(min(limits))


def _described(node: Mapping[str, float]) -> str:
    gpus = f", {node['GPU']:g} GPUs" if node.get("GPU") else ""
    return f"{node.get('CPU', 0):g} CPUs{gpus}, {node.get('memory', 0) / 1e9:.1f} GB"


def living_nodes() -> list[Node]:
    """Return the live nodes of the connected cluster."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def has_gpus(nodes: Sequence[Node]) -> bool:
    """Return whether a node has a GPU."""
    return any(node["Resources"].get("GPU") for node in nodes)


def cpus_a_gpu(nodes: Sequence[Node]) -> int:
    """Return the number of CPUs available per GPU on every node of the cluster, at least 1."""
    shares = [
        int(node["Resources"].get("CPU", 0) // node["Resources"]["GPU"])
        for node in nodes
        if node["Resources"].get("GPU")
    ]
    return max(1, min(shares, default=1))


def connect(address: str | None) -> bool:
    """Connect to the cluster at the address or at $RAY_ADDRESS, or start a local cluster.

    Returns False if this process is already connected; it then keeps that connection. Raises ConfigError within about
    a minute if Ray is missing or nothing answers.
    """
    # Ray sends usage statistics by default. This program must not send data from the machine.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers run at niceness 15 by default, which makes them a hundred times slower on a busy machine. The
    # workers of a local cluster replace this process, so they run at normal priority.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError as error:
        raise ConfigError("executor ray needs the package ray: pip install 'llmkick[ray]'") from error

    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address not in ("local", "auto"):
        check_answers(address)
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except Exception as error:
        raise ConfigError(
            f"cannot join the Ray cluster {address!r}: {one_line(error)}. The command must run on a machine of the "
            "cluster: `ray start --address=HEAD:6379 --num-cpus=0` makes this one part of it"
        ) from error
    return True


def check_answers(address: str) -> None:
    """Raise ConfigError, within about half a minute, unless a Ray cluster answers at HOST:PORT.

    The check is needed because `ray.init` tries for minutes and then may end the process.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ConfigError(
            f"{address!r} is no address of a Ray cluster: give HOST:PORT of its head (6379 unless chosen), or auto "
            "for one that runs on this machine"
        )
    try:
        with socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS):
            pass
    except OSError as error:
        raise ConfigError(
            f"nothing answers at the Ray address {address}: {error}; is the cluster up, and is this its head? "
            f"`ray status --address {address}` tells"
        ) from error
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "status", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=STATUS_SECONDS, check=False)  # noqa: S603
        said = "" if done.returncode == 0 else (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
    except subprocess.TimeoutExpired:
        said = f"no answer in {STATUS_SECONDS:.0f} seconds"
    if said:
        raise ConfigError(f"what listens at {address} does not answer as a Ray cluster does: {said[:300]}")


def demand_of(study: Study, model: RemoteModelSpec) -> Demand:
    """Return the demand of a worker from the model's size and the cluster's devices."""
    nodes = living_nodes()
    if study.device in ("cuda", BALANCED) and not has_gpus(nodes):
        raise ConfigError(f"device {study.device!r}: the Ray cluster has no GPUs; use auto or cpu")
    on_gpus = has_gpus(nodes) and study.device != "cpu"
    dtype = study.dtype if study.dtype != "auto" else "bfloat16" if on_gpus else "float32"
    return demand(
        weight_bytes=model.parameters * DTYPES[dtype].itemsize,
        threads=torch.get_num_threads(),
        gpu_bytes=_memory_of_a_gpu() if on_gpus else None,
        cpus_a_gpu=cpus_a_gpu(nodes),
        copies=copies_beside(study),
    )


def _memory_of_a_gpu() -> int:
    import ray

    task: Any = ray.remote(num_gpus=1)(gpu_memory)
    try:
        return int(ray.get(task.remote(), timeout=ROOM_SECONDS))
    except ray.exceptions.GetTimeoutError as error:
        raise ConfigError(
            f"no GPU of the Ray cluster was free for {ROOM_SECONDS:.0f} seconds: try again later"
        ) from error


def gpu_memory() -> int:
    """Return the memory of the GPU that Ray assigns to the task, in bytes."""
    return int(torch.cuda.mem_get_info()[1])
