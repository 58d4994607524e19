"""Facts that the engine reads from a network and its configuration: device, context length, vocabulary, end tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

# The context length of a network whose configuration names none.
DEFAULT_MAX_TOKENS = 2048


def device_of(network: Any) -> torch.device:
    """The device of the input embeddings, to which inputs are moved."""
    device: torch.device = network.get_input_embeddings().weight.device
    return device


def vocabulary_of(network: Any) -> int:
    """The number of token ids that have a row in the input embeddings."""
    return int(network.get_input_embeddings().weight.shape[0])


def has_rows(tokens: Sequence[int], vocabulary: int) -> bool:
    """Whether all token ids are in a vocabulary of this size."""
    return not tokens or (min(tokens) >= 0 and max(tokens) < vocabulary)


def max_tokens_of(network: Any) -> int:
    """The tokens that have a position in the network, DEFAULT_MAX_TOKENS where its configuration names no limit."""
    config = network.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(limit or DEFAULT_MAX_TOKENS) - first_position_of(network)


def first_position_of(network: Any) -> int:
    """The position of a text's first token: behind that of padding in the family of RoBERTa, otherwise 0.

    Those networks count so by themselves, but not where they are given positions.
    """
    embeddings: Any = getattr(getattr(network, "base_model", None), "embeddings", None)
    is_learned = isinstance(getattr(embeddings, "position_embeddings", None), nn.Embedding)
    if is_learned and hasattr(embeddings, "create_position_ids_from_input_ids"):
        return int(embeddings.padding_idx) + 1
    return 0


def attends_to_all_tokens(network: Any) -> bool:
    """Whether every layer has full attention, without a window, as far as the configuration says."""
    config = network.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return getattr(config, "sliding_window", None) is None and not kinds


def is_plain_sdpa(network: Any) -> bool:
    """Whether every layer attends to all tokens by the attention that transformers calls `sdpa`."""
    config = network.config.get_text_config(decoder=True)
    return getattr(config, "_attn_implementation", "") == "sdpa" and attends_to_all_tokens(network)


def end_tokens_of(network: Any, tokenizer: Any) -> frozenset[int]:
    """Token ids that end an answer: those of the generation configuration, and the tokenizer's."""
    configured = getattr(network.generation_config, "eos_token_id", None)
    ids = set(configured) if isinstance(configured, list | tuple) else {configured}
    ids.add(tokenizer.eos_token_id)
    return frozenset(int(token) for token in ids if token is not None)
