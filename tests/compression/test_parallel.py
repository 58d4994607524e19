"""The parallel map: each worker with its share of torch's threads, results in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from llmkick.compression.walk.parallel import parallel_map


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_each_worker_has_its_share_of_the_threads_and_the_caller_all():
    torch.set_num_threads(5)
    both = threading.Barrier(2)

    def threads(_: int) -> tuple[str, int]:
        both.wait(timeout=60)  # at work at the same time
        return threading.current_thread().name, torch.get_num_threads()

    found = list(parallel_map(threads, range(4), workers=2))
    assert torch.get_num_threads() == 5
    assert {count for _, count in found} == {2}
    assert len({name for name, _ in found}) == 2


def test_results_come_in_order_and_a_single_item_is_done_by_the_caller():
    assert list(parallel_map(lambda x: x * x, range(8), workers=3)) == [x * x for x in range(8)]
    here = threading.get_ident()
    assert list(parallel_map(lambda _: threading.get_ident(), [0], workers=3)) == [here]
    assert set(parallel_map(lambda _: threading.get_ident(), range(3), workers=1)) == {here}
    assert here not in parallel_map(lambda _: threading.get_ident(), range(2), workers=2)


def test_while_the_caller_works_no_worker_does():
    at_work: list[int] = []

    def work(number: int) -> int:
        at_work.append(number)
        return number

    for number in parallel_map(work, range(6), workers=2):
        assert len(at_work) == number // 2 * 2 + 2


def test_an_error_waits_for_the_other_workers():
    ended = threading.Event()

    def work(number: int) -> None:
        if number == 0:
            raise KeyError("first")
        threading.Event().wait(0.2)
        ended.set()

    with pytest.raises(KeyError, match="first"):
        list(parallel_map(work, range(2), workers=2))
    assert ended.is_set()
