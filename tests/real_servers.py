"""Real servers on this machine, started for a test or a benchmark and stopped after it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

READY_SECONDS = 240


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def transformers_command(folder: Path, port: int, *, dtype: str = "float32") -> list[str]:
    """`transformers serve`, pinned to one folder."""
    code = "from transformers.cli.transformers import main; main()"
    options = ["--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--device", "cpu"]
    return [sys.executable, "-c", code, "serve", str(folder), *options]


def llama_cpp_command(gguf: Path, port: int, *, python: str = sys.executable) -> list[str]:
    """llama-cpp-python's server; with all logits kept, so that it can give log-probabilities of an echo."""
    options = ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", "2048", "--logits_all", "true"]
    return [python, "-m", "llama_cpp.server", "--model", str(gguf), "--model_alias", "smol", *options]


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    process: int

    def cpu_seconds(self) -> float:
        """Processor time it has taken so far: on a busy machine the only time that means something."""
        times = psutil.Process(self.process).cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def running(command: Sequence[str], port: int) -> Iterator[Running]:
    """The server, once it answers; it is stopped at the end."""
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
        process = subprocess.Popen(list(command), stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            deadline = time.monotonic() + READY_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"the server did not start: {log.read().decode(errors='replace')[-2000:]}")
                time.sleep(0.5)
            yield Running(f"http://127.0.0.1:{port}/v1", process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
            return True
    except urllib.error.HTTPError:  # transformers serve cannot list models where there is no hub cache
        return True
    except OSError:
        return False
