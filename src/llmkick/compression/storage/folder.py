"""A compressed model in a folder: a Hugging Face checkpoint that any tool can load, or the compact form of llmkick."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.streaming import StreamedBlocks
from llmkick.compression.walk.unchanged import names_outside_layers
from llmkick.errors import ConfigError
from llmkick.files import new_folder, require_space
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.checkpoints.packed import pack, write_manifest, write_packed
from llmkick.models.checkpoints.references import SOURCE_FILE
from llmkick.models.transformers_model import TransformersModel

REPORT_FILE = "llmkick_compression.json"
# Bytes of tensors in a file, unless a single tensor is larger.
SHARD_BYTES = 250_000_000
# Room for configuration, tokenizer and report.
OTHER_BYTES = 50_000_000


def check_target(folder: Path) -> None:
    """Raise ConfigError when the folder exists and is not empty: existing files are never overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; choose another folder")


def save_folder(model: TransformersModel, report: CompressionReport, folder: Path) -> None:
    """Write weights in the model's dtype, tokenizer and report; the folder appears complete or not at all.

    Raises ConfigError when the folder is not empty or the disk is too small.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.network.parameters())

    def write(temporary: Path) -> None:
        model.network.save_pretrained(temporary)

    write_model(model, report, folder, size, write)


def save_packed(model: TransformersModel | MetaModel, finished: FinishedBlocks, folder: Path) -> None:
    """Write a compressed model in compact form, see `models.checkpoints.packed`.

    model: the dense, compressed or meta model, for the unchanged weights. finished: all blocks.
    Errors as in `save_folder`.
    """
    unchanged, report = UnchangedWeights(model), report_of(finished)

    def write(temporary: Path) -> None:
        files = []
        for number, bundle in enumerate(bundles(unchanged.tensors())):
            files.append(f"packed-rest-{number:05d}.safetensors")
            write_packed(temporary / files[-1], {name: pack(tensor) for name, tensor in bundle.items()})
        for file in finished.files():
            files.append(f"packed-{file.name}")
            _link_or_copy(file, temporary / files[-1])
        write_manifest(temporary, files, recipe=report.recipe, dtype=unchanged.model.info.dtype)
        write_config(unchanged.model, temporary)

    write_model(unchanged.model, report, folder, unchanged.bytes + report.stored_bytes, write)


def save_streamed(meta_model: MetaModel, finished: FinishedBlocks, folder: Path) -> None:
    """As `save_folder`, but reads and writes one block at a time."""
    source = StreamedBlocks(meta_model)

    def write(temporary: Path) -> None:
        outside = ((name, source.read(name)) for name in source.names_outside())
        write_shards(temporary, itertools.chain(bundles(outside), source.compressed_blocks(finished)))
        write_config(meta_model.model, temporary)

    write_model(meta_model.model, report_of(finished), folder, meta_model.bytes, write)


class UnchangedWeights:
    """The tensors of a model outside its compressed layers, see `names_outside_layers`."""

    def __init__(self, model: TransformersModel | MetaModel) -> None:
        self.model = model.model if isinstance(model, MetaModel) else model
        network, state = self.model.network, self.model.network.state_dict()
        self._state = {name: state[name] for name in names_outside_layers(network, decoder_blocks(network))}
        self._source = StreamedBlocks(model) if isinstance(model, MetaModel) else None

    @property
    def bytes(self) -> int:
        """The size of all tensors in bytes."""
        return sum(map(_size, self._state.values()))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name in the state dict, tensor), read one at a time."""
        for name, tensor in self._state.items():
            yield name, tensor if self._source is None else self._source.read(name)


def report_of(finished: FinishedBlocks) -> CompressionReport:
    """The report of a compression whose blocks are all finished."""
    assert finished.report is not None, f"{finished.folder} is not complete"
    return finished.report


def write_config(model: TransformersModel, folder: Path) -> None:
    """Write the network's configuration in the form of Hugging Face."""
    model.network.config.save_pretrained(folder)
    if model.network.generation_config is not None:
        model.network.generation_config.save_pretrained(folder)


def write_model(
    model: TransformersModel,
    report: CompressionReport,
    folder: Path,
    size: int,
    write: Callable[[Path], None],
) -> None:
    """Create a folder from `write`, then add tokenizer, report and origin; it appears complete or not at all.

    Raises ConfigError when the folder is not empty or the disk has less than `size` free bytes.
    """
    check_target(folder)
    require_space(folder, size + OTHER_BYTES, f"saving {model.info.name}")
    if folder.exists():
        folder.rmdir()
    with new_folder(folder) as temporary:
        write(temporary)
        model.tokenizer.save_pretrained(temporary)
        write_json(temporary / REPORT_FILE, asdict(report))
        # With the source precision a later compression can warn that these weights had been rounded before.
        origin = {"file": model.info.name, "digest": model.info.digest, "source_precision": report.source_precision}
        write_json(temporary / SOURCE_FILE, origin)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write values as indented JSON."""
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _link_or_copy(source: Path, target: Path) -> None:
    """Link the file where the file system allows it, otherwise copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def write_shards(folder: Path, shards: Iterable[Mapping[str, Tensor]]) -> None:
    """Write a Hugging Face checkpoint, one file for each shard; only one shard is in memory at a time."""
    from safetensors.torch import save_file

    places: dict[str, int] = {}
    total = 0
    for number, shard in enumerate(shards, start=1):
        tensors = {name: tensor.cpu().contiguous() for name, tensor in shard.items()}
        save_file(tensors, folder / f"{number}.safetensors", metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, number)
        total += sum(map(_size, tensors.values()))
    count = max(places.values())
    names = {n: f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)}
    for number, name in names.items():
        (folder / f"{number}.safetensors").rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {name: names[n] for name, n in places.items()}}
    write_json(folder / "model.safetensors.index.json", index)


def bundles(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Group (name, tensor) pairs into dictionaries of at most SHARD_BYTES; a larger tensor gets its own."""
    bundle: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if bundle and sum(map(_size, bundle.values())) + _size(tensor) > SHARD_BYTES:
            yield bundle
            bundle = {}
        bundle[name] = tensor
    if bundle:
        yield bundle


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
