"""Work beside the walk: one thread that packs, hashes and writes, or reads ahead, while the arithmetic goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class BackgroundWorker:
    """A thread that calls functions in the order in which they are given, so that none needs a lock.

    After an error it calls nothing more, and whoever waits gets the error. The thread starts when it is needed.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._executor: ThreadPoolExecutor | None = None
        self._error: BaseException | None = None
        self._last: Future[Any] | None = None  # the last call that ends a step
        self._newest: Future[Any] | None = None

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Call a function after all others."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, self._name)
        future = self._executor.submit(self._call, function, *arguments)
        self._newest = future
        return future

    def submit_last(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Call a function that ends a step, see `wait_for_earlier`."""
        self._last = self.submit(function, *arguments)

    def wait_for_earlier(self) -> None:
        """Wait until the step before is over; raises its error."""
        if self._last is not None:
            self._last.result()

    def wait(self) -> None:
        """Wait until all is done. Raises the error of a call."""
        if self._newest is not None:
            self._newest.result()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Wait until all is done, and end the thread. Raises the error of a call, once."""
        try:
            self.wait()
        finally:
            if self._executor is not None:
                self._executor.shutdown()
            self._executor = self._error = self._last = self._newest = None

    def _call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        if self._error is not None:
            raise self._error
        try:
            return function(*arguments)
        except BaseException as error:
            self._error = error
            raise
