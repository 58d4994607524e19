"""Finding the list of decoder blocks in a network, and refusing networks that have no such list."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import nn

from llmkick.compression.walk.text_forward import text_forward
from llmkick.errors import ModelError


def text_config(network: nn.Module) -> Any:
    """The configuration of the part of a network that writes text."""
    return network.config.get_text_config(decoder=True)  # type: ignore[operator, union-attr]


def find_blocks(network: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of the decoder blocks.

    They are sought in the text decoder that transformers names, so that the layers of a vision tower are none. Lists
    inside a block, of experts for example, and lists of bare layers do not count. Of several lists the one is taken
    whose modules transformers may not split, and whose length is the number of layers in the configuration; or else the
    one whose modules run on text.
    Raises ModelError when no list, or more than one, can hold the blocks.
    """
    if getattr(text_config(network), "rescale_every", 0):
        raise ModelError(
            f"{type(network).__name__} cannot be compressed: it divides its own weights while it runs (rescale_every)"
        )
    prefix, decoder = _text_decoder(network)
    lists = list(_outer_lists(decoder, prefix))
    count = getattr(text_config(network), "num_hidden_layers", None)
    unsplit = {*(getattr(network, "_no_split_modules", None) or ())}

    def is_unsplit(modules: nn.ModuleList) -> bool:
        return all(type(module).__name__ in unsplit for module in modules)

    for fits in (
        [entry for entry in lists if is_unsplit(entry[1]) and len(entry[1]) == count],
        [entry for entry in lists if len(entry[1]) == count],
        [entry for entry in lists if is_unsplit(entry[1])],
        lists,
    ):
        if len(fits) == 1:
            return fits[0]
        if fits:
            return _only_one_that_runs(network, fits)
    raise ModelError(f"no list of {count} decoder blocks with linear layers found in {type(network).__name__}")


def _only_one_that_runs(network: nn.Module, lists: list[tuple[str, nn.ModuleList]]) -> tuple[str, nn.ModuleList]:
    """The only list whose modules run on text: those of a vision tower do not."""
    modules = [module for _, entry in lists for module in entry]
    running = []
    with contextlib.suppress(ModelError):  # where it cannot be told, all lists are named
        ran = {id(modules[number]) for number in text_forward(network, modules).runs}
        running = [(name, entry) for name, entry in lists if any(id(module) in ran for module in entry)]
    if len(running) == 1:
        return running[0]
    raise ModelError(
        f"{type(network).__name__} cannot be compressed block by block: its layers are spread over the lists "
        f"{', '.join(name for name, _ in running or lists)}"
    )


def _text_decoder(network: nn.Module) -> tuple[str, nn.Module]:
    """The module that holds the text decoder, by its name in the network."""
    get_decoder: Any = getattr(network, "get_decoder", None)
    candidates = [get_decoder() if get_decoder is not None else None, getattr(network, "base_model", None), network]
    for candidate in candidates:
        if isinstance(candidate, nn.Module) and any(_outer_lists(candidate, "")):
            name = next((name for name, module in network.named_modules() if module is candidate), None)
            if name is not None:
                return name, candidate
    return "", network


def _outer_lists(module: nn.Module, name: str) -> Iterator[tuple[str, nn.ModuleList]]:
    """The lists of modules with matrices that are in no other such list."""
    if isinstance(module, nn.ModuleList) and _holds_blocks(module):
        yield name, module
        return
    for key, child in module.named_children():
        yield from _outer_lists(child, f"{name}.{key}" if name else key)


def _holds_blocks(modules: nn.ModuleList) -> bool:
    """Whether the modules could be blocks: they have matrices, and are not bare layers with a weight of their own."""
    bare = any(any(p.dim() >= 2 for p in module.parameters(recurse=False)) for module in modules)
    return not bare and any(p.dim() >= 2 for module in modules for p in module.parameters())
