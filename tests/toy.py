"""Seeded toy models of a few thousand parameters, with a tokenizer, for tests that need no download.

The weights are large enough for every block to matter: a wrong mask, position or input shows in the output.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

from llmkick.models.language_model import ModelInfo
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import weights_digest

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
# Ways of their own to keep state, count positions, or store experts, each of which the engine has to respect.
UNUSUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", {"n_head": 4, "n_layer": 3}),  # ALiBi, from the mask
    "deepseek_v3": (  # inputs of four dimensions, experts from the second block on
        "deepseek_v3",
        {"intermediate_size": 32, "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 4,
         "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
         "topk_group": 1, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
    ),
    "gpt_neo": (  # a local window that the cache does not know of
        "gpt_neo",
        {"num_layers": 3, "num_heads": 4, "intermediate_size": 32, "window_size": 12,
         "attention_types": [[["global", "local"], 1], [["local"], 1]]},
    ),
    "gpt_oss": (  # experts stored as (experts, in, out)
        "gpt_oss", {**_GATED, **_SLIDING_THEN_FULL, "sliding_window": 12, "num_local_experts": 4}
    ),
    "lfm2": ("lfm2", {**_GATED, "layer_types": ["conv", "full_attention", "conv"]}),  # convolutions
    "mamba": ("mamba", {"state_size": 4, "intermediate_size": 32}),  # no cache of keys and values
    "minimax": (  # a cache of its own
        "minimax",
        {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8,
         "layer_types": ["full_attention", "linear_attention", "full_attention"]},
    ),
    "mpt": ("mpt", {"d_model": 16, "n_heads": 4, "n_layers": 3, "max_seq_len": 256}),  # ALiBi, from the columns
    "openai-gpt": ("openai-gpt", {}),  # no cache at all
}  # fmt: skip

_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "v_head_dim": 4, "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4, "intermediate_size": 32, "moe_intermediate_size": 16,
}  # fmt: skip
_KEYS_SHARED: dict[str, Any] = {
    **_GATED, "num_hidden_layers": 4, "num_kv_shared_layers": 2, "sliding_window": 12,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 288,
}  # fmt: skip
# What compression has to respect: experts and routers in every form, and blocks that share weights or hand on more than
# hidden states.
BLOCKS: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": ("afmoe", {**_GATED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                        "num_dense_layers": 1, "global_attn_every_n_layers": 2, "sliding_window": 12}),
    "aria": ("aria_text", {**_GATED, "moe_num_experts": 4, "moe_topk": 2, "moe_num_shared_experts": 1}),  # transposed
    "dbrx": (  # the experts of a layer below one another in a matrix
        "dbrx",
        {"d_model": 16, "n_heads": 4, "n_layers": 3, "max_seq_len": 256,
         "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
         "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2}},
    ),
    "deepseek_v4": (  # a block-diagonal layer
        "deepseek_v4",
        {**_GATED, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 8, "qk_rope_head_dim": 4,
         "q_lora_rank": 8, "o_groups": 2, "o_lora_rank": 8, "n_routed_experts": 4, "num_local_experts": 4,
         "num_experts_per_tok": 2, "moe_intermediate_size": 16, "index_n_heads": 2, "index_head_dim": 8,
         "index_topk": 8, "hc_mult": 2},
    ),
    "gemma3n": ("gemma3n_text", {**_KEYS_SHARED, "intermediate_size": [32] * 4,
                                 "activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 8}),
    "gemma4": ("gemma4_text", {**_KEYS_SHARED, "global_head_dim": 8}),
    "gemma4_moe": ("gemma4_text", {**_KEYS_SHARED, "global_head_dim": 8, "enable_moe_block": True, "num_experts": 4,
                                   "top_k_experts": 2, "moe_intermediate_size": 16}),
    "glm_moe_dsa": (  # blocks hand on which tokens were chosen
        "glm_moe_dsa",
        {**_LATENT, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
         "first_k_dense_replace": 1, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 8},
    ),
    "hunyuan_moe": ("hunyuan_v1_moe", {**_GATED, "num_experts": 4, "moe_topk": 2}),
    "inkling": (  # shared experts in one product
        "inkling_text",
        {**_GATED, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2, "moe_intermediate_size": 24,
         "sliding_window_size": 12, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8},
    ),
    "inkling2": (  # blocks are given the hidden states of earlier ones
        "inkling2_text",
        {**_GATED, "n_routed_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
         "moe_intermediate_size": 16, "sliding_window": 12, "n_layers_per_attn_res_block": 1},
    ),
    "jamba": ("jamba", {**_GATED, "num_experts": 4, "num_experts_per_tok": 2, "mamba_d_state": 4, "mamba_dt_rank": 4,
                        "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
                        "expert_layer_offset": 1, "use_mamba_kernels": False}),
    "jetmoe": ("jetmoe", {"intermediate_size": 32, "num_key_value_heads": 2, "kv_channels": 8, "num_local_experts": 4,
                          "num_experts_per_tok": 2}),
    "llama4": (  # all experts in one product, in which tokens of others are zeros
        "llama4_text",
        {**_GATED, "intermediate_size_mlp": 32, "num_local_experts": 4, "num_experts_per_tok": 1,
         "interleave_moe_layer_step": 1},
    ),
    "longcat": ("longcat_flash", {**_LATENT, "head_dim": 4, "num_layers": 3, "n_routed_experts": 4, "moe_topk": 2,
                                  "zero_expert_num": 1, "expert_ffn_hidden_size": 16, "ffn_hidden_size": 32}),
    "phimoe": ("phimoe", {**_GATED, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("qwen2_moe", {**_GATED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
                                "shared_expert_intermediate_size": 24}),
    "zamba": ("zamba", {"num_hidden_layers": 6, "intermediate_size": 32, "num_key_value_heads": 4,
                        "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4,
                        "n_mamba_heads": 2, "use_mamba_kernels": False, "tie_word_embeddings": True}),
    "zamba2": ("zamba2", {"num_hidden_layers": 6, "layers_block_type": ["mamba", "hybrid"] * 3, "num_mem_blocks": 2,
                          "intermediate_size": 32, "num_key_value_heads": 4, "adapter_rank": 4, "n_mamba_heads": 4,
                          "mamba_headdim": 8, "mamba_ngroups": 1, "mamba_d_state": 4,
                          "use_shared_attention_adapter": True, "tie_word_embeddings": True}),
    "zaya": ("zaya", {**_GATED, "num_experts": 4, "num_experts_per_tok": 1, "router_hidden_size": 8}),
}  # fmt: skip


def toy_model(
    architecture: str = "llama",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    chat: bool = False,
    **config: Any,
) -> TransformersModel:
    """A toy model; the same arguments give the same weights. `config` overrides the model's configuration."""
    model_type, own = {**BLOCKS, **ARCHITECTURES, **UNUSUAL}[architecture]
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
    return TransformersModel.wrap(network, tokenizer, info)


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


def toy_tokenizer(*, chat: bool = False, start: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE over any text with a few merges; adds `<s>` in front as Llama's does, unless `start` is off."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL_TOKENS, *characters, *("".join(merge) for merge in MERGES)]
    backend = Tokenizer(models.BPE(vocab={token: id_ for id_, token in enumerate(tokens)}, merges=list(MERGES)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if start:
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


def save_toy_gguf(path: Path, *, precision: str = "F32", without: str = "", seed: int = 0) -> TransformersModel:
    """Write a toy Llama as a GGUF file, its block weights stored as `precision` ("F32", "F16", "Q8_0", "Q4_1", …).

    Returns the model that the file holds, if its weights could be stored exactly. Tensors whose GGUF name
    contains `without` are left out.
    """
    model = toy_model(hidden_size=32, num_hidden_layers=2, seed=seed)
    config, kind = model.network.config, gguf.GGMLQuantizationType[precision]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("toy")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = model.tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([*tokens, *(f"<|unused_{index}|>" for index in range(config.vocab_size - len(tokens)))])
    writer.add_token_types([3] * 4 + [1] * (VOCABULARY - 4) + [5] * (config.vocab_size - VOCABULARY))
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.network.state_dict().items():
        stored, values = names.get_name(name, try_suffixes=(".weight",)), tensor.float().numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp rotates neighbours, transformers halves
            heads = values.shape[0] // config.head_dim
            values = values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        if without and without in stored:
            continue
        if stored.startswith("blk.") and values.ndim == 2:
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
