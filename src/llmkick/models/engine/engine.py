"""The engine: a network, the tokenizer that encodes its prompts, and the budget of its batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from llmkick.models.engine.batch_budget import BatchBudget
from llmkick.models.engine.network import device_of, max_tokens_of
from llmkick.models.engine.prompt_encoder import PromptEncoder
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    ScoreRequest,
    Unanswered,
)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Scores continuations and generates text with a Hugging Face network.

    `budget` is the same object for a model and all its compressed copies, because they share the device's memory.
    """

    network: Any
    encoder: PromptEncoder
    budget: BatchBudget = field(default_factory=BatchBudget, repr=False, compare=False)

    @property
    def device(self) -> torch.device:
        """The device of the input embeddings, to which inputs are moved."""
        return device_of(self.network)

    @property
    def max_tokens(self) -> int:
        """The longest prompt plus answer, in tokens; see `max_tokens_of`."""
        return max_tokens_of(self.network)

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        """One score for each request, in order; see `llmkick.models.engine.scoring`."""
        # The module imports transformers, which takes a second: a plan of a study does without.
        from llmkick.models.engine.scoring import score_requests

        encoder = self.encoder.without_thinking
        return score_requests(requests, network=self.network, encoder=encoder, budget=self.budget)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        """One generation for each request, in order; see `llmkick.models.engine.generation`."""
        from llmkick.models.engine.generation import generate_requests

        return generate_requests(requests, network=self.network, encoder=self.encoder, budget=self.budget)

    def with_network(self, network: Any) -> Engine:
        """The same tokenizer and the same budget around other weights."""
        return replace(self, network=network)
