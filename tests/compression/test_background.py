"""Work beside the walk runs in order, and an error stops it and reaches whoever waits."""

from __future__ import annotations

import threading

import pytest

from llmkick.compression.walk.background import BackgroundWorker


def test_calls_run_in_order_in_one_thread():
    worker, order, threads = BackgroundWorker("test"), [], set()

    def call(number: int) -> int:
        order.append(number)
        threads.add(threading.get_ident())
        return number**2

    futures = [worker.submit(call, number) for number in range(20)]
    worker.wait()
    assert order == list(range(20))
    assert [future.result() for future in futures] == [number**2 for number in order]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    worker.close()


def test_an_earlier_step_is_waited_for():
    worker, gate, done = BackgroundWorker("test"), threading.Event(), []
    worker.submit_last(lambda: (gate.wait(60), done.append("first")))
    worker.submit(lambda: done.append("part of the second"))
    gate.set()
    worker.wait_for_earlier()
    assert done[0] == "first"
    worker.close()
    assert done == ["first", "part of the second"]


def test_after_an_error_nothing_is_called():
    worker, called = BackgroundWorker("test"), []

    def fail() -> None:
        raise OSError("No space left")

    worker.submit_last(fail)
    worker.submit(called.append, 1)
    with pytest.raises(OSError, match="No space left"):
        worker.wait_for_earlier()
    with pytest.raises(OSError, match="No space left"):
        worker.close()
    assert not called
    worker.submit(called.append, 2)  # after it was closed it begins anew
    worker.close()
    assert called == [2]
