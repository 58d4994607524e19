"""A model that is loaded whole where it cannot be read block by block, if the memory is enough."""

from __future__ import annotations

import psutil
import torch

from llmkick.errors import ConfigError
from llmkick.models.checkpoints.loading import load_located
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.precision import BALANCED
from llmkick.models.transformers_model import TransformersModel

# Memory that a compression takes beside a model that is loaded whole, in sizes of its weights (measured with
# `benchmarks/memory.py --mixture`): a compressed copy, and on the host what is being packed.
COPIES_OF_COMPRESSION = 1.7
HOST_COPIES = 0.4  # the part of these that a GPU does not hold
# The compressed and the recovered copy, and what a training keeps for its gradients.
COPIES_OF_TRAINING = 3.0


def load_whole(meta_model: MetaModel, *, to_compress: bool, trains: bool = False) -> TransformersModel:
    """The whole model in memory. Raises ConfigError where it cannot fit."""
    check_memory(meta_model, to_compress=to_compress, trains=trains)
    return load_located(meta_model.checkpoint, dtype=meta_model.info.dtype, device=meta_model.placement)


def check_memory(meta_model: MetaModel, *, to_compress: bool, trains: bool = False) -> None:
    """Raise ConfigError where the model and what is made beside it do not fit."""
    copies = COPIES_OF_TRAINING if trains else COPIES_OF_COMPRESSION if to_compress else 0.0
    free, needed = _free_bytes(meta_model), _needed_bytes(meta_model, copies)
    if needed > free:
        why = "it is to sample its own calibration text; give --calibration FILE, a folder or c4"
        if to_compress:
            why = meta_model.obstacle or "the recovery trains it as a whole"
        raise ConfigError(
            f"{meta_model.info.name} needs {needed / 1e9:.1f} GB on {meta_model.placement}, of which "
            f"{free / 1e9:.1f} GB are free, and must be loaded whole: {why}"
        )


def check_memory_of_training(model: TransformersModel) -> None:
    """Raise ConfigError where what a training makes beside a model that is in memory does not fit."""
    parameters = list(model.network.parameters())
    devices = {parameter.device for parameter in parameters}
    copies = COPIES_OF_TRAINING - (HOST_COPIES if model.device.type == "cuda" else 0)
    needed = int(copies * sum(parameter.numel() * parameter.element_size() for parameter in parameters))
    free = sum(_free_beside(device) for device in devices)
    if needed > free:
        raise ConfigError(
            f"a training of {model.info.name} needs {needed / 1e9:.1f} GB beside the model on "
            f"{', '.join(sorted(map(str, devices)))}, of which {free / 1e9:.1f} GB are free: it keeps the compressed "
            "and the recovered model; give a smaller dtype, a device with more memory, or no recovery that is trained"
        )


def _free_beside(device: torch.device) -> int:
    """Free memory of a device on which a model lies, in bytes."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    # Memory that torch has reserved but not allocated is free for its next tensors.
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + reserved)


def _needed_bytes(meta_model: MetaModel, copies: float) -> int:
    """Memory of the whole model and of what is made beside it, in sizes of its weights."""
    if meta_model.device.type == "cuda":
        return int((1 + copies - (HOST_COPIES if copies else 0)) * meta_model.bytes)
    stored = meta_model.files.stored_bytes
    # Files are mapped, and of tensors that are used as they are stored there is no other copy.
    is_mapped = not meta_model.groups and not meta_model.checkpoint.packed and stored <= 1.1 * meta_model.bytes
    loaded = meta_model.bytes + (0 if is_mapped else stored)
    return loaded + int(copies * meta_model.bytes)


def _free_bytes(meta_model: MetaModel) -> int:
    """Free memory on the devices where the whole model would be loaded."""
    if meta_model.device.type != "cuda":
        return int(psutil.virtual_memory().available)
    cards = range(torch.cuda.device_count()) if meta_model.placement == BALANCED else [meta_model.device]
    return sum(torch.cuda.mem_get_info(card)[0] for card in cards)
