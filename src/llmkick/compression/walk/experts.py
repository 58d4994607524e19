"""Experts: modules of their own in a list, or one parameter for many, and how each one's matrix lies in it.

transformers stores experts as (experts, out, in), as (experts, in, out), or one below the other in a matrix. Its
decorator `use_experts_implementation` says which; other classes are told by their shapes: what goes into an expert and
what comes out of it is as wide as the hidden states. While the calibration runs, `expert_inputs` compares the layout
with how the network multiplies by the parameter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

_ENTRANCE = re.compile(r"gate|up|^w1|^w3|^v1|input|^fc1")
_EXIT = re.compile(r"down|^w2|output|^fc2")
# Classes without the decorator that say nothing where all matrices are square.
_IS_TRANSPOSED = {"Llama4TextExperts": True, "LongcatFlashExperts": False, "InklingSharedExperts": False}
# Parameters with a matrix (out, in) for each head of a recurrent layer, which are told apart like experts.
_HEADS = {("ZambaMambaMixer", "x_proj_weight"), ("ZambaMambaMixer", "dt_proj_weight")}
_COUNTS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "n_shared_experts")


@dataclass(frozen=True, kw_only=True)
class ExpertLayout:
    """How a parameter holds the weights of `experts` experts, see `LinearLayer`."""

    experts: int
    transposed: bool = False
    rows: int | None = None


def is_bias(name: str) -> bool:
    """Whether a parameter is a bias by its name: those of experts have two dimensions."""
    return name.endswith("bias")


def expert_layout(module: nn.Module, key: str, width: int | None) -> ExpertLayout | None:
    """The layout of a module's parameter, None when it holds no experts or cannot be told. width: of hidden states."""
    parameter: Tensor = getattr(module, key)
    if is_bias(key) or parameter.dim() not in (2, 3):
        return None
    if parameter.dim() == 2:
        return _layout_of_rows(module, key, parameter, width)
    declared = getattr(module, "is_transposed", None)
    if declared is None and (tuple(parameter.shape) == _sizes(module) or is_of_heads(module, key)):
        declared = False
    if declared is None and "expert" in type(module).__name__.lower():
        declared = _is_transposed(module, width)
    return None if declared is None else ExpertLayout(experts=parameter.shape[0], transposed=bool(declared))


def is_of_heads(module: nn.Module, key: str) -> bool:
    """Whether a parameter holds a matrix for each head of a layer, which sees every token, unlike an expert."""
    return (type(module).__name__, key) in _HEADS


def mixtures(block: nn.Module, width: int | None) -> dict[str, int]:
    """Names of the modules of a block in which experts stand side by side → the number of experts."""
    counts: dict[str, int] = {}
    lists = expert_lists(block)
    for name, module in block.named_modules():
        if name in lists:
            counts[name.rpartition(".")[0]] = lists[name]
        for key, _ in module.named_parameters(recurse=False):
            layout = expert_layout(module, key, width)
            if layout is not None and not is_of_heads(module, key):
                counts |= dict.fromkeys(_around(block, name), layout.experts)
    return counts


def expert_lists(block: nn.Module) -> dict[str, int]:
    """Names of the lists of a block in which experts are modules of their own → the number of experts."""
    return {
        name: len(module)
        for name, module in block.named_modules()
        if isinstance(module, nn.ModuleList) and "expert" in name.rpartition(".")[2] and len(module) > 1
    }


def expert_role(name: str, lists: Iterable[str]) -> str:
    """The name of a module with * for the number of its expert; empty where it is in none of the lists of experts."""
    for experts in lists:
        if name.startswith(f"{experts}."):
            inside = name.removeprefix(f"{experts}.").partition(".")[2]
            return f"{experts}.*.{inside}" if inside else f"{experts}.*"
    return ""


def _around(block: nn.Module, name: str) -> Iterator[str]:
    """The module with the experts, and the one around it: further out while a module only wraps another."""
    yield name
    while name:
        name = name.rpartition(".")[0]
        yield name
        children = [child for child in block.get_submodule(name).children() if any(True for _ in child.parameters())]
        if len(children) > 1:
            return


def _sizes(module: nn.Module) -> tuple[object, ...]:
    return tuple(getattr(module, name, None) for name in ("num_experts", "output_size", "input_size"))


def _is_transposed(module: nn.Module, width: int | None) -> bool | None:
    """Whether the matrices of a module's experts are (in, out), by those that are not square; None if none tells."""
    if type(module).__name__ in _IS_TRANSPOSED:
        return _IS_TRANSPOSED[type(module).__name__]
    votes: set[bool] = set()
    for key, parameter in module.named_parameters(recurse=False):
        if parameter.dim() != 3 or is_bias(key) or parameter.shape[1] == parameter.shape[2]:
            continue
        rows_are_hidden, columns_are_hidden = parameter.shape[1] == width, parameter.shape[2] == width
        if rows_are_hidden == columns_are_hidden:
            continue
        if _EXIT.search(key):
            votes.add(columns_are_hidden)
        elif _ENTRANCE.search(key):
            votes.add(rows_are_hidden)
    return votes.pop() if len(votes) == 1 else None


def _layout_of_rows(module: nn.Module, key: str, parameter: Tensor, width: int | None) -> ExpertLayout | None:
    """The layout of (experts · rows, columns), where either rows or columns are as wide as the hidden states."""
    if "expert" not in type(module).__name__.lower():
        return None
    experts = next((n for n in (getattr(module, name, None) for name in _COUNTS) if isinstance(n, int)), None)
    if experts is None or experts < 2 or parameter.shape[0] % experts:
        return None
    rows, columns = parameter.shape[0] // experts, parameter.shape[1]
    is_exit = _EXIT.search(key) is not None
    if width not in (rows, columns) or not (is_exit or _ENTRANCE.search(key)):
        return None
    # Where both are as wide, the columns are those of the hidden states, as in the only architecture with this layout.
    return ExpertLayout(experts=experts, transposed=is_exit == (columns == width), rows=rows)
