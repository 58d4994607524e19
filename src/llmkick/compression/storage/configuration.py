"""The config.json of a compressed model: that of its source, without what was true of the old weights only."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmkick.compression.storage.shards import write_json
from llmkick.compression.storage.source_files import CONFIG
from llmkick.errors import ModelError
from llmkick.models.transformers_model import TransformersModel

# Keys that describe stored weights as quantized; compression_config is the old name of compressed-tensors.
_QUANTIZATION = ("quantization_config", "compression_config")
# The file that holds the weights, where it has a name of its own: what is written has the usual ones.
_WEIGHTS_FILE = "transformers_weights"
_DTYPES = ("dtype", "torch_dtype")
_TIES = "tie_word_embeddings"


def write_config(model: TransformersModel, folder: Path, *, quantization: Mapping[str, Any] | None = None) -> list[str]:
    """Write config.json: architecture and other parts as in the source, precision and quantization of what is written.

    Returns a line for each part that was left out.
    """
    values, notes = _source_config(model, folder), []
    for part in (values, values.get("text_config")):
        if isinstance(part, dict):
            for key in (*_QUANTIZATION, _WEIGHTS_FILE):
                part.pop(key, None)
    _set_dtype(values, model.info.dtype)
    _set_ties(values, model.network)
    local = {name: code for name, code in _auto_map(values).items() if "--" not in str(code)}
    if local:
        notes.append(f"not copied: auto_map of {CONFIG}, which names code in the folder ({', '.join(sorted(local))})")
        values["auto_map"] = {name: code for name, code in _auto_map(values).items() if name not in local}
        if not values["auto_map"]:
            del values["auto_map"]
    if quantization is not None:
        values["quantization_config"] = dict(quantization)
    write_json(folder / CONFIG, values)
    return notes


def _source_config(model: TransformersModel, folder: Path) -> dict[str, Any]:
    """The values of the source's config.json; of the network's configuration where it came from no folder."""
    if model.checkpoint is not None:
        file = model.checkpoint.folder / CONFIG
        try:
            values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error
    else:
        config = copy.deepcopy(model.network.config)
        if getattr(config, "quantization_config", None) is not None:
            del config.quantization_config
        config.save_pretrained(folder)
        values = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    if not values.get("architectures") and values.get("model_type") == model.network.config.model_type:
        values["architectures"] = [type(model.network).__name__]
    return values


def _set_dtype(values: dict[str, Any], dtype: str) -> None:
    """State the precision of the weights, under the names that the configuration uses, or else the current one."""
    for part in (values, values.get("text_config")):
        if isinstance(part, dict):
            part |= {key: dtype for key in _DTYPES if key in part}
    if not any(key in values for key in _DTYPES):
        values[_DTYPES[0]] = dtype


def _set_ties(values: dict[str, Any], network: Any) -> None:
    """State that the output head has weights of its own where it does, whatever the source says or leaves open."""
    if not network._tied_weights_keys or network.all_tied_weights_keys:
        return
    text = values.get("text_config")
    for part in (values, text):
        if isinstance(part, dict) and (part.get(_TIES) or (part is (text or values) and _TIES not in part)):
            part[_TIES] = False


def _auto_map(values: Mapping[str, Any]) -> dict[str, Any]:
    stated = values.get("auto_map")
    return dict(stated) if isinstance(stated, dict) else {}
