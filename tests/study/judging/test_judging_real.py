"""A real judge: the built-in model behind `transformers serve` on this machine, and the same model without a server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkick.models.checkpoints.references import locate
from llmkick.study.run import run_study
from llmkick.study.spec.study import Study, make_study
from toy import save_toy

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(600)]
BUILTIN = "smollm2-135m-instruct"
SECONDS = 240


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of `transformers serve` with the built-in model, as openai:URL#MODEL."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    folder = locate(BUILTIN).folder
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(folder), "--host", "127.0.0.1"]
    command += ["--port", str(port), "--device", "cpu", "--dtype", "bfloat16"]
    log = tmp_path_factory.mktemp("server") / "log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield f"openai:http://127.0.0.1:{port}/v1#{folder}"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"transformers serve did not start: {log.read_text(errors='replace')[-2000:]}")


def study_of(toy: Path, judge: str, **options: object) -> Study:
    return make_study(
        {
            "model": str(toy),
            "dtype": "float32",
            "device": "cpu",
            "recipes": ["magnitude@0.5"],
            "tasks": [{"name": "instruction", "limit": 1, "max_new_tokens": 8}],
            "calibration": {"sequences": 2, "length": 16},
            "judge": {"model": judge, "max_tokens": 24, "timeout": 120.0, "attempts": 2, **options},
        }
    )


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, chat=True, max_position_embeddings=1024)
    return folder


def test_a_server_judges(server: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none needed")
    result = run_study(study_of(toy, server, protocol="paper", concurrency=2), out=tmp_path / "run")
    assert result.judge is not None
    assert result.judge["unanswered"] == 0
    # Two turns of the dense model and of the compressed one; two that are the same share a judgement.
    assert 2 <= result.judge["judgements"] <= 4
    assert result.judge["prompt_tokens"] > 200 * result.judge["judgements"]
    assert 0 < result.judge["completion_tokens"] <= 24 * result.judge["judgements"]
    # A judge this small seldom rates as asked: whatever it wrote is a score in the scale or a reason.
    for row in result.results:
        if row["task"] == "instruction:judge":
            assert row["n"] + row["unscored"] == 2
            assert all(reason.startswith("judge: ") for reason in row["unscored_reasons"])
            assert row["value"] is None or 0 <= row["value"] <= 1
    again = run_study(study_of(toy, server, protocol="paper", concurrency=2), out=tmp_path / "run")
    assert again.judge == result.judge


def test_the_same_model_judges_without_a_server(toy: Path, tmp_path: Path):
    result = run_study(study_of(toy, BUILTIN), out=tmp_path / "run")
    assert result.judge is not None
    assert result.judge["unanswered"] == 0
    assert result.judge["judgements"] <= 4
    assert run_study(study_of(toy, BUILTIN), out=tmp_path / "run").results == result.results
