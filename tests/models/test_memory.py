"""Free memory of devices, and the errors of allocators."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkick.models.memory import attempt, free_bytes, is_out_of_memory

CPU = torch.device("cpu")
CUDA: Any = SimpleNamespace(type="cuda")
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


def test_free_memory_on_cuda_counts_what_torch_holds_in_reserve(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 50)
    assert free_bytes(CUDA) == 120
    assert free_bytes(torch.device("meta")) is None
    assert (free_bytes(CPU) or 0) > 0


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError(ALLOCATOR), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x6)"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_are_shortages(error: Exception, *, expected: bool):
    assert is_out_of_memory(error) is expected

    def work() -> None:
        raise error

    if expected:
        assert attempt(work) in (str(error), type(error).__name__)
    else:
        with pytest.raises(type(error)):
            attempt(work)


def test_a_real_allocation_that_fails_is_recognised():
    reason = attempt(lambda: torch.empty(2**60, dtype=torch.uint8).zero_() and None)
    assert reason is not None
