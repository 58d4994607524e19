"""The executor for a Ray cluster, where many workers process the schedule of the local executor at the same time.

Each worker is a Ray actor with the dense model in its memory. A thread in this process serves each worker: it takes
cells from the schedule, sends requests to the worker, and makes the records. Journal, batches and statistics stay in
this process, as with the local executor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from llmkick.compression.walk.calibration import Calibration, chosen_source
from llmkick.errors import ConfigError, KickError
from llmkick.models.plugin_models import plugin_of
from llmkick.models.precision import BALANCED
from llmkick.models.server_scheme import is_server
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.cells import Cell
from llmkick.study.cluster.remote_model import Batch, remote_model_spec
from llmkick.study.cluster.resources import ROOM_SECONDS, connect, demand_of, living_nodes, worker_count
from llmkick.study.cluster.worker_handle import NoRoomError, RefusalError, TransientError, WorkerConfig, WorkerHandle
from llmkick.study.expected_work import compression_key
from llmkick.study.progress import CombinedProgress, Observer
from llmkick.study.results.records import Environment, WorkerMachine
from llmkick.study.running.context import StudyContext
from llmkick.study.running.executor import RecordWriter, store_at, windows
from llmkick.study.running.schedule import OtherWeightsError, Schedule
from llmkick.study.spec.axes import CalibrationSetting
from llmkick.study.spec.study import Study

# Timeout in seconds for the start of the first or the last remaining worker; that of others is ROOM_SECONDS.
LAST_ROOM_SECONDS = 900.0
# Failures of a worker, with no filled cell between them, after which others do its work.
MOST_FAILURES = 3
Answer = TypeVar("Answer")
DEVICES = ("auto", "cpu", "cuda", BALANCED)


@dataclass(kw_only=True)
class RayExecutor:
    """Runs as many workers as fit on a Ray cluster, or at most `workers`.

    address: HOST:PORT of the cluster's head, "auto" for a cluster that runs on this machine, or None for $RAY_ADDRESS;
    without $RAY_ADDRESS, None starts a local cluster for the time of the run. artifacts: a folder or URL that all
    machines can reach, through which they share compressed models.
    The cell of a lost worker is tried again, on another machine if there is one. A cell that fails three times, or that
    two machines refuse, is given up and reported, and the run continues with the other cells. A worker on which several
    cells fail in a row is dropped if there are others on other machines.
    """

    address: str | None = None
    artifacts: str | None = None
    workers: int | None = None
    warnings: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    handles: list[WorkerHandle] = field(default_factory=list)
    _joined: bool = False
    _digest: str | None = None

    def load(self, study: Study, observer: Observer) -> TransformersModel:
        """Connect to the cluster, compute the demand of a worker, and load the dense model on the first worker.

        Raises ConfigError if the cluster does not answer or has no room for a worker, and the errors of `load_model`.
        """
        if self.workers is not None and self.workers < 1:
            raise ConfigError(f"workers must be at least 1; got {self.workers}")
        if study.others or is_server(study.model) or plugin_of(study.model) is not None:
            raise ConfigError(
                "executor ray runs recipes of a model from files: compare other models, servers and those of plug-ins "
                "with the local executor"
            )
        if study.device not in DEVICES:
            raise ConfigError(
                f"device {study.device!r}: a worker on a cluster sees its own devices only; "
                f"choose from: {', '.join(DEVICES)}"
            )
        store = store_at(self.artifacts)
        model = remote_model_spec(study.model, study.thinking)
        self._joined = connect(self.address)
        config = WorkerConfig(
            study=study.model_copy(update={"model": model.reference}),
            model_spec=model,
            demand=demand_of(study, model),
            artifacts=None if store is None else store.url,
        )
        self.observer, self._notes = observer, list[str]()
        self.handles = self._handles(config)
        first = self.handles[0]
        try:
            first.start(LAST_ROOM_SECONDS, dtype=study.dtype)
        except RefusalError as error:
            raise error.cause from error
        except TransientError as error:
            raise ConfigError(f"no worker came up on the Ray cluster: {error}") from error
        assert first.worker_info is not None
        self.info, self._surroundings = first.worker_info.info, first.worker_info.environment
        self._model = model.model(self.info, torch.device(first.worker_info.device), self._ask_dense)
        return self._model

    def _ask_dense(self, kind: str, requests: Batch) -> Batch:
        return self._from_any(lambda handle: handle.ask("dense", kind, requests))

    def _from_any(self, question: Callable[[WorkerHandle], Answer]) -> Answer:
        """Ask the first live worker about the dense model."""
        for handle in self.handles:
            if handle.worker_info is not None:
                with contextlib.suppress(TransientError):
                    return question(handle)
        raise KickError("no worker is left to ask the dense model: run the same command again")

    def dense_digest(self) -> str:
        """Return the digest of the dense weights."""
        if self._digest is None:
            self._digest = str(self._from_any(lambda handle: handle.call("dense_digest")))
        return self._digest

    def _handles(self, config: WorkerConfig) -> list[WorkerHandle]:
        nodes = living_nodes()
        self._one_machine = len(nodes) == 1
        count = min(worker_count(nodes, config.demand), self.workers or 10**6)
        return [WorkerHandle(name=f"worker {number}", config=config, say=self._say) for number in range(1, count + 1)]

    def _say(self, note: str) -> None:
        """Add a note about a model's answers to the dense model's notes, as with the local executor."""
        self._model.engine.budget.notes.append(note)

    def calibrate(self, setting: CalibrationSetting, seed: int, observer: Observer) -> Calibration:
        """Return the calibration windows of a setting and a seed.

        This process reads text sources; for the source `self` the first worker samples the text from the model.
        """
        if chosen_source(setting.source, self._model.info, self._model.device) != "self":
            return windows(self._model, setting, seed, observer)
        try:
            calibration: Calibration = self.handles[0].call("calibrate", setting, seed)
        except RefusalError as error:
            raise error.cause from error
        except TransientError as error:
            raise KickError(f"{error}, while it sampled the calibration text; run the same command again") from error
        return calibration

    def run(self, schedule: Schedule, context: StudyContext, writer: RecordWriter) -> None:
        """Fill all cells with one thread per worker. Raises KickError if no worker is left."""
        # All workers on one machine share its cache.
        schedule.shared = self.artifacts is not None or self._one_machine
        handles = self.handles[: schedule.left]
        items = sum(len(context.items[cell.task.name]) for cell in schedule.pending)
        combined = CombinedProgress(observer=self.observer, workers=len(handles), total=items)
        if not handles:
            return
        context.forecast.workers = len(handles)
        for handle in handles:  # which machine one is on is known once it has started
            schedule.join(handle.name, handle.name if handle.worker_info is None else handle.worker_info.machine)
        with ThreadPoolExecutor(len(handles)) as pool:
            for handle in handles:
                handle.observer = combined.member(handle.name)
            threads = [pool.submit(self._work, handle, schedule, context, writer) for handle in handles]
            try:
                finished, _ = wait(threads, return_when=FIRST_EXCEPTION)
                for thread in finished:
                    thread.result()
            except BaseException:
                schedule.stop()
                for handle in handles:  # ends their current calls at once
                    handle.stop()
                raise
        if schedule.left:
            raise KickError(
                f"no worker is left ({'; '.join(self.lost[-3:])}). Every record is safe in the journal: mend the "
                "cluster and run the same command again"
            )

    def _work(self, handle: WorkerHandle, schedule: Schedule, context: StudyContext, writer: RecordWriter) -> None:
        name, failures = handle.name, 0
        try:
            if handle.worker_info is None and not self._renew(handle, schedule):
                return
            while (cell := schedule.take(name, handle.loaded)) is not None:
                filled = False
                try:
                    self._fill(handle, cell, context, writer)
                    schedule.done(name)
                    filled, failures = True, 0
                except OtherWeightsError:
                    schedule.left_to_another(name)
                except TransientError as error:
                    failures += 1
                    self.lost.append(f"{cell.variant} on {cell.task.name}: {error}")
                    schedule.failed(name, str(error), final=False)
                    if self._is_dropped(handle, schedule, failures, error) or not self._renew(handle, schedule):
                        return
                except RefusalError as error:
                    failures += not error.is_everywhere
                    is_compression = not cell.variant.is_dense and handle.loaded != cell.variant
                    if error.is_everywhere:
                        if is_compression:
                            schedule.give_up_variant(cell.variant, str(error))
                        schedule.failed(name, str(error), final=True)
                    else:
                        schedule.refused(name, str(error), whole_variant=is_compression)
                        if self._is_dropped(handle, schedule, failures, error):
                            return
                writer.close_cell(cell, filled=filled)
        finally:
            schedule.leave(name)

    def _is_dropped(self, handle: WorkerHandle, schedule: Schedule, failures: int, error: Exception) -> bool:
        """Drop a worker on which MOST_FAILURES cells in a row have failed, if there are others elsewhere."""
        if failures < MOST_FAILURES or not schedule.has_other_machines(handle.name):
            return False
        handle.stop()
        schedule.leave(handle.name, is_at_fault=True)
        self.lost.append(f"{handle.name} was dropped after {failures} failures in a row, the last: {error}")
        self.warnings.append(self.lost[-1])
        return True

    def _fill(self, handle: WorkerHandle, cell: Cell, context: StudyContext, writer: RecordWriter) -> None:
        variant, dense = cell.variant, handle.model("dense")
        if variant.is_dense:
            writer.fill(cell, dense, dense, handle.observer)
            return
        digest = context.recorded_digest(variant)
        # Another worker may have made other weights for the variant meanwhile, and records with them.
        if variant != handle.loaded or digest != handle.digest:
            handle.loaded = None
            with context.timed("compress", variant.label), context.forecast.working(compression_key(variant)):
                report, is_kept, said = handle.call("compress", variant, context.keys.calibration_of(variant), digest)
            self.warnings += said
            writer.add_report(handle.name, variant, report, is_kept=is_kept)
            handle.loaded, handle.digest = variant, report.digest
        writer.fill(cell, handle.model("compressed"), dense, handle.observer)

    def _renew(self, handle: WorkerHandle, schedule: Schedule) -> bool:
        """Start a new worker for a handle; return False if the start fails or no work is left."""
        if schedule.is_stopped:
            return False
        alone = sum(other.worker_info is not None for other in self.handles if other is not handle) == 0
        try:
            handle.start(LAST_ROOM_SECONDS if alone else ROOM_SECONDS, dtype=self.info.dtype)
            assert handle.worker_info is not None
            if handle.worker_info.info != self.info:
                raise ConfigError(
                    f"its model is another one than the first worker's (digest {handle.worker_info.info.digest[:12]}, "
                    f"not {self.info.digest[:12]}): put the same files on all machines"
                )
        except (TransientError, RefusalError, ConfigError) as error:
            handle.stop()
            if not schedule.is_stopped:
                self.lost.append(f"{handle.name} could not start: {error}")
                if not isinstance(error, NoRoomError):
                    self.warnings.append(self.lost[-1])
            return False
        schedule.join(handle.name, handle.worker_info.machine)
        return True

    def environment(self) -> Environment:
        """Return the environment of the first worker, the list of workers, and the list of losses."""
        workers = [
            WorkerMachine.model_validate(
                {key: handle.worker_info.environment[key] for key in WorkerMachine.model_fields}
            )
            for handle in self.handles
            if handle.worker_info is not None
        ]
        cluster = {"executor": "ray", "workers": tuple(workers), "lost": tuple(self.lost)}
        return self._surroundings.model_copy(update=cluster)

    def close(self) -> None:
        """Stop the workers and disconnect from a cluster that the run joined or started."""
        for handle in self.handles:
            handle.stop()
        if self._joined:
            import ray

            ray.shutdown()
            self._joined = False
