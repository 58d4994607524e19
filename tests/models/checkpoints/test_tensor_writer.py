"""Files written tensor by tensor are read by safetensors as what was put, and an unfinished one is an error."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmkick.compression.storage.shards import write_json
from llmkick.errors import ModelError
from llmkick.models.checkpoints.tensor_writer import TensorWriter, write_tensors


def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(6, 5, generator=generator)
    return {
        "a.odd": torch.arange(3, dtype=torch.uint8),
        "b.transposed": wide.t(),
        "c.half": wide.to(torch.bfloat16),
        "d.number": torch.tensor(2.5, dtype=torch.float64),
        "e.empty": torch.empty(0, 4),
        "f.eight": wide.to(torch.float8_e4m3fn),
        "g.flags": wide > 0,
        "h.whole": torch.arange(4),
        "ü.name": torch.ones(2, dtype=torch.float16),
    }


def test_the_file_is_that_of_safetensors(tmp_path: Path):
    write_tensors(tmp_path / "ours", tensors(), {"note": "ä"})
    save_file({n: t.contiguous() for n, t in tensors().items()}, tmp_path / "theirs", metadata={"format": "pt"})
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert ours[name].flatten().view(torch.uint8).equal(tensor.flatten().view(torch.uint8))
    with safe_open(tmp_path / "ours", framework="pt") as stream:
        assert stream.metadata() == {"format": "pt", "note": "ä"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]


def test_tensors_come_in_any_order(tmp_path: Path):
    planned = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors().items()}
    writer = TensorWriter(tmp_path / "file", planned, {"format": "pt"})
    for name in sorted(tensors(), reverse=True):
        writer.put(name, tensors()[name])
    writer.close()
    assert all(load_file(tmp_path / "file")[name].float().equal(t.float()) for name, t in tensors().items())


@pytest.mark.parametrize(
    ("name", "tensor"),
    [("one", torch.ones(2)), ("other", torch.ones(4)), ("other", torch.ones(3).double()), ("new", torch.ones(3))],
    ids=["twice", "shape", "type", "unknown"],
)
def test_what_was_not_planned_is_named(tmp_path: Path, name: str, tensor: Tensor):
    writer = TensorWriter(tmp_path / "file", {"one": torch.ones(2), "other": torch.ones(3)}, {})
    writer.put("one", torch.ones(2))
    with pytest.raises(ModelError, match=f"^{name} was to be written"):
        writer.put(name, tensor)
    with pytest.raises(ModelError, match="other is missing"):
        writer.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").symlink_to("/dev/full")
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'file'}'"):
        TensorWriter(tmp_path / "file", {"one": torch.ones(2)}, {})
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'file'}'"):
        write_json(tmp_path / "file", {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path / 'other'}'"):
        write_tensors(tmp_path / "other", {"one": torch.ones(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_tensors(tmp_path / "file", {"one": torch.ones(2)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TensorWriter, "put", full)
    with pytest.raises(OSError, match="No space left"):
        write_tensors(tmp_path / "file", {"one": torch.zeros(2)})
    monkeypatch.undo()
    assert load_file(tmp_path / "file")["one"].equal(torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
