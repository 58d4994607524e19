"""Processes: one for each contender and run, and an environment for each peer."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
LONGEST_REASON = 160


class Failed(Exception):  # noqa: N818 - a result like any other: the reason goes into the table
    """A process that did not end well; the message is its last error."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all processes of a run share."""

    work: Path
    threads: int
    timeout: float
    shared: dict[str, Any] = field(default_factory=dict)

    def run(self, script: str, *, python: str = sys.executable, **job: Any) -> dict[str, Any]:
        """Run a script of this folder on a job; its answer, or Failed."""
        result = self.work / "result.json"
        result.unlink(missing_ok=True)
        file = self.work / "job.json"
        whole = {"threads": self.threads, "work": str(self.work), "result": str(result), **self.shared, **job}
        file.write_text(json.dumps(whole), encoding="utf-8")
        # In the folder of the run, since gptqmodel leaves logs wherever it is started.
        call([python, str(HERE / script), str(file)], self.environment(python), self.timeout, self.work)
        answer: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return answer

    def environment(self, python: str) -> dict[str, str]:
        """The same threads for all, no network; the code of this folder for us, nothing of ours for a peer."""
        threads = {f"{name}_NUM_THREADS": str(self.threads) for name in ("OMP", "MKL", "OPENBLAS")}
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment = {**os.environ, **threads, **quiet, "PYTHONPATH": str(ROOT / "src")}
        if python != sys.executable:
            del environment["PYTHONPATH"]
        return environment


def call(
    command: list[str],
    environment: dict[str, str] | None = None,
    timeout: float | None = None,
    folder: Path | None = None,
) -> None:
    """Run to the end; Failed with the reason unless all went well."""
    try:
        done = subprocess.run(command, env=environment, timeout=timeout, cwd=folder, capture_output=True, text=True)
    except subprocess.TimeoutExpired:
        raise Failed(f"not done after {timeout:.0f} s") from None
    if done.returncode != 0:
        raise Failed(reason(done.stderr or done.stdout) or f"exit code {done.returncode}")


def reason(output: str) -> str:
    """The last line that names an error, or else the last one."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception|ERROR|Exit)\b", line)]
    return (named or lines or [""])[-1][:LONGEST_REASON].replace("|", "/")  # which would end a cell of the table


def peer_python(name: str, cache: Path, say: Any) -> str:
    """The interpreter of an environment that has the peer; installed on first use. Failed where pip fails."""
    folder = cache / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    if not (folder / "installed").exists():
        # The peers pin their own versions of everything else; only torch must be the same for a fair race.
        torch = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
        say(f"installing {name} into {folder}")
        call([sys.executable, "-m", "venv", "--clear", str(folder)])
        constraint = folder / "torch.txt"
        constraint.write_text(torch + "\n")
        pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(constraint)]
        call([*pip, "torch"])  # beforehand: some packages ask for it while they are built
        call([*pip, name])
        (folder / "installed").write_text(time.strftime("%Y-%m-%d"))
    return str(python)
