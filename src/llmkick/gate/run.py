"""A gate from its policy to its result, and the storing of a reference's answers in a file."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from llmkick.errors import ConfigError, DataError, KickError
from llmkick.gate.answer_file import AnswerFile
from llmkick.gate.checks import check_tasks, refuse_reading
from llmkick.gate.deadline import Deadline
from llmkick.gate.executor import GateExecutor
from llmkick.gate.outcomes import task_outcomes
from llmkick.gate.policy import GatePolicy, is_stored, load_policy, make_policy
from llmkick.gate.recorded_model import MissingAnswerError, RecordedModel
from llmkick.gate.reference import recorded_reference
from llmkick.gate.result import EXIT_CODES, Asked, GateResult, TaskOutcome, overall_outcome
from llmkick.models.checkpoints.references import locate
from llmkick.models.plugin_models import plugin_of
from llmkick.models.server_scheme import is_server
from llmkick.study.cells import Variant
from llmkick.study.progress import LockedObserver, Observer, Silent
from llmkick.study.results.records import ComparedModel
from llmkick.study.results.results import StudyResult
from llmkick.study.running.conclude import conclude
from llmkick.study.running.context import StudyContext
from llmkick.study.running.preparation import open_journal, prepare
from llmkick.study.running.study_run import run_cells


def run_gate(
    policy: GatePolicy | Mapping[str, object] | Path | str,
    *,
    out: Path | str | None = None,
    refresh: bool = False,
    observer: Observer | None = None,
) -> GateResult:
    """Ask a candidate and its reference the items of a policy until every task is decided or the budget is spent.

    `policy` is a GatePolicy, its values as a mapping, or the path of a policy file. `out` is the folder of the run,
    which is continued if it holds an unfinished one; without it the records are not kept. The answers of the reference
    are recalled from the cache; `refresh` asks them anew.
    Raises KickError if the gate cannot run.
    """
    policy = _policy_of(policy)
    with _folder(out) as folder:
        return _Gate(policy=policy, folder=folder, observer=observer or Silent()).result(refresh=refresh)


def failed_gate(error: BaseException, *, name: str, candidate: str = "", reference: str = "") -> GateResult:
    """Return the result of a gate that could not run."""
    return GateResult(
        folder=Path(),
        name=name,
        outcome="unmeasured",
        exit_code=EXIT_CODES["unmeasured"],
        candidate=candidate,
        reference=reference,
        error=str(error) if isinstance(error, KickError) else f"{type(error).__name__}: {error}",
    )


def store_reference(
    policy: GatePolicy, target: Path, *, refresh: bool = False, observer: Observer | None = None
) -> int:
    """Ask the reference of a policy every item and write its answers to a file; return the number of new answers.

    The file can be the `reference` of the same policy on a machine without the model. A file that exists keeps its
    answers; with `refresh`, all are asked anew. Raises DataError if a server left questions without an answer, and
    ConfigError for a file of another model.
    """
    if is_stored(policy.reference):
        raise ConfigError(f"{policy.reference} is a file of stored answers already; name the model that gave them")
    if not is_stored(target.name):
        raise ConfigError(f"{target} must end in .jsonl, so that a policy can tell it from a model")
    if target.exists() and target.stat().st_size and AnswerFile.read(target, strict=False).header is None:
        raise ConfigError(f"{target} exists and holds no stored answers; give another file")
    policy = policy.model_copy(update={"model": policy.reference})
    with _folder(None) as folder:
        gate = _Gate(policy=policy, folder=folder, observer=observer or Silent())
        return gate.store(recorded_reference(policy, refresh=refresh, target=target))


def _policy_of(policy: GatePolicy | Mapping[str, object] | Path | str) -> GatePolicy:
    if isinstance(policy, GatePolicy):
        return policy
    return make_policy(policy) if isinstance(policy, Mapping) else load_policy(Path(policy))


@contextmanager
def _folder(out: Path | str | None) -> Iterator[Path]:
    """The folder of a run, a temporary one if none is given."""
    if out is not None:
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="llmkick-gate-") as folder:
        yield Path(folder)


# A candidate with so many times the parameters of its reference was not made from it; an adapter adds a few percent.
LARGER = 1.2


@dataclass(frozen=True, kw_only=True)
class _Gate:
    policy: GatePolicy
    folder: Path
    observer: Observer

    def result(self, *, refresh: bool) -> GateResult:
        began = time.perf_counter()
        minutes = self.policy.budget.minutes
        deadline = Deadline(seconds=None if minutes is None else 60 * minutes)
        study = self.policy.study()
        reference = recorded_reference(self.policy, refresh=refresh)
        check_tasks(self.policy, study, is_same=lambda: self._is_same_model(reference))
        if reference.open_model is None:
            refuse_reading(study, self.policy.reference)
        with self._prepared(reference, deadline) as (context, executor):
            if refresh:  # the folder may hold the earlier answers too
                context.journal.forget([cell.run_key for cell in context.cells(Variant())])
            if reference.open_model is None:
                self._recall_all(context, reference)
            reference.before_asking = deadline.check
            earlier = _candidate_items(context)
            started = datetime.now(UTC).isoformat(timespec="seconds")
            run = run_cells(context, executor)
            study_result = conclude(context, executor, run, started=started, noise=False)
            outcomes = task_outcomes(context, study_result)
            asked = Asked(reference_questions=reference.asked, candidate_items=_candidate_items(context) - earlier)
            result = self._result(study_result, outcomes, asked, earlier, time.perf_counter() - began)
            result.write()
            return result

    def store(self, reference: RecordedModel) -> int:
        """Ask the reference every item, so that its file holds every answer."""
        refuse_reading(self.policy.study(), str(reference.file.path))
        with self._prepared(reference, Deadline(seconds=None)) as (context, _):
            for cell in context.cells(Variant()):
                context.evaluation.fill_every_item(reference, cell)
                unscored = context.journal.scores(cell.run_key).values()
                missing = sum(score is None for score in unscored)
                if missing and not reference.keeps_unanswered:
                    raise DataError(
                        f"{reference.info.name} left {missing} items of {cell.task.name} without an answer; the same "
                        "command asks only those again"
                    )
        return reference.asked

    @contextmanager
    def _prepared(self, reference: RecordedModel, deadline: Deadline) -> Iterator[tuple[StudyContext, GateExecutor]]:
        study, executor = self.policy.study(), GateExecutor(reference=reference, deadline=deadline)
        journal = open_journal(study, self.folder)
        try:
            observer = LockedObserver(observer=self.observer)
            with self._about_missing_answers(reference):
                context = prepare(study, folder=self.folder, journal=journal, observer=observer, source=executor)
            yield context, executor
        finally:
            executor.close()
            journal.close()

    def _recall_all(self, context: StudyContext, reference: RecordedModel) -> None:
        """Recall the stored answer to every item, so that a missing one is an error before the candidate is asked."""
        for cell in context.cells(Variant()):
            with self._about_missing_answers(reference, f" of {cell.task.name}"):
                context.evaluation.fill_every_item(reference, cell)

    @contextmanager
    def _about_missing_answers(self, reference: RecordedModel, where: str = "") -> Iterator[None]:
        try:
            yield
        except MissingAnswerError as error:
            raise DataError(
                f"{error}{where}: it was stored for other items, prompts or settings; store it anew with "
                "`kick gate --store-reference FILE`"
            ) from error

    def _is_same_model(self, reference: RecordedModel) -> bool:
        """Return whether candidate and reference are known to have the same weights."""
        (candidate,) = self.policy.study().labelled_others().values()
        if is_server(candidate) or plugin_of(candidate) is not None:
            return False
        return reference.identity.get("weights") == locate(candidate).digest

    def _result(
        self, study: StudyResult, outcomes: list[TaskOutcome], asked: Asked, earlier: int, seconds: float
    ) -> GateResult:
        outcome = overall_outcome(entry.outcome for entry in outcomes)
        candidate = next((model for model in study.models if model.label == self.policy.label), None)
        continued = [f"{self.folder} held {earlier:,} answers of the candidate, which were not asked again"]
        return GateResult(
            folder=self.folder,
            name=self.policy.name,
            outcome=outcome,
            exit_code=EXIT_CODES[outcome],
            candidate=self.policy.label,
            reference=study.model.name,
            candidate_digest="" if candidate is None else candidate.digest,
            reference_digest=study.model.digest,
            margin=self.policy.margin,
            alpha=self.policy.alpha,
            tasks=tuple(outcomes),
            asked=asked,
            warnings=(*(continued if earlier else []), *_unlike(study, candidate), *study.warnings),
            seconds=seconds,
        )


def _unlike(study: StudyResult, candidate: ComparedModel | None) -> list[str]:
    """A warning where the candidate cannot have been made from the reference: it has more parameters."""
    ours, theirs = None if candidate is None else candidate.parameters, study.model.parameters
    if not ours or not theirs or ours < LARGER * theirs:
        return []
    return [
        f"the candidate has {ours / 1e9:.3g} billion parameters and its reference, {study.model.name}, "
        f"{theirs / 1e9:.3g}: a verdict says little unless the reference is the model that the candidate was made from "
        "(--reference)"
    ]


def _candidate_items(context: StudyContext) -> int:
    """Return the number of items that the candidate has answered."""
    cells = [cell for variant in context.variants() if variant.reference for cell in context.cells(variant)]
    return sum(len(context.journal.done(cell.run_key)) for cell in cells)
