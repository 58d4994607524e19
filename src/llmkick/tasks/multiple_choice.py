"""Multiple choice: is the right option still the likeliest? (the paper's MMLU setting)"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llmkick.errors import ConfigError
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    LanguageModel,
    Prompt,
    ScoreRequest,
    Unanswered,
)
from llmkick.tasks.prompting import PHRASE_EXAMPLES, Prompting, conversation, question_prompt
from llmkick.tasks.sources import read_pocket, require_pocket, stratified_sample
from llmkick.tasks.task import Answer, Item, Record, content_hash, is_whole, task_key, unscored

LETTERS = "ABCD"


@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """Four options, two ways to choose.

    `letter`: the most likely of the four letters after `shots` worked examples of the subject and the
    question with its options. `cloze`: the option whose text is the most likely answer to the bare question,
    by log-probability a byte, so that long options are not punished; small models are at chance with letters.
    """

    variant: str = "letter"
    source: str = "pocket"
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0
    shots: int = 5

    version = 1
    metric = "accuracy"
    chance_level = 0.25
    setting = "knowledge"

    def __post_init__(self) -> None:
        require_pocket(self.name, self.source)
        available = min(len(examples) for examples in self._examples.values())
        if not (is_whole(self.shots) and 0 <= self.shots <= available):
            raise ConfigError(f"shots of {self.name} must be a whole number from 0 to {available}; got {self.shots!r}")

    @property
    def name(self) -> str:
        """Name with its variant."""
        return f"multiple_choice:{self.variant}"

    @cached_property
    def _rows(self) -> dict[str, list[Item]]:
        fields = ("id", "subject", "discipline", "split", "question", "choices", "answer")
        rows: dict[str, list[Item]] = {"test": [], "dev": []}
        for row in read_pocket("multiple_choice.jsonl", fields):
            rows[row["split"]].append(
                Item(
                    id=row["id"],
                    cluster=row["subject"],
                    question=row["question"],
                    references=(row["choices"][row["answer"]],),
                    choices=tuple(row["choices"]),
                    answer=row["answer"],
                )
            )
        return rows

    @cached_property
    def _examples(self) -> dict[str, list[Item]]:
        examples: dict[str, list[Item]] = {}
        for item in self._rows["dev"]:
            examples.setdefault(item.cluster, []).append(item)
        return examples

    @property
    def key(self) -> Mapping[str, Any]:
        """Everything about the task that can change a score."""
        data = content_hash([*self._rows["test"], *self._rows["dev"]])
        return {**task_key(self, data), "shots": self.shots if self.variant == "letter" else 0}

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The sampled questions."""
        return stratified_sample(self._rows["test"], self.limit, self.seed)

    def requests(self, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
        """One score for each option: of its letter, or of its text."""
        # After a chat template the answer begins a line; in raw text it follows "Answer:" and a space.
        space = "" if prompting == "chat" else " "
        if self.variant == "letter":
            prompt = self._letter_prompt(item, prompting)
            return [ScoreRequest(prompt, space + letter) for letter in LETTERS[: len(item.choices)]]
        question = question_prompt(item.question, PHRASE_EXAMPLES, prompting)
        return [ScoreRequest(question, space + choice) for choice in item.choices]

    def _letter_prompt(self, item: Item, prompting: Prompting) -> Prompt:
        subject = item.cluster.replace("_", " ")
        header = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        examples = self._examples[item.cluster][: self.shots]
        if prompting == "raw":
            shown = [f"{_with_options(example)} {_letter(example)}\n\n" for example in examples]
            return header + "".join(shown) + _with_options(item)
        questions = [_with_options(example) for example in (*examples, item)]
        questions[0] = header + questions[0]
        return conversation(questions[-1], list(zip(questions, map(_letter, examples), strict=False)))

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """1 when the right option scores highest; a tie of the best is no choice and counts as wrong."""
        failed = next((answer for answer in answers if isinstance(answer, Unanswered)), None)
        if failed is not None:
            return unscored(item, failed.reason)
        scores = [answer for answer in answers if isinstance(answer, ContinuationScore)]
        values = [score.logprob for score in scores]
        if self.variant == "cloze":
            values = [value / len(choice.encode()) for value, choice in zip(values, item.choices, strict=True)]
        best = max(range(len(values)), key=values.__getitem__)
        decided = values.count(values[best]) == 1
        return Record(
            item_id=item.id,
            cluster=item.cluster,
            response=f"{LETTERS[best]}. {item.choices[best]}" if decided else "(no single best option)",
            score=float(decided and best == item.answer),
            tokens=sum(score.tokens for score in scores),
            details={
                "choice_logprobs": [round(score.logprob, 6) for score in scores],
                "margin": round(_margin(values, item.answer), 6),
                **({"boundary_moved": True} if any(score.boundary_moved for score in scores) else {}),
            },
        )


def _with_options(item: Item) -> str:
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    return f"{item.question}\n{options}\nAnswer:"


def _letter(item: Item) -> str:
    assert item.answer is not None, item.id
    return LETTERS[item.answer]


def _margin(values: Sequence[float], answer: int | None) -> float:
    """By how much the right option leads the best wrong one (negative: trails)."""
    assert answer is not None
    return values[answer] - max((v for i, v in enumerate(values) if i != answer), default=-math.inf)
