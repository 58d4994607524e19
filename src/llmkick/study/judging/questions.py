"""The questions of a study to its judge: pairs of answers, their order, and an upper bound of the cost."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from llmkick.models.language_model import GenerateRequest
from llmkick.study.cells import digest_of
from llmkick.study.journal.journal import Judgement
from llmkick.study.spec.sections import JudgeSpec
from llmkick.study.spec.study import Study
from llmkick.tasks.judge.clients import PAPER_TEMPERATURE, Question
from llmkick.tasks.judge.prompts import (
    Contest,
    Judgeable,
    Pairs,
    Unreadable,
    judge_prompt,
    read_reply,
    reply_schema,
)
from llmkick.tasks.task import Item, Task

# Average characters per token of English text, for the cost estimate.
CHARACTERS_A_TOKEN = 4
# Tokens of an answer in the cost estimate, where a task generates none.
TOKENS_AN_ANSWER = 512
# Item id → (the text, the reason for a missing text).
Answers = Mapping[str, tuple[str, str | None]]


class JudgedTask(Task, Judgeable, Protocol):
    """A task whose answers a judge can score."""


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A cell for the judge: the answers of one variant (recipe and seed) to one task, in the records of `run_key`."""

    label: str
    seed: int | None
    task: str
    run_key: str


@dataclass(frozen=True, kw_only=True)
class PlacedQuestion:
    """A question for the judge; `answer_first` tells whether the scored answer stands before the reference."""

    question: Question
    contest: Contest
    task: str
    item_id: str
    answer_first: bool
    replicate: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An upper bound of the judging cost: prompt tokens estimated from characters, replies counted at full length."""

    requests: int
    prompt_tokens: int
    completion_tokens: int

    def line(self) -> str:
        """Return the estimate as a sentence for the terminal."""
        return (
            f"judge: at most {self.requests:,} requests, about {self.prompt_tokens:,} tokens asked and at most "
            f"{self.completion_tokens:,} answered; identical answers and earlier judgements cost nothing"
        )


def temperature_of(spec: JudgeSpec) -> float:
    """Return the sampling temperature of the study, or the protocol's temperature if the study sets none."""
    if spec.temperature is not None:
        return spec.temperature
    return PAPER_TEMPERATURE if spec.protocol == "paper" else 0.0


def orders(spec: JudgeSpec) -> tuple[bool, ...]:
    """Return the orders to ask in, as values of `answer_first`.

    The protocol "strict" asks in both orders; the protocol "paper" puts the scored answer second only.
    """
    return (False,) if spec.protocol == "paper" else (False, True)


def estimate(study: Study, *, models: int) -> Estimate:
    """Return an upper bound of the judging cost for `models` models, including the dense model; reads the items."""
    spec = study.judge
    assert spec is not None
    # A comparison of the dense model with itself needs no judge; the protocol "paper" does score the dense model.
    judged = models - (spec.protocol == "strict" and spec.reference == "dense")
    requests = tokens = 0
    for task_spec in study.task_specs():
        task = task_spec.make()
        if not isinstance(task, Judgeable):
            continue
        items = task.items()
        by_id = {item.id: item for item in items}
        each = judged * spec.replicates * len(orders(spec))
        for item in items:
            turns = int(item.details.get("turn", 1))
            answer = CHARACTERS_A_TOKEN * _most_new_tokens(task, item)
            contest = contest_of(task, item, by_id, "", "")
            prompt = sum(len(message.content) for message in judge_prompt(contest, spec.protocol))
            tokens += each * (prompt + 2 * turns * answer) // CHARACTERS_A_TOKEN
        requests += each * len(items)
    return Estimate(requests=requests, prompt_tokens=tokens, completion_tokens=requests * spec.max_tokens)


def _most_new_tokens(task: Task, item: Item) -> int:
    """Return the most tokens of an answer to an item."""
    requests = task.requests(item, task.prompting or "raw")
    limits = [request.max_new_tokens for request in requests if isinstance(request, GenerateRequest)]
    return max(limits, default=TOKENS_AN_ANSWER)


def questions_about(
    task: JudgedTask,
    item: Item,
    by_id: Mapping[str, Item],
    *,
    answer: str,
    reference: str,
    spec: JudgeSpec,
    settings: Mapping[str, object],
) -> Iterator[PlacedQuestion]:
    """Yield all questions about one item, one per order and replicate.

    The key of a question includes `settings` (judge, prompt version, temperature, …), because other settings can give
    other judgements.
    """
    contest = contest_of(task, item, by_id, reference, answer)
    for answer_first, replicate in itertools.product(orders(spec), range(spec.replicates)):
        shown = contest.swapped if answer_first else contest
        messages = judge_prompt(shown, spec.protocol)
        key = digest_of([dict(settings), shown.kind, [list(message) for message in messages], replicate])
        schema = reply_schema(shown.kind) if spec.protocol == "strict" else None
        yield PlacedQuestion(
            question=Question(key=key, messages=messages, schema=schema, seed=replicate),
            contest=shown,
            task=task.name,
            item_id=item.id,
            answer_first=answer_first,
            replicate=replicate,
        )


def read_judgement(question: PlacedQuestion, judgement: Judgement, spec: JudgeSpec) -> Pairs | Unreadable:
    """Return the scores of a judgement as pairs (answer, reference), independent of the order in the prompt."""
    pairs = read_reply(judgement.reply, question.contest.kind, spec.protocol, cut=judgement.cut)
    if isinstance(pairs, Unreadable) or question.answer_first:
        return pairs
    return tuple((second, first) for first, second in pairs)


def chain_of(item: Item, by_id: Mapping[str, Item]) -> list[Item]:
    """Return the turns of a conversation up to an item, in order; an item without a previous turn stands alone."""
    chain = [item]
    while chain[0].follows:
        chain.insert(0, by_id[chain[0].follows])
    return chain


def missing_in(item: Item, by_id: Mapping[str, Item], answers: Answers, whose: str) -> str | None:
    """Return the reason why a transcript has a gap, or None; an empty answer is not a gap."""
    for turn in chain_of(item, by_id):
        text, reason = answers.get(turn.id, ("", "it was never asked"))
        if not text and reason is not None:
            return f"{whose} to {turn.id} is missing: {reason}"
    return None


def transcript(item: Item, by_id: Mapping[str, Item], answers: Answers) -> str:
    """Return the answers up to an item in the form that the judge reads."""
    return _numbered([answers.get(turn.id, ("", None))[0] for turn in chain_of(item, by_id)])


def contest_of(task: JudgedTask, item: Item, by_id: Mapping[str, Item], first: str, second: str) -> Contest:
    """Return the texts for the judge: the story, or all turns up to the judged turn, and the two answers."""
    kind = task.judge_kind(item)
    chain = chain_of(item, by_id)
    question = item.context if kind == "summary" else _numbered([turn.question for turn in chain])
    if len(chain) > 1:
        question += f"\n\n(Rate the answers to turn {len(chain)}; the turns before are what led to it.)"
    correct = "" if kind == "summary" or not item.references else item.references[0]
    return Contest(kind=kind, question=question, first=first, second=second, correct=correct)


def _numbered(texts: Sequence[str]) -> str:
    """Return a single text unchanged, or several texts with a heading for each turn."""
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[Turn {number}]\n{text}" for number, text in enumerate(texts, start=1))
