"""Factoid question answering: is a fact still there? (the paper's FreebaseQA setting)"""

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
class FactoidQA:
    """Short questions, greedy short answers; right when an alias stands in the first line as whole words."""

    source: str = "pocket"
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0

    name = "factoid_qa"
    version = 1
    metric = "accuracy"
    chance_level = 0.0
    setting = "knowledge"

    def __post_init__(self) -> None:
        require_pocket(self.name, self.source)

    @cached_property
    def _all(self) -> list[Item]:
        rows = read_pocket("factoid_qa.jsonl", ("id", "domain", "question", "answers"))
        return [
            Item(
                id=row["id"],
                cluster=row["domain"],
                question=row["question"],
                references=tuple(row["answers"]),
            )
            for row in rows
        ]

    @property
    def key(self) -> Mapping[str, Any]:
        """Everything about the task that can change a score."""
        return task_key(self, content_hash(self._all))

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The sampled questions."""
        return stratified_sample(self._all, self.limit, self.seed)

    def requests(self, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
        """One short generation."""
        prompt = question_prompt(item.question, SENTENCE_EXAMPLES, prompting)
        return [GenerateRequest(prompt, stops=("\n",), max_new_tokens=MAX_NEW_TOKENS)]

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """1 when an alias is in the first line."""
        return score_answer(item, answers[0])
