"""An executor whose threads do not hold up the end of the process, for requests that a server may never answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from multiprocessing.pool import ThreadPool
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class DaemonThreads(Executor):
    """A ThreadPoolExecutor's interface on daemon threads, which neither `shutdown` nor the interpreter waits for.

    The interpreter waits for every thread of a ThreadPoolExecutor, so that Ctrl-C took as long as the slowest request
    in flight.
    """

    def __init__(self, max_workers: int) -> None:
        self._pool = ThreadPool(max_workers)

    def submit(
        self, function: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Call the function on one of the threads."""
        future: Future[Result] = Future()
        self._pool.apply_async(function, args, kwargs, callback=future.set_result, error_callback=future.set_exception)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Begin no more calls, and leave those that run to themselves, whatever the arguments."""
        self._pool.terminate()
