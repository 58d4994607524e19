"""Open-ended questions of one or two turns: can the model still hold a conversation? (the paper's MT-Bench setting)"""

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
    Generation,
    LanguageModel,
    Message,
    Prompt,
    Unanswered,
)
from llmkick.tasks.data.published import MT_BENCH, VICUNA_80
from llmkick.tasks.data.readers.dialogues import Dialogue, read_dialogues
from llmkick.tasks.data.sources import Origin, origin_of, read_pocket, stratified_sample
from llmkick.tasks.judge.prompts import Kind
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Answer, Item, Record, content_hash, is_whole, task_key, unscored
from llmkick.tasks.text_measures import distinct_share, repetition, words_of

MAX_NEW_TOKENS = {"strict": 512, "paper": 1024}
# Prompt format for models without a chat template: the conversation format of Vicuna v1.1, the paper's model.
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
USER, ASSISTANT = "USER:", "ASSISTANT:"
KIND_OF_CATEGORY: Mapping[str, Kind] = {"coding": "coding", "math": "maths"}


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """Questions of one or two turns; the second turn follows the model's own answer to the first.

    Each turn is an item, and all turns of a question form a cluster; `limit` counts questions. The score is the
    likelihood of the answer under the dense model: exp of the mean log-probability (nats per token), in [0, 1].
    Unusual text lowers the score, but a repetition loop is also likely text, so each record also reports the
    repetition and the number of distinct tokens.
    """

    data: str = ""
    source: str = "pocket"
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0
    max_new_tokens: int | None = None
    revision: str | None = None
    sha256: str | Mapping[str, str] | None = None

    version = 1
    metric = "likelihood"
    chance_level = 0.0
    setting = "instruction"
    prompting = None  # use the chat template if the model has one, as the paper does
    split = None

    def __post_init__(self) -> None:
        if self.data and self.source == "pocket":
            raise ConfigError(f'source of {self.name} is "hub" or a folder: the pocket suite has no such data')
        if self.max_new_tokens is not None and not (is_whole(self.max_new_tokens) and self.max_new_tokens >= 1):
            raise ConfigError(
                f"max_new_tokens of {self.name} must be a whole number of at least 1; got {self.max_new_tokens!r}"
            )
        _ = self.origin

    @property
    def name(self) -> str:
        """The task name, followed by the data set if it is Vicuna's."""
        return f"instruction:{self.data}" if self.data else "instruction"

    @property
    def _max_new_tokens(self) -> int:
        return self.max_new_tokens or MAX_NEW_TOKENS[self.protocol]

    @cached_property
    def origin(self) -> Origin | None:
        """Where the published data comes from; None for the pocket suite."""
        return origin_of(self, VICUNA_80 if self.data == "vicuna" else MT_BENCH)

    @cached_property
    def _dialogues(self) -> list[Dialogue]:
        if self.origin is not None:
            return read_dialogues(self.origin)
        return [
            Dialogue(
                id=row["id"],
                category=row["category"],
                turns=tuple(row["turns"]),
                references=tuple(row["reference"] or ()),
            )
            for row in read_pocket("instruction.jsonl", ("id", "category", "turns", "reference"))
        ]

    @cached_property
    def _items(self) -> tuple[Item, ...]:
        """All turns of all questions, in order."""
        return tuple(item for dialogue in self._dialogues for item in _turns(dialogue))

    @cached_property
    def _by_id(self) -> dict[str, Item]:
        return {item.id: item for item in self._items}

    @property
    def notes(self) -> Sequence[str]:
        """Empty: the task uses all questions."""
        return ()

    @cached_property
    def key(self) -> Mapping[str, Any]:
        """All properties of the task that can change a score."""
        return {**task_key(self, content_hash(self._items)), "max_new_tokens": self._max_new_tokens}

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The turns of the sampled questions; the sample is stratified by category."""
        first = [item for item in self._items if not item.follows]
        by_category = stratified_sample(first, self.limit, self.seed, by=lambda item: str(item.details["category"]))
        chosen = {item.cluster for item in by_category}
        return [item for item in self._items if item.cluster in chosen]

    def requests(self, item: Item, prompting: Prompting) -> Sequence[GenerateRequest]:
        """One generation request; for a plan, placeholders of maximum length replace the earlier answers."""
        return self.follow_up(item, prompting, [" word" * self._max_new_tokens] * len(self._before(item)))

    def follow_up(self, item: Item, prompting: Prompting, earlier: Sequence[str]) -> Sequence[GenerateRequest]:
        """One generation request; the prompt contains the earlier turns and the model's own answers to them."""
        history: list[Message] = []
        for asked, answered in zip(self._before(item), earlier, strict=True):
            history += [Message("user", asked), Message("assistant", answered.strip())]
        messages = (*history, Message("user", item.question))
        prompt: Prompt = messages if prompting == "chat" else _as_text(messages)
        stops = () if prompting == "chat" else (f"\n{USER}", f" {USER}")
        return [GenerateRequest(prompt, stops=stops, max_new_tokens=self._max_new_tokens)]

    def _before(self, item: Item) -> list[str]:
        """The user messages of the earlier turns, oldest first."""
        said: list[str] = []
        while item.follows:
            item = self._by_id[item.follows]
            said.append(item.question)
        return said[::-1]

    def judge_kind(self, item: Item) -> Kind:
        """The kind of judge prompt for an item; the paper has separate prompts for coding and maths questions."""
        return KIND_OF_CATEGORY.get(item.details["category"], "general")

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """The likelihood of the answer under the dense model.

        An empty answer scores 0. An answer that no reference model has read is unscored.
        """
        answer = answers[0]
        if isinstance(answer, Unanswered):
            return unscored(item, answer.reason)
        assert isinstance(answer, Generation), type(answer)
        text = answer.text.strip()
        details: dict[str, Any] = {**item.details, "words": len(words_of(text))}
        if answer.unique_tokens is not None:
            details["unique_tokens"] = answer.unique_tokens
        measures = {"distinct_1": distinct_share(text, 1), "distinct_2": distinct_share(text, 2)}
        measures["repetition"] = repetition(text)
        details |= {name: round(value, 6) for name, value in measures.items() if value is not None}
        score, reason = (0.0, None) if not text else (None, "no reference model has read the answer")
        if text and len(answers) > 1:
            reading = answers[1]
            if isinstance(reading, ContinuationScore):
                mean = reading.logprob / reading.tokens
                details["dense_logprob"] = round(mean, 6)
                score, reason = min(1.0, math.exp(mean)), None
            elif isinstance(reading, Unanswered):
                reason = f"the reference model cannot read the answer: {reading.reason}"
        return Record(
            item_id=item.id,
            cluster=item.cluster,
            response=text,
            score=score,
            unscored_reason=reason,
            tokens=answer.tokens,
            truncated=answer.finish == "length",
            details=details,
        )

    def beside(self, record: Record, reference_answer: str) -> Record:
        """The record unchanged, because the score already compares the answer with the dense model."""
        return record


def _turns(dialogue: Dialogue) -> list[Item]:
    return [
        Item(
            id=f"{dialogue.id}:{number}",
            cluster=dialogue.id,
            question=turn,
            context="\n\n".join(dialogue.turns[: number - 1]),
            references=tuple(reference for reference in dialogue.references[number - 1 : number] if reference.strip()),
            details={"category": dialogue.category, "turn": number},
            follows=f"{dialogue.id}:{number - 1}" if number > 1 else "",
        )
        for number, turn in enumerate(dialogue.turns, start=1)
    ]


def _as_text(messages: Sequence[Message]) -> str:
    """The conversation in Vicuna's format, ending where the assistant's next message starts."""
    names = {"user": USER, "assistant": ASSISTANT}
    turns = [f"{names[message.role]} {message.content}" for message in messages]
    return " ".join([SYSTEM, *turns, ASSISTANT])
