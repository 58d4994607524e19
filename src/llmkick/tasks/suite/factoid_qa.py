"""Factoid questions: does the model still know a fact? (the paper's FreebaseQA setting; PopQA by popularity)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from llmkick.errors import ConfigError
from llmkick.models.language_model import GenerateRequest, LanguageModel, ScoreRequest
from llmkick.tasks.data.published import FREEBASEQA, POPQA
from llmkick.tasks.data.readers import Loaded
from llmkick.tasks.data.readers.freebaseqa import read_freebaseqa
from llmkick.tasks.data.readers.popqa import read_popqa
from llmkick.tasks.data.sources import Origin, origin_of, read_pocket, stratified_sample
from llmkick.tasks.prompting import SENTENCE_EXAMPLES, Prompting, question_prompt
from llmkick.tasks.question_answering import MAX_NEW_TOKENS, score_answer, score_anywhere
from llmkick.tasks.task import Answer, Grouping, Item, Record, content_hash, task_key

# Where the paper's prompt asks for the answer → what stands between the question and "The answer is".
ANSWER_LINES: Mapping[str, str] = {"same": " ", "new": "\n"}


@dataclass(frozen=True, kw_only=True)
class FactoidQA:
    """Short questions with short answers, decoded greedily.

    In protocol `strict` an answer is correct if its first line contains an alias as whole words. Protocol `paper`
    uses the paper's prompt; an answer is correct if an alias is a substring of the whole output, after spaces are
    removed and case is ignored. `answer_line` says where the words "The answer is" stand in that prompt: behind the
    question, as the paper asked dense and pruned models, or on a line of their own, as it asked quantized ones.
    """

    data: str = ""
    source: str = "pocket"
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0
    answer_line: str | None = None
    split: str | None = None
    revision: str | None = None
    sha256: str | Mapping[str, str] | None = None

    version = 3
    metric = "accuracy"
    chance_level = 0.0
    groups: ClassVar[Grouping] = "strata"
    setting = "knowledge"

    def __post_init__(self) -> None:
        if self.data and self.source == "pocket":
            raise ConfigError(f'source of {self.name} is "hub" or a folder: the pocket suite has no such data')
        if self.answer_line is not None and self.answer_line not in ANSWER_LINES:
            raise ConfigError(
                f"answer_line of {self.name} {self.answer_line!r} is unknown; choose from: {', '.join(ANSWER_LINES)}"
            )
        if self.answer_line is not None and self.protocol != "paper":
            raise ConfigError(f'answer_line of {self.name} is of the paper\'s prompt; use protocol = "paper" with it')
        _ = self.origin

    @property
    def name(self) -> str:
        """The task name, followed by the data set if it is not FreebaseQA."""
        return f"factoid_qa:{self.data}" if self.data else "factoid_qa"

    @property
    def prompting(self) -> Prompting | None:
        """Protocol `paper` uses raw-text prompts, as the paper does; None leaves the choice open."""
        return "raw" if self.protocol == "paper" else None

    @cached_property
    def origin(self) -> Origin | None:
        """Where the published data comes from; None for the pocket suite."""
        return origin_of(self, POPQA if self.data == "popqa" else FREEBASEQA)

    @cached_property
    def _loaded(self) -> Loaded:
        if self.origin is not None:
            return read_popqa(self.origin) if self.data == "popqa" else read_freebaseqa(self.origin)
        rows = read_pocket("factoid_qa.jsonl", ("id", "domain", "question", "answers"))
        return Loaded(
            items=tuple(
                Item(id=row["id"], cluster=row["domain"], question=row["question"], references=tuple(row["answers"]))
                for row in rows
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
        return key if self.answer_line is None else {**key, "answer_line": self.answer_line}

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The sampled questions."""
        return stratified_sample(self._loaded.items, self.limit, self.seed)

    def requests(self, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
        """One short generation request."""
        if self.protocol == "paper":
            between = ANSWER_LINES[self.answer_line or "same"]
            prompt = f"Please give answer to this question: {item.question}{between}The answer is"
            return [GenerateRequest(prompt, max_new_tokens=MAX_NEW_TOKENS)]
        asked = question_prompt(item.question, SENTENCE_EXAMPLES, prompting)
        return [GenerateRequest(asked, stops=("\n",), max_new_tokens=MAX_NEW_TOKENS)]

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """1 if the first line contains an alias; in protocol `paper`, if the output contains an alias anywhere."""
        return score_anywhere(item, answers[0]) if self.protocol == "paper" else score_answer(item, answers[0])
