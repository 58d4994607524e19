"""The near end of a worker on a Ray cluster: it is started, called, and found dead here."""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from llmkick.errors import ConfigError, KickError, one_line
from llmkick.study.cells import Variant
from llmkick.study.cluster.remote_model import Likeness, RemoteModel
from llmkick.study.cluster.resources import Demand
from llmkick.study.cluster.worker import PACKAGES, Introduction, Which, Worker
from llmkick.study.progress import Observer, Silent
from llmkick.study.spec.study import Study


class LostError(Exception):
    """A worker died, or failed in a way that another might not."""


class NoRoomError(LostError):
    """The cluster found no room for a worker in time."""


class DoomedError(Exception):
    """A worker refused what any other would refuse too; `cause` says why."""

    def __init__(self, cause: KickError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What every worker is started with."""

    study: Study
    likeness: Likeness
    demand: Demand
    artifacts: str | None


@dataclass(kw_only=True)
class Place:
    """A worker, and another in its place when it is lost. `at_hand` is the variant whose model it has."""

    name: str
    orders: Orders
    say: Callable[[str], None]
    observer: Observer = field(default_factory=Silent)
    at_hand: Variant | None = None
    introduction: Introduction | None = None
    _actor: Any = None
    _likeness: Likeness | None = None

    def start(self, seconds: float, *, dtype: str) -> None:
        """Have the cluster find room within so many seconds, and the dense model loaded.

        Raises NoRoomError, LostError, ConfigError for other versions than ours, and DoomedError.
        """
        import ray

        self.stop()
        orders = self.orders
        self._actor = ray.remote(Worker).options(**orders.demand.options).remote(threads=orders.demand.cpus)
        self._refuse_others(self._answer_of(self._actor.versions.remote(), seconds))
        self.introduction = self.call(
            "load", orders.study, dtype=dtype, device=orders.demand.device, artifacts=orders.artifacts
        )

    def _refuse_others(self, versions: dict[str, str]) -> None:
        ours = {name: importlib.metadata.version(name) for name in PACKAGES}
        for name, version in versions.items():
            if version != ours[name]:
                raise ConfigError(
                    f"{self.name} has {name} {version}, this machine {ours[name]}: the same packages are needed on "
                    "all machines, or their answers do not compare"
                )

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """What the worker answers. Raises LostError or DoomedError."""
        return self._answer_of(getattr(self._actor, method).remote(*arguments, **options), None)

    def _answer_of(self, reference: Any, seconds: float | None) -> Any:
        import ray
        from ray.exceptions import GetTimeoutError, RayError, RayTaskError

        try:
            return ray.get(reference, timeout=seconds)
        except GetTimeoutError as error:
            raise NoRoomError(f"the cluster found no room for {self.orders.demand} in {seconds:.0f} seconds") from error
        except RayTaskError as error:
            if isinstance(error.cause, KickError):
                raise DoomedError(error.cause) from error
            raise LostError(f"{self.name} failed: {type(error.cause).__name__}: {one_line(error.cause)}") from error
        except RayError as error:
            raise LostError(f"{self.name} was lost: {one_line(error)}") from error

    def model(self, which: Which) -> RemoteModel:
        """The dense or the compressed model of the worker."""
        assert self.introduction is not None, f"{self.name} has not started"

        def ask(kind: str, requests: Sequence[Any]) -> Sequence[Any]:
            return self.ask(which, kind, requests)

        if self._likeness is None:
            # Each place is a thread's, and tokenizers are not made for two at once ("Already borrowed").
            shared = self.orders.likeness
            self._likeness = replace(shared, tokenizer=copy.deepcopy(shared.tokenizer))
        info, device = self.introduction.info, torch.device(self.introduction.device)
        return self._likeness.model(info, device, ask)

    def ask(self, which: Which, kind: str, requests: Sequence[Any]) -> Sequence[Any]:
        """The worker's answers. Raises LostError or DoomedError."""
        answers, notes = self.call("answer", which, kind, requests)
        for note in notes:
            self.say(note)
        return list(answers)

    def stop(self) -> None:
        """Let go of the worker."""
        import ray

        if self._actor is not None:
            ray.kill(self._actor, no_restart=True)
        self._actor, self.at_hand, self.introduction = None, None, None
