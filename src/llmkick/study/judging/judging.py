"""The judge of a study: it scores answers and writes each judgement to the journal, so that no judgement is paid twice.

The scores become records of a separate task, for example `summarization:judge`, with the same paired statistics as all
other tasks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from llmkick.files import named_path, sha256_of_file
from llmkick.models.server.address import parse_address
from llmkick.models.server_scheme import is_server
from llmkick.study.cells import digest_of
from llmkick.study.journal.journal import Journal, Judgement
from llmkick.study.judging.questions import (
    Answered,
    Answers,
    PlacedQuestion,
    missing_in,
    questions_about,
    read_judgement,
    temperature_of,
    transcript,
)
from llmkick.study.judging.reliability import Reliability, doubts, reliability
from llmkick.study.judging.scores import CellPlan
from llmkick.study.progress import Observer
from llmkick.study.results.judge_summary import JudgeSummary
from llmkick.study.results.records import TaskSummary
from llmkick.study.spec.sections import JudgeSpec
from llmkick.tasks.data.reference_answers import read_reference_answers
from llmkick.tasks.judge.clients import OVER_BUDGET, EndpointJudge, Judge, NoReply
from llmkick.tasks.judge.local_judge import LocalJudge
from llmkick.tasks.judge.prompts import PROMPT_VERSION, READING_VERSION, Judgeable
from llmkick.tasks.registry import full_key
from llmkick.tasks.task import Item, Task

SUFFIX = ":judge"
METRIC = "judge score"


def judge_of(spec: JudgeSpec, *, dtype: str = "auto", device: str = "auto") -> Judge:
    """Return the judge that the specification names."""
    if not is_server(spec.model):
        return LocalJudge(reference=spec.model, dtype=dtype, device=device, max_tokens=spec.max_tokens)
    return EndpointJudge(
        address=parse_address(spec.model),
        api_key_env=spec.api_key_env,
        temperature=temperature_of(spec),
        max_tokens=spec.max_tokens,
        concurrency=spec.concurrency,
        timeout=spec.timeout,
        attempts=spec.attempts,
    )


@dataclass(kw_only=True)
class Judging:
    """The judge of a run: it is checked before any generation and writes its records after the run."""

    spec: JudgeSpec
    judge: Judge
    tasks: Sequence[Task]
    journal: Journal
    observer: Observer
    # Reference answers by task and item; a task is absent if the dense model's answers are the reference.
    references: dict[str, dict[str, str]] = field(default_factory=dict)
    summary: JudgeSummary | None = None  # after the run
    warnings: list[str] = field(default_factory=list)
    # Question key → the reason for a missing reply.
    _failed: dict[str, str] = field(default_factory=dict)

    @property
    def judged(self) -> list[Task]:
        """The tasks whose answers are judged."""
        return [task for task in self.tasks if isinstance(task, Judgeable)]

    def check(self) -> None:
        """Read the reference answers and check that the judge can be asked, before anything is generated.

        Raises DataError or JudgeError. A run whose judging is complete does not open the judge again.
        """
        for task in self.judged:
            file = self._file(task.name)
            if file is not None:
                self.references[task.name] = read_reference_answers(file, task.items())
        if not self.is_complete:
            self.judge.check()

    @property
    def is_complete(self) -> bool:
        """Whether the journal holds all scores of this judge; the answers that it judges may have changed since."""
        return self.journal.notes().judged == self._identity()

    def _file(self, task: str) -> Path | None:
        given = self.spec.reference
        name = given if isinstance(given, str) else given[task]
        return None if name == "dense" else named_path(name)

    def _identity(self) -> str:
        """Return a hash of all inputs of the judging except the answers."""
        files = {task.name: self._file(task.name) for task in self.judged}
        content = {name: None if file is None else sha256_of_file(file) for name, file in files.items()}
        return digest_of([self._settings, content, self.spec.replicates, [dict(task.key) for task in self.judged]])

    @cached_property
    def _settings(self) -> dict[str, object]:
        """All settings that can change a judgement, besides the texts."""
        return {
            "judge": self.judge.identity,
            "protocol": self.spec.protocol,
            "prompt": PROMPT_VERSION[self.spec.protocol],
            "temperature": temperature_of(self.spec) if is_server(self.spec.model) else 0.0,
            "max_tokens": self.spec.max_tokens,
        }

    def task_summaries(self) -> list[TaskSummary]:
        """Return the entries of the judged tasks in results.json."""
        return [
            TaskSummary.model_validate(
                {
                    **full_key(task),
                    "name": task.name + SUFFIX,
                    "metric": METRIC,
                    "chance_level": 0.0,
                    "setting": task.setting,
                    "judge": self.spec.model,
                    "judge_protocol": self.spec.protocol,
                    "judge_prompt": PROMPT_VERSION[self.spec.protocol],
                    "judge_reading": READING_VERSION,
                    "judge_reference": self.spec.reference,
                }
            )
            for task in self.judged
        ]

    def cell_key(self, answered: Answered, cells: Sequence[Answered]) -> str:
        """Return the run key of a judged cell, a hash of all inputs that can change its records."""
        file = self._file(answered.task)
        against = _dense_of(answered, cells).run_key if file is None else sha256_of_file(file)
        return digest_of([answered.run_key, against, self._settings, READING_VERSION, self.spec.replicates])

    def run(self, cells: Sequence[Answered], items: Mapping[str, Sequence[Item]], model: str) -> None:
        """Ask the new questions and write the records of every judged cell.

        `cells` are the cells of the judged tasks, including the cells of the dense model.
        """
        plans = [self._plan(cell, cells, items[cell.task]) for cell in cells]
        settings = {name: self._settings[name] for name in ("judge", "protocol", "prompt")}
        wanted = {asked.question.key: asked for plan in plans for asked in plan.questions}
        self._ask(wanted, settings)
        judgements = self.journal.judgements()
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
                records=[plan.record(item, judgements, failed, self.spec) for item in items[cell.task]],
            )
        self._conclude(wanted, judgements)
        if not failed:
            self.journal.note("judged", self._identity())

    def _plan(self, cell: Answered, cells: Sequence[Answered], items: Sequence[Item]) -> CellPlan:
        task = next(task for task in self.judged if task.name == cell.task)
        assert isinstance(task, Judgeable)
        answers = self.journal.responses(cell.run_key)
        against: Answers
        if cell.task in self.references:
            against = {item_id: (text, None) for item_id, text in self.references[cell.task].items()}
        else:
            against = self.journal.responses(_dense_of(cell, cells).run_key)
        plan, by_id = CellPlan(), {item.id: item for item in items}
        for item in items:
            plan.responses[item.id] = answers[item.id][0]
            reason = missing_in(item, by_id, answers, "the answer") or missing_in(item, by_id, against, "the reference")
            answer_text, reference_text = transcript(item, by_id, answers), transcript(item, by_id, against)
            if reason is not None:
                plan.settled[item.id] = (None, reason)
            elif answer_text == reference_text and self.spec.protocol == "strict":
                plan.settled[item.id] = (0.5, None)  # equal answers are as good, empty ones too
            elif not answers[item.id][0]:
                plan.settled[item.id] = (0.0, None)
            else:
                plan.questions_by_item[item.id] = list(
                    questions_about(
                        task,
                        item,
                        by_id,
                        answer=answer_text,
                        reference=reference_text,
                        spec=self.spec,
                        settings=self._settings,
                    )
                )
        return plan

    def _ask(self, wanted: Mapping[str, PlacedQuestion], settings: Mapping[str, object]) -> None:
        """Write each reply to the journal at once; note the reason for each missing reply."""
        judgements = self.journal.judgements()
        # A key is that of the judge with its settings: what an earlier judge was paid is not of this one's budget.
        paid = [judgements[key] for key in wanted if key in judgements]
        spent = sum(judgement.prompt_tokens + judgement.completion_tokens for judgement in paid)
        questions = [asked.question for asked in wanted.values()]
        self.observer.stage(f"judging with {self.spec.model}", len(wanted))
        done = len(paid)
        self.observer.advance(done)

        def afford() -> bool:
            return self.spec.budget is None or spent < self.spec.budget

        for key, reply in self.judge.ask(questions, known=judgements.keys(), afford=afford):
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
                    first=digest_of(asked.contest.first),
                    second=digest_of(asked.contest.second),
                    replicate=asked.replicate,
                    reply=reply.text,
                    cut=reply.cut,
                    prompt_tokens=reply.prompt_tokens,
                    completion_tokens=reply.completion_tokens,
                )
            )
            done += 1
            self.observer.advance(done)

    def _conclude(self, wanted: Mapping[str, PlacedQuestion], known: Mapping[str, Judgement]) -> None:
        """Set the summary of the judge (tokens, reliability) and add its warnings."""
        used = [known[key] for key in wanted if key in known]
        read = {key: read_judgement(asked, known[key], self.spec) for key, asked in wanted.items() if key in known}
        by_task: dict[str, Reliability] = {}
        for task in self.judged:
            of_task = {key: asked for key, asked in wanted.items() if asked.task == task.name}
            by_task[task.name] = reliability(of_task, read)
        self.summary = JudgeSummary.model_validate(
            {
                "model": self.spec.model,
                "protocol": self.spec.protocol,
                "prompt_version": PROMPT_VERSION[self.spec.protocol],
                "reference": self.spec.reference,
                "replicates": self.spec.replicates,
                "temperature": self._settings["temperature"],
                "judgements": len(used),
                "unanswered": len(self._failed),
                "prompt_tokens": sum(judgement.prompt_tokens for judgement in used),
                "completion_tokens": sum(judgement.completion_tokens for judgement in used),
                "tasks": {name: asdict(facts) for name, facts in by_task.items()},
            }
        )
        reasons = Counter(self._failed.values())
        for reason, count in reasons.most_common(3):
            again = "the same command asks for them again"
            remedy = "raise judge.budget, and the same command asks for them" if reason == OVER_BUDGET else again
            self.warnings.append(f"{count} judgements are missing ({reason}); {remedy}")
        self.warnings += self.judge.notes
        for name, facts in by_task.items():
            self.warnings += [f"{name}{SUFFIX}: {line}" for line in doubts(facts)]


def _dense_of(cell: Answered, cells: Sequence[Answered]) -> Answered:
    return next(answered for answered in cells if answered.task == cell.task and answered.label == "dense")
