"""What the C library is told about freed memory, seen in the process's own page faults and size."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llmkick.models import allocator
from processes import run_commands

GLIBC = platform.libc_ver()[0] == "glibc"
SCRIPT = """
import json, resource, sys
import psutil
from llmkick.models.allocator import give_back_freed_memory, keep_freed_memory
import torch
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def size():
    return psutil.Process().memory_info().rss
def fill(rounds):
    for _ in range(rounds):
        held = [torch.ones(size * 2**18) for size in range(1, 17)]  # 1 to 16 MiB, together 136
        del held
def faulted():
    fill(5)  # until the heap is as large as it gets
    before = faults()
    fill(10)
    return faults() - before
plain = faulted()
assert keep_freed_memory()
told, kept = faulted(), size()
give_back_freed_memory()
print(json.dumps({"plain": plain, "told": told, "returned": kept - size()}))
"""


# Untold, glibc moves its limits with what is freed, and what stays on top of the heap is luck: both start from here.
RETURN_AT_ONCE = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072:glibc.malloc.trim_threshold=131072"}


@pytest.mark.skipif(not GLIBC, reason="only glibc can be told")
def test_memory_is_kept_and_given_back():
    command, environment = [sys.executable, "-c", SCRIPT], os.environ | RETURN_AT_ONCE
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    found = json.loads(done.stdout)
    assert found["told"] < 0.2 * found["plain"]
    assert found["returned"] > 32 * 2**20


def give_back_every_other() -> None:
    allocator.keep_freed_memory()
    rows = [torch.ones(2**18) for _ in range(64)]  # 1 MiB each
    kept = rows[1::2]
    del rows
    sys.stdout.write(f"{allocator.give_back_freed_memory(above=2**40)} ")
    sys.stdout.write(f"{allocator.give_back_freed_memory(above=2**20)} {len(kept)}")


@pytest.mark.skipif(not GLIBC, reason="only glibc can be told")
def test_little_freed_memory_is_kept(tmp_path: Path):
    (done,) = run_commands(give_back_every_other, tmp_path / "said", [{}])
    assert done.out.split() == ["False", "True", "32"], done.err


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator, "_c_library", lambda: None)
    assert not allocator.keep_freed_memory()
    assert not allocator.give_back_freed_memory()
