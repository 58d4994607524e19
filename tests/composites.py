"""Seeded toy models of text and images, whose language model is a part of the whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING

from toy import toy_tokenizer

_TEXT: dict[str, Any] = {
    "vocab_size": 288, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": None,
}  # fmt: skip
_LINEAR_ATTENTION: dict[str, Any] = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
# A vision tower as deep as the language model.
_VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip

# architecture: (the class of the whole, its configuration). AutoModelForCausalLM loads the whole of a gemma3, and only
# the language model of a qwen3_5.
COMPOSITES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        {"text_config": {**_TEXT, "sliding_window": 12, "query_pre_attn_scalar": 8}, "vision_config": _VISION,
         "mm_tokens_per_image": 4, "image_token_index": 5, "boi_token_index": 6, "eoi_token_index": 7},
    ),
    "qwen3_5": (
        "Qwen3_5ForConditionalGeneration",
        {"text_config": {**_TEXT, **_LINEAR_ATTENTION},
         "vision_config": {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2,
                           "out_hidden_size": 32, "num_position_embeddings": 16}},
    ),
}  # fmt: skip


def save_composite(folder: Path, architecture: str) -> Any:
    """Write a toy model of text and images as a Hugging Face folder; returns the whole network."""
    name, settings = COMPOSITES[architecture]
    with torch.random.fork_rng(devices=[]):
        network = getattr(transformers, name)(CONFIG_MAPPING[architecture](**settings)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(noise, alpha=0.1)
            else:
                parameter.copy_(noise * 1.2 / math.sqrt(parameter.shape[-1]))
    network.tie_weights()
    network.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return network


def open_whole(folder: Path, architecture: str, **options: Any) -> Any:
    """The whole network, by transformers alone."""
    whole: Any = getattr(transformers, COMPOSITES[architecture][0])
    network, loading = whole.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **options)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    return network
