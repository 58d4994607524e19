"""GGUF files for tests: the toy Llama with other entries and tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from toy import save_toy_gguf


def rewrite(
    path: Path,
    entries: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray[Any, Any]] | None = None,
    *,
    without: Iterable[str] = (),
) -> Path:
    """A toy Llama as a GGUF file with more, other or fewer entries and tensors; None leaves an entry out."""
    source = path.with_name("source.gguf")
    save_toy_gguf(source)
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in entries:
            kind = field.types[0]
            writer.add_key_value(key, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    add_entries(writer, {key: value for key, value in entries.items() if value is not None})
    for tensor in reader.tensors:
        if tensor.name not in without:
            writer.add_tensor(tensor.name, np.array(tensor.data).reshape(tensor.shape[::-1]))
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values.astype(np.float32))
    finish(writer)
    return path


def add_entries(writer: gguf.GGUFWriter, entries: Mapping[str, Any]) -> None:
    for key, value in entries.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add[type(value)](key, value)  # type: ignore[operator]


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
