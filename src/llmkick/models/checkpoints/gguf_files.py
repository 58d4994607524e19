"""GGUF files: their precision, and their conversion into Hugging Face folders without losing anything."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from llmkick.errors import ModelError, one_line
from llmkick.models.checkpoints.accounting import refuse_missing
from llmkick.models.checkpoints.gguf_config import settled_config
from llmkick.models.checkpoints.gguf_tokens import end_tokens, lacks_start_token, settle_split
from llmkick.models.checkpoints.weight_files import refuse_unreadable

PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
# Divisors of rotary frequencies, which are a part of the configuration in transformers.
ROTARY = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# Rotary frequencies as old files hold them, for each block; networks compute them.
COMPUTED = re.compile(r"^blk\.\d+\.attn_rot_embd(\.weight)?$")


def refuse_part(path: Path) -> None:
    """Raise ModelError for a file that is one of several parts of a model: transformers reads whole files only."""
    part = PART.search(path.name)
    count = int(part[2]) if part else 1
    if not part:
        with contextlib.suppress(Exception):  # a damaged file gets its error where its precision is read
            count = int(_metadata(_reader(path)).get("split.count", 1))
    if count <= 1:
        return
    stem = path.name[: part.start()] if part else path.stem
    names = [f"{stem}-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    missing = [name for name in names if not (path.parent / name).is_file()]
    there = (
        f"{', '.join(missing[:3])} {'is' if len(missing) == 1 else 'are'} missing here; " if part and missing else ""
    )
    raise ModelError(
        f"{path.name} is one of {count} parts of a GGUF file, and transformers reads whole files only: {there}join the "
        f"parts (llama-gguf-split --merge {names[0]} {stem}.gguf) and give the result"
    )


def gguf_precision(path: Path) -> str:
    """The storage type of most weight matrices of a GGUF file, e.g. "Q4_1"; "float" for F32, F16, BF16.

    Raises ModelError when the file is not a readable GGUF file.
    """
    refuse_unreadable(path)
    try:
        reader = _reader(path)
        tensors, kind = reader.tensors, _metadata(reader).get("general.type", "model")
    except Exception as error:
        raise ModelError(f"{path} is not a readable GGUF file (damaged or cut short?): {error}") from error
    if kind != "model":
        raise ModelError(f"{path} holds no model, but what GGUF calls {kind!r}: give the file of the model itself")
    types = Counter(t.tensor_type.name for t in tensors if t.name.startswith("blk.") and len(t.shape) == 2)
    if not types:
        raise ModelError(f"{path} holds no decoder weights")
    common = types.most_common(1)[0][0]
    return "float" if common in {"F32", "F16", "BF16"} else common


def convert_gguf(path: Path, folder: Path) -> None:
    """Dequantize into float32, which holds every GGUF value exactly, and save as a Hugging Face folder.

    Raises ModelError naming an entry of the metadata, or a tensor, that the folder could not hold, and for a folder
    that cannot be written.
    """
    try:
        # Its progress bars write control characters into logs, and over the bars of this program on a terminal.
        with contextlib.redirect_stderr(io.StringIO()):
            reader = _reader(path)
            loaded, tokenizer = _read(path, reader)
    except ModelError:
        raise
    except Exception as error:  # a damaged file shows wherever its parts are first used
        _refuse_architecture(path, error)
        raise ModelError(f"transformers cannot read {path.name}: {error}") from error
    network, loading = loaded
    refuse_missing(path, network, loading["missing_keys"])
    _refuse_unused(path, reader, network, loading["unexpected_keys"])
    # The weights are plain floats now; with the quantizer still attached, transformers refuses to save them.
    if hasattr(network.config, "quantization_config"):
        del network.config.quantization_config
    network.hf_quantizer = None
    network.generation_config.eos_token_id = end_tokens(reader) or None
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except Exception as error:  # the libraries that write have errors of their own for a full disk
        raise cannot_write(path, folder, error) from error


def _read(path: Path, reader: Any) -> tuple[Any, Any]:
    """The network of a file with what was loaded, and its tokenizer.

    transformers prefers the tokenizer and the template that lie beside a file to those in it, so it is read alone.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(prefix="llmkick-gguf-") as folder:
        _link(path, Path(folder) / path.name)
        local: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, **local)
        settle_split(tokenizer, reader, path.name)
        if lacks_start_token(reader):
            tokenizer.add_bos_token = True
        config = AutoConfig.from_pretrained(folder, **local)
        config = settled_config(config, _metadata(reader), _rotary_factors(reader), path)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, **local, config=config, dtype=torch.float32, output_loading_info=True
        )
    return loaded, tokenizer


def _link(path: Path, link: Path) -> None:
    """Make a file appear under another path; where links are not allowed, a copy."""
    try:
        link.symlink_to(path.resolve())
    except OSError:
        shutil.copyfile(path, link)


def converted_bytes(path: Path) -> int:
    """The size of the weights of a GGUF file in float32."""
    return sum(4 * int(tensor.n_elements) for tensor in _reader(path).tensors)


def cannot_write(path: Path, folder: Path, error: Exception) -> ModelError:
    """The error of a conversion whose result cannot be written."""
    return ModelError(
        f"{path.name} was read, but its conversion cannot be written to {folder.parent}: {one_line(error)}. It takes "
        f"{converted_bytes(path) / 1e6:,.0f} MB: make room, or set LLMKICK_CACHE to another folder"
    )


def _reader(path: Path) -> Any:
    from gguf import GGUFReader

    return GGUFReader(path)


def _metadata(reader: Any) -> dict[str, Any]:
    """The entries of a file, without the lists of its vocabulary."""
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("tokenizer.")}


def _rotary_factors(reader: Any) -> Mapping[str, list[float]]:
    return {tensor.name: tensor.data.flatten().tolist() for tensor in reader.tensors if tensor.name in ROTARY}


def _refuse_unused(path: Path, reader: Any, network: Any, unexpected: list[str]) -> None:
    """Raise ModelError naming a tensor that transformers did not take into the network."""
    from transformers.integrations.gguf.utils import is_gguf_arch_supported
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    architecture = _metadata(reader)["general.architecture"]
    if is_gguf_arch_supported(architecture):
        unused = sorted(unexpected)
    else:
        kind: Any = TENSOR_PROCESSORS.get(architecture, TensorProcessor)
        taken = get_gguf_hf_weights_map(network, kind(config=network.config.to_dict()))
        named = [tensor.name for tensor in reader.tensors]
        unused = [name for name in named if name not in taken and (architecture, name) != ("gpt2", "output.weight")]
    unused = [name for name in unused if name not in ROTARY and not COMPUTED.search(name)]
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        raise ModelError(
            f"{path.name} holds {unused[0]}{more}, which a {type(network).__name__} of transformers would be read "
            "without: give the original Hugging Face folder, or serve the file with llama.cpp and give its address, "
            "openai:URL#NAME"
        )


def _refuse_architecture(path: Path, error: Exception) -> None:
    """Raise ModelError when it is the architecture that transformers has no GGUF reader for."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    if "architecture" not in str(error) or "not supported" not in str(error):
        return
    field = _reader(path).fields.get("general.architecture")
    architectures = sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer"})
    raise ModelError(
        f"{path.name} is a GGUF file of architecture {'unknown' if field is None else field.contents()!r}, which "
        f"transformers cannot read (it reads {', '.join(architectures)}). Give the original Hugging Face folder, or "
        "serve the file with llama.cpp and give its address, openai:URL#NAME"
    ) from error
