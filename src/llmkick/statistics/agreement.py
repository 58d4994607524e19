"""Agreement of two models over the choices of an item."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from llmkick.errors import DataError
from llmkick.statistics.pairing import same_items


@dataclass(frozen=True, kw_only=True)
class ChoiceAgreement:
    """Distance between a compressed model's distribution over the choices and the dense model's."""

    n: int  # items
    mean_kl: float  # KL(dense ‖ compressed), nats
    top1_agreement: float  # share of items with the same choice


def choice_agreement(
    dense_logprobs: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    compressed_logprobs: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    *,
    chosen: tuple[Mapping[Any, Hashable], Mapping[Any, Hashable]] | None = None,
) -> ChoiceAgreement:
    """Agreement over the choices of each item, from the log-likelihoods (choices,) of each item; they are normalised.

    Accuracy can hide many changed answers (Dutta et al. 2024, arXiv:2407.09141); agreement cannot. `chosen` holds the
    choices of both models if those are not the likeliest ones (cloze divides by the length). Raises DataError for
    unequal items, no items, or fewer than two finite log-likelihoods per item.
    """
    dense, compressed = _keyed(dense_logprobs), _keyed(compressed_logprobs)
    same_items(dense.keys(), compressed.keys(), "compressed log-probabilities")
    if not dense:
        raise DataError("no items: choice agreement needs at least one")
    divergences, agreed = [], 0
    for key, row in dense.items():
        p, q = np.asarray(row, dtype=np.float64), np.asarray(compressed[key], dtype=np.float64)
        if p.shape != q.shape or p.ndim != 1 or p.size < 2 or not np.isfinite([p, q]).all():
            raise DataError(f"item {key!r}: give two or more finite log-probabilities, as many in both models")
        log_p, log_q = special.log_softmax(p), special.log_softmax(q)
        divergences.append(float((np.exp(log_p) * (log_p - log_q)).sum()))
        agreed += int(p.argmax() == q.argmax() if chosen is None else chosen[0][key] == chosen[1][key])
    return ChoiceAgreement(
        n=len(dense), mean_kl=math.fsum(divergences) / len(dense), top1_agreement=agreed / len(dense)
    )


def _keyed(rows: Mapping[str, ArrayLike] | Sequence[ArrayLike]) -> dict[Hashable, ArrayLike]:
    """Rows by id or by position."""
    return dict(rows.items() if isinstance(rows, Mapping) else enumerate(rows))
