"""Running a study on a toy model: the plan, resuming from anywhere, and refusing what cannot work before it starts."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from commands import Kick
from llmkick.compression.walk import calibration as calibration_module
from llmkick.compression.walk.calibration import calibrate
from llmkick.compression.walk.compress import compress
from llmkick.errors import ConfigError, DataError, ModelError, NumericalError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.references import SOURCE_FILE
from llmkick.models.transformers_model import TransformersModel
from llmkick.report.run_folder import opened_run
from llmkick.study.cells import Variant
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import Journal
from llmkick.study.journal.prompts import unpacked
from llmkick.study.progress import Silent
from llmkick.study.results.records import AnyComparison, DenseModel
from llmkick.study.results.results import RESULTS_FILE, StudyResult, read_results
from llmkick.study.run import run_study
from llmkick.study.running import compressor as compressor_module
from llmkick.study.running import executor as executor_module
from llmkick.study.running.executor import LocalExecutor
from llmkick.study.spec.study import Study, load_study, make_study
from llmkick.tasks import evaluate as asking
from llmkick.tasks.task import Record
from stopped import run_until
from toy import save_toy

RECIPES = ("magnitude@0.5", "wanda@2:4", "rtn@4b")
# dense, magnitude and rtn once, wanda with each of two seeds
VARIANTS = (("dense", None), ("magnitude@0.5", None), ("wanda@2:4", 3), ("wanda@2:4", 1), ("rtn@4b", None))
TASKS = ("factoid_qa", "multiple_choice:cloze", "perplexity")
ITEMS = {"factoid_qa": 5, "multiple_choice:cloze": 4, "perplexity": 3}
BATCHES = 3 + 2 + 2  # of two items


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of our own, and batches of two items, so that small studies have several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(asking, "BATCH_ITEMS", 2)
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, max_position_embeddings=512)
    return folder


def study_of(toy: Path, **changes: Any) -> Study:
    values = {
        "name": "small",
        "model": str(toy),
        "dtype": "float32",
        "device": "cpu",
        "recipes": list(RECIPES),
        "seeds": [3, 1],
        "tasks": [
            {"name": "factoid_qa", "limit": 5},
            {"name": "multiple_choice:cloze", "limit": 4},
            {"name": "perplexity", "window": 48, "limit": 3},
        ],
        "calibration": {"sequences": 4, "length": 32},
    }
    return make_study({**values, **changes})


@pytest.fixture(scope="module")
def study(toy: Path) -> Study:
    return study_of(toy)


@pytest.fixture(scope="module")
def finished(study: Study, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """A run that was never stopped."""
    return run_study(study, out=tmp_path_factory.mktemp("runs") / "finished")


def content(folder: Path, *, without: tuple[str, ...] = ("timing",)) -> str:
    """results.json as text, but for its times."""
    text = (folder / RESULTS_FILE).read_text(encoding="utf-8")
    values = json.loads(text)
    for key in without:
        del values[key]
    return json.dumps(values, indent=1, ensure_ascii=False)


def journalled(folder: Path, query: str = "SELECT * FROM records") -> pd.DataFrame:
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as connection:
        return pd.read_sql_query(query, connection)


def edit(folder: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as connection:
        connection.execute(statement)
        connection.commit()


@pytest.fixture
def copy(finished: StudyResult, tmp_path: Path) -> Path:
    """The finished run in a folder that a test may spoil."""
    folder = tmp_path / "copy"
    folder.mkdir()
    with (
        contextlib.closing(sqlite3.connect(finished.folder / JOURNAL_FILE)) as whole,
        contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as target,
    ):
        whole.backup(target)
    return folder


class Counting:
    """What a run did: models asked and compressions made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: Counter[str] = Counter()
        self.compressed: list[str] = []
        for method in ("logprobs", "generate"):
            self._spy(monkeypatch, method)
        compress = compressor_module.compress_in_processes

        def compressing(processes: Any, model: Any, recipe: Any, **options: Any) -> Any:
            self.compressed.append(str(recipe))
            return compress(processes, model, recipe, **options)

        monkeypatch.setattr(compressor_module, "compress_in_processes", compressing)

    def _spy(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        original = getattr(TransformersModel, method)

        def asking(model: TransformersModel, requests: Any) -> Any:
            self.asked[method] += 1
            return original(model, requests)

        monkeypatch.setattr(TransformersModel, method, asking)


# A whole study


def test_every_cell_of_the_plan_is_in_the_results_in_order(finished: StudyResult):
    cells = [(row["recipe"], row["seed"], row["task"]) for row in finished.results]
    # By recipe as listed, then seed, then task as listed.
    order = (("dense", None), ("magnitude@0.5", None), ("wanda@2:4", 1), ("wanda@2:4", 3), ("rtn@4b", None))
    assert cells == [(recipe, seed, task) for recipe, seed in order for task in TASKS]
    assert all(row["n"] == ITEMS[row["task"]] and row["unscored"] == 0 for row in finished.results)
    assert [(c.task, c.recipe) for c in finished.comparisons] == [(t, r) for t in TASKS for r in RECIPES]
    assert [row["recipe"] for row in finished.overall] == list(RECIPES)


def test_every_value_is_that_of_the_journals_records(finished: StudyResult):
    records = journalled(finished.folder)
    assert len(records) == len(VARIANTS) * sum(ITEMS.values())
    for row in finished.results:
        seed = records["seed"].isna() if row["seed"] is None else records["seed"] == row["seed"]
        own = records[(records["recipe"] == row["recipe"]) & seed & (records["task"] == row["task"])]
        assert len(own) == row["n"]
        assert own["tokens"].sum() == row["tokens"]
        if row["metric"] == "perplexity":
            expected = math.exp((own["score"] * own["tokens"]).sum() / own["tokens"].sum())
        else:
            expected = own["score"].mean()
        assert row["value"] == pytest.approx(expected, rel=1e-12)
    by_cell = {(row["recipe"], row["seed"], row["task"]): row["value"] for row in finished.results}
    for comparison in finished.comparisons:
        recipe, task = comparison.recipe, comparison.task
        values = [by_cell[recipe, seed, task] for _, seed in (v for v in VARIANTS if v[0] == recipe)]
        mean = math.exp(sum(map(math.log, values)) / len(values)) if task == "perplexity" else sum(values) / len(values)
        assert comparison.compressed == pytest.approx(mean)
        assert comparison.dense == pytest.approx(by_cell["dense", None, task])


def test_the_records_are_those_that_the_model_gives(finished: StudyResult, toy: Path, study: Study):
    model = load_model(str(toy), dtype="float32")
    for spec in study.tasks:
        alone = {record.item_id: record for record in asking.evaluate(model, spec.make())}
        own = journalled(finished.folder)
        own = own[(own["recipe"] == "dense") & (own["task"] == spec.make().name)]
        assert set(own["item_id"]) == set(alone)
        for _, row in own.iterrows():
            assert row["score"] == pytest.approx(alone[row["item_id"]].score)
            assert row["response"] == alone[row["item_id"]].response


def test_methods_without_calibration_run_once(finished: StudyResult):
    assert [(report["recipe"], report["seed"]) for report in finished.compression] == [
        ("magnitude@0.5", 0),
        ("wanda@2:4", 3),
        ("wanda@2:4", 1),
        ("rtn@4b", 0),
    ]
    by_recipe = {report["recipe"]: report for report in finished.compression}
    assert by_recipe["magnitude@0.5"]["calibration"] is by_recipe["rtn@4b"]["calibration"] is None
    for report in finished.compression:
        share = [layer.realised_sparsity for layer in report.layers]
        if report["recipe"] != "rtn@4b":
            assert share == pytest.approx([0.5] * len(share), abs=0.01)
        # Measured on the first seed's windows where the method itself needs none.
        assert all(layer.relative_output_error > 0 for layer in report.layers)


def test_without_a_calibrated_recipe_no_text_is_sampled(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(calibration_module, "self_sampled", lambda *_, **__: pytest.fail("text was sampled"))
    study = study_of(toy, recipes=["magnitude@0.5", "rtn@4b"], calibration={"sequences": 32, "length": 64})
    result = run_study(study, out=tmp_path)
    texts = journalled(tmp_path, "SELECT * FROM calibrations")
    assert texts["source"].tolist() == ["pocket"]
    assert [report["calibration"] for report in result.compression] == [None, None]
    assert not [warning for warning in result.warnings if "calibrated on" in warning]
    # The output error needs some text, though no weight depends on it.
    model = load_model(str(toy), dtype="float32")
    windows = calibrate(model, source="pocket", sequences=2, length=64, seed=3)
    assert texts["digest"].tolist() == [windows.digest]
    for recipe, report in zip(("magnitude@0.5", "rtn@4b"), result.compression, strict=True):
        assert report.layers == compress(model, recipe, calibration=windows)[1].layers


def test_each_seed_has_its_own_calibration(finished: StudyResult, toy: Path):
    model = load_model(str(toy), dtype="float32")
    digests = {
        report["seed"]: report["calibration"] for report in finished.compression if report["recipe"] == "wanda@2:4"
    }
    assert digests == {seed: calibrate(model, sequences=4, length=32, seed=seed).digest for seed in (1, 3)}
    weights = {report["digest"] for report in finished.compression}
    assert len(weights) == len(finished.compression)


def test_the_folder_holds_the_resolved_study_and_the_questions(finished: StudyResult, study: Study):
    assert load_study(finished.folder / "study.toml") == study
    assert finished.study["hash"] == study.hash()
    items = journalled(finished.folder, "SELECT * FROM items")
    assert Counter(items["task"]) == ITEMS
    assert (items[items["task"] == "factoid_qa"]["question"].str.len() > 10).all()
    assert read_results(finished.folder) == finished
    with contextlib.closing(Journal(finished.folder, read_only=True)) as journal:
        prompts = unpacked(journal.prompts("factoid_qa"))
        assert set(prompts) == set(items[items["task"] == "factoid_qa"]["item_id"])
        assert all("prompt" in json.loads(text) for text in prompts.values())
        assert journal.commands()[0][1] == finished.environment["packages"]["llmkick"]
        assert DenseModel.model_validate(journal.notes().model) == finished.model
        assert journal.notes().tasks == [task.facts for task in finished.tasks]
    assert finished.environment["packages"]["torch"]
    assert set(finished.timing["seconds"]) == {"load", "calibrate", "compress", "evaluate", "statistics"}
    assert not list(finished.folder.glob(".*")), "nothing temporary is left"


def test_an_observer_sees_the_whole_plan(study: Study, tmp_path: Path, copy: Path):
    class Watching(Silent):
        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []
            self.stages: list[str] = []
            self.verdicts: list[AnyComparison] = []

        def verdict(self, comparison: AnyComparison) -> None:
            self.verdicts.append(comparison)

        def stage(self, title: str, total: int) -> None:
            self.stages.append(title)

        def cells(self, done: int, total: int) -> None:
            self.seen.append((done, total))

    total = len(VARIANTS) * len(TASKS)
    edit(copy, "DELETE FROM records WHERE recipe = 'rtn@4b' AND task = 'perplexity'")
    watcher = Watching()
    result = run_study(study, out=copy, observer=watcher)
    # What this session asked has news; the rest was known.
    assert watcher.verdicts == [
        entry for entry in result.comparisons if (entry.recipe, entry.task) == ("rtn@4b", "perplexity")
    ]
    assert watcher.seen == [(total - 1, total), (total, total)]
    assert watcher.stages[0] == f"loading {study.model}"
    assert watcher.stages[1:] == ["compressing rtn@4b", "rtn@4b on perplexity", "statistics"]


# Resuming


def test_a_second_run_asks_and_compresses_nothing(study: Study, copy: Path, finished: StudyResult, monkeypatch: Any):
    counting = Counting(monkeypatch)
    monkeypatch.setattr(executor_module, "calibrate", None)
    again = run_study(study, out=copy)
    assert (counting.asked, counting.compressed) == (Counter(), [])
    assert content(copy) == content(finished.folder)
    assert again.results == finished.results


def test_a_study_may_be_given_as_values_or_as_a_file(study: Study, copy: Path, finished: StudyResult):
    run_study(study.model_dump(mode="json", exclude_none=True), out=copy)
    assert content(copy) == content(finished.folder)
    again = run_study(copy / "study.toml", out=copy)
    assert again.results == finished.results
    with pytest.raises(ConfigError, match=r"^study: model: is missing"):
        run_study({"recipes": ["wanda@0.5"], "tasks": ["factoid_qa"]}, out=copy)


def test_only_what_is_missing_is_asked(study: Study, copy: Path, finished: StudyResult, monkeypatch: Any):
    edit(copy, "DELETE FROM records WHERE recipe = 'wanda@2:4' AND seed = 1 AND task = 'perplexity'")
    counting = Counting(monkeypatch)
    run_study(study, out=copy)
    assert counting.compressed == ["wanda@2:4"]
    assert counting.asked == {"logprobs": 2}
    assert content(copy) == content(finished.folder)


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
def test_the_results_do_not_depend_on_what_was_journalled_before(
    study: Study, copy: Path, finished: StudyResult, seed: int
):
    keys = journalled(copy, "SELECT rowid FROM records")["rowid"].tolist()
    gone = random.Random(seed).sample(keys, k=[1, 8, len(keys) // 2, len(keys)][seed])
    edit(copy, f"DELETE FROM records WHERE rowid IN ({','.join(map(str, gone))})")
    if seed % 2:
        edit(copy, "DELETE FROM artifacts")
        edit(copy, "DELETE FROM calibrations")
    run_study(study, out=copy)
    assert content(copy) == content(finished.folder)


class Stop(BaseException):
    """Stands for the end of the process: nothing may catch it and go on."""


@pytest.mark.parametrize("after", [1, *(pytest.param(number, marks=pytest.mark.slow) for number in (5, 12, 30)), 60])
def test_a_run_stopped_after_any_write_goes_on_from_there(
    study: Study, tmp_path: Path, finished: StudyResult, monkeypatch: pytest.MonkeyPatch, after: int
):
    folder, left, transaction = tmp_path / "stopped", [after], Journal.transaction

    @contextlib.contextmanager
    def counted(journal: Journal) -> Iterator[sqlite3.Connection]:
        with transaction(journal) as connection:
            yield connection
        left[0] -= 1
        if left[0] == 0:
            raise Stop

    monkeypatch.setattr(Journal, "transaction", counted)
    with pytest.raises(Stop):
        run_study(study, out=folder)
    monkeypatch.undo()
    assert not (folder / RESULTS_FILE).exists()
    kept = len(journalled(folder))
    batches_before = kept // 2
    counting = Counting(monkeypatch)
    run_study(study, out=folder)
    assert content(folder) == content(finished.folder)
    assert sum(counting.asked.values()) <= len(VARIANTS) * BATCHES - batches_before


def count_records(folder: Path) -> int:
    try:
        with contextlib.closing(Journal(folder, read_only=True)) as journal:
            return sum(len(journal.done(key)) for key in journal.run_keys())
    except DataError:  # not there yet
        return 0


@pytest.mark.parametrize("shares", [(0.4,), pytest.param((0.0, 0.3, 0.6), marks=pytest.mark.slow)], ids=str)
def test_kill_9_at_any_point_and_the_same_command_give_the_same_results(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kick: Kick, shares: tuple[float, ...]
):
    monkeypatch.setattr(asking, "BATCH_ITEMS", 64)  # as in the processes that are killed
    tasks = [
        {"name": "factoid_qa", "limit": 66},
        {"name": "multiple_choice:cloze", "limit": 8},
        {"name": "perplexity", "window": 64, "limit": 6},
    ]
    study = study_of(toy, name="killed", recipes=["magnitude@0.5", "wanda@2:4"], seeds=[0], tasks=tasks)
    never_stopped = run_study(study, out=tmp_path / "never-stopped")
    total = len(journalled(never_stopped.folder))
    study_file = tmp_path / "study.toml"
    study_file.write_text(study.to_toml(), encoding="utf-8")
    folder = tmp_path / "killed"
    command = ["run", study_file, "--out", folder, "--quiet"]
    for share in shares:
        killed = run_until(signal.SIGKILL, tmp_path / str(share), *command, records=int(share * total))
        assert (killed.code, killed.err) == (-signal.SIGKILL, "")
        assert not (folder / RESULTS_FILE).exists()
        assert share * total < count_records(folder) < total
    code, _, errors = kick(*command)
    assert (code, errors) == (0, "")
    assert content(folder) == content(never_stopped.folder)
    columns = ["recipe", "seed", "task", "item_id", "run_key", "score", "response", "details"]
    pd.testing.assert_frame_equal(
        *(
            journalled(f)[columns].sort_values(columns[:4]).reset_index(drop=True)
            for f in (folder, never_stopped.folder)
        )
    )


# Records that belong to other weights


def test_records_of_a_compression_that_came_out_differently_are_dropped_and_said(
    study: Study, copy: Path, finished: StudyResult
):
    """Another machine or thread count may give other bits: old and new answers must not be mixed."""
    edit(copy, "UPDATE records SET response = 'old'")
    edit(copy, "DELETE FROM records WHERE rowid IN (SELECT rowid FROM records WHERE recipe = 'magnitude@0.5' LIMIT 1)")
    edit(copy, "UPDATE artifacts SET digest = 'other' WHERE report LIKE '%magnitude@0.5%'")
    result = run_study(study, out=copy)
    assert result.warnings[0].startswith("magnitude@0.5: compressing again gave other weights")
    old = journalled(copy, "SELECT recipe, count(*) AS n FROM records WHERE response = 'old' GROUP BY recipe")
    assert "magnitude@0.5" not in set(old["recipe"])
    assert set(old["recipe"]) == {"dense", "wanda@2:4", "rtn@4b"}
    spoiled = ("timing", "warnings", "agreement")  # the last counts equal responses
    assert content(copy, without=spoiled) == content(finished.folder, without=spoiled)
    assert result.warnings[1:] == finished.warnings
    # Said once, by the run that did it.
    assert run_study(study, out=copy).warnings == finished.warnings


def test_records_of_another_model_under_the_same_name_are_dropped_and_said(finished: StudyResult, tmp_path: Path):
    """The folder behind a study's model may change; its old answers are not the new model's."""
    folder = tmp_path / "models" / "toy"
    save_toy(folder, max_position_embeddings=512, seed=1)
    moved = study_of(folder, recipes=["magnitude@0.5"], tasks=[{"name": "factoid_qa", "limit": 5}])
    run_study(moved, out=tmp_path / "run")
    before = journalled(tmp_path / "run")
    save_toy(folder, max_position_embeddings=512)
    result = run_study(moved, out=tmp_path / "run")
    assert result.warnings[0].startswith("the records of 2 cells were made with other weights, data, precision or")
    values = {(row["recipe"], row["task"]): row["value"] for row in finished.results}
    assert [row["value"] for row in result.results] == [values[one, "factoid_qa"] for one in ("dense", "magnitude@0.5")]
    after = journalled(tmp_path / "run")
    assert len(after) == len(before)
    assert not set(after["run_key"]) & set(before["run_key"])


def test_results_of_earlier_answers_are_none_of_a_run_that_began_again(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A reader would take the finished results of the earlier weights for those of the records beside them."""
    folder = tmp_path / "models" / "toy"
    save_toy(folder, max_position_embeddings=512, seed=1)
    moved = study_of(folder, recipes=["magnitude@0.5"], tasks=[{"name": "factoid_qa", "limit": 5}])
    first = run_study(moved, out=tmp_path / "run")
    save_toy(folder, max_position_embeddings=512)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalExecutor, "compressed", killed)
    with pytest.raises(KeyboardInterrupt):
        run_study(moved, out=tmp_path / "run")
    with opened_run(tmp_path / "run") as run:
        assert run.missing[0].startswith("the run is not finished")
        assert run.result.model.digest != first.model.digest


def test_a_recipe_that_cannot_be_computed_leaves_the_others(
    study: Study, finished: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on a cluster: its cells are failures, everything else is complete, and the same command tries it again."""
    compressed = LocalExecutor.compressed

    def overflowing(executor: LocalExecutor, variant: Variant, *others: Any) -> TransformersModel:
        if variant.label == "magnitude@0.5":
            raise NumericalError("model.layers.0: leads to values that float16 cannot hold")
        return compressed(executor, variant, *others)

    with monkeypatch.context() as patch:
        patch.setattr(LocalExecutor, "compressed", overflowing)
        result = run_study(study, out=tmp_path)
    assert {(failure.recipe, failure.task) for failure in result.failures} == {
        ("magnitude@0.5", task) for task in ("factoid_qa", "multiple_choice:cloze", "perplexity")
    }
    assert all("float16 cannot hold" in failure.reason for failure in result.failures)
    assert not [row for row in result.results if row.recipe == "magnitude@0.5"]
    expected = [row for row in finished.results if row.recipe != "magnitude@0.5"]
    assert [(row.recipe, row.seed, row.value) for row in result.results] == [
        (row.recipe, row.seed, row.value) for row in expected
    ]
    again = run_study(study, out=tmp_path)
    assert (again.failures, content(tmp_path)) == ((), content(finished.folder))


def test_answers_of_two_versions_in_one_folder_are_said(
    study: Study, copy: Path, finished: StudyResult, monkeypatch: pytest.MonkeyPatch
):
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "transformers" else version(name))
    # A run that asks nothing mixes nothing.
    assert run_study(study, out=copy).warnings == finished.warnings
    edit(copy, "DELETE FROM records WHERE rowid IN (SELECT rowid FROM records WHERE recipe = 'magnitude@0.5' LIMIT 1)")
    (said,) = [line for line in run_study(study, out=copy).warnings if line not in finished.warnings]
    assert said.startswith(
        f"the answers in this folder were made with transformers {version('transformers')} and 9.9: they may differ"
    )


RUN_KEY_CHANGES = {
    "prompting": {"prompting": "raw"},
    "dtype": {"dtype": "bfloat16"},
    "calibration": {"calibration": {"sequences": 3, "length": 32}},
    "propagate": {"propagate": False},
    "task seed": {"tasks": [{"name": "factoid_qa", "limit": 2, "seed": 1}]},
}


def run_keys(folder: Path) -> dict[str, set[str]]:
    """The keys of each recipe's records."""
    return {str(recipe): set(own["run_key"]) for recipe, own in journalled(folder).groupby("recipe")}


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict[str, set[str]]]:
    """A study of a model with a chat template, and the keys of its records."""
    folder = tmp_path_factory.mktemp("chatty")
    save_toy(folder / "chatty", chat=True, max_position_embeddings=512)
    tasks = [{"name": "factoid_qa", "limit": 2}]
    study = study_of(folder / "chatty", recipes=["wanda@0.5"], seeds=[0], tasks=tasks)
    run_study(study, out=folder / "run")
    return study, run_keys(folder / "run")


@pytest.mark.parametrize("changed", RUN_KEY_CHANGES)
def test_whatever_could_change_a_score_changes_the_run_key(
    chatty: tuple[Study, dict[str, set[str]]], tmp_path: Path, changed: str
):
    base, before = chatty
    other = make_study({**base.model_dump(mode="json", exclude_none=True), **RUN_KEY_CHANGES[changed]})
    run_study(other, out=tmp_path)
    keys = [before, run_keys(tmp_path)]
    assert not keys[0]["wanda@0.5"] & keys[1]["wanda@0.5"]
    if changed in ("calibration", "propagate"):
        assert keys[0]["dense"] == keys[1]["dense"], "what only a compression depends on is no part of a dense key"
    else:
        assert not keys[0]["dense"] & keys[1]["dense"]


# Refused before any work


@pytest.fixture
def nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(*_: Any, **__: Any) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(TransformersModel, "logprobs", unexpected)
    monkeypatch.setattr(TransformersModel, "generate", unexpected)
    monkeypatch.setattr(compressor_module, "compress_in_processes", unexpected)


@pytest.mark.usefixtures("nothing_is_asked")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"recipes": ["rtn@4b", "wanda@2:5"]},
            ConfigError,
            r"wanda@2:5: .* has 16 inputs, which is not a multiple of 5",
        ),
        (
            {"calibration": {"length": 513}},
            ConfigError,
            "calibration length 513 exceeds the context of toy, 512 tokens",
        ),
        ({"calibration": {"source": "/no/such/text"}}, ConfigError, "calibration source '/no/such/text' is neither"),
        ({"model": "/no/such/model"}, ModelError, "unknown model '/no/such/model'"),
        ({"model": "no-such-model"}, ModelError, r"unknown model .*: not a built-in \(smollm2-135m-instruct\)"),
        ({"prompting": "chat"}, ConfigError, 'toy has no chat template; use prompting = "raw"'),
        ({"device": "cuda:99"}, ConfigError, "device 'cuda:99' is not available here"),
        ({"tasks": [{"name": "perplexity", "window": 513}]}, ConfigError, "window must be between 2 and the 512"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    toy: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        run_study(study_of(toy, **changes), out=tmp_path)


@pytest.mark.usefixtures("nothing_is_asked")
def test_a_calibration_text_that_is_too_short_is_refused_before_any_work(toy: Path, tmp_path: Path):
    text = tmp_path / "short.txt"
    text.write_text("Too short.", encoding="utf-8")
    with pytest.raises(DataError, match=r"short.txt: found 0 of 4 calibration windows"):
        run_study(study_of(toy, calibration={"source": str(text), "sequences": 4, "length": 64}), out=tmp_path / "run")


def test_a_refused_study_does_not_take_the_folder(toy: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="not a multiple of 5"):
        run_study(study_of(toy, recipes=["wanda@2:5"]), out=tmp_path)
    mended = study_of(toy, recipes=["magnitude@0.5"], tasks=[{"name": "factoid_qa", "limit": 2}])
    result = run_study(mended, out=tmp_path)
    assert [row["recipe"] for row in result.results] == ["dense", "magnitude@0.5"]
    assert load_study(tmp_path / "study.toml") == mended


@pytest.mark.usefixtures("nothing_is_asked")
def test_a_folder_with_another_studys_results_is_refused_and_left_alone(toy: Path, finished: StudyResult):
    before = {path.name: path.read_bytes() for path in finished.folder.iterdir() if path.suffix in (".json", ".toml")}
    assert len(before) == 2
    records = journalled(finished.folder)
    with pytest.raises(ConfigError) as refused:
        run_study(study_of(toy, margin=0.1), out=finished.folder)
    message = str(refused.value)
    assert message.startswith("the folder holds the results of another study:\n")
    assert "  - margin = 0.05\n  + margin = 0.1\n" in message
    assert message.endswith("Give another --out, or remove that folder.")
    assert before == {name: (finished.folder / name).read_bytes() for name in before}
    pd.testing.assert_frame_equal(journalled(finished.folder), records)


def test_the_name_is_no_reason_to_refuse(toy: Path, copy: Path, monkeypatch: pytest.MonkeyPatch):
    counting = Counting(monkeypatch)
    result = run_study(study_of(toy, name="renamed"), out=copy)
    assert not counting.asked
    assert result.study["name"] == "renamed"


@pytest.mark.usefixtures("nothing_is_asked")
def test_a_folder_that_cannot_be_written_is_refused(study: Study, tmp_path: Path):
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(ConfigError, match=r"cannot write to .*; give another --out"):
            run_study(study, out=target)


@pytest.mark.usefixtures("nothing_is_asked")
def test_a_disk_without_room_is_refused(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    usage = type("usage", (), {"free": 1_000_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ConfigError, match=r"a run needs 200 MB in .*, but only 1 MB are free"):
        run_study(study, out=tmp_path)


def test_a_damaged_journal_is_told(study: Study, tmp_path: Path):
    (tmp_path / JOURNAL_FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(DataError, match=r"journal.sqlite cannot be opened as a journal: file is not a database"):
        run_study(study, out=tmp_path)


# A disk that fills up on the way


def test_a_disk_that_fills_up_in_the_middle_loses_nothing(
    study: Study, tmp_path: Path, finished: StudyResult, monkeypatch: pytest.MonkeyPatch
):
    add_records, calls = Journal.add_records, []

    def filling(journal: Journal, *arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) == 9:  # SQLite itself reports the error, as on a full disk
            journal.connection.execute("PRAGMA max_page_count = 1")
            journal.connection.execute("PRAGMA cache_size = 1")
            named["records"] = [*named["records"], *_large_records()]
        add_records(journal, *arguments, **named)

    monkeypatch.setattr(Journal, "add_records", filling)
    with pytest.raises(DataError, match=r"cannot write to the journal: database or disk is full.*run the same command"):
        run_study(study, out=tmp_path)
    monkeypatch.undo()
    assert 13 <= len(journalled(tmp_path)) <= 16, "the eight batches before"
    counting = Counting(monkeypatch)
    run_study(study, out=tmp_path)
    assert sum(counting.asked.values()) == len(VARIANTS) * BATCHES - 8
    assert content(tmp_path) == content(finished.folder)


def _large_records() -> list[Record]:
    return [Record(item_id=f"large-{number}", cluster="", response="x" * 50_000, score=0.0) for number in range(20)]


def test_results_that_cannot_be_written_lose_nothing(
    study: Study, copy: Path, finished: StudyResult, monkeypatch: pytest.MonkeyPatch
):
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"cannot write to .*No space left on device"):
        run_study(study, out=copy)
    monkeypatch.undo()

    class FullAtTheEnd(Silent):
        def stage(self, title: str, total: int) -> None:
            if title == "statistics":
                monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(DataError, match=r"cannot write .*results.json: .*Every record is safe in the journal"):
        run_study(study, out=copy, observer=FullAtTheEnd())
    monkeypatch.undo()
    assert not (copy / RESULTS_FILE).exists()
    run_study(study, out=copy)
    assert content(copy) == content(finished.folder)


# What the tables do not show


def test_unscored_items_are_counted_and_said(tmp_path: Path):
    folder = tmp_path / "short-sighted"
    save_toy(folder, max_position_embeddings=40)
    tasks = [{"name": "context_qa:open", "limit": 4}, {"name": "perplexity", "window": 32, "limit": 2}]
    result = run_study(study_of(folder, recipes=["rtn@8b"], tasks=tasks), out=tmp_path / "run")
    row = result.results[0]
    assert (row["task"], row["value"], row["n"], row["unscored"]) == ("context_qa:open", None, 0, 4)
    assert all("in a context of 40" in reason for reason in row["unscored_reasons"])
    assert sum(row["unscored_reasons"].values()) == 4
    assert "8 of 12 records are unscored; results.json counts the reasons" in result.warnings
    comparison = result.comparisons[0]
    assert (comparison.task, comparison.verdict) == ("context_qa:open", "incomplete")


def test_rounding_what_was_rounded_is_said(tmp_path: Path):
    folder = tmp_path / "rounded"
    save_toy(folder, max_position_embeddings=512)
    (folder / SOURCE_FILE).write_text('{"source_precision": "Q4_1"}', encoding="utf-8")
    tasks = [{"name": "factoid_qa", "limit": 2}]
    warning = "the dense weights of rounded come from a file already rounded to Q4_1"
    rounding = run_study(study_of(folder, recipes=["rtn@4b"], tasks=tasks), out=tmp_path / "rounding")
    assert any(text.startswith(warning) for text in rounding.warnings)
    pruning = run_study(study_of(folder, recipes=["magnitude@0.5"], tasks=tasks), out=tmp_path / "pruning")
    assert not any(text.startswith(warning) for text in pruning.warnings)


def test_calibration_on_the_dense_model_is_said(toy: Path, tmp_path: Path):
    small = {"recipes": ["wanda@0.5"], "seeds": [0], "tasks": [{"name": "factoid_qa", "limit": 2}]}
    result = run_study(study_of(toy, **small, propagate=False), out=tmp_path)
    assert "calibration was not propagated: every statistic comes from the dense model" in result.warnings
    assert result.compression[0]["propagate"] is False


# Compressed models that are kept


def test_a_damaged_cached_model_is_made_anew_and_said(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    study = study_of(toy, tasks=[{"name": "factoid_qa", "limit": 2}])
    first = run_study(study, out=tmp_path / "first")
    kept = sorted((tmp_path / "cache" / "compressed").glob("*/block-00001.safetensors"))
    assert len(kept) == len(VARIANTS) - 1
    for file in kept:
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
    again = run_study(study, out=tmp_path / "again")
    said = [warning for warning in again.warnings if "the cached model was damaged and was made anew" in warning]
    assert len(said) == len(VARIANTS) - 1
    assert "block-00001.safetensors" in said[0]
    assert tuple(warning for warning in again.warnings if warning not in said) == first.warnings
    assert again.results == first.results


def test_without_a_cache_the_results_are_the_same(
    study: Study, finished: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", "0")
    assert content(run_study(study, out=tmp_path / "run").folder) == content(finished.folder)


def test_without_propagation_one_pass_serves_all_recipes(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    recipes = ["wanda@0.25", "wanda@2:4", "gptq@4b", "rtn@4b"]
    study = study_of(toy, propagate=False, recipes=recipes, seeds=[3, 1], tasks=[{"name": "factoid_qa", "limit": 2}])
    passes: list[list[str]] = []
    together = compressor_module.compress_into

    def counting(model: TransformersModel, jobs: Any, **options: Any) -> Any:
        passes.append(sorted(str(job.recipe) for job in jobs))
        return together(model, jobs, **options)

    monkeypatch.setattr(compressor_module, "compress_into", counting)
    found = run_study(study, out=tmp_path / "run")
    assert passes == [["gptq@4b", "wanda@0.25", "wanda@2:4"]] * 2  # a seed each; rtn has none and is alone
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", "0")
    one_by_one = run_study(study, out=tmp_path / "one-by-one")
    assert found.results == one_by_one.results
    assert [report["digest"] for report in found.compression] == [r["digest"] for r in one_by_one.compression]
    assert len(passes) == 2


def test_without_results_json_the_verdicts_are_those_of_the_run(study: Study, copy: Path):
    """Scores that are all alike match only where the weights are: the journal has to say whether they are."""
    edit(copy, "UPDATE records SET score = 1 WHERE task = 'factoid_qa'")
    edit(copy, "DELETE FROM records WHERE recipe = 'rtn@4b' AND task = 'perplexity'")
    result = run_study(study, out=copy)
    verdicts = {entry.recipe: entry.verdict for entry in result.comparisons if entry.task == "factoid_qa"}
    assert set(verdicts.values()) == {"undecided"}
    (copy / RESULTS_FILE).unlink()
    with opened_run(copy) as run:
        assert run.result.comparisons == result.comparisons
