"""Fixtures that several folders share, and what lets several workers run the tests at once."""

from __future__ import annotations

import functools
import gc
import os
import shutil
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import repeated_cases
from commands import CONTROL, Kick, Outcome
from disk import usage_with_room
from shorter import empty_drawings, few_draws, few_passes, short_answers

if TYPE_CHECKING:
    from llmkick.models.transformers_model import TransformersModel

BUILTIN = "smollm2-135m-instruct"
# Folders whose tests run studies.
WHOLE_STUDIES = {"cli", "study"}

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many workers as cores: a thread each, here and in the processes that tests start. torch reads it when imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before slow tests are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases that repeat others as slow, and put the files that run the built-in model first.

    Those files take longest, and no worker shall begin one at the end.
    """
    repeated = repeated_cases.listed()
    for item in items:
        if item.nodeid in repeated:
            item.add_marker(pytest.mark.slow)
    with_model = {item.path for item in items if item.get_closest_marker("model")}
    items.sort(key=lambda item: item.path not in with_model)


def pytest_collection_finish() -> None:
    """Leave what is imported by now, which stays to the end, out of all collections of garbage; collect less often."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Have the built-in model in place before a test, or a fixture of its module, loads it."""
    if item.get_closest_marker("model"):
        fetch_builtin_model()


@pytest.fixture(scope="session", autouse=True)
def _few_draws() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        few_draws(patch)
        yield patch


@pytest.fixture(scope="module", autouse=True)
def _short_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    """Short answers where a toy model is asked in whole studies."""
    with pytest.MonkeyPatch.context() as patch:
        if WHOLE_STUDIES & set(request.path.relative_to(Path(__file__).parent).parts):
            short_answers(patch)
        yield


@pytest.fixture(scope="module", autouse=True)
def _few_passes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Few passes to measure a model's speed, except where the tests are about that speed."""
    with pytest.MonkeyPatch.context() as patch:
        if "speed" not in request.path.name:
            few_passes(patch)
        yield


@pytest.fixture(scope="module", autouse=True)
def _empty_drawings(request: pytest.FixtureRequest) -> Iterator[None]:
    """No drawn figures, except where the tests are about figures; what a page shows is drawn by the browser."""
    with pytest.MonkeyPatch.context() as patch:
        if "figures" not in str(request.path.relative_to(Path(__file__).parent)):
            empty_drawings(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """No test cuts the power: what was written need not be on the disk before a test goes on."""
    from llmkick.study.journal import database

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(database, "SYNCHRONOUS", "OFF")
        yield


@pytest.fixture(scope="session", autouse=True)
def _room_on_the_disk() -> Iterator[None]:
    """With less than 2 GB free, compressed models are not kept, and `kick doctor` fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", usage_with_room)
        yield


@pytest.fixture(scope="session", autouse=True)
def _certificates_read_once() -> Iterator[None]:
    """Hundreds of tests make a client of a server, and each client reads all certificates of this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture(scope="module", autouse=True)
def _draws(request: pytest.FixtureRequest, _few_draws: pytest.MonkeyPatch) -> Iterator[None]:
    """All draws for tests of the statistics, and of the numbers that a study warns with."""
    if request.path.parent.name == "statistics" or request.node.get_closest_marker("power"):
        _few_draws.undo()
        yield
        few_draws(_few_draws)
    else:
        yield


@functools.cache
def fetch_builtin_model() -> None:
    """Fetch and convert the built-in model, one worker at a time: the others find it done."""
    from filelock import FileLock

    from llmkick.files import cache_folder
    from llmkick.models.checkpoints.references import locate

    with FileLock(cache_folder("builtin") / "tests.lock"):
        locate(BUILTIN)


@pytest.fixture(scope="session")
def builtin_model() -> TransformersModel:
    """The built-in model in float32 on the CPU, loaded once. No test changes its weights."""
    from llmkick.models.checkpoints.loading import load_model

    fetch_builtin_model()
    return load_model(BUILTIN, dtype="float32", device="cpu")


@pytest.fixture
def kick(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kick:
    """Run a command in this process, exactly as the installed script does; tables come in one piece."""
    from llmkick import cli

    monkeypatch.setattr(cli.out, "_width", 200)

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["kick", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        assert not CONTROL.search(out + err), "control characters, and this is no terminal"
        assert "Traceback" not in out + err
        assert isinstance(stop.value.code, int)
        return Outcome(stop.value.code, out, err)

    return run
