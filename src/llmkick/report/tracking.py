"""Logging of a study to MLflow or Weights & Biases: one run for the study, one nested run for each recipe."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Protocol

from llmkick.errors import ConfigError, DataError
from llmkick.report.exports import flat_numbers, verdicts_of
from llmkick.report.tables import comparisons_table
from llmkick.study.results.results import StudyResult

DEFAULT_PROJECT = "llmkick"
# Files of a run's folder to upload. The journal is not uploaded: it holds every answer and may be large.
ARTIFACTS = ("results.json", "study.toml", "report.html")


class MlflowClient(Protocol):
    """The methods of MLflow's client that this module uses."""

    def log_metric(self, run_id: str, key: str, value: float, /) -> object:
        """Log one number of a run."""


def log_to_mlflow(result: StudyResult, *, uri: str | None = None, project: str = DEFAULT_PROJECT) -> str:
    """Log a study; returns the id of its run. `uri` is a server or a folder (`file:./mlruns`), by default MLflow's.

    Raises ConfigError when MLflow is not installed, DataError when it refuses the study.
    """
    mlflow = _imported("mlflow", "mlflow")
    try:
        client = mlflow.MlflowClient(tracking_uri=uri)
        existing = client.get_experiment_by_name(project)
        experiment = existing.experiment_id if existing else client.create_experiment(project)
        parent = client.create_run(experiment, run_name=result.study.name, tags=_tags(result))
        for key, value in _parameters(result).items():
            client.log_param(parent.info.run_id, key, value)
        _log_numbers(client, parent.info.run_id, result, "dense")
        for recipe in result.labels:
            tags = {"mlflow.parentRunId": parent.info.run_id, **verdicts_of(result, recipe)}
            child = client.create_run(experiment, run_name=recipe, tags=tags)
            client.log_param(child.info.run_id, "recipe", recipe)
            _log_numbers(client, child.info.run_id, result, recipe)
            client.set_terminated(child.info.run_id)
        for path in _artifacts(result.folder):
            client.log_artifact(parent.info.run_id, str(path))
        client.set_terminated(parent.info.run_id)
    except mlflow.exceptions.MlflowException as error:
        raise DataError(f"MLflow refused the results: {error}") from error
    return str(parent.info.run_id)


def log_to_wandb(result: StudyResult, *, uri: str | None = None, project: str = DEFAULT_PROJECT) -> str:
    """Log a study; returns the id of its run. `uri` or W&B's settings choose the server or the offline mode.

    Raises ConfigError when W&B is not installed, DataError when it refuses the study.
    """
    wandb = _imported("wandb", "wandb")
    settings = None if uri is None else wandb.Settings(base_url=uri)
    try:
        run = wandb.init(
            project=project, name=result.study.name, config=_parameters(result), settings=settings,
            job_type="llmkick",
        )  # fmt: skip
        run.summary.update(flat_numbers(result, "dense"))
        for recipe in result.labels:
            run.summary.update({f"{recipe}/{name}": value for name, value in flat_numbers(result, recipe).items()})
            run.summary.update({f"{recipe}/{name}": value for name, value in verdicts_of(result, recipe).items()})
        run.log({"comparisons": wandb.Table(dataframe=comparisons_table(result).astype(object))})
        for path in _artifacts(result.folder):
            run.save(str(path), base_path=str(result.folder), policy="now")
        run.finish()
    except wandb.errors.Error as error:
        raise DataError(f"Weights & Biases refused the results: {error}") from error
    return str(run.id)


def _imported(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{module} is not installed; pip install 'llmkick[{extra}]'") from error


def _log_numbers(client: MlflowClient, run_id: str, result: StudyResult, recipe: str) -> None:
    for name, value in flat_numbers(result, recipe).items():
        client.log_metric(run_id, name, value)


def _parameters(result: StudyResult) -> dict[str, str | float]:
    """The parameters and provenance of a study, as short values."""
    study, model = result.study, result.model
    return {
        "model": model.name,
        "model_digest": model.digest,
        "source_precision": model.source_precision,
        "dtype": model.dtype,
        "tasks": ", ".join(task.name for task in result.tasks),
        "recipes": len(result.labels),
        "seeds": str(list(study.seeds)),
        "margin": study.margin,
        "alpha": study.alpha,
        "study_hash": study.hash or "",
        "llmkick": result.environment.packages.get("llmkick", ""),
    }


def _tags(result: StudyResult) -> dict[str, str]:
    return {"folder": result.folder.name, "warnings": str(len(result.warnings))}


def _artifacts(folder: Path) -> list[Path]:
    return [path for name in ARTIFACTS if (path := folder / name).is_file()] + sorted((folder / "tables").glob("*.csv"))
