"""Results in trackers of experiments: for real with MLflow's local store, and with a stand-in for W&B's client."""

import builtins
import sys
import types

import pytest

from llmkick.errors import ConfigError, DataError
from llmkick.report import exports, tracking


@pytest.fixture
def store(tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="mlflow is not installed (pip install llmkick[mlflow])")
    # MLflow wants to be told that a folder is good enough; a database would need SQLAlchemy.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    return f"file:{tmp_path / 'mlruns'}"


def test_mlflow_gets_a_run_with_one_inside_it_for_each_recipe(result, store):
    import mlflow

    run_id = tracking.log_to_mlflow(result, uri=store, project="kick")
    client = mlflow.MlflowClient(tracking_uri=store)
    parent = client.get_run(run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics == exports.flat_numbers(result, "dense")
    assert parent.data.params["model"] == "toy-135m-instruct"
    assert {file.path for file in client.list_artifacts(run_id)} >= {"results.json", "report.html", "comparisons.csv"}
    experiment = client.get_experiment_by_name("kick")
    runs = client.search_runs([experiment.experiment_id])
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == run_id}
    assert set(children) == set(result.study.recipes)
    for recipe, child in children.items():
        assert child.data.metrics == exports.flat_numbers(result, recipe)
        assert child.data.tags.items() >= exports.verdicts_of(result, recipe).items()
    # A second study of the same name is a second run, not an error.
    assert tracking.log_to_mlflow(result, uri=store, project="kick") != run_id


def test_what_mlflow_refuses_is_said(result, store):
    with pytest.raises(DataError, match="MLflow refused"):
        tracking.log_to_mlflow(result, uri="nonsense://nowhere", project="kick")


@pytest.mark.parametrize("log", [tracking.log_to_mlflow, tracking.log_to_wandb])
def test_without_the_package_the_extra_is_named(result, log, monkeypatch):
    name = log.__name__.removeprefix("log_to_")
    real = builtins.__import__

    def without(module, *rest):
        if module.split(".")[0] == name:
            raise ImportError(module)
        return real(module, *rest)

    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=rf"llmkick\[{name}\]"):
        log(result)


class _Run:
    """What of W&B's run is used."""

    def __init__(self):
        self.id, self.summary, self.logged, self.saved, self.finished = "abc", {}, {}, [], False

    def log(self, values):
        self.logged |= values

    def save(self, path, base_path, policy):
        self.saved.append(path)

    def finish(self):
        self.finished = True


def test_wandb_gets_the_same_numbers(result, monkeypatch):
    run = _Run()
    given = {}
    module = types.ModuleType("wandb")
    module.init = lambda **settings: given.update(settings) or run
    module.Settings = lambda **settings: settings
    module.Table = lambda dataframe: dataframe
    module.errors = types.SimpleNamespace(Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert tracking.log_to_wandb(result, uri="http://127.0.0.1:9", project="kick") == "abc"
    assert given["project"] == "kick"
    assert given["settings"] == {"base_url": "http://127.0.0.1:9"}
    expected = exports.flat_numbers(result, "wanda@0.1")
    assert {key: run.summary[f"wanda@0.1/{key}"] for key in expected} == expected
    assert len(run.logged["comparisons"]) == sum(entry.kind == "task" for entry in result.comparisons)
    assert run.finished
