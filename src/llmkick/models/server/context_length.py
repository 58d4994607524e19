"""How many tokens the prompt and the answer of a server's model can have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llmkick.errors import KickError
from llmkick.models.server.endpoint import Endpoint
from llmkick.models.server.replies import whole_number

# The longest prompt plus answer of a server that reports no limit; it refuses longer requests.
ASSUMED_TOKENS = 4096


def context_length(endpoint: Endpoint, facts: Mapping[str, Any]) -> int:
    """The context of the model that `facts`, its entry in /models, describes; ASSUMED_TOKENS where nothing says it.

    llama.cpp's server states there the length that the model was trained with. What it was started with, for each of
    its slots, is at /props.
    """
    stated = whole_number(facts, "max_model_len")
    if stated is None and ("n_ctx_train" in facts or facts.get("owned_by") == "llamacpp"):
        stated = _context_of_llama_cpp(endpoint)
    stated = stated or whole_number(facts, "n_ctx", "context_length")
    return stated or min(ASSUMED_TOKENS, whole_number(facts, "n_ctx_train") or ASSUMED_TOKENS)


def _context_of_llama_cpp(endpoint: Endpoint) -> int | None:
    try:
        # Beside the interface of OpenAI, not in it.
        properties = replace(endpoint, attempts=min(2, endpoint.attempts)).read(
            f"{endpoint.address.url.removesuffix('/v1')}/props"
        )
    except KickError:  # a proxy may keep it to itself
        return None
    settings = properties.get("default_generation_settings") if isinstance(properties, Mapping) else None
    return whole_number(settings, "n_ctx") if isinstance(settings, Mapping) else None
