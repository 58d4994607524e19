"""The rotary positions of a GGUF file, as transformers' rope_parameters."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmkick.errors import ModelError

# What llama.cpp takes where a file does not say.
DEFAULT_BASE, BETA_FAST, BETA_SLOW = 10000.0, 32.0, 1.0
KNOWN = {
    "dimension_count", "dimension_sections", "freq_base", "scale_linear", "scaling.type", "scaling.factor",
    "scaling.attn_factor", "scaling.original_context_length", "scaling.finetuned", "scaling.yarn_ext_factor",
    "scaling.yarn_attn_factor", "scaling.yarn_beta_fast", "scaling.yarn_beta_slow", "freq_base_swa",
    "dimension_count_swa", "scaling.yarn_log_multiplier",
}  # fmt: skip
ADVICE = "give the original Hugging Face folder, or serve the file with llama.cpp (openai:URL#NAME)"
# The parameters of Llama 3.1 and later, from which llama.cpp computes its factors.
LOW, HIGH, LENGTHS = 1.0, 4.0, (8192, 4096, 2048)


def rope_parameters(
    config: Any, entries: Mapping[str, Any], factors: Mapping[str, Sequence[float]], path: Path
) -> dict[str, Any] | None:
    """The rope_parameters that a file asks for; None where those of `config` are these already, or there are none.

    `entries` are the file's metadata without the prefix of the architecture; `factors` the tensors by which it divides
    the rotary frequencies. Raises ModelError naming what transformers cannot express.
    """
    rope_entries = {key.removeprefix("rope."): value for key, value in entries.items() if key.startswith("rope.")}
    unknown = sorted(rope_entries.keys() - KNOWN)
    if unknown:
        raise _unknown(path, f"rope.{unknown[0]} = {rope_entries[unknown[0]]}")
    stated = getattr(config, "rope_parameters", None)
    scaling = _scaling(config, rope_entries, factors, path)
    if not stated:
        if scaling or rope_entries.get("freq_base"):
            raise _unknown(path, "rotary positions, of which its architecture has none")
        return None
    if not stated.get("rope_type"):  # one entry for each kind of layer, or settings beside the type
        return _by_kind(stated, rope_entries, scaling, path)
    base = float(rope_entries.get("freq_base", DEFAULT_BASE))
    for entry, value in (("freq_base_swa", base), ("dimension_count_swa", rope_entries.get("dimension_count"))):
        if rope_entries.get(entry, value) != value:
            raise _unknown(path, f"rope.{entry} = {rope_entries[entry]}, other than that of the other layers")
    part = _rotary_part(config, stated, rope_entries, path)
    kept = {"truncate": stated["truncate"]} if "truncate" in stated and scaling.get("rope_type") == "yarn" else {}
    return {"rope_type": "default", "rope_theta": base, **part, **scaling, **kept}


def _by_kind(
    stated: Mapping[str, Any], own: Mapping[str, Any], scaling: Mapping[str, Any], path: Path
) -> dict[str, Any] | None:
    """As `rope_parameters`, where layers of different kinds have parameters of their own (Gemma 3)."""
    if "full_attention" not in stated:
        if scaling:
            raise _unknown(path, f"scaled rotary positions ({scaling['rope_type']})")
        return None
    full = stated["full_attention"]
    if scaling.get("rope_type") == "longrope" and _is_partial(scaling["short_factor"], full):
        scaling = {}
    full, sliding = dict(stated["full_attention"]), dict(stated.get("sliding_attention") or {})
    full["rope_theta"] = float(own.get("freq_base", full["rope_theta"]))
    if sliding:
        sliding["rope_theta"] = float(own.get("freq_base_swa", sliding["rope_theta"]))
    if scaling and full.get("rope_type") != "default":
        raise _unknown(path, f"scaled rotary positions ({scaling['rope_type']})")
    return {**stated, "full_attention": {**full, **scaling}, **({"sliding_attention": sliding} if sliding else {})}


def _is_partial(divisors: Sequence[float], stated: Mapping[str, Any]) -> bool:
    """Whether divisors stop the rotation of all but a first part of a head, as the parameters say already (Gemma 4)."""
    turning = [value == 1 for value in divisors]
    stopped = all(value == 1 or value > 1e20 for value in divisors)
    share = stated.get("partial_rotary_factor", 1.0)
    return stopped and turning == sorted(turning, reverse=True) and sum(turning) == round(share * len(turning))


def _rotary_part(config: Any, stated: Mapping[str, Any], own: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The share of a head that is rotated, and the sections of positions in several dimensions."""
    kept = {
        key: stated[key] for key in ("partial_rotary_factor", "mrope_section", "mrope_interleaved") if key in stated
    }
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    stated_width = round(head * stated.get("partial_rotary_factor", 1.0))
    width = own.get("dimension_count", stated_width)
    if width == stated_width or width == getattr(config, "rotary_dim", None):
        return kept
    if "partial_rotary_factor" not in stated:
        raise _unknown(path, f"rope.dimension_count = {width} for heads of width {head}")
    return {**kept, "partial_rotary_factor": width / head}


def _scaling(config: Any, own: Mapping[str, Any], factors: Mapping[str, Sequence[float]], path: Path) -> dict[str, Any]:
    """The scaling of positions; empty for none."""
    factor = own.get("scaling.factor") or own.get("scale_linear") or 0.0
    kind = own.get("scaling.type", "linear")  # as llama.cpp reads a factor without a type
    attention = own.get("scaling.attn_factor", 1.0) * own.get("scaling.yarn_attn_factor", 1.0)
    long, short = (factors.get(f"rope_factors_{name}.weight") for name in ("long", "short"))
    if long is not None or short is not None or kind == "longrope":
        raise _unknown(path, "rotary factors for short and long texts (longrope)")
    divisors = factors.get("rope_freqs.weight")
    if divisors is not None and any(value != 1 for value in divisors):
        if kind != "none" and factor not in (0.0, 1.0):
            raise _unknown(path, f"rope_freqs.weight together with rope.scaling.factor = {factor}")
        return _divided(config, own, divisors)
    if own.get("scaling.yarn_log_multiplier") or (kind != "yarn" and attention != 1.0):
        raise _unknown(path, "a scaling of attention with its rotary positions (rope.scaling.attn_factor)")
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind != "yarn" or own.get("scaling.yarn_ext_factor", 1.0) != 1.0 or not factor:
        raise _unknown(path, f"rope.scaling.type = {kind} with factor {factor}")
    return {
        "rope_type": "yarn",
        "factor": float(factor),
        "original_max_position_embeddings": own.get("scaling.original_context_length", config.max_position_embeddings),
        "beta_fast": float(own.get("scaling.yarn_beta_fast", BETA_FAST)),
        "beta_slow": float(own.get("scaling.yarn_beta_slow", BETA_SLOW)),
        # llama.cpp multiplies by this on top of attn_factor, which converters therefore leave at 1.
        "attention_factor": attention * (0.1 * math.log(factor) + 1.0),
    }


def _divided(config: Any, own: Mapping[str, Any], divisors: Sequence[float]) -> dict[str, Any]:
    """Rotary frequencies that are each divided by a number of their own.

    Llama 3.1's come from four parameters, which give the same embedding bit for bit; others are written one by one.
    """
    base = float(own.get("freq_base", DEFAULT_BASE))
    largest = max(divisors)
    lengths = (own.get("scaling.original_context_length"), *LENGTHS, int(config.max_position_embeddings / largest))
    for factor, length in itertools.product((largest,), [length for length in lengths if length]):
        made = _llama3_divisors(base, len(divisors), factor, length)
        if all(math.isclose(computed, divisor, rel_tol=1e-5) for computed, divisor in zip(made, divisors, strict=True)):
            return {
                "rope_type": "llama3", "factor": float(factor), "low_freq_factor": LOW, "high_freq_factor": HIGH,
                "original_max_position_embeddings": int(length),
            }  # fmt: skip
    return {
        "rope_type": "longrope", "short_factor": list(divisors), "long_factor": list(divisors), "factor": 1.0,
        "attention_factor": 1.0, "original_max_position_embeddings": config.max_position_embeddings,
    }  # fmt: skip


def _llama3_divisors(base: float, count: int, factor: float, length: int) -> list[float]:
    """The factors of llama.cpp's converter (convert_hf_to_gguf.py, `generate_extra_tensors` of LlamaModel)."""
    divisors = []
    for index in range(count):
        wavelength = 2 * math.pi * base ** (index / count)
        if wavelength < length / HIGH:
            divisors.append(1.0)
        elif wavelength > length / LOW:
            divisors.append(factor)
        else:
            smooth = (length / wavelength - LOW) / (HIGH - LOW)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return divisors


def _unknown(path: Path, what: str) -> ModelError:
    return ModelError(f"{path.name} has {what}, which cannot be expressed in transformers as it is read here: {ADVICE}")
