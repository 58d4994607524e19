"""Every tensor of a checkpoint accounted for: used by the network, known to be of no use to it, or refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from llmkick.errors import ModelError
from llmkick.models.checkpoints.weight_files import TensorFiles, config_json

# Buffers that networks compute and old checkpoints hold all the same: rotary frequencies and positions.
COMPUTED = re.compile(r"(^|[._])(inv_freq|position_ids)$")
# Causal masks, which GPT-2, GPT-Neo and GPT-J once stored; a bias of the same name would be a vector.
MASKS = re.compile(r"\.(attn|attention|self_attn)\.(bias|masked_bias)$")
# Heads for tokens after the next one, of which no answer depends.
LATER_TOKENS = re.compile(r"(^|\.)(mtp|mtp_layers|mtp_block|nextn)\.")
# What a composite model has for inputs and outputs other than text.
OTHER_SENSES = re.compile(
    r"(^|\.)(vision_\w+|visual|image_\w+|audio_\w+|speech_\w+|embed_vision|embed_audio|multi_modal_projector|mm_\w+"
    r"|talker|token2wav|code2wav|connector)(\.|$)"
)
SENSES = ("vision_config", "audio_config", "speech_config", "image_config", "vit_config")
QUANTIZATION = re.compile(
    r"(scale|scales|scale_inv|zero_point|zeros|qweight|absmax|quant_map|quant_state|g_idx|qbiases)$"
)


class Matching(NamedTuple):
    """Which tensors of a checkpoint a network takes.

    `sources` maps a name in its state dict to the names in the files from which it is made; `unmatched` are the names
    in the files that it does not take. `converts` says that some are made from several, or one of several.
    """

    sources: dict[str, list[str]]
    unmatched: list[str]
    converts: bool


def match_names(network: Any, names: Iterable[str]) -> Matching:
    """The tensors that transformers would take for a network, by the rules with which it loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(network)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    targets = {pattern: rule.target_patterns for rule in converters for pattern in rule.source_patterns}
    state, prefix = network.state_dict(), network.base_model_prefix
    sources: dict[str, list[str]] = {}
    unmatched: list[str] = []
    converts = False
    for name in sorted(names):
        taken, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if taken not in state and name in state:
            taken, pattern = name, None
        if taken not in state:
            unmatched.append(name)
            continue
        converts = converts or pattern is not None
        patterns = targets[pattern] if pattern is not None else [""]
        for target in patterns:
            sources.setdefault(taken.replace(patterns[0], target), []).append(name)
    return Matching(sources, unmatched, converts)


def account(network: Any, files: TensorFiles, dtype: torch.dtype) -> set[str]:
    """The names of the tensors that a network takes, which is on the meta device: none has been read into it yet.

    Weights that the configuration ties are untied in the network where other values are stored for them. Raises
    ModelError for a tensor that the network would leave out, or take for what it is not, and for missing ones. Left out
    without an error are those of which transformers says so, and those that no answer depends on.
    """
    matching = match_names(network, files.names)
    refuse_unknown(network, files, matching.unmatched)
    _refuse_codes(network, files, matching)
    _untie(network, files, matching, dtype)
    if not matching.converts:  # otherwise it shows when the tensors are made from others
        _refuse_shapes(network, files, matching)
        _refuse_copies(files, matching)
        _refuse_missing(network, files, matching)
    return files.names - set(matching.unmatched)


def _refuse_codes(network: Any, files: TensorFiles, matching: Matching) -> None:
    """Raise ModelError for a tensor of integers, or of 8-bit floats, where the network has a weight."""
    for taken, wanted in network.state_dict().items():
        for name in matching.sources.get(taken, []):
            if wanted.is_floating_point() and not files.is_float(name):
                raise ModelError(
                    f"{files.file_of(name)}: {name} is stored as {files.headers[name].dtype}, which are codes and not "
                    "the values of a weight, and config.json does not say how to read them (quantization_config): "
                    "give the original model"
                )


def _refuse_shapes(network: Any, files: TensorFiles, matching: Matching) -> None:
    """Raise ModelError for a tensor of another shape than the configuration asks for."""
    for taken, wanted in network.state_dict().items():
        for name in matching.sources.get(taken, []):
            if files.shape(name) != tuple(wanted.shape):
                raise ModelError(
                    f"{files.file_of(name)}: {name} has shape {files.shape(name)}, but config.json asks for "
                    f"{tuple(wanted.shape)}: weights and configuration are of different models"
                )


def _refuse_missing(network: Any, files: TensorFiles, matching: Matching) -> None:
    missing = set(network.state_dict()) - matching.sources.keys()
    for name, twin in network.all_tied_weights_keys.items():
        if not matching.sources.keys().isdisjoint((name, twin)):
            missing -= {name, twin}
    ignored = network._keys_to_ignore_on_load_missing or ()
    refuse_missing(files.folder, network, [n for n in missing if not any(re.search(p, n) for p in ignored)])


def refuse_missing(source: Path, network: Any, missing: Iterable[str]) -> None:
    """Raise ModelError when tensors are missing: transformers fills them with random values and only logs it."""
    names = sorted(missing)
    if names:
        raise ModelError(
            f"{source} lacks {len(names)} tensors of a {type(network).__name__}, among them {', '.join(names[:3])}"
        )


def refuse_unknown(network: Any, files: TensorFiles, names: Iterable[str]) -> None:
    """Raise ModelError when one of these tensors, which the network does not take, is not known to be of no use."""
    unknown = [name for name in names if not _is_useless(network, files, name)]
    if not unknown:
        return
    first = unknown[0]
    more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
    place = files.file_of(first) if first in files.names else files.folder
    if QUANTIZATION.search(first):
        why = "belongs to quantized weights that config.json does not describe (quantization_config). Give the original"
        raise ModelError(f"{place} holds {first}{more}, which {why} model")
    raise ModelError(
        f"{place} holds {first}{more}, for which a {type(network).__name__} has no place: it would be left out. "
        "config.json may be that of another model; remove what is not needed from the file"
    )


def _is_useless(network: Any, files: TensorFiles, name: str) -> bool:
    ignored = network._keys_to_ignore_on_load_unexpected or ()
    if any(re.search(pattern, name) for pattern in ignored) or COMPUTED.search(name) or LATER_TOKENS.search(name):
        return True
    if name.endswith(".bias") and name in files.names and not files.read(name).any():
        return True  # GPTQ writes such biases for every layer
    if MASKS.search(name):
        return name in files.names and (len(files.shape(name)) != 1 or files.shape(name) == (1,))
    config = network.config
    if OTHER_SENSES.search(name):
        stated = config_json(files.folder)
        return any(sense in stated for sense in SENSES) and not any(hasattr(config, sense) for sense in SENSES)
    return _is_later_layer(config.get_text_config(decoder=True), name)


def _is_later_layer(config: Any, name: str) -> bool:
    """Whether a tensor is in a layer after the last, which predicts later tokens, as DeepSeek-V3 stores them."""
    later = getattr(config, "num_nextn_predict_layers", None) or getattr(config, "mtp_num_hidden_layers", None) or 0
    number = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return number is not None and 0 <= int(number[1]) - config.num_hidden_layers < later


def _refuse_copies(files: TensorFiles, matching: Matching) -> None:
    """Raise ModelError when two different tensors stand for one of the network, of which one would be dropped."""
    for taken, names in sorted(matching.sources.items()):
        first = files.read(names[0]) if len(names) > 1 else None
        for name in names[1:]:
            if first is not None and not torch.equal(first, files.read(name)):
                raise ModelError(
                    f"{files.file_of(name)}: {names[0]} and {name} both stand for {taken} and differ; remove the "
                    "outdated one"
                )


def _untie(network: Any, files: TensorFiles, matching: Matching, dtype: torch.dtype) -> None:
    """Give the network weights of its own where it is to tie some that are stored with other values.

    Values that are equal in `dtype`, the precision in which the network is used, are tied.
    """
    for name, twin in list(network.all_tied_weights_keys.items()):
        names_of_tied, names_of_twin = (matching.sources.get(key, []) for key in (name, twin))
        if len(names_of_tied) != 1 or len(names_of_twin) != 1:
            continue
        pair = names_of_tied[0], names_of_twin[0]
        if files.are_alike(*pair) or torch.equal(*(files.read(stored).to(dtype) for stored in pair)):
            continue
        owner, _, key = name.rpartition(".")
        weight = torch.empty(files.shape(names_of_tied[0]), dtype=network.get_parameter(twin).dtype, device="meta")
        setattr(network.get_submodule(owner), key, nn.Parameter(weight, requires_grad=False))
        del network.all_tied_weights_keys[name]
    if network._tied_weights_keys and not network.all_tied_weights_keys:
        # Tools that go by the configuration alone would drop the output head of a saved network.
        for config in (network.config, network.config.get_text_config(decoder=True)):
            config.tie_word_embeddings = False
