"""What a study asks its judge: whose answers against whose, in which order, and what it will cost at most."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkick.study.cells import digest_of
from llmkick.study.journal.journal import Judgement
from llmkick.study.spec.sections import JudgeSpec
from llmkick.study.spec.study import Study
from llmkick.tasks.judge.clients import PAPER_TEMPERATURE, Question
from llmkick.tasks.judge.prompts import (
    Contest,
    Judgeable,
    JudgeProtocol,
    Pairs,
    Unreadable,
    judge_prompt,
    read_reply,
    reply_schema,
)
from llmkick.tasks.task import Item

# A token of English, in characters, for the estimate of costs.
CHARACTERS_A_TOKEN = 4
# Answers by item: the text, and why there is none.
Answers = Mapping[str, tuple[str, str | None]]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """The answers of one variant (recipe and seed) to one task: the records under `run_key`."""

    label: str
    seed: int | None
    task: str
    run_key: str


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A question for the judge, and what its answer will be worth: the scored answer stands first or second."""

    question: Question
    contest: Contest
    task: str
    item_id: str
    answer_first: bool
    replicate: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What judging will take at most; prompt tokens from characters, answers at their full length."""

    requests: int
    prompt_tokens: int
    completion_tokens: int

    def line(self) -> str:
        """In words."""
        return (
            f"judge: at most {self.requests:,} requests, about {self.prompt_tokens:,} tokens asked and at most "
            f"{self.completion_tokens:,} answered; identical answers and earlier judgements cost nothing"
        )


def temperature_of(spec: JudgeSpec) -> float:
    """The study's, or the protocol's own."""
    if spec.temperature is not None:
        return spec.temperature
    return PAPER_TEMPERATURE if spec.protocol == "paper" else 0.0


def protocol_of(spec: JudgeSpec) -> JudgeProtocol:
    """The protocol, as its type."""
    return "paper" if spec.protocol == "paper" else "strict"


def orders(spec: JudgeSpec) -> tuple[bool, ...]:
    """Whether the scored answer stands first: both orders, or in the paper second only."""
    return (False,) if spec.protocol == "paper" else (False, True)


def estimate(study: Study, *, models: int) -> Estimate:
    """What the judge of a study costs at most, for so many models with the dense one; needs the tasks' data."""
    spec = study.judge
    assert spec is not None
    # Against itself the dense model needs no judge, unless its own score is wanted.
    judged = models - (spec.protocol == "strict" and spec.reference == "dense")
    requests = tokens = 0
    for task_spec in study.tasks:
        task = task_spec.make()
        if not isinstance(task, Judgeable):
            continue
        items = task.items()
        by_id = {item.id: item for item in items}
        each = judged * spec.replicates * len(orders(spec))
        answer = CHARACTERS_A_TOKEN * int(task.key["max_new_tokens"])
        for item in items:
            turns = int(item.details.get("turn", 1))
            contest = contest_of(task, item, by_id, "", "")
            prompt = sum(len(message.content) for message in judge_prompt(contest, protocol_of(spec)))
            tokens += each * (prompt + 2 * turns * answer) // CHARACTERS_A_TOKEN
        requests += each * len(items)
    return Estimate(requests=requests, prompt_tokens=tokens, completion_tokens=requests * spec.max_tokens)


def questions_about(
    task: Any,
    item: Item,
    by_id: Mapping[str, Item],
    *,
    answer: str,
    reference: str,
    spec: JudgeSpec,
    settings: Mapping[str, Any],
) -> Iterator[Asked]:
    """Every question about one item: each order, each replicate. `settings` is what tells judgements apart."""
    contest = contest_of(task, item, by_id, reference, answer)
    for answer_first, replicate in itertools.product(orders(spec), range(spec.replicates)):
        shown = contest.swapped if answer_first else contest
        messages = judge_prompt(shown, protocol_of(spec))
        key = digest_of([dict(settings), shown.kind, [list(message) for message in messages], replicate])
        schema = reply_schema(shown.kind) if spec.protocol == "strict" else None
        yield Asked(
            question=Question(key=key, messages=messages, schema=schema, seed=replicate),
            contest=shown,
            task=task.name,
            item_id=item.id,
            answer_first=answer_first,
            replicate=replicate,
        )


def read_judgement(asked: Asked, judgement: Judgement, spec: JudgeSpec) -> Pairs | Unreadable:
    """The scores of a judgement as (answer, reference), whichever stood first."""
    found = read_reply(judgement.reply, asked.contest.kind, protocol_of(spec), cut=judgement.cut)
    if isinstance(found, Unreadable):
        return found
    return found if asked.answer_first else tuple((second, first) for first, second in found)


def chain_of(item: Item, by_id: Mapping[str, Item]) -> list[Item]:
    """An item after those that it follows, first to last."""
    chain = [item]
    while chain[0].follows:
        chain.insert(0, by_id[chain[0].follows])
    return chain


def missing_in(item: Item, by_id: Mapping[str, Item], answers: Answers, whose: str) -> str | None:
    """Why a transcript has a gap; an empty answer is none."""
    for one in chain_of(item, by_id):
        text, reason = answers.get(one.id, ("", "it was never asked"))
        if not text and reason is not None:
            return f"{whose} to {one.id} is missing: {reason}"
    return None


def transcript(item: Item, by_id: Mapping[str, Item], answers: Answers) -> str:
    """The answers up to an item, as a judge sees them."""
    return _numbered([answers.get(one.id, ("", None))[0] for one in chain_of(item, by_id)])


def contest_of(task: Any, item: Item, by_id: Mapping[str, Item], first: str, second: str) -> Contest:
    """What a judge sees: the story, or every turn up to the one that is judged."""
    kind = task.judge_kind(item)
    chain = chain_of(item, by_id)
    asked = item.context if kind == "summary" else _numbered([one.question for one in chain])
    if len(chain) > 1:
        asked += f"\n\n(Rate the answers to turn {len(chain)}; the turns before are what led to it.)"
    correct = "" if kind == "summary" or not item.references else item.references[0]
    return Contest(kind=kind, question=asked, first=first, second=second, correct=correct)


def _numbered(texts: Sequence[str]) -> str:
    """One text as it is; several as turns."""
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"[Turn {number}]\n{text}" for number, text in enumerate(texts, start=1))
