"""A Hugging Face network as a LanguageModel: its identity, and the engine that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from llmkick.models.checkpoint import Checkpoint
from llmkick.models.engine.engine import Engine
from llmkick.models.engine.network import end_tokens_of
from llmkick.models.engine.prompt_encoder import PromptEncoder
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    Message,
    ModelInfo,
    Prompt,
    ScoreRequest,
    Unanswered,
)
from llmkick.models.thoughts import Thinking


@dataclass(frozen=True, kw_only=True)
class TransformersModel:
    """A network whose weights are on this machine; `checkpoint` are the files it was loaded from."""

    info: ModelInfo
    engine: Engine
    checkpoint: Checkpoint | None = field(default=None, repr=False)

    @classmethod
    def wrap(
        cls, network: Any, tokenizer: Any, info: ModelInfo, *, checkpoint: Checkpoint | None = None
    ) -> TransformersModel:
        """The model of a network and its tokenizer, with a batch budget of its own."""
        encoder = PromptEncoder(tokenizer=tokenizer, model_name=info.name)
        return TransformersModel(info=info, engine=Engine(network=network, encoder=encoder), checkpoint=checkpoint)

    @property
    def network(self) -> Any:
        """The Hugging Face network."""
        return self.engine.network

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer."""
        return self.engine.encoder.tokenizer

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes for readers of this model's answers: each memory shortage, and what its chat template does not take."""
        return (*self.engine.budget.notes, *self.engine.encoder.notes)

    @property
    def device(self) -> torch.device:
        """The device of the input embeddings, to which inputs are moved."""
        return self.engine.device

    @property
    def max_tokens(self) -> int:
        """The network's position limit; 2048 where its configuration names none."""
        return self.engine.max_tokens

    @property
    def has_chat_template(self) -> bool:
        """True for instruct models."""
        return self.engine.encoder.has_chat_template

    @property
    def end_tokens(self) -> frozenset[int]:
        """Token ids that end an answer."""
        return end_tokens_of(self.network, self.tokenizer)

    def tokenize(self, text: str) -> list[int]:
        """Token ids of raw text, with the special tokens that the tokenizer puts before it by default."""
        return self.engine.encoder.tokenize(text)

    def encode(self, prompt: Prompt, continuation: str = "") -> list[int]:
        """Token ids of a prompt with its continuation, tokenised as one text; ConfigError without a chat template."""
        return self.engine.encoder.encode(prompt, continuation)

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The conversation as the model's chat template writes it; ConfigError without a chat template."""
        return self.engine.encoder.render_chat(messages)

    def prompt_tokens(self, prompt: Prompt) -> int:
        """The number of tokens of a prompt, with the chat template if it is a conversation."""
        return len(self.encode(prompt))

    @property
    def answers_all_requests(self) -> bool:
        """Always true: the network answers every kind of request."""
        return True

    def refusal(self, requests: Sequence[ScoreRequest | GenerateRequest]) -> str:
        """Always empty, see `answers_all_requests`."""
        return ""

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        """One score for each request, in order."""
        return self.engine.logprobs(requests)

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        """One generation for each request, in order."""
        return self.engine.generate(requests)

    def with_thinking(self, thinking: Thinking) -> TransformersModel:
        """The same model, asked to think before it answers or not; conversations alone are affected."""
        encoder = PromptEncoder(tokenizer=self.tokenizer, model_name=self.info.name, thinking=thinking)
        return replace(self, engine=replace(self.engine, encoder=encoder))

    @property
    def thinking_in_prompts(self) -> Thinking | None:
        """`thinking`, where it is "on" or changes the prompts of conversations; otherwise None."""
        return self.engine.encoder.thinking_in_prompts

    def with_network(self, network: Any, *, digest: str) -> TransformersModel:
        """The same tokenizer and name around other weights."""
        return replace(self, engine=self.engine.with_network(network), info=replace(self.info, digest=digest))


def thinking_of_prompts(tokenizer: Any, thinking: Thinking) -> Thinking | None:
    """`TransformersModel.thinking_in_prompts` of a model with this tokenizer, which need not be loaded."""
    return PromptEncoder(tokenizer=tokenizer, model_name="", thinking=thinking).thinking_in_prompts
