"""A parallel map on a CPU: each worker thread has a share of torch's threads.

Two batches with one thread each are faster than one batch after the other with two threads, since no operation waits
for the slower half of it.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import islice
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(function: Callable[[Item], Result], items: Iterable[Item], *, workers: int) -> Iterator[Result]:
    """function(item) of each item, in order, `workers` at a time; while the caller has a result, no worker is busy.

    With one worker, or for a last single item, the calling thread does the work. Grad mode and torch's function modes
    belong to a thread: `function` sets those that it needs. An error is raised when all workers of its round are done.
    """
    remaining = iter(items)
    while batch := list(islice(remaining, max(1, workers))):
        if len(batch) == 1:
            yield function(batch[0])
            continue
        pool = _pool(os.getpid(), workers, max(1, torch.get_num_threads() // workers))
        futures = [pool.submit(function, item) for item in batch]
        wait(futures)  # for all of them, so that no worker is busy when one has failed
        yield from [future.result() for future in futures]


@cache
def _pool(_process: int, workers: int, threads: int) -> ThreadPoolExecutor:
    """Worker threads that live as long as the process: MKL keeps buffers for every thread that ever called it."""
    threads_before, all_started = torch.get_num_threads(), threading.Barrier(workers)

    def start() -> None:
        # The first torch operation of a thread would reset the number of threads, so ask for it before setting it.
        torch.get_num_threads()
        torch.set_num_threads(threads)
        all_started.wait()  # until each worker has one of these tasks: then all of them exist

    pool = ThreadPoolExecutor(workers, "parallel-map")
    wait([pool.submit(start) for _ in range(workers)])
    # set_num_threads in a worker also changes what new threads get by default.
    torch.set_num_threads(threads_before)
    return pool
