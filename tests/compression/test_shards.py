"""Weight files of a folder, written tensor by tensor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmkick.compression.storage import shards
from llmkick.compression.storage.shards import ShardWriter


def test_a_file_is_flushed_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each time about as much is flushed: 4 tensors of 400 bytes at once, and the rest with the last one."""
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    monkeypatch.setattr(shards, "FLUSH_BYTES", 1500)
    tensors = {f"layer.{number}": torch.full((100,), float(number)) for number in range(10)}
    with ShardWriter(tmp_path, {name: tensor.to("meta") for name, tensor in tensors.items()}) as writer:
        for place, (name, tensor) in enumerate(tensors.items(), 1):
            writer.put([(name, tensor)])
            assert len(sizes) == {10: 3}.get(place, place // 4)
        writer.close()
    header = (tmp_path / "model.safetensors").stat().st_size - 4000
    assert sizes == [header + 1600, header + 3200, header + 4000]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
