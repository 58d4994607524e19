"""Multiple-choice questions: is the correct option still the most likely one? (the paper's MMLU setting)"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from llmkick.errors import ConfigError, DataError
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    LanguageModel,
    Prompt,
    ScoreRequest,
    Unanswered,
)
from llmkick.tasks.data.published import MMLU
from llmkick.tasks.data.readers import Loaded
from llmkick.tasks.data.readers.mmlu import LETTERS, read_mmlu
from llmkick.tasks.data.sources import Origin, origin_of, read_pocket, stratified_sample
from llmkick.tasks.fitting import fewer_shots, styles
from llmkick.tasks.prompting import PHRASE_EXAMPLES, Prompting, conversation, question_prompt
from llmkick.tasks.task import Answer, Grouping, Item, Record, content_hash, is_whole, task_key, unscored

# Number of worked examples per subject, both in MMLU and in the pocket suite.
MOST_SHOTS = 5
# The least number of tokens reserved for the answer, which is a letter or the longest option.
_ANSWER_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class MultipleChoice:
    """Questions with four options, scored by letter or by option text.

    Variant `letter` chooses the most likely of the four letters after `shots` worked examples of the subject and the
    question with its options. Variant `cloze` chooses the option whose text has the highest log-probability per byte
    after the question without options; the normalization does not penalize long options. It suits small models, which
    score at chance level with letters. Two short examples of the form come first, then `shots` worked examples of the
    subject. If `shots` is None, it is 5 for letters and 0 for cloze. Protocol `paper` (letter only) generates one token
    instead; the answer is correct if the last character of the token is the letter. If a prompt is too long for the
    model, the task removes worked examples, and the record's details give the number that remains.
    """

    variant: str = "letter"
    source: str = "pocket"
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0
    shots: int | None = None
    split: str | None = None
    revision: str | None = None
    sha256: str | Mapping[str, str] | None = None

    metric = "accuracy"
    chance_level = 0.25
    groups: ClassVar[Grouping] = "strata"
    setting = "knowledge"

    def __post_init__(self) -> None:
        if self.shots is None:
            object.__setattr__(self, "shots", MOST_SHOTS if self.variant == "letter" else 0)
        if not (is_whole(self.shots) and 0 <= self._shots <= MOST_SHOTS):
            raise ConfigError(f"shots of {self.name} must be a whole number from 0 to {MOST_SHOTS}; got {self.shots!r}")
        if self.protocol == "paper" and self.variant != "letter":
            raise ConfigError(f"protocol paper has no {self.name}: the paper asks for letters; use multiple_choice")
        _ = self.origin

    @property
    def _shots(self) -> int:
        """`shots`, which is never None once the task is made."""
        assert self.shots is not None
        return self.shots

    @property
    def name(self) -> str:
        """The task name with its variant."""
        return f"multiple_choice:{self.variant}"

    @property
    def version(self) -> int:
        """The version; cloze with worked examples, whose number depends on the options' lengths, has its own."""
        return 2 if self.variant == "cloze" and self._shots else 1

    @property
    def prompting(self) -> Prompting | None:
        """Protocol `paper` uses raw-text prompts, as the paper does; None leaves the choice open."""
        return "raw" if self.protocol == "paper" else None

    @cached_property
    def origin(self) -> Origin | None:
        """Where the published data comes from; None for the pocket suite."""
        return origin_of(self, MMLU)

    @cached_property
    def _read(self) -> tuple[Loaded, list[Item]]:
        """The questions and the worked examples."""
        if self.origin is not None:
            return read_mmlu(self.origin)
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
                    details={"discipline": row["discipline"]},
                )
            )
        return Loaded(items=tuple(rows["test"])), rows["dev"]

    @cached_property
    def _examples(self) -> dict[str, list[Item]]:
        examples: dict[str, list[Item]] = {}
        for item in self._read[1]:
            examples.setdefault(item.cluster, []).append(item)
        for subject, shown in examples.items():
            if len(shown) < self._shots:
                raise DataError(
                    f"{self.source}: {subject} has {len(shown)} worked examples, {self.shots} are asked for"
                )
        return examples

    @property
    def notes(self) -> Sequence[str]:
        """Statements about the data that the results should report."""
        return self._read[0].notes

    @cached_property
    def key(self) -> Mapping[str, Any]:
        """All properties of the task that can change a score."""
        data = content_hash([*self._read[0].items, *self._read[1]])
        return {**task_key(self, data), "shots": self._shots}

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The sampled questions; for a model, each question has as many worked examples as fit its context."""
        items = stratified_sample(self._read[0].items, self.limit, self.seed)
        if model is None or (self.variant == "cloze" and not self._shots):
            return items
        return [self._fitted(item, model) for item in items]

    def _fitted(self, item: Item, model: LanguageModel) -> Item:
        shots = fewer_shots(
            model,
            self._shots,
            lambda count: [self._prompt(item, style, count) for style in styles(model, self.prompting)],
            self._answer_tokens(item, model),
        )
        return item if shots == self._shots else replace(item, details={**item.details, "shots": shots})

    def _answer_tokens(self, item: Item, model: LanguageModel) -> int:
        """The tokens that a prompt leaves for the answer: with cloze at least those of the longest option."""
        if self.variant == "letter":
            return _ANSWER_TOKENS
        start = len(model.tokenize(""))
        longest = max(len(model.tokenize(space + option)) for option in item.choices for space in ("", " "))
        return max(_ANSWER_TOKENS, longest - start)

    def requests(self, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
        """One score request per option, for its letter or its text; in protocol `paper`, one generated token."""
        # After a chat template the answer starts a line; in raw text the answer follows "Answer:" and a space.
        space = "" if prompting == "chat" else " "
        prompt = self._prompt(item, prompting, item.details.get("shots", self._shots))
        if self.protocol == "paper":
            return [GenerateRequest(prompt, max_new_tokens=1)]
        answers = LETTERS[: len(item.choices)] if self.variant == "letter" else item.choices
        return [ScoreRequest(prompt, space + answer) for answer in answers]

    def _prompt(self, item: Item, prompting: Prompting, shots: int) -> Prompt:
        if self.variant == "letter":
            return self._letter_prompt(item, prompting, shots)
        solved = self._examples[item.cluster][:shots] if shots else []
        return question_prompt(
            item.question, [*PHRASE_EXAMPLES, *((x.question, x.references[0]) for x in solved)], prompting
        )

    def _letter_prompt(self, item: Item, prompting: Prompting, shots: int) -> Prompt:
        subject = item.cluster.replace("_", " ")
        header = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        examples = self._examples[item.cluster][:shots]
        if prompting == "raw":
            shown = [f"{_with_options(example)} {_letter(example)}\n\n" for example in examples]
            return header + "".join(shown) + _with_options(item)
        questions = [_with_options(example) for example in (*examples, item)]
        questions[0] = header + questions[0]
        return conversation(questions[-1], list(zip(questions, map(_letter, examples), strict=False)))

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """1 if the correct option has the highest score; a tie for the highest score counts as wrong."""
        failed = next((answer for answer in answers if isinstance(answer, Unanswered)), None)
        if failed is not None:
            return unscored(item, failed.reason)
        if self.protocol == "paper":
            return _score_last_character(item, answers[0])
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
                **_how_chosen(scores, _margin(values, item.answer)),
                **({"boundary_moved": True} if any(score.boundary_moved for score in scores) else {}),
                **item.details,
            },
        )


def _how_chosen(scores: Sequence[ContinuationScore], margin: float) -> dict[str, Any]:
    """The options' log-probabilities and the correct option's margin, if available, and a server's scoring method."""
    method = next((score.method for score in scores if score.method != "log-probability"), None)
    if method == "generated letter":
        return {"chosen_by": method}
    numbers = {"choice_logprobs": [round(score.logprob, 6) for score in scores], "margin": round(margin, 6)}
    return numbers if method is None else {**numbers, "chosen_by": method}


def _score_last_character(item: Item, answer: Answer) -> Record:
    """The paper's metric: compare only the last character of the generated token with the correct letter."""
    assert isinstance(answer, Generation), type(answer)
    last = answer.text[-1:]
    return Record(
        item_id=item.id,
        cluster=item.cluster,
        response=answer.text,
        score=float(last == _letter(item)),
        tokens=answer.tokens,
        details={"names_an_option": bool(last) and last in LETTERS, **item.details},
    )


def _with_options(item: Item) -> str:
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    return f"{item.question}\n{options}\nAnswer:"


def _letter(item: Item) -> str:
    assert item.answer is not None, item.id
    return LETTERS[item.answer]


def _margin(values: Sequence[float], answer: int | None) -> float:
    """The score of the correct option minus the score of the best wrong option."""
    assert answer is not None
    return values[answer] - max((v for i, v in enumerate(values) if i != answer), default=-math.inf)
