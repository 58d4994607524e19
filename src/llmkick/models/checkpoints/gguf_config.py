"""The configuration of a GGUF file: every entry of its metadata is honoured, known to be of no use, or refused.

transformers reads some entries for each architecture, and leaves its own defaults for the others without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkick.errors import ModelError
from llmkick.models.checkpoints.gguf_rope import rope_parameters

# Entries that change no answer of a network whose tensors all fit: sizes of the vocabulary and the context, the layout
# of files that were made long ago, and what only other kinds of models have.
WITHOUT_EFFECT = (
    "vocab_size", "context_length", "tensor_data_layout", "pooling_type", "rope.scaling.finetuned",
    "nextn_predict_layers", "decoder_start_token_id",
)  # fmt: skip
# Entry → the names that configurations of transformers have for it.
NAMES: Mapping[str, tuple[str, ...]] = {
    "embedding_length": ("hidden_size",),
    "block_count": ("num_hidden_layers",),
    "feed_forward_length": ("intermediate_size", "n_inner"),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_attention_heads"),
    "attention.key_length": ("head_dim",),
    "attention.value_length": ("v_head_dim", "head_dim"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"),
    "attention.sliding_window": ("sliding_window",),
    "attention.shared_kv_layers": ("num_kv_shared_layers",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "router_logit_softcapping": ("router_logit_softcapping",),
    "logit_scale": ("logit_scale",),
    "embedding_length_per_layer_input": ("hidden_size_per_layer_input",),
    "use_parallel_residual": ("use_parallel_residual",),
    "expert_count": ("num_experts", "num_local_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size", "intermediate_size"),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_shared_count": ("n_shared_experts", "num_shared_experts"),
    "expert_weights_norm": ("norm_topk_prob",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
    "leading_dense_block_count": ("first_k_dense_replace",),
    "full_attention_interval": ("full_attention_interval",),
    "ssm.conv_kernel": ("conv_kernel", "linear_conv_kernel_dim"),
    "ssm.state_size": ("state_size", "linear_key_head_dim"),
    "ssm.time_step_rank": ("time_step_rank", "linear_num_value_heads"),
    "ssm.group_count": ("linear_num_key_heads", "n_groups"),
    "shortconv.l_cache": ("conv_L_cache",),
}
# Sizes that transformers reads for every architecture: where it has another value, it has understood something else.
READ = (
    "attention.head_count", "attention.head_count_kv", "attention.value_length", "block_count", "embedding_length",
)  # fmt: skip
# Entry → the value at which a network without a setting for it computes the same.
NEUTRAL: Mapping[str, Any] = {
    "attention.causal": True, "attention.clamp_kqv": 0.0, "attention.max_alibi_bias": 0.0, "expert_count": 0,
    "expert_used_count": 0, "expert_shared_count": 0, "expert_weights_scale": (0.0, 1.0), "expert_weights_norm": False,
    "logit_scale": (0.0, 1.0), "embedding_scale": (0.0, 1.0), "residual_scale": (0.0, 1.0),
    "attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0, "router_logit_softcapping": 0.0,
    "attention.sliding_window": 0, "attention.shared_kv_layers": 0, "leading_dense_block_count": 0,
    "ssm.dt_b_c_rms": False, "use_parallel_residual": False, "attention.output_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1), "expert_group_count": (0, 1), "expert_group_used_count": (0, 1),
    "interleave_moe_layer_step": (0, 1),
}  # fmt: skip
# The function of a router, by the number that GGUF gives it.
GATING = {1: "softmax", 2: "sigmoid"}
# Layer counts of the models of 27 billion weights, whose queries llama.cpp scales by other than the head width.
WIDE_QUERIES = {"gemma2": 46, "gemma3": 62}


def settled_config(config: Any, metadata: Mapping[str, Any], factors: Mapping[str, Sequence[float]], path: Path) -> Any:
    """The configuration that transformers made of a GGUF file, with what it left out.

    `metadata` are the file's entries, `factors` its tensors of rotary factors by name. Raises ModelError naming an
    entry that changes the computation in a way that the network of transformers does not follow.
    """
    architecture = metadata["general.architecture"]
    entries = {
        key.removeprefix(f"{architecture}."): v for key, v in metadata.items() if key.startswith(f"{architecture}.")
    }
    if entries.get("attention.value_length") == entries.get("attention.key_length"):
        entries.pop("attention.value_length", None)
    changes: dict[str, Any] = {}
    for entry, value in entries.items():
        if entry not in WITHOUT_EFFECT and not entry.startswith("rope."):
            changes |= _change(config, architecture, entry, value, path)
    if architecture in WIDE_QUERIES and "attention.scale" not in entries:
        wide = config.num_hidden_layers == WIDE_QUERIES[architecture]
        head = entries.get("attention.key_length", config.hidden_size // config.num_attention_heads)
        changes["query_pre_attn_scalar"] = config.hidden_size // config.num_attention_heads if wide else head
    changed = _changed(config, changes, path)
    rope = rope_parameters(changed, entries, factors, path)
    return changed if rope is None else _changed(changed, {"rope_parameters": rope}, path)


def _changed(config: Any, changes: Mapping[str, Any], path: Path) -> Any:
    changes = {name: value for name, value in changes.items() if not _equal(_stated(config, name), value)}
    if not changes:
        return config
    try:
        return type(config).from_dict({**config.to_dict(), **changes})
    except Exception as error:
        raise ModelError(
            f"{path.name}: its metadata ask for {changes}, which a {type(config).__name__} of transformers refuses "
            f"({error}): {ADVICE}"
        ) from error


ADVICE = "give the original Hugging Face folder, or serve the file with llama.cpp and give its address, openai:URL#NAME"


def _change(config: Any, architecture: str, entry: str, value: Any, path: Path) -> dict[str, Any]:
    """What one entry changes in the configuration."""
    special = _special(config, architecture, entry, value)
    if special is not None:
        return special
    value = _single(value)
    entries = config.to_dict()
    names = [name for name in NAMES.get(entry, ()) if _stated(config, name) is not None]
    names = names or [name for name in NAMES.get(entry, ()) if name in entries]
    if any(_equal(_stated(config, name), value) for name in names) or _is_neutral(entry, value, names):
        return {}
    if not names or entry in READ or (entry == "attention.sliding_window" and _lacks_sliding_layers(config)):
        return _refuse(path, architecture, entry, value)
    return {names[0]: type(_stated(config, names[0]) or value)(value)}


def _lacks_sliding_layers(config: Any) -> bool:
    """Whether a window would be of no effect, because no layer is said to use it."""
    return hasattr(config, "layer_types") and "sliding_attention" not in (config.layer_types or ())


def _refuse(path: Path, architecture: str, entry: str, value: Any) -> dict[str, Any]:
    raise ModelError(
        f"{path.name}: its metadata say {architecture}.{entry} = {value}, which transformers would ignore when it "
        f"makes a network of the file: {ADVICE}"
    )


def _special(config: Any, architecture: str, entry: str, value: Any) -> dict[str, Any] | None:
    """What an entry changes that is expressed in another way by transformers; None for all other entries."""
    match entry:
        case "attention.scale" if hasattr(config, "query_pre_attn_scalar"):
            return {"query_pre_attn_scalar": type(config.query_pre_attn_scalar)(round(1 / value**2))}
        case "attention.scale":
            head = _stated(config, "head_dim") or config.hidden_size // config.num_attention_heads
            return {} if value == 0 or math.isclose(value, head**-0.5, rel_tol=1e-5) else None
        case "attention.sliding_window_pattern" if getattr(config, "layer_types", None):
            count = config.num_hidden_layers
            sliding = value if isinstance(value, list) else [(i + 1) % value != 0 for i in range(count)]
            kinds = ["sliding_attention" if slides else "full_attention" for slides in sliding[:count]]
            return {"layer_types": kinds}
        case "expert_gating_func" if getattr(config, "scoring_func", None):
            return {"scoring_func": GATING.get(value, str(value))}
        case "attention.head_count_kv" if architecture == "falcon" and config.multi_query and value == 1:
            return {}
        case "attention.head_count_kv" if architecture == "lfm2" and isinstance(value, list):
            return {} if max(value) == config.num_key_value_heads else None
        case "attention.max_alibi_bias" if architecture == "bloom" and value == 8.0:
            return {}
        case "attention.key_length" if architecture == "gemma4":
            return {"global_head_dim": value}
        case "attention.value_length" if architecture == "gemma4":
            return {} if value == _stated(config, "global_head_dim") else None
        case "attention.key_length_swa" | "attention.value_length_swa" if architecture == "gemma4":
            return {"head_dim": value}
        case "block_count" | "full_attention_interval" if architecture.startswith("qwen35"):
            return {}  # transformers makes its layers of them, without those for later tokens
        case "attention.head_count" | "feed_forward_length" if value == 0:
            return {}  # a network without attention
        case "feed_forward_length" if architecture == "bloom" and value == 4 * config.hidden_size:
            return {}
        case "ssm.inner_size":
            width = getattr(config, "linear_value_head_dim", 0) * getattr(config, "linear_num_value_heads", 0)
            return {} if value in (width, getattr(config, "intermediate_size", None)) else None
        case "attention.key_length" | "attention.value_length" if _stated(config, "head_dim") is None:
            return {} if value == config.hidden_size // config.num_attention_heads else None
    return None


def _stated(config: Any, name: str) -> Any:
    """An entry of a configuration; None where it has none. One that differs between layers has no attribute."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return config.to_dict().get(name)


def _single(value: Any) -> Any:
    """The value that all entries of a list have, one for each layer; other values as they are."""
    return value[0] if isinstance(value, list) and value and all(entry == value[0] for entry in value) else value


def _equal(one: Any, other: Any) -> bool:
    numbers = isinstance(one, int | float) and isinstance(other, int | float)
    return math.isclose(one, other, rel_tol=1e-6) if numbers else one == other


def _is_neutral(entry: str, value: Any, names: Sequence[str]) -> bool:
    if names or entry not in NEUTRAL:
        return False
    neutral = NEUTRAL[entry]
    return any(
        _equal(value, neutral_value) for neutral_value in (neutral if isinstance(neutral, tuple) else (neutral,))
    )
