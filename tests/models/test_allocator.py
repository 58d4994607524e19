"""What the C library is told about freed memory, seen in the process's own page faults and size."""

import json
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
before = faults()
for _ in range(50):
    held = [torch.ones(size * 2**18) for size in range(1, 17)]  # 1 to 16 MiB
    del held
faulted, kept = faults() - before, size()
give_back_freed_memory()
print(json.dumps({"faults": faulted, "returned": kept - size()}))
"""


def run(what: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, "-c", SCRIPT, what], capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not GLIBC, reason="only glibc can be told")
def test_memory_is_kept_and_given_back():
    plain, kept = run("plain"), run("keep")
    assert kept["faults"] < 0.7 * plain["faults"]
    assert kept["returned"] > 32 * 2**20


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(allocator, "_c_library", lambda: None)
    assert not allocator.keep_freed_memory()
    assert not allocator.give_back_freed_memory()
