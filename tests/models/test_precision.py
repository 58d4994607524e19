"""Which device and which precision "auto" means."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
import torch

from llmkick.errors import ConfigError
from llmkick.models import precision
from llmkick.models.precision import resolve_device, resolve_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))


def processor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, **seconds: float) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{flags}\n")
    monkeypatch.setattr(precision, "CPU_FACTS", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(precision, "_product_seconds", lambda: seconds)


@pytest.mark.parametrize(
    ("flags", "seconds", "expected"),
    [
        ("flags : fpu avx2 avx512f avx512_bf16", 0.5, torch.bfloat16),
        ("flags : fpu avx2 avx512f avx512_bf16", 0.95, torch.float32),  # not worth the digits
        ("flags : fpu avx2 avx512f avx512_bf16", 1.9, torch.float32),  # a Xeon without AMX
        ("flags : fpu avx2 amx_bf16", 0.2, torch.bfloat16),
        ("Features : fp asimd bf16 i8mm", 0.6, torch.bfloat16),
        ("flags : fpu avx2 avx512f", 0.1, torch.float32),  # never measured
        ("model name : bf16ish", 0.1, torch.float32),
    ],
)
def test_auto_is_bfloat16_only_where_the_cpu_is_made_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, seconds: float, expected: torch.dtype
):
    processor(monkeypatch, tmp_path, flags, float32=1.0, bfloat16=seconds)
    assert resolve_dtype("auto", CPU) is expected
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    assert resolve_dtype("auto", CPU) is torch.float32


def test_the_choice_is_measured_once_and_survives_a_busy_moment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    flags = "flags : avx512_bf16"
    processor(monkeypatch, tmp_path, flags, float32=1.0, bfloat16=0.5)
    assert resolve_dtype("auto", CPU) is torch.bfloat16
    processor(monkeypatch, tmp_path, flags, float32=1.0, bfloat16=2.0)
    assert resolve_dtype("auto", CPU) is torch.bfloat16
    (file,) = (tmp_path / "cache" / "processor").iterdir()
    assert json.loads(file.read_text())["seconds"] == {"float32": 1.0, "bfloat16": 0.5}
    file.write_text("{")  # damaged: measured again
    assert resolve_dtype("auto", CPU) is torch.float32
    processor(monkeypatch, tmp_path, f"model name : another\n{flags}", float32=1.0, bfloat16=0.5)
    assert resolve_dtype("auto", CPU) is torch.bfloat16


def test_the_measurement_times_both_precisions():
    seconds = precision._product_seconds()
    assert seconds.keys() == {"float32", "bfloat16"}
    assert all(0 < value < 60 for value in seconds.values())


def test_an_unknown_precision_names_the_choices():
    with pytest.raises(ConfigError, match="unknown dtype 'fp16'; choose from: auto, float32, bfloat16, float16"):
        resolve_dtype("fp16", CPU)


def test_auto_on_other_devices(monkeypatch: pytest.MonkeyPatch):
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, n=native: n)
        assert resolve_dtype("auto", CUDA) is (torch.bfloat16 if native else torch.float32)
    assert resolve_dtype("auto", torch.device("mps")) is torch.float32


def test_devices(monkeypatch: pytest.MonkeyPatch):
    for available, expected in ((True, CUDA), (False, CPU)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda a=available: a)
        assert resolve_device("auto") == expected
    assert resolve_device("cpu") == CPU
