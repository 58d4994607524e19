"""Prompts as token ids: raw text as it is, conversations through the model's chat template."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from llmkick.errors import ConfigError
from llmkick.models.engine.chat_template import ChatTemplate
from llmkick.models.language_model import Message, Prompt
from llmkick.models.thoughts import Thinking, is_mark

# Characters from which on a text counts as long.
LONG_TEXT = 20_000
# Shows which special tokens a tokenizer puts around any text.
SOME_TEXT = "a"


@dataclass(frozen=True, kw_only=True)
class PromptEncoder:
    """A Hugging Face tokenizer that encodes prompts and decodes answers; `model_name` is for its error messages.

    `thinking` says whether conversations ask the model to think before it answers; `notes` are for readers of its
    answers.
    """

    tokenizer: Any
    model_name: str
    thinking: Thinking = "off"
    notes: list[str] = field(default_factory=list, compare=False, repr=False)
    # The last long text with its tokens: a run asks for the windows of one text several times.
    _long: list[tuple[str, list[int]]] = field(default_factory=list, compare=False, repr=False)

    @property
    def has_chat_template(self) -> bool:
        """True for instruct models."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def tokenize(self, text: str) -> list[int]:
        """Token ids of raw text, with the special tokens that the tokenizer puts before it by default."""
        for known, tokens in tuple(self._long):
            if known == text:
                return list(tokens)
        ids = self._open_ended(self.tokenizer(text, verbose=False)["input_ids"])
        if len(text) >= LONG_TEXT:
            self._long[:] = [(text, list(ids))]
        return ids

    def tokenize_alone(self, text: str) -> list[int]:
        """Token ids of raw text without any special tokens."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def encode(self, prompt: Prompt, continuation: str = "") -> list[int]:
        """Token ids of a prompt with its continuation, tokenised as one text.

        Raises ConfigError for a conversation where the tokenizer has no chat template.
        """
        return self.encode_all([(prompt, continuation)])[0]

    def encode_all(self, texts: Sequence[tuple[Prompt, str]]) -> list[list[int]]:
        """`encode` of many prompts with their continuations, which tokenizers do on all processors."""
        encoded: dict[int, list[int]] = {}
        rendered: dict[tuple[Message, ...], str] = {}
        raw: dict[int, str] = {}
        chats: dict[int, str] = {}
        for index, (prompt, continuation) in enumerate(texts):
            if isinstance(prompt, str):
                raw[index] = prompt + continuation
                continue
            messages = tuple(prompt)
            if messages not in rendered:
                rendered[messages] = self.render_chat(messages)
            chats[index] = rendered[messages] + continuation
        # The template writes its own special tokens; adding the tokenizer's would double them.
        for batch, special in ((raw, True), (chats, False)):
            if batch:
                ids = self.tokenizer(list(batch.values()), add_special_tokens=special, verbose=False)["input_ids"]
                encoded.update(zip(batch, map(self._open_ended, ids) if special else ids, strict=True))
        return [encoded[index] for index in range(len(texts))]

    def _open_ended(self, ids: list[int]) -> list[int]:
        """The token ids of a raw text without what the tokenizer appends: the text of a prompt goes on."""
        count = len(self._appended)
        return ids[:-count] if count and ids[-count:] == self._appended else ids

    @cached_property
    def _appended(self) -> list[int]:
        """The tokens that the tokenizer puts behind every raw text, such as an end token."""
        whole, alone = self.tokenizer(SOME_TEXT, verbose=False)["input_ids"], self.tokenize_alone(SOME_TEXT)
        starts = range(len(whole) - len(alone) + 1)
        end = next((start + len(alone) for start in starts if whole[start : start + len(alone)] == alone), len(whole))
        return list(whole[end:])

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The conversation as the model's chat template writes it, ready for the assistant to speak.

        Raises ConfigError where the tokenizer has no chat template.
        """
        if not self.has_chat_template:
            raise ConfigError(f'{self.model_name} has no chat template: use prompting = "raw"')
        return self.template.render(messages)

    @cached_property
    def template(self) -> ChatTemplate:
        """The tokenizer's chat template, with the switch for `thinking`."""
        return ChatTemplate(
            tokenizer=self.tokenizer, model_name=self.model_name, thinking=self.thinking, notes=self.notes
        )

    @property
    def thinking_in_prompts(self) -> Thinking | None:
        """`thinking`, where it is "on" or changes the prompts of conversations; otherwise None."""
        return self.thinking if self.has_chat_template and self.template.changed_by_thinking else None

    @cached_property
    def without_thinking(self) -> PromptEncoder:
        """The encoder for prompts whose continuation is given: what is scored follows no thought."""
        return self if self.thinking == "off" else replace(self, thinking="off")

    def decode(self, tokens: list[int]) -> str:
        """The text of an answer's tokens, without special tokens except those that mark a thought."""
        if not self._thought_marks.isdisjoint(tokens):
            runs = itertools.groupby(tokens, key=self._thought_marks.__contains__)
            return "".join(
                "".join(map(str, self.tokenizer.convert_ids_to_tokens(list(run)))) if marks else self._plain(list(run))
                for marks, run in runs
            )
        return self._plain(tokens)

    def _plain(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def _thought_marks(self) -> frozenset[int]:
        """Special tokens that mark thoughts: without them a thought would run into the answer."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        return frozenset(number for number, token in added.items() if token.special and is_mark(token.content))
