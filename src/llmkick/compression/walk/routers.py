"""What is a router: the only place that says so. Routers stay dense, and the report lists them.

A router decides which experts a token goes to, or how much of a shared expert or of a layer's own embedding it gets. It
is small, and an error in it sends tokens elsewhere. A module of a block is a router, with all that is inside it, when

1. its class is called a router or a gate of experts (`MixtralTopKRouter`, `JetMoeTopKGating`, `HunYuanMoEV1Gate`), or
   it goes by the name of one: `router`, `…_router`, `router_…`, `shared_expert_gate`, `per_layer_input_gate`;
2. it stands directly in a mixture of experts and goes by the name of a gate: `gate`, `wg`, …; or
3. it is a linear layer directly in a mixture of experts that gives one number for each expert, or a single one, and is
   not called a projection.

The `gate_proj` of a gated MLP, the gates of attention and of recurrent layers, and projections that happen to have as
many outputs as there are experts are no routers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

_CLASS = re.compile(r"Rout(er|ing)(?![a-z])|Gating$|(TopK|Topk|MoEV?\d*|Moe|Experts?)Gate$")
_NAME = re.compile(r"(^|_)router(_|$)|(^|_)experts?_gate$|^per_layer_input_gate$")
_NAME_AMONG_EXPERTS = re.compile(r"^(gate|wg|w_gate|gating|switch|classifier)$")
_PROJECTION = re.compile(r"proj|linear|dense|fc|up|down|latent|query|key|value|^w\d|^[qkvo]$")


def router_modules(block: nn.Module, experts_in: Mapping[str, int]) -> set[str]:
    """The names of all modules of a block that are routers or inside one.

    experts_in: name of each mixture of experts in the block → the number of its experts.
    """
    routers: set[str] = set()
    for name, module in block.named_modules():
        if name.rpartition(".")[0] in routers or (name and _is_router(name, module, experts_in)):
            routers.add(name)
    return routers


def _is_router(name: str, module: nn.Module, experts_in: Mapping[str, int]) -> bool:
    if name in experts_in or not any(parameter.dim() >= 2 for parameter in module.parameters()):
        return False
    parent, _, last_name = name.rpartition(".")
    if _CLASS.search(type(module).__name__) or _NAME.search(last_name):
        return True
    if parent not in experts_in:
        return False
    if _NAME_AMONG_EXPERTS.search(last_name):
        return True
    outputs = module.out_features if isinstance(module, nn.Linear) else None
    return outputs in (1, experts_in[parent]) and not _PROJECTION.search(last_name)
