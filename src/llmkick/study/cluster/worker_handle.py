"""The handle of a worker on a Ray cluster: it starts the worker, calls it, and detects its loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from llmkick.errors import ConfigError, KickError, NumericalError, one_line
from llmkick.study.cells import Variant
from llmkick.study.cluster.remote_model import Batch, RemoteModel, RemoteModelSpec
from llmkick.study.cluster.resources import Demand
from llmkick.study.cluster.worker import Which, Worker, WorkerInfo
from llmkick.study.progress import Observer, Silent
from llmkick.study.running.packages import installed_versions, packages_of
from llmkick.study.spec.study import Study


class TransientError(Exception):
    """A worker was lost, or failed with an error that another worker may not have."""


class NoRoomError(TransientError):
    """The cluster found no resources for a worker before the timeout."""


class RefusalError(Exception):
    """A worker refused a call with an error of ours, `cause`, which another machine may not have.

    The values of weights are the same on every machine, so `is_everywhere` is true for a NumericalError.
    """

    def __init__(self, cause: KickError) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.is_everywhere = isinstance(cause, NumericalError)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """The start configuration of every worker."""

    study: Study
    model_spec: RemoteModelSpec
    demand: Demand
    artifacts: str | None


@dataclass(kw_only=True)
class WorkerHandle:
    """A handle to one worker, and to the worker that replaces it when it is lost.

    `loaded` is the variant whose compressed model the worker has in memory, and `digest` that of its weights.
    """

    name: str
    config: WorkerConfig
    say: Callable[[str], None]
    observer: Observer = field(default_factory=Silent)
    loaded: Variant | None = None
    digest: str | None = None
    worker_info: WorkerInfo | None = None
    _actor: Any = None
    _own_spec: RemoteModelSpec | None = None

    def start(self, seconds: float, *, dtype: str) -> None:
        """Start a worker within `seconds` seconds and load the dense model on it.

        Raises NoRoomError, TransientError, RefusalError, and ConfigError if the package versions differ from the
        versions on this machine.
        """
        import ray

        self.stop()
        config = self.config
        self._actor = ray.remote(Worker).options(**config.demand.options).remote(threads=config.demand.cpus)
        self._refuse_others(self._answer_of(self._actor.versions.remote(packages_of(config.study)), seconds))
        self.worker_info = self.call(
            "load", config.study, dtype=dtype, device=config.demand.device, artifacts=config.artifacts
        )

    def _refuse_others(self, versions: dict[str, str]) -> None:
        ours = installed_versions(list(versions))
        for name, version in versions.items():
            if version != ours[name]:
                raise ConfigError(
                    f"{self.name} has {name} {version}, this machine {ours[name]}: the same packages are needed on "
                    "all machines, or their answers do not compare"
                )

    def call(self, method: str, *arguments: object, **options: object) -> Any:
        """Call a method of the worker and return its answer. Raises TransientError or RefusalError."""
        return self._answer_of(getattr(self._actor, method).remote(*arguments, **options), None)

    def _answer_of(self, reference: Any, seconds: float | None) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        try:
            return ray.get(reference, timeout=seconds)
        except GetTimeoutError as error:
            raise NoRoomError(f"the cluster found no room for {self.config.demand} in {seconds:.0f} seconds") from error
        except RayTaskError as error:
            if isinstance(error.cause, KickError):
                raise RefusalError(error.cause) from error
            raise TransientError(
                f"{self.name} failed: {type(error.cause).__name__}: {one_line(error.cause)}"
            ) from error
        except RayError as error:
            raise TransientError(f"{self.name} was lost: {one_line(error)}") from error

    def model(self, which: Which) -> RemoteModel:
        """Return a proxy for the dense or the compressed model of the worker."""
        assert self.worker_info is not None, f"{self.name} has not started"

        def ask(kind: str, requests: Batch) -> Batch:
            return self.ask(which, kind, requests)

        if self._own_spec is None:
            # Each handle belongs to one thread, and a tokenizer is not thread-safe ("Already borrowed").
            shared = self.config.model_spec
            self._own_spec = replace(shared, tokenizer=copy.deepcopy(shared.tokenizer))
        info, device = self.worker_info.info, torch.device(self.worker_info.device)
        return self._own_spec.model(info, device, ask)

    def ask(self, which: Which, kind: str, requests: Batch) -> Batch:
        """Return the worker's answers. Raises TransientError or RefusalError."""
        answers, notes = self.call("answer", which, kind, requests)
        for note in notes:
            self.say(note)
        return list(answers)

    def stop(self) -> None:
        """Stop the worker."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
        self._actor, self.loaded, self.worker_info = None, None, None
