"""Questions about a passage, closed and open book: can the model still use what it is given? (TriviaQA setting)"""

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

# Tokens of evidence unless the study says otherwise: TriviaQA's pages run to tens of thousands.
EVIDENCE_TOKENS = 1024
# No text has so many characters a token: a bound on what is kept in memory, not the cut.
_CHARACTERS_A_TOKEN = 16


@dataclass(frozen=True, kw_only=True)
class ContextQA:
    """The same questions without (`closed`) and with (`open`) the passage that may hold the answer.

    Published evidence is cut to `evidence_tokens` of the model's tokens; every prompt is made to fit the model by
    fewer worked examples, then shorter evidence, and the record's details say so. The question is never cut.
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

    version = 1
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
        """Name with its variant."""
        return f"context_qa:{self.variant}"

    @property
    def setting(self) -> str:
        """Closed book asks for knowledge, open book for its use."""
        return "knowledge" if self.variant == "closed" else "synthesis"

    @property
    def prompting(self) -> Prompting | None:
        """The paper's prompts are raw text."""
        return "raw" if self.protocol == "paper" else None

    @cached_property
    def origin(self) -> Origin | None:
        """Where published data comes from; None for the pocket suite."""
        return origin_of(self, TRIVIAQA)

    @property
    def _evidence_tokens(self) -> int | None:
        """The cut of the evidence; pocket passages are whole unless a cut is asked for."""
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
        """What was left out of the data."""
        return self._loaded.notes

    @property
    def key(self) -> Mapping[str, Any]:
        """Everything about the task that can change a score."""
        key = task_key(self, content_hash(self._loaded.items))
        if self._evidence_tokens is not None and self.variant == "open":
            key["evidence_tokens"] = self._evidence_tokens
        return key

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The sampled questions, the same for both variants; the evidence is cut for a model only."""
        items = stratified_sample(self._loaded.items, self.limit, self.seed)
        if self.origin is not None and self.variant == "closed":
            return [replace(item, context="") for item in items]
        return items if model is None else [self._fitted(item, model) for item in items]

    def _fitted(self, item: Item, model: LanguageModel) -> Item:
        """An item whose prompt the model holds, and in its details whatever was changed for that."""
        whole, details = item.context, dict(item.details)

        def prompts(text: str, shots: int) -> list[Prompt]:
            fitted = replace(item, context=text if self.variant == "open" else "", details={"shots": shots})
            return [self._prompt(fitted, style) for style in styles(model, self.prompting)]

        text = whole if self._evidence_tokens is None else cut_text(model, whole, self._evidence_tokens)
        shots = 0 if self.protocol == "paper" else len(SENTENCE_EXAMPLES)
        if not fits(model, prompts(text, shots), MAX_NEW_TOKENS):
            details["shots"] = shots = 0
            if self.variant == "open":
                # Without room for any evidence it stays: the model then says that the prompt is too long.
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
        """One short generation."""
        return [GenerateRequest(self._prompt(item, prompting), stops=("\n",), max_new_tokens=MAX_NEW_TOKENS)]

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """1 when an alias is in the first line, or (paper) one is a substring of the other."""
        return score_either_way(item, answers[0]) if self.protocol == "paper" else score_answer(item, answers[0])
