"""What a worker needs, how many a cluster holds, and an address that does not answer: known before any work."""

from __future__ import annotations

import builtins
import socket
import subprocess
import time
from typing import Any

import pytest

from llmkick.errors import ConfigError
from llmkick.study.cluster import resources as cluster
from llmkick.study.cluster.resources import Demand, check_answers, connect, cpus_a_gpu, demand, has_gpus, worker_count

GB = 1_000_000_000
H100 = 80 * GB


def node(**resources: float) -> dict[str, Any]:
    return {"Alive": True, "Resources": {name.removesuffix("_"): value for name, value in resources.items()}}


def test_a_model_that_one_gpu_holds_gets_one_and_a_larger_one_as_many_as_it_needs():
    seven = demand(weight_bytes=14 * GB, threads=8, gpu_bytes=H100, cpus_a_gpu=6)
    assert (seven.gpus, seven.cpus, seven.device) == (1, 6, "cuda")
    seventy = demand(weight_bytes=140 * GB, threads=8, gpu_bytes=H100, cpus_a_gpu=6)
    assert (seventy.gpus, seventy.cpus, seventy.device) == (4, 24, "balanced")
    assert seventy.options == {"num_cpus": 24, "num_gpus": 4}
    assert str(seventy) == "4 GPUs and 24 CPUs"


def test_without_gpus_a_worker_has_our_threads_and_memory_for_two_models():
    one = demand(weight_bytes=2 * GB, threads=4, gpu_bytes=None)
    assert one.device == "cpu"
    assert one.options == {"num_cpus": 4, "num_gpus": 0, "memory": int(5.4 * GB)}
    assert str(one) == "4 CPUs and 5.4 GB of memory"


def test_what_is_made_beside_the_dense_model_is_asked_for():
    trained = demand(weight_bytes=2 * GB, threads=4, gpu_bytes=None, copies=3.0)
    assert trained.options == {"num_cpus": 4, "num_gpus": 0, "memory": int(9.4 * GB)}
    assert demand(weight_bytes=140 * GB, threads=8, gpu_bytes=H100, copies=3.0).gpus == 8


def test_the_scarcest_resource_decides_how_many_workers_a_node_holds():
    cpu = Demand(cpus=4, gpus=0, memory=10 * GB)
    assert worker_count([node(CPU=16, memory=100 * GB)], cpu) == 4
    assert worker_count([node(CPU=16, memory=25 * GB), node(CPU=9, memory=100 * GB)], cpu) == 4
    assert worker_count([node(CPU=3, memory=100 * GB), node(CPU=4, memory=10 * GB)], cpu) == 1
    gpu = Demand(cpus=24, gpus=4, memory=300 * GB)
    assert worker_count([node(CPU=64, GPU=8)] * 8, gpu) == 16
    assert worker_count([node(CPU=64, GPU=8), node(CPU=64)], gpu) == 2


def test_a_cluster_that_holds_none_is_refused_with_what_it_has():
    nodes = [node(CPU=2, memory=8 * GB), node(CPU=4, GPU=1, memory=16 * GB)]
    with pytest.raises(ConfigError) as refused:
        worker_count(nodes, Demand(cpus=8, gpus=0, memory=20 * GB))
    assert str(refused.value) == (
        "a worker needs 8 CPUs and 20.0 GB of memory, and no node of the Ray cluster has that "
        "(nodes: 2 CPUs, 8.0 GB; 4 CPUs, 1 GPUs, 16.0 GB). Fewer threads: set OMP_NUM_THREADS; less memory: "
        "a smaller dtype; or add a larger node"
    )
    with pytest.raises(ConfigError, match="nodes: nothing"):
        worker_count([], Demand(cpus=1, gpus=0, memory=1))


def test_the_cpus_of_a_gpu_are_those_that_every_node_has():
    assert cpus_a_gpu([node(CPU=64, GPU=8), node(CPU=32, GPU=8), node(CPU=3)]) == 4
    assert cpus_a_gpu([node(CPU=2, GPU=8)]) == 1
    assert cpus_a_gpu([node(CPU=2)]) == 1
    assert has_gpus([node(CPU=2), node(GPU=1)])
    assert not has_gpus([node(CPU=2)])


# Addresses


@pytest.mark.parametrize("address", ["head", "http://head:6379", "ray://head:10001", ":6379", "head:port", "head:"])
def test_what_is_no_address_is_said_at_once(address: str):
    with pytest.raises(ConfigError, match=f"^{address!r} is no address of a Ray cluster: give HOST:PORT"):
        check_answers(address)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_an_address_where_nothing_listens_is_said_within_seconds(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray", reason="ray is not installed")
    address, started = f"127.0.0.1:{free_port()}", time.monotonic()
    with pytest.raises(ConfigError, match=f"^nothing answers at the Ray address {address}: .*refused"):
        connect(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=f"^nothing answers at the Ray address {address}"):
        connect(None)
    assert time.monotonic() - started < 60


def test_something_else_that_listens_is_said_within_the_time_it_has(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray", reason="ray is not installed")
    monkeypatch.setattr(cluster, "STATUS_SECONDS", 1.0)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            ConfigError, match=f"^what listens at {address} does not answer as a Ray cluster does: no answer in 1 sec"
        ):
            check_answers(address)


def test_what_ray_says_of_an_address_is_passed_on(monkeypatch: pytest.MonkeyPatch):
    def refusing(command: list[str], **_: Any) -> Any:
        return subprocess.CompletedProcess(command, 1, stdout="", stderr="Traceback…\nRpcError: another version")

    monkeypatch.setattr(subprocess, "run", refusing)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        with pytest.raises(ConfigError, match=r"does not answer as a Ray cluster does: RpcError: another version$"):
            check_answers(f"127.0.0.1:{server.getsockname()[1]}")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    original = builtins.__import__

    def without_ray(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(ConfigError, match=r"^executor ray needs the package ray: pip install 'llmkick\[ray\]'$"):
        connect(None)
