"""Facts that the engine reads from a network and its configuration: device, context length, vocabulary, end tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

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
    """The network's position limit, DEFAULT_MAX_TOKENS where its configuration names none."""
    config = network.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(limit or DEFAULT_MAX_TOKENS)


def attends_to_all_tokens(network: Any) -> bool:
    """Whether every layer has full attention, without a window, as far as the configuration says."""
    config = network.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return getattr(config, "sliding_window", None) is None and not kinds


def end_tokens_of(network: Any, tokenizer: Any) -> frozenset[int]:
    """Token ids that end an answer: those of the generation configuration, and the tokenizer's."""
    configured = getattr(network.generation_config, "eos_token_id", None)
    ids = set(configured) if isinstance(configured, list | tuple) else {configured}
    ids.add(tokenizer.eos_token_id)
    return frozenset(int(token) for token in ids if token is not None)
