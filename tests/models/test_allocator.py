"""What the C library is told about freed memory, seen in the process's own page faults and size."""

import json
import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from llmkick.models import allocator

GLIBC = platform.libc_ver()[0] == "glibc"
SCRIPT = """
import json, resource, sys
import psutil
from llmkick.models.allocator import give_back_freed_memory, keep_freed_memory
import torch
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def size():
    return psutil.Process().memory_info().rss
def fill(rounds):
    for _ in range(rounds):
        held = [torch.ones(size * 2**18) for size in range(1, 17)]  # 1 to 16 MiB, together 136
        del held
fill(5)  # until the heap is as large as it gets
before = faults()
fill(10)
faulted, kept = faults() - before, size()
give_back_freed_memory()
print(json.dumps({"faults": faulted, "returned": kept - size()}))
"""


# Untold, glibc moves its limits with what is freed, and what stays on top of the heap is luck: both start from here.
RETURN_AT_ONCE = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=131072"}


def run(what: str) -> dict[str, Any]:
    command, environment = [sys.executable, "-c", SCRIPT, what], os.environ | RETURN_AT_ONCE
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not GLIBC, reason="only glibc can be told")
def test_memory_is_kept_and_given_back():
    plain, kept = run("plain"), run("keep")
    assert kept["faults"] < 0.2 * plain["faults"]
    assert kept["returned"] > 32 * 2**20


@pytest.mark.skipif(not GLIBC, reason="only glibc can be told")
def test_little_freed_memory_is_kept():
    script = """
import sys
import torch
from llmkick.models.allocator import give_back_freed_memory, keep_freed_memory
keep_freed_memory()
rows = [torch.ones(2**18) for _ in range(64)]  # 1 MiB each
kept = rows[1::2]
del rows
print(give_back_freed_memory(above=2**40), give_back_freed_memory(above=2**20))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator, "_c_library", lambda: None)
    assert not allocator.keep_freed_memory()
    assert not allocator.give_back_freed_memory()
