"""What a training minimises, in nats a token."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(logits: Tensor, dense_logits: Tensor) -> Tensor:
    """Σ KL(dense ‖ student) over the tokens: twice (sequences, tokens, vocabulary) → scalar, nats."""
    student, dense = (F.log_softmax(each.float().flatten(0, 1), dim=-1) for each in (logits, dense_logits))
    return F.kl_div(student, dense, reduction="sum", log_target=True)


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Σ −log p of each token but the first: (sequences, tokens, vocabulary), (sequences, tokens) → scalar, nats."""
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def counted_tokens(ids: Tensor, *, distils: bool) -> int:
    """How many tokens a loss is summed over: (sequences, tokens) → count."""
    return ids.numel() if distils else ids[:, 1:].numel()
