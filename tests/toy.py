"""Seeded toy models of a few thousand parameters, with a tokenizer, for tests that need no download.

The weights are large enough for every block to matter: a wrong mask, position or input shows in the output.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from llmkick.models.language_model import ModelInfo, TransformersModel, weights_digest

SPECIAL_TOKENS = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
# Merges with a leading space (Ġ), across a word's inside, and of a line break with the next (Ċ): enough for
# prompts and continuations that share a token at their boundary.
MERGES = (
    ("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("a", "n"), ("an", "d"), ("Ġ", "and"), ("e", "r"),
    ("o", "n"), ("Ġ", "a"), ("Ċ", "Ċ"), ("r", "e"), ("o", "u"), ("Ġ", "w"), ("Ġ", "s"), ("l", "l"),
    ("e", "s"), ("Ġ", "c"), ("s", "t"), ("a", "t"), (":", "Ġ"), ("Ġ", "o"), ("1", "2"), ("Ġ", "("),
)  # fmt: skip
# What transformers calls its own two-line ChatML: enough to tell roles, turns and the generation prompt apart.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = len(SPECIAL_TOKENS) + 256 + len(MERGES)  # 284, padded to 288 rows of embeddings

# Enough heads that grouped queries, a head width of its own, and every kind of layer occur.
_COMMON: dict[str, Any] = {
    "vocab_size": 288,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_GATED: dict[str, Any] = {"intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8}
_SLIDING_THEN_FULL = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

# architecture: (transformers' model type, what differs from _COMMON)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _GATED),
    "qwen2": ("qwen2", {**_GATED, "tie_word_embeddings": True}),
    "gemma": ("gemma", _GATED),
    "gemma2": ("gemma2", {**_GATED, **_SLIDING_THEN_FULL, "sliding_window": 12, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**_GATED, **_SLIDING_THEN_FULL, "sliding_window": 12, "query_pre_attn_scalar": 8}),
    "mistral": ("mistral", {**_GATED, "sliding_window": 12}),
    "opt": ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 16}),
    "gpt_neox": ("gpt_neox", {"intermediate_size": 32, "rotary_pct": 0.5}),
    "gpt2": ("gpt2", {"n_inner": 32}),
    "mixtral": ("mixtral", {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
}


def toy_model(
    architecture: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    chat: bool = False,
    **config: Any,
) -> TransformersModel:
    """A toy model; the same arguments give the same weights. `config` overrides the model's configuration."""
    model_type, own = ARCHITECTURES[architecture]
    settings = CONFIG_MAPPING[model_type](**{**_COMMON, **own, **config})
    with torch.random.fork_rng(devices=[]):  # the constructors draw numbers that are thrown away
        network = AutoModelForCausalLM.from_config(settings)
    _fill(network, torch.Generator().manual_seed(seed))
    network.to(dtype).eval().requires_grad_(False)
    tokenizer = toy_tokenizer(chat=chat)
    info = ModelInfo(
        name=f"toy-{architecture}",
        revision=f"seed-{seed}",
        digest=weights_digest(network),
        architecture=type(network).__name__,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        dtype=str(dtype).removeprefix("torch."),
    )
    return TransformersModel(network=network, tokenizer=tokenizer, info=info)


def _fill(network: Any, generator: torch.Generator) -> None:
    """Random weights that keep the size of what passes; norms and biases near where they start."""
    embedding = network.get_input_embeddings().weight
    for parameter in network.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter is embedding:
                parameter.copy_(noise)
            elif parameter.dim() == 1:
                parameter.add_(noise, alpha=0.1)
            else:
                parameter.copy_(noise * 1.5 / math.sqrt(network.config.hidden_size))


def toy_tokenizer(*, chat: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE over any text with a few merges; adds `<s>` in front, as Llama's tokenizer does."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL_TOKENS, *characters, *("".join(merge) for merge in MERGES)]
    backend = Tokenizer(models.BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=list(MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_toy(folder: Path, architecture: str = "llama", **arguments: Any) -> TransformersModel:
    """Write a toy model as a Hugging Face folder (config.json, model.safetensors, tokenizer.json, …)."""
    model = toy_model(architecture, **arguments)
    model.network.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return model
