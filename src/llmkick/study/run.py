"""The entry point that runs or resumes a study in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

from llmkick.errors import ConfigError
from llmkick.study.progress import LockedObserver, Observer, Silent
from llmkick.study.results.results import StudyResult
from llmkick.study.running.conclude import conclude
from llmkick.study.running.executor import Executor, LocalExecutor
from llmkick.study.running.preparation import open_journal, prepare
from llmkick.study.running.study_run import run_cells
from llmkick.study.spec.choices import ExecutorName
from llmkick.study.spec.study import Study, load_study, make_study

EXECUTORS: tuple[ExecutorName, ...] = get_args(ExecutorName)


def run_study(
    study: Study | Mapping[str, object] | Path | str,
    *,
    out: Path | str,
    observer: Observer | None = None,
    executor: Executor | str = "local",
    address: str | None = None,
    artifacts: str | None = None,
) -> StudyResult:
    """Run a study and write its results to a folder, or resume the study in the folder.

    `study` is a Study, its values as a mapping, or the path of a study file. Every record goes to the journal as soon
    as its batch is done. A resumed run does not repeat the records in the journal.
    executor: "local", or "ray" for the workers of a Ray cluster. The cluster is at `address`; without an address it
    runs on this machine or is started for the run. Both executors give the same results. artifacts: a folder or URL
    through which machines share compressed models.
    Raises ConfigError before any work if the study, the model and the folder do not fit together.
    """
    if isinstance(study, Path | str):
        study = load_study(Path(study))
    elif not isinstance(study, Study):
        study = make_study(study)
    if isinstance(executor, str):
        executor = make_executor(executor, address=address, artifacts=artifacts)
    folder, shared_observer = Path(out), LockedObserver(observer=observer or Silent())
    journal = open_journal(study, folder)
    try:
        started = datetime.now(UTC).isoformat(timespec="seconds")
        context = prepare(study, folder=folder, journal=journal, observer=shared_observer, source=executor)
        return conclude(context, executor, run_cells(context, executor), started=started)
    finally:
        executor.close()
        journal.close()


def make_executor(
    name: str, *, address: str | None = None, workers: int | None = None, artifacts: str | None = None
) -> Executor:
    """Return the executor with a name. Raises ConfigError for an unknown name or an option without effect."""
    if name not in EXECUTORS:
        raise ConfigError(f"unknown executor {name!r}; choose from: {', '.join(EXECUTORS)}")
    if name == "ray":
        from llmkick.study.cluster.ray_executor import RayExecutor

        return RayExecutor(address=address, workers=workers, artifacts=artifacts)
    for option, value in (("address", address), ("workers", workers)):
        if value is not None:
            raise ConfigError(f'{option} {value!r} is of a Ray cluster: give executor "ray" with it')
    return LocalExecutor(artifacts=artifacts)
