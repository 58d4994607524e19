"""The same study on many workers: the same records, whatever happens to the workers.

Most tests have workers in this process in place of Ray's, so that what fails, and when, can be chosen; the last ones
have a Ray cluster of two workers, one of which is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import torch

from llmkick.compression import registry
from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage.shared_store import LISTING
from llmkick.compression.walk import compress as compress_module
from llmkick.errors import ConfigError, KickError, ModelError, NumericalError
from llmkick.files import sha256_of_file
from llmkick.models.checkpoints.loading import load_model
from llmkick.plugins import Plugin
from llmkick.report.page.page import write_report
from llmkick.study.cells import Variant
from llmkick.study.cluster import ray_executor as distributed_module
from llmkick.study.cluster.ray_executor import RayExecutor
from llmkick.study.cluster.remote_model import RemoteModel, remote_model_spec
from llmkick.study.cluster.resources import Demand
from llmkick.study.cluster.worker import Worker
from llmkick.study.cluster.worker_handle import NoRoomError, RefusalError, TransientError, WorkerConfig, WorkerHandle
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import Journal
from llmkick.study.progress import Silent
from llmkick.study.results.records import JournalledCompression
from llmkick.study.results.results import StudyResult
from llmkick.study.run import run_study
from llmkick.study.running import compressor as compressor_module
from llmkick.study.running.packages import installed_versions, packages_of
from llmkick.study.running.study_run import JournalWriter
from llmkick.study.spec.study import Study, make_study
from llmkick.tasks import evaluate as asking
from toy import save_toy

RECIPES = ["magnitude@0.5", "wanda@2:4", "gptq@4b"]
TASKS = 2
Fault = Callable[[str, str, tuple[Any, ...]], None]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of our own, batches of two items, and one thread: GPTQ's last bits depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(asking, "BATCH_ITEMS", 2)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, max_position_embeddings=512)
    return make_study(
        {
            "name": "small",
            "model": str(folder),
            "dtype": "float32",
            "device": "cpu",
            "recipes": RECIPES,
            "seeds": [1],
            "tasks": [{"name": "factoid_qa", "limit": 5}, {"name": "multiple_choice:cloze", "limit": 4}],
            "calibration": {"sequences": 4, "length": 32},
        }
    )


@pytest.fixture(scope="module")
def local(study: Study, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return run_study(study, out=tmp_path_factory.mktemp("runs") / "local")


def records(folder: Path) -> pd.DataFrame:
    order = "ORDER BY run_key, item_id"
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as connection:
        return pd.read_sql_query(f"SELECT * FROM records {order}", connection)


def records_of(result: StudyResult, recipe: str) -> pd.DataFrame:
    """The records of the dense model and of a recipe."""
    found = records(result.folder)
    return found[found["recipe"].isin(["dense", recipe])].reset_index(drop=True)


def trained(study: Study) -> Study:
    """The study with one recipe, which is trained."""
    changes = {"recipes": ["magnitude@0.5+lora-r2"], "recovery": {"steps": 4, "learning_rate": 0.01}}
    return make_study({**study.model_dump(mode="json", exclude_none=True), **changes})


def content(result: StudyResult) -> dict[str, Any]:
    """Everything in the results but when and where."""
    values = {
        key: value for key, value in result.model_dump().items() if key not in ("folder", "timing", "environment")
    }
    return dict(json.loads(json.dumps(values)))


def assert_same(result: StudyResult, local: StudyResult) -> None:
    pd.testing.assert_frame_equal(records(result.folder), records(local.folder))
    assert content(result) == content(local)


# Workers in this process


class Nearby(WorkerHandle):
    """A worker without Ray. `fault` is called before every call, with the worker, the method and its arguments."""

    fault: Fault
    worker: Worker | None = None
    one_machine: bool = True

    def start(self, seconds: float, *, dtype: str) -> None:
        self.stop()
        self.fault(self.name, "start", ())
        self.worker = Worker(threads=1)
        demand = self.config.demand
        info = self.call("load", self.config.study, dtype=dtype, device=demand.device, artifacts=None)
        self.worker_info = info if self.one_machine else replace(info, machine=f"machine of {self.name}")

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        self.fault(self.name, method, arguments)
        try:
            return getattr(self.worker, method)(*arguments, **options)
        except KickError as error:
            raise RefusalError(error) from error

    def stop(self) -> None:
        self.worker, self.loaded, self.worker_info = None, None, None


@pytest.fixture
def nearby(monkeypatch: pytest.MonkeyPatch) -> Callable[..., RayExecutor]:
    """Make an executor of so many workers in this process, with a fault of the test's choice."""

    def make(fault: Fault = lambda *_: None, *, workers: int = 2, one_machine: bool = True) -> RayExecutor:
        def all_handles(executor: RayExecutor, config: WorkerConfig) -> list[WorkerHandle]:
            executor._one_machine = one_machine
            found: list[WorkerHandle] = []
            for number in range(1, workers + 1):
                handle = Nearby(name=f"worker {number}", config=config, say=executor._say)
                handle.fault, handle.one_machine = fault, one_machine
                found.append(handle)
            return found

        monkeypatch.setattr(distributed_module, "connect", lambda _address: False)
        monkeypatch.setattr(distributed_module, "demand_of", lambda *_: Demand(cpus=1, gpus=0, memory=1))
        monkeypatch.setattr(RayExecutor, "_handles", all_handles)
        return RayExecutor()

    return make


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_many_workers_give_what_one_gives_here(
    nearby: Any, study: Study, local: StudyResult, tmp_path: Path, workers: int
):
    result = run_study(study, out=tmp_path / "run", executor=nearby(workers=workers))
    assert_same(result, local)
    assert result.environment["executor"] == "ray"
    assert len(result.environment["workers"]) == workers
    assert result.failures == ()


def test_what_is_in_the_journal_is_not_asked_again(nearby: Any, study: Study, local: StudyResult, tmp_path: Path):
    run_study(study, out=tmp_path / "run", executor=nearby())
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / JOURNAL_FILE)) as connection:
        connection.execute("DELETE FROM records WHERE recipe = 'wanda@2:4' AND task = 'factoid_qa' AND rowid % 2")
        connection.commit()
    calls: Counter[str] = Counter()
    again = nearby(lambda _name, method, _arguments: calls.update([method]))
    assert_same(run_study(study, out=tmp_path / "run", executor=again), local)
    assert calls["compress"] == 1
    assert 1 <= calls["answer"] <= 3
    # What was begun here may be finished there, and the other way round.
    assert_same(run_study(study, out=tmp_path / "run"), local)


def test_lost_workers_are_replaced_and_nothing_is_lost(nearby: Any, study: Study, local: StudyResult, tmp_path: Path):
    calls: Counter[str] = Counter()
    turn = threading.Lock()

    def fault(name: str, method: str, _arguments: Any) -> None:
        with turn:
            calls[method] += 1
            if (method, calls[method]) in {("answer", 2), ("answer", 7), ("compress", 2)}:
                raise TransientError(f"{name} was lost: killed")

    executor = nearby(fault)
    result = run_study(study, out=tmp_path / "run", executor=executor)
    assert_same(result, local)
    assert len(executor.lost) == 3
    assert calls["start"] == 2 + 3
    assert list(result.environment.lost) == executor.lost


def test_a_cell_that_kills_three_workers_is_reported_and_the_rest_goes_on(
    nearby: Any, study: Study, local: StudyResult, tmp_path: Path
):
    deadly = "rtn@2b"
    study = make_study({**study.model_dump(mode="json", exclude_none=True), "recipes": [*RECIPES, deadly]})

    def fault(name: str, method: str, arguments: Any) -> None:
        if method == "compress" and arguments[0].label == deadly:
            raise TransientError(f"{name} was lost: killed by the system, out of memory")

    result = run_study(study, out=tmp_path / "run", executor=nearby(fault))
    reason = "out of memory"
    assert [(row["recipe"], row["task"], row["attempts"]) for row in result.failures] == [
        (deadly, "factoid_qa", 3),
        (deadly, "multiple_choice:cloze", 3),
    ]
    assert all(reason in row["reason"] for row in result.failures)
    assert sum("was given up after 3 attempts" in warning for warning in result.warnings) == 2
    # The others are as if it had not been there.
    assert tuple(row for row in result.results if row["recipe"] != deadly) == local.results
    assert [row["recipe"] for row in result.overall] == RECIPES
    assert deadly not in {c.recipe for c in result.comparisons} | {r["recipe"] for r in result.compression}
    assert deadly in write_report(result.folder).read_text(encoding="utf-8")
    # The same command tries again, and then everything is there.
    again = run_study(study, out=tmp_path / "run", executor=nearby())
    assert again.failures == ()
    assert len(again.overall) == len(RECIPES) + 1


def test_half_a_cell_is_no_result(nearby: Any, study: Study, tmp_path: Path):
    """Two of five answers are another sample: they stay in the journal, and out of the tables."""
    asked: Counter[str] = Counter()

    def fault(name: str, method: str, arguments: Any) -> None:
        if method == "answer" and arguments[0] == "compressed" and arguments[1] == "generate":
            asked["compressed"] += 1
            if asked["compressed"] > 1:
                raise TransientError(f"{name} was lost: killed")

    study = make_study({**study.model_dump(mode="json", exclude_none=True), "recipes": ["magnitude@0.5"]})
    result = run_study(study, out=tmp_path / "run", executor=nearby(fault, workers=1))
    kept = records(result.folder)
    assert len(kept[(kept["recipe"] == "magnitude@0.5") & (kept["task"] == "factoid_qa")]) == 2
    assert [(row["recipe"], row["task"]) for row in result.results] == [
        ("dense", "factoid_qa"),
        ("dense", "multiple_choice:cloze"),
        ("magnitude@0.5", "multiple_choice:cloze"),
    ]
    assert [c.task for c in result.comparisons] == ["multiple_choice:cloze"]
    assert list(result.overall) == []  # one of two tasks is no overall verdict


def test_without_the_dense_model_s_cell_a_task_is_given_up(nearby: Any, study: Study, tmp_path: Path):
    def fault(name: str, method: str, arguments: Any) -> None:
        if method == "answer" and arguments[1] == "generate":
            raise TransientError(f"{name} was lost: killed")

    result = run_study(study, out=tmp_path / "run", executor=nearby(fault))
    assert {row["task"] for row in result.failures} == {"factoid_qa"}
    assert len(result.failures) == 1 + len(RECIPES)
    assert {c.task for c in result.comparisons} == {"multiple_choice:cloze"}


def test_what_would_fail_again_is_tried_once(nearby: Any, study: Study, tmp_path: Path, monkeypatch: Any):
    compress, tried = compressor_module.compress_in_processes, Counter[str]()

    def failing(processes: Any, model: Any, recipe: Any, **options: Any) -> Any:
        tried[str(recipe)] += 1
        if str(recipe) == "wanda@2:4":
            raise NumericalError("wanda@2:4 made NaN or Inf in model.layers.0.mlp.up_proj")
        return compress(processes, model, recipe, **options)

    monkeypatch.setattr(compressor_module, "compress_in_processes", failing)
    result = run_study(study, out=tmp_path / "run", executor=nearby())
    assert tried["wanda@2:4"] == 1
    assert {(row["recipe"], row["reason"]) for row in result.failures} == {
        ("wanda@2:4", "wanda@2:4 made NaN or Inf in model.layers.0.mlp.up_proj")
    }
    assert len(result.failures) == TASKS


def test_a_full_disk_here_ends_the_run_instead_of_every_cell(
    nearby: Any, study: Study, tmp_path: Path, monkeypatch: Any
):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "add_records", full)
    with pytest.raises(OSError, match="No space left"):
        run_study(study, out=tmp_path / "run", executor=nearby())


def test_when_no_worker_is_left_the_run_ends_and_resumes(nearby: Any, study: Study, local: StudyResult, tmp_path: Path):
    calls: Counter[str] = Counter()

    def fault(name: str, method: str, _arguments: Any) -> None:
        calls[method] += 1
        if method == "answer" and calls["answer"] > 3:
            raise TransientError(f"{name} was lost: its node is gone")
        if method == "start" and calls["answer"] > 3:
            raise NoRoomError("the cluster found no room for 1 CPU in 120 seconds")

    with pytest.raises(KickError, match=r"^no worker is left \(.*found no room.*Every record is safe in the journal"):
        run_study(study, out=tmp_path / "run", executor=nearby(fault))
    assert len(records(tmp_path / "run")) > 0
    assert_same(run_study(study, out=tmp_path / "run", executor=nearby()), local)


def test_a_worker_that_cannot_start_is_said_and_the_others_do_its_work(
    nearby: Any, study: Study, local: StudyResult, tmp_path: Path
):
    def fault(name: str, method: str, _arguments: Any) -> None:
        if name == "worker 2" and method == "load":
            raise RefusalError(ModelError("there is no folder /models/toy"))

    result = run_study(study, out=tmp_path / "run", executor=nearby(fault))
    pd.testing.assert_frame_equal(records(result.folder), records(local.folder))
    assert "worker 2 could not start: there is no folder /models/toy" in result.warnings


def test_a_worker_with_another_model_is_sent_away(nearby: Any, study: Study, local: StudyResult, tmp_path: Path):
    class Other(Worker):
        def load(self, *arguments: Any, **options: Any) -> Any:
            found = super().load(*arguments, **options)
            return replace(found, info=replace(found.info, digest="another"))

    def fault(name: str, method: str, _arguments: Any) -> None:
        if name == "worker 2" and method == "load":
            handle = next(handle for handle in executor.handles if handle.name == name)
            handle.worker = Other(threads=1)  # type: ignore[attr-defined]

    executor = nearby(fault)
    result = run_study(study, out=tmp_path / "run", executor=executor)
    pd.testing.assert_frame_equal(records(result.folder), records(local.folder))
    assert any("its model is another one than the first worker's (digest another" in one for one in result.warnings)


def test_the_first_worker_s_refusal_is_told_as_it_is(nearby: Any, study: Study, tmp_path: Path):
    def fault(_name: str, method: str, _arguments: Any) -> None:
        if method == "load":
            raise RefusalError(ModelError("cannot load toy: damaged"))

    with pytest.raises(ModelError, match=r"^cannot load toy: damaged$"):
        run_study(study, out=tmp_path / "run", executor=nearby(fault))

    def no_room(_name: str, _method: str, _arguments: Any) -> None:
        raise NoRoomError("the cluster found no room for 1 CPU in 900 seconds")

    with pytest.raises(ConfigError, match="no worker came up on the Ray cluster: the cluster found no room for 1 CPU"):
        run_study(study, out=tmp_path / "run2", executor=nearby(no_room))


def test_other_weights_on_another_machine_never_mix(
    nearby: Any, study: Study, local: StudyResult, tmp_path: Path, monkeypatch: Any
):
    """A worker is lost with its machine; on the next one the recipe comes out with other bits."""
    state = {"machine": 1, "answers": 0}
    compressed = compressor_module.StudyCompressor.compressed

    def elsewhere(self: Any, recipe: Any, *arguments: Any, **options: Any) -> Any:
        model, report = compressed(self, recipe, *arguments, **options)
        if str(recipe) == "gptq@4b" and state["machine"] == 1:
            report = replace(report, digest="made on the first machine")
        return model, report

    def fault(name: str, method: str, arguments: Any) -> None:
        loaded = next(handle for handle in executor.handles if handle.name == name).loaded
        if method == "answer" and arguments[0] == "compressed" and loaded is not None and loaded.label == "gptq@4b":
            state["answers"] += 1
            if state["answers"] == 3:
                state["machine"] = 2
                raise TransientError(f"{name} was lost: its node is gone")

    monkeypatch.setattr(compressor_module.StudyCompressor, "compressed", elsewhere)
    executor = nearby(fault, workers=1, one_machine=False)
    result = run_study(study, out=tmp_path / "run", executor=executor)
    pd.testing.assert_frame_equal(records(result.folder), records(local.folder))
    assert result.failures == ()
    assert any("gptq@4b: compressing again gave other weights" in warning for warning in result.warnings)


def test_a_loaded_model_serves_no_records_of_other_weights(
    nearby: Any, study: Study, local: StudyResult, tmp_path: Path, monkeypatch: Any
):
    """Between two cells of its recipe, the journal gets other weights for it, as from another machine."""
    study = make_study({**study.model_dump(mode="json", exclude_none=True), "recipes": ["gptq@4b"]})
    calls: Counter[str] = Counter()
    close, state = JournalWriter.close_cell, {"told": False}

    def closing(self: JournalWriter, cell: Any, *, filled: bool) -> None:
        if not cell.variant.is_dense and not state["told"]:
            state["told"] = True
            context = self.context
            (artifact,) = context.journal.artifacts(JournalledCompression)
            context.journal.add_artifact(context.keys.report_key(cell.variant), "made elsewhere", artifact)
        close(self, cell, filled=filled)

    monkeypatch.setattr(JournalWriter, "close_cell", closing)
    executor = nearby(lambda _name, method, _arguments: calls.update([method]), workers=1, one_machine=False)
    result = run_study(study, out=tmp_path / "run", executor=executor)
    assert state["told"]
    assert calls["compress"] == 2
    assert any("gptq@4b: compressing again gave other weights" in warning for warning in result.warnings)
    pd.testing.assert_frame_equal(records(result.folder), records_of(local, "gptq@4b"))
    (row,) = result.compression
    assert row.digest == next(one.digest for one in local.compression if one.recipe == "gptq@4b")


def test_a_recipe_stays_with_its_worker_while_its_cell_is_closed(
    nearby: Any, study: Study, local: StudyResult, tmp_path: Path, monkeypatch: Any
):
    """On several machines without a store, no other worker takes the next cell of a recipe meanwhile."""
    study = make_study({**study.model_dump(mode="json", exclude_none=True), "recipes": ["gptq@4b"]})
    close, calls = JournalWriter.close_cell, Counter[str]()

    def slow(self: JournalWriter, cell: Any, *, filled: bool) -> None:
        time.sleep(0 if cell.variant.is_dense else 0.2)
        close(self, cell, filled=filled)

    monkeypatch.setattr(JournalWriter, "close_cell", slow)
    executor = nearby(lambda _name, method, _arguments: calls.update([method]), one_machine=False)
    result = run_study(study, out=tmp_path / "run", executor=executor)
    assert calls["compress"] == 1
    pd.testing.assert_frame_equal(records(result.folder), records_of(local, "gptq@4b"))


@pytest.mark.parametrize("error", [RefusalError(ConfigError("the cache cannot be written")), TransientError("no room")])
def test_a_bad_machine_is_dropped_and_the_others_do_its_work(
    nearby: Any, study: Study, local: StudyResult, tmp_path: Path, monkeypatch: Any, error: Exception
):
    monkeypatch.setattr(distributed_module, "MOST_FAILURES", 2)
    failures, dropped = Counter[str](), threading.Event()

    def fault(name: str, method: str, arguments: Any) -> None:
        if method != "compress":
            return
        if name == "worker 2":
            failures[name] += 1
            raise error
        dropped.wait(60)  # the good machine is slow

    def stop(handle: Nearby) -> None:
        if failures[handle.name] == 2:
            dropped.set()
        handle.worker, handle.loaded, handle.worker_info = None, None, None

    monkeypatch.setattr(Nearby, "stop", stop)
    result = run_study(study, out=tmp_path / "run", executor=nearby(fault, one_machine=False))
    assert dropped.is_set()
    assert failures["worker 2"] == 2
    assert result.failures == ()
    pd.testing.assert_frame_equal(records(result.folder), records(local.folder))
    assert any("worker 2 was dropped after 2 failures in a row" in warning for warning in result.warnings)


def test_what_two_machines_refuse_is_given_up(nearby: Any, study: Study, tmp_path: Path):
    asked: list[str] = []

    def fault(name: str, method: str, arguments: Any) -> None:
        if method == "compress" and str(arguments[0].recipe) == "wanda@2:4":
            asked.append(name)
            raise RefusalError(ConfigError("no such layer"))

    result = run_study(study, out=tmp_path / "run", executor=nearby(fault, workers=3, one_machine=False))
    assert len(set(asked)) == len(asked) == 2
    assert {(row["recipe"], row["reason"]) for row in result.failures} == {("wanda@2:4", "no such layer")}
    assert len(result.failures) == TASKS


def test_what_is_not_kept_stays_with_its_worker(nearby: Any, study: Study, tmp_path: Path, monkeypatch: Any):
    """On one machine whose cache has no room, another worker would compress the recipe again."""
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", "0")
    study = make_study({**study.model_dump(mode="json", exclude_none=True), "recipes": ["gptq@4b"]})
    calls: Counter[str] = Counter()
    result = run_study(
        study, out=tmp_path / "run", executor=nearby(lambda _name, method, _arguments: calls.update([method]))
    )
    assert result.failures == ()
    assert calls["compress"] == 1


def test_versions_of_what_makes_the_weights_are_compared(study: Study, monkeypatch: Any):
    assert packages_of(study) == ["llmkick", "torch", "transformers", "tokenizers"]
    assert packages_of(trained(study))[-1] == "peft"
    method = registry.METHODS["magnitude"]
    plugin = Plugin(group="llmkick.methods", name="magnitude", package="no-such-package", version="1", reference="a:b")
    monkeypatch.setitem(registry.METHODS, "magnitude", replace(method, plugin=plugin))
    assert "no-such-package" in packages_of(trained(study))
    assert installed_versions(["no-such-package"]) == {"no-such-package": "none"}
    handle = WorkerHandle(name="worker 2", config=cast(Any, None), say=print)
    with pytest.raises(ConfigError, match=r"worker 2 has no-such-package 1\.0, this machine none: the same packages"):
        handle._refuse_others({"no-such-package": "1.0"})


def test_a_recipe_is_trained_by_the_worker_that_has_the_weights(
    nearby: Any, study: Study, tmp_path: Path, monkeypatch: Any
):
    """The model of this process has none, so it can be neither trained nor refused here."""
    study = trained(study)
    here = run_study(study, out=tmp_path / "here")
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    result = run_study(study, out=tmp_path / "there", executor=nearby(workers=1))
    pd.testing.assert_frame_equal(records(result.folder), records(here.folder))
    assert [row.digest for row in result.compression] == [row.digest for row in here.compression]
    assert result.failures == ()
    assert [row.recovery.steps for row in result.compression if row.recovery] == [4]


def test_without_peft_here_a_trained_recipe_is_refused_here(
    nearby: Any, study: Study, tmp_path: Path, monkeypatch: Any
):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"lora needs a package: pip install 'llmkick\[recover\]'"):
        run_study(trained(study), out=tmp_path / "run", executor=nearby(workers=1))


# What cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers must be at least 1; got 0"),
        ({"artifacts": "nowhere://x"}, "--artifacts nowhere://x cannot be written"),
    ],
)
def test_options_that_make_no_sense_are_refused(study: Study, tmp_path: Path, options: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        run_study(study, out=tmp_path / "run", executor=RayExecutor(**options))


def test_devices_of_one_machine_are_refused(study: Study, tmp_path: Path):
    with pytest.raises(ConfigError, match="device 'cuda:1': a worker on a cluster sees its own devices only"):
        run_study(study.model_copy(update={"device": "cuda:1"}), out=tmp_path / "run", executor="ray")


@pytest.mark.parametrize("changes", [{"others": ("./other",)}, {"model": "openai:http://127.0.0.1:1/v1#name"}])
def test_models_that_workers_cannot_load_are_refused(study: Study, changes: Any):
    with pytest.raises(ConfigError, match="executor ray runs recipes of a model from files"):
        RayExecutor().load(study.model_copy(update=changes), Silent())


def test_executors_and_their_options_are_checked(study: Study, tmp_path: Path):
    with pytest.raises(ConfigError, match="unknown executor 'slurm'; choose from: local, ray"):
        run_study(study, out=tmp_path / "run", executor="slurm")
    with pytest.raises(ConfigError, match="address 'head:6379' is of a Ray cluster"):
        run_study(study, out=tmp_path / "run", address="head:6379")


# The specification of a remote model


def test_a_likeness_has_tokens_and_sizes_but_no_weights(study: Study):
    model, seen = load_model(study.model, dtype="float32"), []

    def ask(kind: str, requests: Any) -> Any:
        seen.append((kind, list(requests)))
        return ["answer"] * len(requests)

    found = remote_model_spec(study.model)
    assert found.parameters == model.info.parameters
    remote = found.model(model.info, torch.device("cuda:0"), ask)
    assert {parameter.device.type for parameter in remote.network.parameters()} == {"meta"}
    assert remote.tokenize("the cat") == model.tokenize("the cat")
    assert (remote.max_tokens, remote.device.type, remote.info) == (model.max_tokens, "cuda", model.info)
    assert isinstance(remote, RemoteModel)
    assert (remote.logprobs([1, 2]), remote.generate([3])) == (["answer", "answer"], ["answer"])  # type: ignore[list-item]
    assert seen == [("logprobs", [1, 2]), ("generate", [3])]


def test_a_likeness_says_what_other_machines_call_the_model(study: Study, tmp_path: Path, monkeypatch: Any):
    folder = Path(study.model)
    monkeypatch.chdir(folder.parent)
    assert remote_model_spec("toy").reference == str(folder)
    with pytest.raises(ModelError, match=r"the tokenizer and configuration of '.*nothing' are needed on this machine"):
        remote_model_spec(str(tmp_path / "nothing"))
    snapshot = tmp_path / "models--me--toy" / "snapshots" / "0123abc"
    save_toy(snapshot)
    monkeypatch.setattr("llmkick.models.checkpoints.meta_model.small_files", lambda _reference: snapshot)
    assert remote_model_spec("me/toy@main").reference == "me/toy@0123abc"


# Shared compressed models


def test_compressed_models_are_shared_through_a_store(
    study: Study, local: StudyResult, tmp_path: Path, monkeypatch: Any
):
    shared = tmp_path / "shared"
    made: Counter[str] = Counter()
    walk = compress_module._walk

    def counting(model: Any, network: Any, outputs: Any, *arguments: Any, **options: Any) -> Any:
        made.update(str(output.recipe) for output in outputs)
        return walk(model, network, outputs, *arguments, **options)

    monkeypatch.setattr(compress_module, "_walk", counting)
    for machine in ("one", "two"):
        monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / machine))
        # Where the cache has no room, the store serves all the same.
        monkeypatch.setenv("LLMKICK_CACHE_LIMIT", "20GB" if machine == "one" else "0")
        assert_same(run_study(study, out=tmp_path / f"run {machine}", artifacts=str(shared)), local)
    assert made == dict.fromkeys(RECIPES, 1)
    # Damaged there, it is made anew, said, and mended.
    block = next(shared.glob("*/block-00000.safetensors"))
    block.write_bytes(block.read_bytes()[:-8])
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "three"))
    result = run_study(study, out=tmp_path / "run three", artifacts=str(shared))
    pd.testing.assert_frame_equal(records(result.folder), records(local.folder))
    assert sum(made.values()) == len(RECIPES) + 1
    assert any("has another checksum than when it was written; it was made anew" in one for one in result.warnings)
    assert json.loads((block.parent / LISTING).read_text())[block.name] == sha256_of_file(block)


# A real cluster


@pytest.fixture
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'llmkick[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=40)
        yield
        ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_on_ray_answers_and_errors_come_back_as_they_are(
    study: Study, local: StudyResult, tmp_path: Path, monkeypatch: Any
):
    """One worker and one recipe: starting the cluster and importing torch there is nearly all of its time."""
    study = make_study({**study.model_dump(mode="json", exclude_none=True), "recipes": ["magnitude@0.5"]})
    executor, said = RayExecutor(workers=1), list[str]()
    add = Journal.add_records

    def adding(self: Journal, *arguments: Any, **options: Any) -> None:
        add(self, *arguments, **options)
        if not said:  # the worker has nothing to do while we write
            handle = executor.handles[0]
            for error, arguments in (
                (RefusalError, ("compress", Variant(recipe=parse_recipe("wanda@2:4"), seed=0), None, None)),
                (TransientError, ("answer", "compressed", "logprobs", [])),
            ):
                with pytest.raises(error) as caught:
                    handle.call(*arguments)
                said.append(str(caught.value))

    monkeypatch.setattr(Journal, "add_records", adding)
    result = run_study(study, out=tmp_path / "run", executor=executor)
    made, expected = records(result.folder), records(local.folder)
    expected = expected[expected["recipe"].isin(["dense", "magnitude@0.5"])].reset_index(drop=True)
    # The columns of seeds have other types where none has a number.
    pd.testing.assert_frame_equal(made.drop(columns="seed"), expected.drop(columns="seed"))
    assert "needs calibration" in said[0]
    assert said[1] == "worker 1 failed: AssertionError: nothing is compressed"
    assert executor.lost == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("cluster")
def test_on_ray_a_recipe_is_trained(study: Study, tmp_path: Path, monkeypatch: Any):
    here = run_study(trained(study), out=tmp_path / "here")
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    result = run_study(trained(study), out=tmp_path / "there", executor=RayExecutor(workers=1))
    pd.testing.assert_frame_equal(records(result.folder), records(here.folder))
    assert [row.digest for row in result.compression] == [row.digest for row in here.compression]
    assert result.failures == ()


@pytest.mark.slow
@pytest.mark.timeout(900)  # on a busy machine importing torch alone takes minutes
@pytest.mark.usefixtures("cluster")
def test_on_ray_a_worker_is_killed_in_the_middle_and_the_results_are_the_same(
    study: Study, local: StudyResult, tmp_path: Path, monkeypatch: Any
):
    """Two workers start, one is killed and a third one takes its place: each imports torch."""
    executor, killed = RayExecutor(), list[int]()
    add = Journal.add_records

    def adding(self: Journal, *arguments: Any, **options: Any) -> None:
        add(self, *arguments, **options)
        first = executor.handles[0].worker_info
        if not killed and options["recipe"] != "dense" and first is not None and executor.handles[0].loaded:
            killed.append(first.process)
            os.kill(first.process, signal.SIGKILL)

    monkeypatch.setattr(Journal, "add_records", adding)
    # A cache of their own: what they make is not what the local run left there.
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    result = run_study(study, out=tmp_path / "run", executor=executor)
    assert len(killed) == 1
    assert len(executor.lost) == 1
    assert "worker 1 was lost" in executor.lost[0]
    assert_same(result, local)
