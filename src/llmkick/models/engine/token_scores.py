"""Log-probabilities of the tokens that a batch scores: picked on the device, and read from it in one transfer.

A GPU works ahead of the processor until the processor reads a number from it. Hence a batch is read once, not once a
request.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkick.models.engine.encoding import EncodedRequest
from llmkick.models.engine.runner import read
from llmkick.models.language_model import ContinuationScore, Unanswered

# Positions whose float32 logits are in memory at once: 512 × 128k vocabulary × 4 bytes is 256 MB.
LOGIT_ROWS = 512


class TokenScores:
    """The scored tokens of a batch of requests, in the order in which each request's were added."""

    def __init__(self) -> None:
        # The most tokens whose log-probabilities are one sum, where not all: the sums are then added up.
        self._summed_together: int | None = None
        self._parts: list[Tensor] = []  # (2, tokens): log-probability, and 1 where the token is the likeliest
        self._count = 0
        self._requests: dict[int, EncodedRequest] = {}
        self._spans: dict[int, list[slice]] = {}

    def add_first(self, logprobs: Tensor, rows: Sequence[tuple[int, EncodedRequest]]) -> None:
        """The first token of each request, from row `row` of (rows, vocabulary) float32 log-probabilities."""
        for _, request in rows:
            self._own(request, 1)
        where = _on(logprobs.device, [row for row, _ in rows], [request.continuation[0] for _, request in rows])
        self._parts.append(_picked(logprobs, logprobs.argmax(1), *where))

    def add_rest(self, logits: Tensor, requests: Sequence[EncodedRequest]) -> None:
        """All tokens but the first, from (requests, columns, vocabulary): column i predicts token i + 1."""
        places: list[tuple[int, int, int]] = []
        for row, request in enumerate(requests):
            self._own(request, len(request.continuation) - 1)
            places += [(row, column, token) for column, token in enumerate(request.continuation[1:])]
        self._add(logits, places, by_logprobs=True)

    def add_whole(self, logits: Tensor, rows: Sequence[tuple[int, EncodedRequest]], *, first_column: int) -> None:
        """All scored tokens of requests that ran whole, from (rows, columns, vocabulary) after `first_column` on."""
        self._summed_together = LOGIT_ROWS
        places: list[tuple[int, int, int]] = []
        for row, request in rows:
            start = len(request.inputs) - request.scored_tokens - first_column
            scored = request.continuation[-request.scored_tokens :]
            whole = len(scored) // LOGIT_ROWS * LOGIT_ROWS
            for first in range(0, whole, LOGIT_ROWS):  # without a copy of the logits
                self._own(request, LOGIT_ROWS)
                tokens = _on(logits.device, scored[first : first + LOGIT_ROWS])[0]
                self._piece(logits[row, start + first : start + first + LOGIT_ROWS], tokens, by_logprobs=False)
            places += [(row, start + offset, scored[offset]) for offset in range(whole, len(scored))]
        for _, request in rows:
            self._own(request, request.scored_tokens % LOGIT_ROWS)
        self._add(logits, places, by_logprobs=False)

    def _own(self, request: EncodedRequest, tokens: int) -> None:
        self._requests[request.index] = request
        self._spans.setdefault(request.index, []).append(slice(self._count, self._count + tokens))
        self._count += tokens

    def _add(self, logits: Tensor, places: Sequence[tuple[int, int, int]], *, by_logprobs: bool) -> None:
        """Tokens at (row, column, token), a few positions in float32 at a time.

        by_logprobs: the likeliest token is that of the float32 log-probabilities, otherwise of the logits themselves.
        """
        if not places:
            return
        where = _on(logits.device, *zip(*places, strict=True))
        for rows, columns, tokens in torch.split(where, LOGIT_ROWS, dim=1):
            self._piece(logits[rows, columns], tokens, by_logprobs=by_logprobs)

    def _piece(self, logits: Tensor, tokens: Tensor, *, by_logprobs: bool) -> None:
        """A token from each row of (rows, vocabulary)."""
        precise = logits.float()
        logprobs = F.log_softmax(precise, dim=-1)
        likeliest = (logprobs if by_logprobs else precise).argmax(1)
        self._parts.append(_picked(logprobs, likeliest, torch.arange(len(tokens), device=tokens.device), tokens))

    def scores(self) -> dict[int, ContinuationScore | Unanswered]:
        """The score of each request, by its index; here the device is waited for."""
        if not self._parts:
            return {}
        logprobs, likeliest = read(torch.cat(self._parts, dim=1))
        return {index: self._score(request, logprobs, likeliest) for index, request in self._requests.items()}

    def _score(self, request: EncodedRequest, logprobs: Tensor, likeliest: Tensor) -> ContinuationScore | Unanswered:
        own = torch.cat([logprobs[span] for span in self._spans[request.index]]).double()
        total = sum(float(piece.sum()) for piece in torch.split(own, self._summed_together or len(own)))
        if not math.isfinite(total):
            return Unanswered(reason="the model's output is NaN or Inf")
        return ContinuationScore(
            logprob=total,
            tokens=request.scored_tokens,
            is_greedy=all(bool(likeliest[span].all()) for span in self._spans[request.index]),
            boundary_moved=request.boundary_moved,
        )


def _on(device: torch.device, *columns: Sequence[int]) -> Tensor:
    """Rows of integers as a tensor on the device, in one transfer for which the processor does not wait."""
    return torch.tensor(columns, dtype=torch.long).to(device, non_blocking=True)


def _picked(logprobs: Tensor, likeliest: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    """(rows, vocabulary) float32 and (rows,) → (2, tokens): log-probability of a token, and whether it is likeliest."""
    return torch.stack([logprobs[rows, tokens], (likeliest[rows] == tokens).float()])
