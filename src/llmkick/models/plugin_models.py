"""Models of plug-ins: references of the form `scheme:rest`, where the scheme is the name of an entry point."""

from __future__ import annotations

from collections.abc import Callable

import llmkick.plugins as plugins
from llmkick.errors import ConfigError
from llmkick.files import is_there
from llmkick.models.language_model import LanguageModel
from llmkick.plugins import Plugin

# Schemes of llmkick itself, which no plug-in can take.
BUILTIN_SCHEMES = ("openai", "vllm")
# Answers of vLLM: loaded as a plug-in's model is, but it comes with llmkick.
VLLM = Plugin(
    group=plugins.MODELS,
    name="vllm",
    package="llmkick",
    version="itself",
    reference="llmkick.models.vllm.model:load_vllm",
)
# The members of `LanguageModel` that every model must have; `ModelDefaults` provides the last four.
MEMBERS = (
    *("info", "max_tokens", "has_chat_template", "tokenize", "logprobs", "generate"),
    *("notes", "answers_all_requests", "refusal", "prompt_tokens"),
)


def plugin_of(reference: str) -> Plugin | None:
    """The plug-in that a model reference names, None for any other reference, such as an existing path.

    Raises ConfigError when several plug-ins offer the scheme, or its name is not valid.
    """
    scheme, colon, _ = reference.partition(":")
    if not colon or is_there(reference):
        return None
    if scheme in BUILTIN_SCHEMES:
        return VLLM if scheme == VLLM.name else None
    plugins.refuse_clash(plugins.MODELS, scheme, BUILTIN_SCHEMES)
    return plugins.usable(plugins.MODELS, BUILTIN_SCHEMES).get(scheme)


def load_from_plugin(plugin: Plugin, reference: str, *, dtype: str, device: str) -> LanguageModel:
    """The LanguageModel that a plug-in makes of the text after the colon.

    The entry point is a function `load(rest, *, dtype, device)`. Raises ConfigError naming the plug-in when it is
    not a function or does not make a model, KickError when it fails.
    """
    load = _load_of(plugin)
    try:
        model: LanguageModel = load(reference.partition(":")[2], dtype=dtype, device=device)
        missing = [name for name in MEMBERS if not hasattr(model, name)]
    except Exception as error:
        raise plugin.failed(f"to load {reference!r}", error) from error
    if missing:
        raise plugin.broken(
            f"made a {type(model).__name__} without {', '.join(missing)}; see the LanguageModel protocol, and "
            "ModelDefaults, a base class that brings the optional members"
        )
    return model


def schemes() -> tuple[dict[str, Plugin], list[str]]:
    """The schemes of plug-ins, all of which are loaded, and why others are not used."""
    loaded, problems = {}, plugins.problems(plugins.MODELS, BUILTIN_SCHEMES)
    for scheme, plugin in plugins.usable(plugins.MODELS, BUILTIN_SCHEMES).items():
        try:
            _load_of(plugin)
            loaded[scheme] = plugin
        except ConfigError as error:
            problems.append(str(error))
    return loaded, problems


def _load_of(plugin: Plugin) -> Callable[..., LanguageModel]:
    """The function of an entry point. Raises ConfigError naming the plug-in when it is not one or cannot be loaded."""
    load = plugin.load()
    if not callable(load):
        raise plugin.broken(f"is {type(load).__name__}, not a function load(rest, *, dtype, device)")
    function: Callable[..., LanguageModel] = load
    return function
