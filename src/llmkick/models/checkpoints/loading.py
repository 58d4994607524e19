"""Loading of a model into memory, from a model reference or from located files."""

from __future__ import annotations

import contextlib
import copy
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llmkick.errors import ModelError, one_line
from llmkick.models.checkpoint import Checkpoint
from llmkick.models.checkpoints.accounting import account, refuse_missing, refuse_unknown
from llmkick.models.checkpoints.packed_folder import unpack_folder
from llmkick.models.checkpoints.plain_tensors import open_tensors
from llmkick.models.checkpoints.quantized import DEQUANTIZED, has_packed_integers, method_of, quantization_of
from llmkick.models.checkpoints.references import locate
from llmkick.models.checkpoints.vocabulary import check_vocabulary
from llmkick.models.language_model import ModelInfo
from llmkick.models.memory import attempt, free_bytes, is_out_of_memory
from llmkick.models.plugin_models import load_from_plugin, plugin_of
from llmkick.models.precision import BALANCED, resolve_device, resolve_dtype
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import check_finite

# While transformers loads a network it replaces functions of its own, such as the tying of weights, for the whole
# process: two loads at once can leave them replaced for good, and every later model without its output head. While a
# network is built on the meta device, the parameters of any other that is loaded meanwhile would go there too.
_LOADING = threading.RLock()
# Families whose tokens see later ones, whatever their configuration says.
BOTH_WAYS = ("xlnet", "flaubert", "cpmant", "prophetnet")

# What to do where the memory of a device does not hold a model.
MORE_ROOM = f'use a smaller dtype, several GPUs (device = "{BALANCED}"), or device = "cpu"'


def load_model(reference: str, *, dtype: str = "auto", device: str = "auto") -> TransformersModel:
    """Load a model by built-in name, local Hugging Face folder, hub id, `.gguf` file or a plug-in's `scheme:…`.

    `dtype` is "auto" (bfloat16 where the device is faster in it, else float32), "float32",
    "bfloat16" or "float16"; `device` is "auto" (CUDA when there is one), a torch device name, or "balanced" (over all
    CUDA devices, for a model that one does not hold).
    Raises ModelError for missing, damaged or unsupported files, NumericalError for NaN or Inf weights, ConfigError
    for a broken plug-in.
    """
    resolve_dtype(dtype, resolve_device(device))  # before anything is fetched or converted
    plugin = plugin_of(reference)
    if plugin is not None:
        # A plug-in's model may be any LanguageModel; what needs its weights asks for them.
        return load_from_plugin(plugin, reference, dtype=dtype, device=device)  # type: ignore[return-value]
    return load_located(locate(reference), dtype=dtype, device=device)


def load_located(checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "auto") -> TransformersModel:
    """Load a model from located files; otherwise like `load_model`."""
    target = resolve_device(device)
    precision = resolve_dtype(dtype, target)
    spread = device == BALANCED
    with _LOADING:
        network, tokenizer, unused_bytes = _read(checkpoint, precision, BALANCED if spread else None)
        network.eval().requires_grad_(False)
        check_finite(network)
        info = describe(network, checkpoint, precision)
    if not spread:
        _place(checkpoint.name, network, target)
    taken = replace(checkpoint, stored_bytes=checkpoint.stored_bytes - unused_bytes)
    model = TransformersModel.wrap(network, tokenizer, info, checkpoint=taken)
    check_vocabulary(model)
    return model


def _place(name: str, network: Any, device: torch.device) -> None:
    """Move a network to a device. Raises ModelError where its memory does not hold it."""
    free = free_bytes(device)  # before a part of the network takes it
    reason = attempt(lambda: network.to(device))
    if reason is None:
        return
    tensors = [*network.parameters(), *network.buffers()]
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    room = "less" if free is None else f"{free / 1e9:.1f} GB"
    raise ModelError(
        f"{name} needs {needed / 1e9:.1f} GB on {device}, of which {room} is free; {MORE_ROOM} "
        f"({one_line(RuntimeError(reason), 200)})"
    )


def describe(network: Any, checkpoint: Checkpoint, dtype: torch.dtype) -> ModelInfo:
    """The identity of a network that was loaded from a checkpoint."""
    return ModelInfo(
        name=checkpoint.name,
        revision=checkpoint.revision,
        digest=checkpoint.digest,
        architecture=(network.config.architectures or [type(network).__name__])[0],
        parameters=_parameters(network),
        dtype=str(dtype).removeprefix("torch."),
        source_precision=checkpoint.source_precision,
    )


def _parameters(network: Any) -> int:
    """The number of weights of the architecture; packed weights count as the weights they stand for."""
    if getattr(network.config, "quantization_config", None) is not None:
        config = copy.deepcopy(network.config)
        del config.quantization_config
        network = meta_network(config)
    return sum(parameter.numel() for parameter in network.parameters())


def meta_network(config: Any, *, dtype: torch.dtype | None = None) -> Any:
    """The network of a configuration, its parameters on the meta device: shapes without memory.

    Buffers, such as rotary frequencies, have their values: they are computed, not read from a file.
    """
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    given = {} if dtype is None else {"dtype": dtype}
    with on_the_meta_device():
        network = auto.from_config(config, trust_remote_code=False, **given)
    network.tie_weights()
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def on_the_meta_device() -> Iterator[None]:
    """Parameters of networks built in this block are on the meta device; no other network is loaded meanwhile."""
    from accelerate import init_empty_weights

    with _LOADING, init_empty_weights(include_buffers=False):
        yield


def read_config(folder: Path) -> Any:
    """The Hugging Face configuration in a folder, without a quantization whose weights are read as plain ones.

    Raises ModelError for a model that is no causal language model, and the errors of transformers.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"{folder}: {(config.architectures or ['the model'])[0]} (type {config.model_type}) is no model that "
            "transformers runs on text alone (AutoModelForCausalLM); encoder-decoder and most image models are not "
            "supported: give a causal language model, or the text part of this one as a folder of its own"
        )
    if _reads_both_ways(config):
        setting = "causal" if hasattr(config, "causal") else "is_decoder"
        unless = "" if config.model_type in BOTH_WAYS else f' unless config.json says "{setting}": true'
        raise ModelError(
            f"{folder}: a model of type {config.model_type} reads text in both directions{unless}; it gives no "
            "probability of the next token, so it is no causal language model"
        )
    if method_of(quantization_of(folder)) in DEQUANTIZED:
        for part in (config, config.get_text_config(decoder=True)):
            if hasattr(part, "quantization_config"):
                del part.quantization_config
    return config


def _reads_both_ways(config: Any) -> bool:
    """Whether a token sees those after it, as in an encoder such as BERT; transformers loads it as a decoder too."""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING

    if config.model_type in BOTH_WAYS:
        return True
    is_decoder = getattr(config, "is_decoder", False) or getattr(config, "causal", False) or config.is_encoder_decoder
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not is_decoder


def read_generation_config(folder: Path, network: Any) -> None:
    """Give a network the generation settings of its folder, above all the end tokens, as transformers does.

    Raises the errors of transformers.
    """
    from transformers import GenerationConfig

    has_file = (folder / "generation_config.json").is_file()
    # Older folders have such settings in config.json.
    options: dict[str, Any] = {} if has_file else {"config_file_name": "config.json", "_from_model_config": True}
    network.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True, **options)


def read_tokenizer(checkpoint: Checkpoint) -> Any:
    """The tokenizer in a checkpoint's folder. Raises ModelError when there is none that can be read."""
    try:
        return tokenizer_in(checkpoint.folder)
    except Exception as error:
        raise cannot_load(checkpoint, error) from error


def tokenizer_in(folder: Path) -> Any:
    """The tokenizer in a folder. Raises the errors of transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def cannot_load(checkpoint: Checkpoint, error: Exception) -> ModelError:
    """The error that says which files could not be loaded, and why."""
    advice = f"; {MORE_ROOM}" if is_out_of_memory(error) else ""
    return ModelError(f"cannot load {checkpoint.name} from {checkpoint.folder}: {one_line(error, 600)}{advice}")


def _read(checkpoint: Checkpoint, dtype: torch.dtype, device_map: str | None = None) -> tuple[Any, Any, int]:
    """The network and the tokenizer of a checkpoint, and the bytes of stored tensors that the network does not take."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    tokenizer = read_tokenizer(checkpoint)
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True, "output_loading_info": True}
    if device_map is not None:
        options["device_map"] = device_map
    read = _read_packed if checkpoint.packed else _read_integers if has_packed_integers(checkpoint) else _read_plain
    try:
        network, unused_bytes = read(checkpoint, options)
    except ModelError:
        raise
    except Exception as error:
        raise cannot_load(checkpoint, error) from error
    refuse_offloaded(checkpoint.name, network)
    return network, tokenizer, unused_bytes


def _read_packed(checkpoint: Checkpoint, options: dict[str, Any]) -> tuple[Any, int]:
    """The network of a folder in our compact form; `locate` counts its weights only."""
    empty = meta_network(read_config(checkpoint.folder))
    return _filled(empty, unpack_folder(checkpoint.folder), checkpoint.folder, options), 0


def _read_plain(checkpoint: Checkpoint, options: dict[str, Any]) -> tuple[Any, int]:
    """The network of a folder whose tensors are plain weights, or are read as such, and the bytes of unused ones."""
    files, empty = open_tensors(checkpoint.folder), meta_network(read_config(checkpoint.folder))
    taken = account(empty, files, options["dtype"])
    unused_bytes = sum(map(files.size_of, files.names - taken))
    with files.slices() as weights:
        return _filled(empty, {name: weights[name] for name in taken}, checkpoint.folder, options), unused_bytes


def _filled(empty: Any, weights: Mapping[str, Any], folder: Path, options: dict[str, Any]) -> Any:
    """A network of the class and configuration of `empty`, with these weights by their names in the folder.

    transformers is not given the folder: it might take other files in it for the weights.
    """
    architecture: Any = type(empty)
    network, loading_info = architecture.from_pretrained(None, config=empty.config, state_dict=weights, **options)
    network.config.name_or_path = str(folder)
    refuse_missing(folder, network, loading_info["missing_keys"])
    read_generation_config(folder, network)
    return network


def _read_integers(checkpoint: Checkpoint, options: dict[str, Any]) -> tuple[Any, int]:
    """The network of a folder whose weights stay packed integers, in the modules of the package that reads them."""
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # about settings that the folder states too
        network, loading_info = auto.from_pretrained(
            checkpoint.folder, use_safetensors=True, trust_remote_code=False, **options
        )
    refuse_missing(checkpoint.folder, network, loading_info["missing_keys"])
    refuse_unknown(network, open_tensors(checkpoint.folder), sorted(loading_info["unexpected_keys"]))
    return network, 0


def refuse_offloaded(name: str, network: Any) -> None:
    """Raise ModelError when parts of a network that is spread over GPUs found no room there.

    accelerate would read them from memory or disk again for every token, and a changed weight would be lost.
    """
    devices = getattr(network, "hf_device_map", {})
    outside = sorted(part for part, device in devices.items() if str(device) in ("cpu", "disk", "meta"))
    if outside and len(set(map(str, devices.values()))) > 1:
        raise ModelError(
            f"the GPUs that can be seen do not hold {name}: {len(outside)} of its {len(devices)} parts found no room, "
            f"{outside[0]} first; use more of them, or a smaller dtype"
        )
