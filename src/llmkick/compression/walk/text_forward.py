"""A dry forward of a network on text: which of its modules run, how often, and what they hand to one another.

The modules are replaced by functions that return their input, and all other weights by zeros: next to nothing is
computed, and no weight is needed. What a module returns is marked, so that the arguments of later modules tell where
they come from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from llmkick.errors import ModelError, one_line

# Sequences and tokens of the dry forward: different, so that a sequence taken for a token is noticed.
SHAPE = (2, 3)
MOST_OUTPUTS = 4


@dataclass(frozen=True, kw_only=True)
class TextForward:
    """What a dry forward shows.

    runs: numbers of the modules in the order in which they ran. outputs: how many outputs a module has beside its
    hidden states. kept: numbers of the modules whose outputs are used later than in the next module. uses_extras:
    whether a module is given more of the one before than its hidden states.
    """

    runs: tuple[int, ...]
    outputs: int
    kept: frozenset[int]
    uses_extras: bool


def text_forward(network: nn.Module, modules: Sequence[nn.Module]) -> TextForward:
    """Run a network on text without computing anything. Raises ModelError where that is not possible."""
    with torch.inference_mode(False), torch.enable_grad():
        for outputs, marked in _forms():
            forward = _Forward(outputs=outputs, marked=marked)
            if forward.run(_outline(network, modules, forward), len(modules)):
                return forward.seen()
    raise ModelError(f"{type(network).__name__} cannot be run on text alone, without its weights: {forward.error}")


def _forms() -> Iterator[tuple[int, bool]]:
    """What the modules may return: hidden states, or a tuple of them and more, which is marked or None."""
    yield 0, False
    for marked in (True, False):
        for outputs in range(1, MOST_OUTPUTS):
            yield outputs, marked


@dataclass(kw_only=True)
class _Forward:
    """One dry forward. outputs: how many outputs a module has beside its hidden states, 0 for no tuple."""

    outputs: int
    marked: bool
    error: str = "it takes no token ids"
    runs: list[int] = field(default_factory=list)
    shapes: set[torch.Size] = field(default_factory=set)
    marks: dict[int, tuple[int, bool]] = field(default_factory=dict)  # id of a mark → place in `runs`, is it an extra
    alive: list[Tensor] = field(default_factory=list)  # the marks, so that an id names one tensor only
    used: set[tuple[int, bool, bool]] = field(default_factory=set)  # module, extra, is it used in the next module

    def run(self, outline: nn.Module, count: int) -> bool:
        """Whether the modules may return what this forward lets them return."""
        try:
            outline(input_ids=torch.zeros(SHAPE, dtype=torch.long), use_cache=False)
        except Exception as error:  # noqa: BLE001 - what comes after the modules need not work
            self.error = one_line(error)
            if len(set(self.runs)) < count:
                return False
        return len(self.shapes) == 1

    def called(self, number: int, arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        """A module is called: note where its arguments come from, and return them as its outputs."""
        states: Tensor = keywords["hidden_states"] if "hidden_states" in keywords else arguments[0]
        place = len(self.runs)
        for mark in self._marks_in((arguments, keywords)):
            origin, is_extra = self.marks[mark]
            self.used.add((self.runs[origin], is_extra, origin == place - 1))
        self.runs.append(number)
        self.shapes.add(states.shape)
        output = self._mark(states.detach().clone(), place, is_extra=False)
        if not self.outputs:
            return output
        extra = self._mark(states.new_zeros(()), place, is_extra=True) if self.marked else None
        return (output, *[extra] * self.outputs)

    def _mark(self, tensor: Tensor, place: int, *, is_extra: bool) -> Tensor:
        if tensor.is_floating_point():
            tensor.requires_grad_()
        self.alive.append(tensor)
        self.marks[id(tensor)] = place, is_extra
        return tensor

    def _marks_in(self, values: Any) -> set[int]:
        """The marks that tensors in these values were computed from."""
        nodes: list[Any] = []
        marks: set[int] = set()
        for tensor in _tensors(values):
            if id(tensor) in self.marks:
                marks.add(id(tensor))
            elif tensor.grad_fn is not None:
                nodes.append(tensor.grad_fn)
        visited: set[Any] = set()
        while nodes:
            node = nodes.pop()
            if node is None or node in visited:
                continue
            visited.add(node)
            leaf = getattr(node, "variable", None)
            if leaf is not None and id(leaf) in self.marks:
                marks.add(id(leaf))
            nodes += [following for following, _ in node.next_functions]
        return marks

    def seen(self) -> TextForward:
        """What the forward has shown."""
        kept = frozenset(module for module, _, is_next in self.used if not is_next)
        uses_extras = any(is_extra for _, is_extra, _ in self.used)
        return TextForward(runs=tuple(self.runs), outputs=self.outputs, kept=kept, uses_extras=uses_extras)


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested sequences and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


class _Passing(nn.Module):
    """Stands for a module in a dry forward: it has its attributes, and returns what it is given."""

    def __init__(self, original: nn.Module, number: int, forward: _Forward) -> None:
        super().__init__()
        self.__dict__["stands_for"] = original, number, forward  # not as a module of its own

    def __getattr__(self, name: str) -> Any:
        original, _, _ = self.__dict__["stands_for"]
        return getattr(original, name)

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        """Return the hidden states among the arguments."""
        _, number, forward = self.__dict__["stands_for"]
        return forward.called(number, arguments, keywords)


class _Head(nn.Module):
    """Stands for the output head, the only large product outside the blocks."""

    def forward(self, states: Tensor) -> Tensor:
        """Return the states."""
        return states


def _outline(network: Any, modules: Sequence[nn.Module], forward: _Forward) -> nn.Module:
    """A copy of the network in which the modules only pass on what they are given, on the CPU and without weights."""
    memo: dict[int, Any] = {id(module): _Passing(module, number, forward) for number, module in enumerate(modules)}
    inside = {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
    for tensor in (*network.parameters(), *network.buffers()):
        if id(tensor) in inside:
            continue
        if isinstance(tensor, nn.Parameter) or tensor.is_meta:
            zeros = torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)  # takes no memory
            memo[id(tensor)] = nn.Parameter(zeros, requires_grad=False) if isinstance(tensor, nn.Parameter) else zeros
        else:
            memo[id(tensor)] = tensor.detach().cpu()
    get_head = getattr(network, "get_output_embeddings", None)
    head = None if get_head is None else get_head()
    if head is not None:
        memo[id(head)] = _Head()
    copied: nn.Module = copy.deepcopy(network, memo)
    return copied
