"""Question answering with and without a passage: can the model still use its context? (the paper's TriviaQA setting)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from llmkick.errors import ConfigError, DataError
from llmkick.models.language_model import GenerateRequest, LanguageModel, Prompt, ScoreRequest
from llmkick.tasks.data.published import TRIVIAQA
from llmkick.tasks.data.readers import Loaded
from llmkick.tasks.data.readers.triviaqa import read_triviaqa
from llmkick.tasks.data.sources import Origin, origin_of, read_pocket, stratified_sample
from llmkick.tasks.fitting import cut_text, fits, shorter_text, styles
from llmkick.tasks.metrics import contains_alias
from llmkick.tasks.prompting import SENTENCE_EXAMPLES, Prompting, question_prompt
from llmkick.tasks.question_answering import MAX_NEW_TOKENS, score_answer, score_either_way
from llmkick.tasks.task import Answer, Item, Record, content_hash, is_whole, task_key

# Default limit on evidence tokens, because TriviaQA pages can have tens of thousands of tokens.
EVIDENCE_TOKENS = 1024
# Upper bound on characters per token. It limits the text held in memory; the tokenizer makes the actual cut.
_CHARACTERS_A_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class ContextQA:
    """The same questions without (`closed`) and with (`open`) the passage that may contain the answer.

    Published evidence is truncated to `evidence_tokens` tokens of the model. If a prompt does not fit the model, the
    task drops the worked examples first and then shortens the evidence; the record's details report both changes.
    The question is never truncated.
    """

    variant: str = "closed"
    source: str = "pocket"
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0
    evidence_tokens: int | None = None
    split: str | None = None
    revision: str | None = None
    sha256: str | Mapping[str, str] | None = None

    version = 3
    metric = "accuracy"
    chance_level = 0.0

    def __post_init__(self) -> None:
        if self.evidence_tokens is not None and not (is_whole(self.evidence_tokens) and self.evidence_tokens >= 1):
            raise ConfigError(
                f"evidence_tokens of {self.name} must be a whole number of at least 1; got {self.evidence_tokens!r}"
            )
        _ = self.origin

    @property
    def name(self) -> str:
        """The task name with its variant."""
        return f"context_qa:{self.variant}"

    @property
    def setting(self) -> str:
        """Closed book tests knowledge; open book tests the use of a given text."""
        return "knowledge" if self.variant == "closed" else "synthesis"

    @property
    def prompting(self) -> Prompting | None:
        """Protocol `paper` uses raw-text prompts, as the paper does; None leaves the choice open."""
        return "raw" if self.protocol == "paper" else None

    @cached_property
    def origin(self) -> Origin | None:
        """Where the published data comes from; None for the pocket suite."""
        return origin_of(self, TRIVIAQA)

    @property
    def _evidence_tokens(self) -> int | None:
        """The limit on evidence tokens; None keeps pocket passages whole when the study sets no limit."""
        return self.evidence_tokens or (None if self.origin is None else EVIDENCE_TOKENS)

    @cached_property
    def _loaded(self) -> Loaded:
        if self.origin is not None:
            loaded = read_triviaqa(self.origin, (self._evidence_tokens or 0) * _CHARACTERS_A_TOKEN)
            if self.variant == "open" and not any(item.context for item in loaded.items):
                raise DataError(f"{self.source}: no question has evidence to read; ask context_qa:closed of it")
            return loaded
        return Loaded(
            items=tuple(
                Item(
                    id=question["id"],
                    cluster=row["id"],
                    question=question["question"],
                    context=row["text"],
                    references=tuple(question["answers"]),
                )
                for row in read_pocket("context_qa.jsonl", ("id", "topic", "title", "text", "questions"))
                for question in row["questions"]
            )
        )

    @property
    def notes(self) -> Sequence[str]:
        """Statements about the rows that were left out of the data."""
        return self._loaded.notes

    @cached_property
    def key(self) -> Mapping[str, Any]:
        """All properties of the task that can change a score."""
        key = task_key(self, content_hash(self._loaded.items))
        if self._evidence_tokens is not None and self.variant == "open":
            key["evidence_tokens"] = self._evidence_tokens
        return key

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The sampled questions, identical for both variants. Evidence is truncated only when a model is given."""
        items = stratified_sample(self._loaded.items, self.limit, self.seed)
        if self.origin is not None and self.variant == "closed":
            return [replace(item, context="") for item in items]
        return items if model is None else [self._fitted(item, model) for item in items]

    def _fitted(self, item: Item, model: LanguageModel) -> Item:
        """The item with a prompt that fits the model; its details record every change made to fit it."""
        whole, details = item.context, dict(item.details)

        def prompts(text: str, shots: int) -> list[Prompt]:
            fitted = replace(item, context=text if self.variant == "open" else "", details={"shots": shots})
            return [self._prompt(fitted, style) for style in styles(model, self.prompting)]

        text = whole if self._evidence_tokens is None else cut_text(model, whole, self._evidence_tokens)
        shots = 0 if self.protocol == "paper" else len(SENTENCE_EXAMPLES)
        if not fits(model, prompts(text, shots), MAX_NEW_TOKENS):
            details["shots"] = shots = 0
            if self.variant == "open":
                # If no evidence fits, keep the text, so that the model reports that the prompt is too long.
                text = shorter_text(model, text, lambda shorter: prompts(shorter, 0), MAX_NEW_TOKENS) or text
        if self.variant == "open" and (self.origin is not None or text != whole):
            details |= {
                "evidence_tokens": len(model.tokenize(text)) - len(model.tokenize("")),
                "evidence_cut": text != whole,
                "answer_in_evidence": contains_alias(text, item.references),
            }
        return replace(item, context=text, details=details)

    def _prompt(self, item: Item, prompting: Prompting) -> Prompt:
        passage = item.context if self.variant == "open" else ""
        if self.protocol == "paper":
            asked = f"Q: {item.question}\nA:"
            return f"{passage}\nAnswer these questions:\n{asked}" if passage else f"Answer these questions:\n\n{asked}"
        examples = SENTENCE_EXAMPLES[: item.details.get("shots", len(SENTENCE_EXAMPLES))]
        return question_prompt(item.question, examples, prompting, passage=passage)

    def requests(self, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
        """One short generation request."""
        return [GenerateRequest(self._prompt(item, prompting), stops=("\n",), max_new_tokens=MAX_NEW_TOKENS)]

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """1 if the first line contains an alias; in protocol `paper`, if either contains the other."""
        return score_either_way(item, answers[0]) if self.protocol == "paper" else score_answer(item, answers[0])
