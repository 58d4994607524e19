"""The methods that a recipe may name, built-in ones and plug-ins, and the parser of recipe texts."""

import re
from collections.abc import Mapping

import llmkick.plugins as plugins
from llmkick.compression.levels import parse_grid, parse_pattern, refuse_two_patterns
from llmkick.compression.methods import Method, plugin_method
from llmkick.compression.recipe import (
    GPTQ,
    RTN,
    Chain,
    Dense,
    Magnitude,
    Recipe,
    Recovered,
    SparseGPT,
    Wanda,
    steps_of,
)
from llmkick.compression.recoveries import split_recovery
from llmkick.errors import ConfigError


def _parse_magnitude(level: str) -> Magnitude:
    return Magnitude(pattern=parse_pattern("magnitude", level, METHODS["magnitude"].examples))


def _parse_wanda(level: str) -> Wanda:
    return Wanda(pattern=parse_pattern("wanda", level, METHODS["wanda"].examples))


def _parse_sparsegpt(level: str) -> SparseGPT:
    refuse_two_patterns(level)
    share, plus, bits = level.partition("+")
    joint = parse_grid("sparsegpt", bits, METHODS["sparsegpt"].options)[0] if plus else None
    return SparseGPT(pattern=parse_pattern("sparsegpt", share, METHODS["sparsegpt"].examples), grid=joint)


def _parse_rtn(level: str) -> RTN:
    return RTN(grid=parse_grid("rtn", level, METHODS["rtn"].options)[0])


def _parse_gptq(level: str) -> GPTQ:
    grid, flags = parse_grid("gptq", level, METHODS["gptq"].options)
    return GPTQ(grid=grid, act_order="act" in flags, static_groups="static" in flags)


# The built-in methods; a plug-in provides an object of the same class.
METHODS: Mapping[str, Method] = {
    "dense": Method(
        summary="the model as it is",
        examples=("dense",),
        parse=lambda level: Dense(),
        kernel="llmkick.compression.apply:apply_dense",
    ),
    "magnitude": Method(
        summary="zero the smallest weights",
        examples=("magnitude@0.5", "magnitude@2:4"),
        parse=_parse_magnitude,
        kernel="llmkick.compression.apply:apply_magnitude",
    ),
    "wanda": Method(
        summary="zero the smallest products of weight and input norm (arXiv 2306.11695)",
        examples=("wanda@0.5", "wanda@2:4", "wanda@0.5+gptq@4b"),
        parse=_parse_wanda,
        kernel="llmkick.compression.apply:apply_wanda",
    ),
    "sparsegpt": Method(
        summary="prune with compensation in the remaining weights, with or without rounding (arXiv 2301.00774)",
        examples=("sparsegpt@0.5", "sparsegpt@4:8", "sparsegpt@0.5+4b", "sparsegpt@2:4+4b-g128"),
        options=("gN", "sym"),
        parse=_parse_sparsegpt,
        kernel="llmkick.compression.apply:apply_sparsegpt",
    ),
    "rtn": Method(
        summary="round to the nearest grid point: the baseline of GPTQ",
        examples=("rtn@8b", "rtn@4b-g128", "rtn@4b-sym"),
        options=("gN", "sym"),
        parse=_parse_rtn,
        kernel="llmkick.compression.apply:apply_rtn",
    ),
    "gptq": Method(
        summary="round with compensation in the weights not yet rounded (arXiv 2210.17323)",
        examples=("gptq@4b", "gptq@3b-g128", "gptq@4b-g128-act", "gptq@4b-sym"),
        options=("gN", "sym", "act", "static"),
        parse=_parse_gptq,
        kernel="llmkick.compression.apply:apply_gptq",
    ),
}


def method_named(name: str) -> Method:
    """The method of that name. Raises ConfigError for an unknown name and for a broken plug-in."""
    if name in METHODS:
        return METHODS[name]
    plugins.refuse_clash(plugins.METHODS, name, METHODS)
    added = plugins.usable(plugins.METHODS, METHODS)
    if name not in added:
        raise ConfigError(f"unknown method {name!r}; choose from: {', '.join([*METHODS, *added])}")
    return plugin_method(added[name])


def all_methods() -> tuple[dict[str, Method], list[str]]:
    """All usable methods by name, and one message for each plug-in that cannot be used."""
    methods, problems = dict(METHODS), plugins.problems(plugins.METHODS, METHODS)
    for name, plugin in plugins.usable(plugins.METHODS, METHODS).items():
        try:
            methods[name] = plugin_method(plugin)
        except ConfigError as error:
            problems.append(str(error))
    return methods, problems


def plugin_origins(recipe: Recipe) -> dict[str, str]:
    """Method name → package and version, for the steps of a recipe that plug-ins provide."""
    origins = {step.method: method_named(step.method).origin for step in steps_of(recipe)}
    return {name: origin for name, origin in origins.items() if origin}


def parse_recipe(text: str) -> Recipe:
    """Parse `method@level[-option…]`, or two of these joined by `+`, with or without a recovery at the end.

    `METHODS` and `RECOVERY_EXAMPLES` list examples. Raises ConfigError, which quotes the text, for an unknown method,
    level or option.
    """
    try:
        if not text.strip():
            raise ConfigError("the text is empty; write for example wanda@2:4")
        compression, recovery = split_recovery(text.strip())
        # A plus before a `method@` joins two steps; any other plus is part of a level, as in sparsegpt@0.5+4b.
        steps = [_parse_step(step) for step in re.split(r"\+(?=[^+@]*@)", compression)]
        base = steps[0] if len(steps) == 1 else Chain(steps=tuple(steps))
        return base if recovery is None else Recovered(base=base, recovery=recovery)
    except ConfigError as error:
        raise ConfigError(f"recipe {text!r}: {error}") from None


def _parse_step(text: str) -> Recipe:
    """One `method@level[-option…]`."""
    name, _, level = text.partition("@")
    method = method_named(name)
    if name == Dense.name:
        if text != name:
            raise ConfigError(f"dense takes no level, but got {level!r}; write dense")
    elif not level:
        raise ConfigError(f"{name} needs a level; write for example {method.examples[0]}")
    return method.parsed(level)
