"""The processes that compress one model together: what they tell each other, and how one of them fails for all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

import llmkick.errors as errors
from llmkick.errors import ConfigError, KickError, one_line
from llmkick.models.precision import BALANCED

# The first process samples calibration text and writes files while the others wait for its next message.
PATIENCE = timedelta(days=2)
# Tensors are exchanged when all processes have said that they are ready.
EXCHANGE = timedelta(minutes=20)
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Processes:
    """The processes of one compression, of which this is number `rank` of `count`; by default this one alone.

    All of them call the same methods in the same order. Messages and tensors on the CPU go through gloo, tensors on a
    GPU through whatever torch.distributed was initialised with. Messages are JSON.
    """

    def __init__(self, rank: int = 0, count: int = 1, *, messages: Any = None, tensors: Any = None) -> None:
        self.rank, self.count = rank, count
        self._messages, self._tensors = messages, tensors  # groups of processes
        self._told: BaseException | None = None  # the error that all processes know of

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Raise an error of one process in all of them, at the next message or at the end of the context."""
        if self.count == 1:
            yield
            return
        try:
            yield
        except Exception as error:
            if error is not self._told:
                self._tell(None, error)
            raise
        self.gather()

    def gather(self, value: Any = None) -> list[Any]:
        """The values of all processes by rank, as JSON keeps them. Raises the error of a process that failed."""
        return [value] if self.count == 1 else self._tell(value, None)

    def from_first(self, value: Any = None) -> Any:
        """The value of the first process."""
        return self.gather(value if self.is_first else None)[0]

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by the sum of the tensors of all processes, which is the same in each."""
        dist.all_reduce(tensor, group=self._group_for(tensor))

    def hand_out(self, tensor: Tensor, owner: int) -> None:
        """Overwrite a contiguous tensor with that of the process `owner`."""
        dist.broadcast(tensor.reshape(-1).view(torch.uint8), src=owner, group=self._group_for(tensor))

    def _group_for(self, tensor: Tensor) -> Any:
        return self._tensors if tensor.device.type == "cpu" else dist.group.WORLD

    def _tell(self, value: Any, error: Exception | None) -> list[Any]:
        """Exchange a value or an error with all processes; raises where any of them has an error."""
        told = None if error is None else [type(error).__name__, one_line(error, 2000)]
        try:
            texts = _exchange_texts(json.dumps({"value": value, "error": told}), self.count, self._messages)
        except RuntimeError as lost:
            if error is not None:
                raise error from None
            raise self._remember(
                KickError(f"another of the {self.count} processes has ended ({one_line(lost, 120)}); see its messages")
            ) from lost
        answers = [json.loads(text) for text in texts]
        failed = {rank: answer["error"] for rank, answer in enumerate(answers) if answer["error"] is not None}
        if not failed:
            return [answer["value"] for answer in answers]
        if error is not None and not isinstance(error, KickError):
            raise self._remember(error)  # a bug: its traceback is the message
        raise self._remember(_as_error(failed, self.count)) from error

    def _remember(self, error: Exception) -> Exception:
        self._told = error
        return error


ALONE = Processes()


def _exchange_texts(text: str, count: int, group: Any) -> list[str]:
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(count)]
    dist.all_gather(sizes, torch.tensor([len(data)]), group=group)
    longest = max(int(size) for size in sizes)
    rows = [torch.zeros(longest, dtype=torch.uint8) for _ in range(count)]
    dist.all_gather(rows, torch.cat([data, torch.zeros(longest - len(data), dtype=torch.uint8)]), group=group)
    return [bytes(row[: int(size)].tolist()).decode() for row, size in zip(rows, sizes, strict=True)]


def _as_error(failed: Mapping[int, tuple[str, str]], count: int) -> KickError:
    """The error of the first process that failed. It is named unless all processes failed in the same way."""
    rank, (name, text) = next(iter(failed.items()))
    kind: object = getattr(errors, name, None)
    is_ours = isinstance(kind, type) and issubclass(kind, KickError)
    message = text if is_ours else f"{name}: {text}"
    if not is_ours or len(failed) < count or len({tuple(error) for error in failed.values()}) > 1:
        message = f"process {rank} of {count} (counted from 0) failed: {message}"
    return kind(message) if isinstance(kind, type) and issubclass(kind, KickError) else KickError(message)


@contextlib.contextmanager
def joined_processes() -> Iterator[Processes]:
    """The processes for which torch.distributed has been initialised; this one alone where it has not been."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        yield ALONE
        return
    messages = dist.new_group(backend="gloo", timeout=PATIENCE)
    tensors = dist.new_group(backend="gloo", timeout=EXCHANGE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), messages=messages, tensors=tensors)
    finally:
        dist.destroy_process_group(tensors)
        dist.destroy_process_group(messages)


@contextlib.contextmanager
def torchrun_device(device: str) -> Iterator[str]:
    """Initialise torch.distributed if torchrun started this process; yields the device that this process is to use.

    Raises ConfigError for a device that several processes cannot share.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield device
        return
    missing = [name for name in TORCHRUN_VARIABLES if name not in os.environ]
    if missing:
        raise ConfigError(f"several processes need the variables {', '.join(missing)} too; start them with torchrun")
    own = _own_device(device)
    if not dist.is_available():
        raise ConfigError("this build of torch has no torch.distributed; run one process")
    if own.type == "cuda":
        torch.cuda.set_device(own)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    except (RuntimeError, ValueError) as error:
        raise KickError(f"the processes do not reach each other: {one_line(error)}") from error
    try:
        yield str(own)
    finally:
        dist.destroy_process_group()


def _own_device(device: str) -> torch.device:
    """The GPU of this process where "auto" or "cuda" means GPUs; otherwise the CPU, which all share."""
    gpus, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
    if device == "cpu" or (device == "auto" and gpus == 0):
        return torch.device("cpu")
    if device not in ("auto", "cuda"):
        fits = "spreads one model over all GPUs" if device == BALANCED else "is a device for one process"
        raise ConfigError(f"device {device!r} {fits}; with several processes use auto, cpu or cuda")
    if local >= gpus:
        raise ConfigError(f"process {local} of this machine has no GPU: there are {gpus}; start as many processes")
    return torch.device("cuda", local)
