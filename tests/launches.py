"""Counting what a GPU would be given to do, without a GPU: tensors on torch's meta device stand for those on one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose result, or its size, the processor has to wait for.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "bincount", "repeat_interleave")


class Launches(TorchDispatchMode):
    """Counts operations on meta tensors, and those of them for which the processor would have to wait.

    Whatever is read from a tensor is `number`.
    """

    def __init__(self, number: int = 0) -> None:
        super().__init__()
        self._number = number
        self.operations: Counter[str] = Counter()
        self.synchronisations: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if any(one.is_meta for one in given):
            target = kwargs.get("device")
            to_cpu = target is not None and torch.device(target).type == "cpu"
            if to_cpu or name in WAITING:
                self.synchronisations[name] += 1
            if name == "_local_scalar_dense":
                return torch.full((), self._number, dtype=given[0].dtype).tolist()
            if to_cpu:
                return torch.full(given[0].shape, self._number, dtype=kwargs.get("dtype") or given[0].dtype)
        result = func(*args, **kwargs)
        made = [one for one in tree_leaves(result) if isinstance(one, Tensor)]
        moves_data = not func.is_view and not name.startswith(("empty", "new_empty"))
        if moves_data and any(one.is_meta for one in (*given, *made)):
            self.operations[name] += 1
        return result

    def kernel(self, *_arguments: object, **_options: object) -> None:
        """Stands for a kernel of our own: counted as one operation."""
        self.operations["kernel"] += 1
