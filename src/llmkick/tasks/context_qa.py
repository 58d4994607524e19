"""Questions about a passage, closed and open book: can the model still use what it is given? (TriviaQA setting)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmkick.models.language_model import GenerateRequest, LanguageModel, ScoreRequest
from llmkick.tasks.prompting import SENTENCE_EXAMPLES, Prompting, question_prompt
from llmkick.tasks.question_answering import MAX_NEW_TOKENS, score_answer
from llmkick.tasks.sources import read_pocket, require_pocket, stratified_sample
from llmkick.tasks.task import Answer, Item, Record, content_hash, task_key


@dataclass(frozen=True, kw_only=True)
class ContextQA:
    """The same questions without (`closed`) and with (`open`) the passage that holds the answer."""

    variant: str = "closed"
    source: str = "pocket"
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0

    version = 1
    metric = "accuracy"
    chance_level = 0.0

    def __post_init__(self) -> None:
        require_pocket(self.name, self.source)

    @property
    def name(self) -> str:
        """Name with its variant."""
        return f"context_qa:{self.variant}"

    @property
    def setting(self) -> str:
        """Closed book asks for knowledge, open book for its use."""
        return "knowledge" if self.variant == "closed" else "synthesis"

    @cached_property
    def _all(self) -> list[Item]:
        return [
            Item(
                id=question["id"],
                cluster=row["id"],
                question=question["question"],
                context=row["text"],
                references=tuple(question["answers"]),
            )
            for row in read_pocket("context_qa.jsonl", ("id", "topic", "title", "text", "questions"))
            for question in row["questions"]
        ]

    @property
    def key(self) -> Mapping[str, Any]:
        """Everything about the task that can change a score."""
        return task_key(self, content_hash(self._all))

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The sampled questions; both variants sample the same ones."""
        return stratified_sample(self._all, self.limit, self.seed)

    def requests(self, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
        """One short generation."""
        passage = item.context if self.variant == "open" else ""
        prompt = question_prompt(item.question, SENTENCE_EXAMPLES, prompting, passage=passage)
        return [GenerateRequest(prompt, stops=("\n",), max_new_tokens=MAX_NEW_TOKENS)]

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """1 when an alias is in the first line."""
        return score_answer(item, answers[0])
