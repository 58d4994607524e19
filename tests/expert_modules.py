"""A toy mixture whose experts are modules of their own in a list, as many models store them in their own code."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmkick.models.transformers_model import TransformersModel
from toy import toy_model

DEAF, NEARLY_DEAF, HEARD = 1, 2, 3  # experts to which no token goes, or the first few of those chosen


class Expert(nn.Module):
    """A gated MLP."""

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        super().__init__()
        for name, weight in zip(("gate_proj", "up_proj", "down_proj"), (*gate_up.chunk(2), down), strict=True):
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
            setattr(self, name, linear)

    def forward(self, states: Tensor) -> Tensor:
        product: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(states)) * self.up_proj(states))
        return product


class ExpertList(nn.ModuleList):
    """Experts side by side, called as those of Mixtral are: (tokens, width), the chosen experts and their shares."""

    def __init__(self, experts: Any, *, is_uneven: bool) -> None:
        super().__init__(map(Expert, experts.gate_up_proj, experts.down_proj))
        self._is_uneven = is_uneven

    def forward(self, states: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        output = torch.zeros_like(states)
        for number, expert in enumerate(self):
            rows, ranks = torch.where(chosen == number)
            if self._is_uneven and number in (DEAF, NEARLY_DEAF):
                kept = 0 if number == DEAF else HEARD
                rows, ranks = rows[:kept], ranks[:kept]
            if len(rows):
                output.index_add_(0, rows, expert(states[rows]) * shares[rows, ranks, None])
        return output


def toy_mixture(experts: int = 6, *, is_uneven: bool = False, **config: Any) -> TransformersModel:
    """A toy Mixtral with such experts, the same function as with those of transformers unless `is_uneven`."""
    model = toy_model("mixtral", num_local_experts=experts, **config)
    for block in model.network.model.layers:
        block.mlp.experts = ExpertList(block.mlp.experts, is_uneven=is_uneven)
    return TransformersModel.wrap(model.network, model.tokenizer, model.info)
