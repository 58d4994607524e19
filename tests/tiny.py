"""A tiny random model of any decoder family of transformers, made from the family's own configuration class.

Sizes shrink by the names of the settings; whatever is no size (biases, norms, tied weights, kinds of layers) stays as
the family has it by default. `OVERRIDES` holds what the rules cannot know.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto import modeling_auto

from tiny_overrides import OVERRIDES
from toy import toy_tokenizer

# Every width is a multiple of 32, as groups of 32 need; 6 experts, so that a matrix with 6 rows is a router.
HIDDEN, INNER, EXPERT_INNER, HEADS, HEAD_DIM, LAYERS, EXPERTS, VOCABULARY = 64, 96, 32, 4, 16, 4, 6, 320
_SIZES: tuple[tuple[int, tuple[str, ...]], ...] = (
    (HIDDEN, (
        "hidden_size", "d_model", "n_embd", "embed_dim", "emb_dim", "word_embed_proj_dim", "embedding_size",
        "out_hidden_size", "text_hidden_size", "projector_hidden_size", "projection_dim", "encoder_hidden_size",
        "embedding_dim", "attention_hidden_size", "hidden_size_global", "lru_width", "output_dim",
        "backbone_hidden_size", "moe_hidden_size", "decoder_hidden_size", "input_embedding_size",
        "output_embedding_size", "mamba_d_ssm",
    )),
    (INNER, (
        "intermediate_size", "ffn_dim", "n_inner", "d_inner", "dff", "d_ff", "dim_ff", "ffn_hidden_size",
        "mlp_dim", "encoder_ffn_dim", "decoder_ffn_dim", "feed_forward_size", "intermediate_size_mlp",
        "dense_intermediate_size", "image_text_hidden_size", "prompt_mid_dim", "alignment_intermediate_size",
    )),
    (EXPERT_INNER, (
        "moe_intermediate_size", "shared_expert_intermediate_size", "shared_experts_intermediate_size",
        "expert_ffn_hidden_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size",
        "share_expert_dim", "q_lora_rank", "kv_lora_rank", "o_lora_rank", "time_step_rank", "mamba_dt_rank",
        "laurel_rank", "hidden_size_per_layer_input", "router_hidden_size", "adapter_rank", "hc_lowrank",
        "ple_embed_dim", "index_head_dim", "gated_norm_rank",
    )),
    (HEADS, (
        "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads",
        "encoder_attention_heads", "attention_heads", "linear_num_value_heads", "linear_num_heads",
        "index_n_heads", "n_mamba_heads", "mamba_n_heads", "swa_num_attention_heads",
        "num_sliding_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads",
        "mamba_num_heads", "resampler_n_heads", "resampler_heads",
    )),
    (HEAD_DIM, (
        "head_dim", "kv_channels", "d_kv", "d_head", "dim_head", "qk_rope_head_dim", "qk_nope_head_dim",
        "v_head_dim", "swa_head_dim", "linear_key_head_dim", "linear_value_head_dim", "linear_head_dim",
        "attention_head_size", "rotary_dim", "query_pre_attn_scalar", "mamba_d_state", "state_size",
        "ssm_state_size", "d_rel", "resampler_head_dim", "resampler_dim_head", "block_multiple_of",
        "global_head_dim", "chunk_size",
    )),
    (2 * HEAD_DIM, ("qk_head_dim", "mamba_d_head", "mamba_head_dim", "mamba_headdim")),
    (LAYERS, (
        "num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth", "decoder_layers", "encoder_layers",
        "layers", "num_encoder_layers", "num_decoder_layers", "max_window_layers", "num_blocks",
        "resampler_depth", "conf_num_hidden_layers",
    )),
    (EXPERTS, ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")),
    (2, (
        "linear_num_key_heads", "kv_n_heads", "swa_num_key_value_heads", "n_groups", "mamba_n_groups",
        "num_global_key_value_heads",
    )),
    (1, ("n_group", "topk_group", "num_expert_group", "first_k_dense_replace", "num_dense_layers")),
    (VOCABULARY, (
        "vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size", "unpadded_vocab_size",
        "audio_vocab_size", "pronunciation_vocab_size", "shape_vocab_size",
    )),
    (256, (
        "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length", "context_length",
        "max_target_positions", "max_source_positions", "original_max_position_embeddings",
    )),
    (12, ("sliding_window", "sliding_window_size", "attention_window_size", "local_attention", "window_size")),
    (28, ("image_size",)),
    (14, ("patch_size",)),
    (8, ("index_topk", "num_image_tokens", "num_query_tokens", "image_seq_length")),
)  # fmt: skip
SIZES = {name: size for size, names in _SIZES for name in names}
DEPTHS = next(names for _size, names in _SIZES if "num_hidden_layers" in names)
AT_MOST_TWO = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "num_kv_shared_layers",
    "n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_nextn_predict_layers",
)  # fmt: skip
FIRST_FREE_TOKEN = 290  # the toy tokenizer's text uses the ids below


def families() -> dict[str, str]:
    """Model type → class name: all causal language models, then the image-text-to-text models that are no such."""
    return {
        **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,  # the whole of what both name
    }


def tiny_config(model_type: str) -> PretrainedConfig:
    """The configuration of a family, shrunk."""
    config_class = CONFIG_MAPPING[model_type]
    override = OVERRIDES.get(model_type, {})
    start = override.get("_start", {})
    return config_class(**_merged(shrunk(config_class(**start)), {k: v for k, v in override.items() if k != "_start"}))


def shrunk(config: PretrainedConfig) -> dict[str, Any]:
    """The settings of a configuration that differ from its defaults when it is shrunk."""
    values, settings = config.to_dict(), {}
    tokens = iter(range(FIRST_FREE_TOKEN, VOCABULARY))
    layers = max(LAYERS, *(len(set(v)) for v in values.values() if _is_kinds(v)), 0)
    depth = next((v for k, v in values.items() if k in DEPTHS and isinstance(v, int)), None)
    for name, value in values.items():
        inner = vars(config).get(name)
        if isinstance(inner, PretrainedConfig):
            settings[name] = {"model_type": inner.model_type, **OVERRIDES.get(inner.model_type, {}), **shrunk(inner)}
            settings[name] = _merged(settings[name], OVERRIDES.get(inner.model_type, {}))
            settings[name].pop("_start", None)
        elif name == "num_key_value_heads" or name == "num_kv_heads":
            if isinstance(value, int):
                settings[name] = 2 if _heads(values) != value else HEADS
        elif name in AT_MOST_TWO and isinstance(value, int):
            settings[name] = min(value, 2)
        elif _is_kinds(value) and len(value) == depth:
            kinds = list(dict.fromkeys(value))
            settings[name] = [kinds[index % len(kinds)] for index in range(layers)]
        elif isinstance(value, list) and depth is not None and len(value) == depth and depth > 3:
            settings[name] = value[:layers]
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            settings[name] = layers if name in DEPTHS else SIZES[name]
        elif isinstance(value, int) and _is_token(name) and value >= 0:
            settings[name] = _token(name, value, tokens)
    if "mrope_section" in getattr(config, "ignore_keys_at_rope_validation", ()):
        rope = {"rope_type": "default", "rope_theta": 10000.0, **(values.get("rope_parameters") or {})}
        pairs = int(HEAD_DIM * rope.get("partial_rotary_factor", 1.0)) // 2
        settings["rope_parameters"] = {**rope, "mrope_section": [pairs - 2 * (pairs * 3 // 8), *[pairs * 3 // 8] * 2]}
    if hasattr(config, "is_decoder"):
        settings["is_decoder"] = True
    return settings


def _heads(values: dict[str, Any]) -> Any:
    return next((values[n] for n in ("num_attention_heads", "n_head", "n_heads", "num_heads") if n in values), None)


def _is_kinds(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 3 and all(isinstance(item, str) for item in value)


def _is_token(name: str) -> bool:
    return name.endswith(("_token_id", "_token_index", "_patch_id", "im_start_id", "im_end_id", "im_newline_id"))


def _token(name: str, value: int, free: Any) -> int:
    return {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 0}.get(name) or (
        0 if name in ("bos_token_id", "decoder_start_token_id") else next(free)
    )


def _merged(settings: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """`own` put over `settings`; dictionaries of both are merged, one with the key "=" replaces the other."""
    merged = {} if own.get("=") else dict(settings)
    for name, value in ((name, value) for name, value in own.items() if name != "="):
        if isinstance(value, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged(merged[name], value)
        else:
            merged[name] = value
    return merged


def tiny_network(model_type: str, *, seed: int = 0) -> Any:
    """A network of the family with random weights, in float32."""
    config = tiny_config(model_type)
    architecture = getattr(transformers, families()[model_type])
    with torch.random.fork_rng(devices=[]):
        network = architecture(config)
    fill(network, torch.Generator().manual_seed(seed))
    return network.eval().requires_grad_(False)


def fill(network: nn.Module, generator: torch.Generator) -> None:
    """Random weights that keep the size of what passes; vectors stay near where they start.

    No tensor stays zero or uninitialised: each would hide what is done to it.
    """
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.is_floating_point():
                continue
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() < 2:
                start = torch.nan_to_num(parameter.float(), 0, 0, 0).clamp(-8, 8)
                parameter.copy_(start + 0.1 * noise)
            elif id(parameter) in embeddings:
                parameter.copy_(noise)
            else:
                parameter.copy_(noise * 1.2 / math.sqrt(min(HIDDEN, parameter[0].numel())))
        for name, buffer in network.named_buffers():
            if name.endswith("tid2eid"):  # a table from tokens to experts
                buffer.copy_(torch.randint(EXPERTS, buffer.shape, generator=generator))
            elif buffer.is_floating_point() and not bool(torch.isfinite(buffer).all()):
                buffer.zero_()


def save_tiny(folder: Path, model_type: str, *, seed: int = 0) -> Any:
    """Write a tiny model as published checkpoints are written, with files beside its weights; returns the network."""
    network = tiny_network(model_type, seed=seed)
    network.save_pretrained(folder)
    toy_tokenizer(chat=True).save_pretrained(folder)
    if model_type != "diffusion_gemma":  # which has settings of its own
        generation = {"eos_token_id": [1, 3], "bos_token_id": 0, "do_sample": True, "temperature": 0.7, "top_p": 0.9}
        (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "LICENSE").write_text("a licence\n")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# a model card\n")
    return network
