"""A judge reads the answers of a study: every judgement is journalled as it comes, and none is paid for twice.

What comes of it are records of a task of its own, `summarization:judge`, with the same paired statistics as any other.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from llmkick.models.files import sha256_of_file
from llmkick.study.config import JudgeSpec, Study
from llmkick.study.journal import Journal, Judgement
from llmkick.study.observer import Observer
from llmkick.tasks.judge import (
    PROMPT_VERSION,
    Contest,
    Judgeable,
    JudgeProtocol,
    Pairs,
    Unreadable,
    judge_prompt,
    read_reply,
    reply_schema,
)
from llmkick.tasks.judge_client import (
    PAPER_TEMPERATURE,
    EndpointJudge,
    Judge,
    LocalJudge,
    NoReply,
    Question,
    parse_address,
)
from llmkick.tasks.reference_answers import read_reference_answers
from llmkick.tasks.task import Item, Record, Task, unscored

SUFFIX = ":judge"
METRIC = "judge score"
# Fewer judgements than this cannot show that a judge always says the same.
FEW = 10
# A judge that prefers one place in so many judgements does not read the answers.
ALWAYS = 0.95
# Points from the worst score to the best: a difference of all of them is everything or nothing.
SPAN = 9.0
# A token of English, in characters, for the estimate of costs.
CHARACTERS_A_TOKEN = 4


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


def judge_of(spec: JudgeSpec, *, dtype: str = "auto", device: str = "auto") -> Judge:
    """The judge that a study names."""
    address = parse_address(spec.model)
    if address is None:
        return LocalJudge(reference=spec.model, dtype=dtype, device=device, max_tokens=spec.max_tokens)
    return EndpointJudge(
        address=address,
        api_key_env=spec.api_key_env,
        temperature=_temperature(spec),
        max_tokens=spec.max_tokens,
        concurrency=spec.concurrency,
        timeout=spec.timeout,
        attempts=spec.attempts,
    )


def _temperature(spec: JudgeSpec) -> float:
    if spec.temperature is not None:
        return spec.temperature
    return PAPER_TEMPERATURE if spec.protocol == "paper" else 0.0


def _protocol(spec: JudgeSpec) -> JudgeProtocol:
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
            contest = _contest(task, item, by_id, "", "")
            prompt = sum(len(message.content) for message in judge_prompt(contest, _protocol(spec)))
            tokens += each * (prompt + 2 * turns * answer) // CHARACTERS_A_TOKEN
        requests += each * len(items)
    return Estimate(requests=requests, prompt_tokens=tokens, completion_tokens=requests * spec.max_tokens)


@dataclass(kw_only=True)
class Judging:
    """The judge of a run, from the check before any generation to the records after."""

    spec: JudgeSpec
    judge: Judge
    tasks: Sequence[Task]
    journal: Journal
    observer: Observer
    # Reference answers by task and item; empty where they are the dense model's.
    references: dict[str, dict[str, str]] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    # Questions without a reply, and why.
    _failed: dict[str, str] = field(default_factory=dict)

    @property
    def judged(self) -> list[Task]:
        """The tasks whose answers are judged."""
        return [task for task in self.tasks if isinstance(task, Judgeable)]

    def check(self) -> None:
        """Before anything is generated: the reference answers are there, and the judge can be asked.

        Raises DataError or JudgeError. A run that was judged to its end needs no judge to be opened again.
        """
        for task in self.judged:
            file = self._file(task.name)
            if file is not None:
                self.references[task.name] = read_reference_answers(file, task.items())
        if self.journal.meta().get("judged") != self._identity():
            self.judge.check()

    def _file(self, task: str) -> Path | None:
        given = self.spec.reference
        name = given if isinstance(given, str) else given[task]
        return None if name == "dense" else Path(name).expanduser()

    def _identity(self) -> str:
        """Hash of everything about the judging but the answers."""
        files = {task.name: self._file(task.name) for task in self.judged}
        content = {name: None if file is None else sha256_of_file(file) for name, file in files.items()}
        return _digest([self._settings, content, self.spec.replicates, [dict(task.key) for task in self.judged]])

    @cached_property
    def _settings(self) -> dict[str, Any]:
        """What can change a judgement beside the texts."""
        return {
            "judge": self.judge.identity,
            "protocol": self.spec.protocol,
            "prompt": PROMPT_VERSION[_protocol(self.spec)],
            "temperature": _temperature(self.spec) if parse_address(self.spec.model) else 0.0,
            "max_tokens": self.spec.max_tokens,
        }

    def described(self) -> list[dict[str, Any]]:
        """The judge's tasks as results.json lists them."""
        return [
            {
                **task.key,
                "name": task.name + SUFFIX,
                "metric": METRIC,
                "chance_level": 0.0,
                "setting": task.setting,
                "judge": self.spec.model,
                "judge_protocol": self.spec.protocol,
                "judge_prompt": PROMPT_VERSION[_protocol(self.spec)],
                "judge_reference": self.spec.reference,
            }
            for task in self.judged
        ]

    def cell_key(self, answered: Answered, cells: Sequence[Answered]) -> str:
        """Run key of a judged cell: everything that could change its records."""
        file = self._file(answered.task)
        against = _dense_of(answered, cells).run_key if file is None else sha256_of_file(file)
        return _digest([answered.run_key, against, self._settings, self.spec.replicates])

    def run(self, cells: Sequence[Answered], items: Mapping[str, Sequence[Item]], model: str) -> None:
        """Ask what was not asked before, and write the records of every judged cell.

        `cells` are those of the judged tasks, the dense model's among them.
        """
        plans = [self._plan(cell, cells, items[cell.task]) for cell in cells]
        settings = {name: self._settings[name] for name in ("judge", "protocol", "prompt")}
        wanted = {asked.question.key: asked for plan in plans for asked in plan.asked}
        self._ask(wanted, settings)
        known = self.journal.judgements()
        failed = self._failed
        for task in self.judged:
            self.journal.add_items(task.name + SUFFIX, items[task.name])
        for cell, plan in zip(cells, plans, strict=True):
            self.journal.add_records(
                self.cell_key(cell, cells),
                model=model,
                recipe=cell.label,
                seed=cell.seed,
                task=cell.task + SUFFIX,
                records=[plan.record(item, known, failed, self.spec) for item in items[cell.task]],
            )
        self._conclude(wanted, known)
        if not failed:
            self.journal.note("judged", self._identity())

    def _plan(self, cell: Answered, cells: Sequence[Answered], items: Sequence[Item]) -> _CellPlan:
        task = next(task for task in self.judged if task.name == cell.task)
        assert isinstance(task, Judgeable)
        answers = self.journal.responses(cell.run_key)
        against: Mapping[str, tuple[str, str | None]]
        if cell.task in self.references:
            against = {item_id: (text, None) for item_id, text in self.references[cell.task].items()}
        else:
            against = self.journal.responses(_dense_of(cell, cells).run_key)
        plan, by_id = _CellPlan(), {item.id: item for item in items}
        for item in items:
            plan.responses[item.id] = answers[item.id][0]
            reason = _missing(item, by_id, answers, "the answer") or _missing(item, by_id, against, "the reference")
            own, other = _transcript(item, by_id, answers), _transcript(item, by_id, against)
            if reason is not None:
                plan.settled[item.id] = (None, reason)
            elif not answers[item.id][0]:
                plan.settled[item.id] = (0.0, None)
            elif own == other and self.spec.protocol == "strict":
                plan.settled[item.id] = (0.5, None)
            else:
                plan.of_item[item.id] = list(self._questions(task, item, by_id, own, other))
        return plan

    def _questions(self, task: Any, item: Item, by_id: Mapping[str, Item], own: str, other: str) -> Iterator[Asked]:
        contest = _contest(task, item, by_id, other, own)
        for answer_first, replicate in itertools.product(orders(self.spec), range(self.spec.replicates)):
            shown = contest.swapped if answer_first else contest
            messages = judge_prompt(shown, _protocol(self.spec))
            key = _digest([self._settings, shown.kind, [list(message) for message in messages], replicate])
            schema = reply_schema(shown.kind) if self.spec.protocol == "strict" else None
            yield Asked(
                question=Question(key=key, messages=messages, schema=schema, seed=replicate),
                contest=shown,
                task=task.name,
                item_id=item.id,
                answer_first=answer_first,
                replicate=replicate,
            )

    def _ask(self, wanted: Mapping[str, Asked], settings: Mapping[str, Any]) -> None:
        """Journal each reply as it comes; note who got none."""
        known = self.journal.judgements()
        spent = sum(one.prompt_tokens + one.completion_tokens for one in known.values())
        questions = [asked.question for asked in wanted.values()]
        self.observer.stage(f"judging with {self.spec.model}", len(wanted))
        done = sum(key in known for key in wanted)
        self.observer.advance(done)

        def afford() -> bool:
            return self.spec.budget is None or spent < self.spec.budget

        for key, reply in self.judge.ask(questions, known=known.keys(), afford=afford):
            asked = wanted[key]
            if isinstance(reply, NoReply):
                self._failed[key] = reply.reason
                continue
            spent += reply.prompt_tokens + reply.completion_tokens
            self.journal.add_judgement(
                Judgement(
                    judgement_key=key,
                    judge=self.spec.model,
                    prompt=f"{settings['protocol']} {settings['prompt']} {asked.contest.kind}",
                    task=asked.task,
                    item_id=asked.item_id,
                    first=_digest(asked.contest.first),
                    second=_digest(asked.contest.second),
                    replicate=asked.replicate,
                    reply=reply.text,
                    cut=reply.cut,
                    prompt_tokens=reply.prompt_tokens,
                    completion_tokens=reply.completion_tokens,
                )
            )
            done += 1
            self.observer.advance(done)

    def _conclude(self, wanted: Mapping[str, Asked], known: Mapping[str, Judgement]) -> None:
        """What a reader must know of the judge itself: what it cost, and whether it can be believed."""
        used = [known[key] for key in wanted if key in known]
        read = {key: _read(asked, known[key], self.spec) for key, asked in wanted.items() if key in known}
        by_task = {}
        for task in self.judged:
            own = {key: asked for key, asked in wanted.items() if asked.task == task.name}
            by_task[task.name] = reliability(own, read)
        self.summary = {
            **self.described_judge(),
            "judgements": len(used),
            "unanswered": len(self._failed),
            "prompt_tokens": sum(one.prompt_tokens for one in used),
            "completion_tokens": sum(one.completion_tokens for one in used),
            "tasks": by_task,
        }
        reasons = Counter(self._failed.values())
        for reason, count in reasons.most_common(3):
            self.warnings.append(f"{count} judgements are missing ({reason}); the same command asks for them again")
        for name, facts in by_task.items():
            self.warnings += [f"{name}{SUFFIX}: {line}" for line in doubts(facts)]

    def described_judge(self) -> dict[str, Any]:
        """Who judged, and how."""
        return {
            "model": self.spec.model,
            "protocol": self.spec.protocol,
            "prompt_version": PROMPT_VERSION[_protocol(self.spec)],
            "reference": self.spec.reference,
            "replicates": self.spec.replicates,
            "temperature": self._settings["temperature"],
        }


@dataclass(kw_only=True)
class _CellPlan:
    """What is asked about each item of a cell, or what is known of it without asking."""

    responses: dict[str, str] = field(default_factory=dict)
    settled: dict[str, tuple[float | None, str | None]] = field(default_factory=dict)
    of_item: dict[str, list[Asked]] = field(default_factory=dict)

    @property
    def asked(self) -> Iterator[Asked]:
        """Every question, item by item."""
        return itertools.chain.from_iterable(self.of_item.values())

    def record(self, item: Item, known: Mapping[str, Judgement], failed: Mapping[str, str], spec: JudgeSpec) -> Record:
        """The record of one item."""
        if item.id in self.settled:
            score, reason = self.settled[item.id]
            if score is None:
                return unscored(item, str(reason))
            return self._scored(item, score, {"judgements": 0})
        asked = self.of_item[item.id]
        points, reasons = [], []
        for one in asked:
            key = one.question.key
            found = _read(one, known[key], spec) if key in known else Unreadable(failed.get(key, "not asked"))
            if isinstance(found, Unreadable):
                reply = f": {known[key].reply[:200]!r}" if key in known else ""
                reasons.append(f"{found.reason}{reply}")
            else:
                points.append((one, found))
        of_order = {first: [pair for one, pair in points if one.answer_first == first] for first in orders(spec)}
        if not all(of_order.values()):
            return unscored(item, f"judge: {reasons[0]}")
        score, details = _worth(of_order, spec)
        if reasons:
            details["unreadable"] = len(reasons)
        return self._scored(item, score, details)

    def _scored(self, item: Item, score: float, details: Mapping[str, Any]) -> Record:
        return Record(
            item_id=item.id,
            cluster=item.cluster,
            response=self.responses[item.id],
            score=score,
            details={**item.details, **details},
        )


def _worth(of_order: Mapping[bool, Sequence[Pairs]], spec: JudgeSpec) -> tuple[float, dict[str, Any]]:
    """Score of an answer from its judgements, as (answer, reference) pairs by order; each order counts the same.

    strict: ½ + (answer − reference) / 18, in [0, 1]. paper: the answer's own score over 10.
    """
    answer = _mean(_mean(_overall(pairs, 0) for pairs in some) for some in of_order.values())
    reference = _mean(_mean(_overall(pairs, 1) for pairs in some) for some in of_order.values())
    details: dict[str, Any] = {
        "answer_points": round(answer, 6),
        "reference_points": round(reference, 6),
        "win": 0.5 if answer == reference else float(answer > reference),
        "judgements": sum(map(len, of_order.values())),
    }
    if len(of_order) == 2:
        ahead = [_mean(_overall(pairs, 0) - _overall(pairs, 1) for pairs in some) for some in of_order.values()]
        details["order_decided"] = ahead[0] * ahead[1] < 0
    score = answer / 10 if spec.protocol == "paper" else 0.5 + (answer - reference) / (2 * SPAN)
    return round(min(1.0, max(0.0, score)), 9), details


def _overall(pairs: Pairs, whose: int) -> float:
    """One assistant's score: the mean over the aspects."""
    return _mean(pair[whose] for pair in pairs)


def _mean(values: Any) -> float:
    numbers = list(values)
    return float(sum(numbers)) / len(numbers)


def _read(asked: Asked, judgement: Judgement, spec: JudgeSpec) -> Pairs | Unreadable:
    """The scores of a judgement as (answer, reference), whichever stood first."""
    found = read_reply(judgement.reply, asked.contest.kind, _protocol(spec), cut=judgement.cut)
    if isinstance(found, Unreadable):
        return found
    return found if asked.answer_first else tuple((second, first) for first, second in found)


def reliability(asked: Mapping[str, Asked], read: Mapping[str, Pairs | Unreadable]) -> dict[str, Any]:
    """How far a judge can be believed, from its readable judgements: {…: count, share or None where there are none}.

    `order_decided`: pairs of answers whose winner is another one in the other order. `first_preferred`: judgements
    with a winner in which it stood first (two different answers in both orders: half, without a bias of place).
    `agreement`: pairs of replicates that name the same winner.
    """
    scores = {key: pairs for key, pairs in read.items() if key in asked and not isinstance(pairs, Unreadable)}
    reasons = Counter(pairs.reason for key, pairs in read.items() if key in asked and isinstance(pairs, Unreadable))
    contests: dict[Any, dict[bool, list[int]]] = {}
    shown, first = Counter[Any](), list[bool]()
    for key, pairs in scores.items():
        one = asked[key]
        winner = _sign(_overall(pairs, 0) - _overall(pairs, 1))
        texts = (one.contest.first, one.contest.second)
        same = one.item_id, texts[::-1] if one.answer_first else texts
        contests.setdefault(same, {}).setdefault(one.answer_first, []).append(winner)
        shown[pairs if one.answer_first else tuple((b, a) for a, b in pairs)] += 1
        if winner:
            first.append((winner > 0) == one.answer_first)
    both = [orders_ for orders_ in contests.values() if len(orders_) == 2]
    flips = [_sign(sum(one[False])) * _sign(sum(one[True])) < 0 for one in both]
    repeats = [a == b for one in contests.values() for some in one.values() for a, b in itertools.combinations(some, 2)]
    return {
        "judgements": len(scores) + sum(reasons.values()),
        "unreadable": dict(sorted(reasons.items())),
        "pairs_in_both_orders": len(both),
        "order_decided": _share(flips),
        "first_preferred": _share(first),
        "agreement": _share(repeats),
        "most_common_scores": _share_of_commonest(shown),
    }


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _share_of_commonest(shown: Counter[Any]) -> float | None:
    total = sum(shown.values())
    return shown.most_common(1)[0][1] / total if total else None


def doubts(facts: Mapping[str, Any]) -> list[str]:
    """What speaks against a judge, in words."""
    readable = facts["judgements"] - sum(facts["unreadable"].values())
    found = []
    if facts["unreadable"]:
        told = ", ".join(f"{count} × {reason}" for reason, count in facts["unreadable"].items())
        found.append(f"{sum(facts['unreadable'].values())} of {facts['judgements']} replies are unreadable ({told})")
    if facts["order_decided"]:
        found.append(
            f"the order decided the winner in {facts['order_decided']:.0%} of "
            f"{facts['pairs_in_both_orders']} pairs of answers"
        )
    if facts["agreement"] is not None and facts["agreement"] < 1:
        found.append(f"replicates agree on the winner in {facts['agreement']:.0%} of their pairs")
    if readable >= FEW and facts["most_common_scores"] == 1:
        found.append(f"the judge gave the same scores in all {readable} judgements: its score means nothing")
    preferred = facts["first_preferred"]
    if readable >= FEW and preferred is not None and facts["pairs_in_both_orders"]:
        if preferred >= ALWAYS:
            found.append(f"the judge prefers whatever stands first ({preferred:.0%}): its score means nothing")
        elif preferred <= 1 - ALWAYS:
            found.append(f"the judge prefers whatever stands second ({1 - preferred:.0%}): its score means nothing")
    return found


def _dense_of(cell: Answered, cells: Sequence[Answered]) -> Answered:
    return next(one for one in cells if one.task == cell.task and one.label == "dense")


def _chain(item: Item, by_id: Mapping[str, Item]) -> list[Item]:
    """An item after those that it follows, first to last."""
    chain = [item]
    while chain[0].follows:
        chain.insert(0, by_id[chain[0].follows])
    return chain


def _missing(
    item: Item, by_id: Mapping[str, Item], answers: Mapping[str, tuple[str, str | None]], whose: str
) -> str | None:
    """Why a transcript has a gap; an empty answer is none."""
    for one in _chain(item, by_id):
        text, reason = answers.get(one.id, ("", "it was never asked"))
        if not text and reason is not None:
            return f"{whose} to {one.id} is missing: {reason}"
    return None


def _transcript(item: Item, by_id: Mapping[str, Item], answers: Mapping[str, tuple[str, str | None]]) -> str:
    return _numbered([answers.get(one.id, ("", None))[0] for one in _chain(item, by_id)])


def _contest(task: Any, item: Item, by_id: Mapping[str, Item], first: str, second: str) -> Contest:
    """What a judge sees: the story, or every turn up to the one that is judged."""
    kind = task.judge_kind(item)
    chain = _chain(item, by_id)
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


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
