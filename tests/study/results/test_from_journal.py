"""The results of an unfinished run: nothing is said that the finished run would not say."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pandas as pd

from llmkick.statistics import Comparison, compare
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import CellEntry, Journal
from llmkick.study.results.from_journal import left_of_run, newest, partial_result
from llmkick.study.results.records import ComparedModel
from llmkick.study.results.results import RESULTS_FILE, StudyResult
from llmkick.study.results.unfinished import what_is_left
from llmkick.study.spec.study import make_study
from llmkick.tasks.registry import get_task
from llmkick.tasks.task import groups_of
from report.synthetic import build_run, digest_of

TASKS = ("factoid_qa", "context_qa:open", "perplexity")


def shown(folder: Path) -> StudyResult:
    """The results from the journal alone."""
    (folder / RESULTS_FILE).unlink(missing_ok=True)
    with contextlib.closing(Journal(folder, read_only=True)) as journal:
        return partial_result(journal, folder)


def forget(folder: Path, where: str) -> None:
    """Delete records, as if they had not been asked yet."""
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as journal, journal:
        journal.execute(f"DELETE FROM records WHERE {where}")


def verdicts(result: StudyResult) -> dict[tuple[str, str], str]:
    return {(c.recipe, c.task): c.verdict for c in result.comparisons if isinstance(c, Comparison)}


def test_nothing_matches_over_all_tasks_before_all_were_asked(tmp_path: Path) -> None:
    """One task that does not match is enough; perplexity has no say."""
    recipes = ["rtn@8b", "gptq@8b", "magnitude@0.5"]
    whole = build_run(tmp_path, recipes=recipes, tasks=TASKS, items=400)
    assert {row.recipe: row.verdict for row in whole.overall} == {
        "rtn@8b": "matching", "gptq@8b": "matching", "magnitude@0.5": "not matching",
    }  # fmt: skip
    forget(tmp_path, "recipe IN ('rtn@8b', 'magnitude@0.5') AND task = 'context_qa:open'")
    forget(tmp_path, "recipe = 'gptq@8b' AND task = 'perplexity'")
    found = shown(tmp_path)
    assert verdicts(found)["rtn@8b", "factoid_qa"] == "matching"
    assert {row.recipe: row.verdict for row in found.overall} == {
        "gptq@8b": "matching", "magnitude@0.5": "not matching",
    }  # fmt: skip


def test_a_model_is_compared_when_all_its_seeds_are_there(tmp_path: Path) -> None:
    whole = build_run(tmp_path, recipes=["wanda@0.25", "rtn@8b"], tasks=TASKS, seeds=(0, 1, 2))
    forget(tmp_path, "recipe = 'wanda@0.25' AND task = 'factoid_qa' AND seed = 2")
    forget(
        tmp_path, "recipe = 'wanda@0.25' AND task = 'context_qa:open' AND seed = 1 AND item_id > 'context_qa:open-029'"
    )
    found = shown(tmp_path)
    assert verdicts(found) == {key: verdict for key, verdict in verdicts(whole).items() if key[0] != "wanda@0.25"}
    said = " ".join(found.warnings)
    assert "wanda@0.25 (seed 1) on context_qa:open: 30 of 60 items were asked" in said
    assert "not asked yet: wanda@0.25 (seed 2) on factoid_qa" in said
    assert "rtn@8b (seed" not in said


def test_equal_scores_are_no_equal_weights(tmp_path: Path) -> None:
    """Without the digests of the weights, equal scores of different models are tested like any others."""
    build_run(tmp_path, recipes=["rtn@8b"], tasks=("factoid_qa",), items=60)
    with contextlib.closing(sqlite3.connect(tmp_path / JOURNAL_FILE)) as file, file:
        file.execute("DELETE FROM meta WHERE key = 'dense_digest'")
    with contextlib.closing(Journal(tmp_path)) as journal:
        records = journal.records()
        scores = {name: dict(zip(rows["item_id"], rows["score"], strict=True)) for name, rows in by_recipe(records)}
        clusters = dict(zip(records["item_id"], records["cluster"], strict=True))
        assert scores["dense"] == scores["rtn@8b"]
        unknown = compare(scores["dense"], scores["rtn@8b"], clusters=clusters, same_model=False)
        assert unknown.verdict == "undecided"
        assert verdicts(shown(tmp_path)) == {("rtn@8b", "factoid_qa"): "undecided"}
        journal.note("dense_digest", digest_of("rtn@8b", None))
    assert verdicts(shown(tmp_path)) == {("rtn@8b", "factoid_qa"): "matching"}


def by_recipe(records: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    return [(str(name), rows) for name, rows in records.groupby("recipe")]


def test_an_external_model_with_the_dense_models_files_is_the_dense_model(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    build_run(folder, recipes=["rtn@8b"], tasks=("factoid_qa",), items=60)
    with contextlib.closing(Journal(folder)) as journal:
        dense = journal.notes().model
        assert isinstance(dense, dict)
        study = {"name": "s", "model": "toy", "recipes": [], "others": ["other.gguf", "openai:http://h/v1#m"]}
        names = list(make_study({**study, "tasks": [{"name": "factoid_qa"}]}).labelled_others().items())
        text = f"model = 'toy'\nrecipes = []\nothers = {[ref for _, ref in names]}\ntasks = ['factoid_qa']\n"
        journal.note("study", text)
        records = journal.records()
        for label, reference in names:
            rows = records[records["recipe"] == "rtn@8b"]
            add(journal, f"other {label}", label, rows)
            journal.add_artifact(label, str(dense["digest"]), compared(label, reference, str(dense["digest"])))
    assert verdicts(shown(folder)) == {
        (label, "factoid_qa"): "matching" if reference.endswith(".gguf") else "undecided" for label, reference in names
    }


def add(journal: Journal, run_key: str, label: str, rows: pd.DataFrame) -> None:
    """Records of another model with these scores."""
    from llmkick.tasks.task import Record

    found = [
        Record(item_id=row.item_id, cluster=row.cluster, response="", score=row.score) for row in rows.itertuples()
    ]
    journal.add_records(run_key, model="toy", recipe=label, seed=None, task="factoid_qa", records=found)


def compared(label: str, reference: str, digest: str) -> ComparedModel:
    values: dict[str, Any] = {
        "label": label, "reference": reference, "architecture": "", "dtype": "", "digest": digest,
        "source_precision": "float", "parameters": None, "stored_bytes": None, "zeros": None,
    }  # fmt: skip
    return ComparedModel.model_validate(values)


def test_what_is_left_counts_what_is_over(tmp_path: Path) -> None:
    """Begun is not over, and with early stopping the dense model may be asked more while a verdict is open."""
    study = make_study(
        {"model": "toy", "recipes": ["rtn@8b", "rtn@4b"], "stop": "decided", "tasks": [{"name": "factoid_qa"}]}
    )

    def cell(recipe: str, records: int) -> CellEntry:
        return CellEntry(recipe, "toy", recipe, None, "factoid_qa", records, 0)

    dense, mild, severe = cell("dense", 320), cell("rtn@8b", 320), cell("rtn@4b", 32)
    items = {"factoid_qa": 480}
    begun = what_is_left(study, [dense, mild], items, {}, compressed=2, over=[dense])
    assert begun == "1 of 3 cells are done; left are at most 800 items"
    told = what_is_left(study, [dense, mild, severe], items, {}, compressed=2, over=[dense, severe])
    assert told == "2 of 3 cells are done; left are at most 320 items"
    assert what_is_left(study, [dense, mild, severe], items, {}, compressed=2, over=[dense, mild, severe]) == (
        "3 of 3 cells are done"
    )


def test_compressed_levels_of_an_axis_are_counted(tmp_path: Path) -> None:
    build_run(tmp_path, recipes=["wanda@0.25", "rtn@8b"], tasks=("factoid_qa",))
    with contextlib.closing(Journal(tmp_path)) as journal:
        assert "compression" not in left_of_run(journal, tmp_path, newest(journal.cells()))
        study = "model = 'toy'\nrecipes = ['wanda@0.25', 'rtn@8b']\ntasks = ['factoid_qa']\n"
        journal.note("study", study + "[calibration]\nsequences = [8, 128]\n")
        assert "2 compressions" in left_of_run(journal, tmp_path, newest(journal.cells()))
        for artifact in list(journal.artifacts(ComparedModel.__base__)):  # type: ignore[arg-type]
            facts = {**artifact.facts, "recipe": "wanda@0.25 [sequences=8]"}
            if artifact.facts["recipe"] == "wanda@0.25":
                journal.add_artifact("of a level", "digest", type(artifact).model_validate(facts))
        assert "1 compression" in left_of_run(journal, tmp_path, newest(journal.cells()))


def test_a_journal_without_its_tasks_takes_them_from_the_study(tmp_path: Path) -> None:
    """What the groups of the items are decides the verdict, and the name in the registry what a task is."""
    build_run(tmp_path, recipes=["rtn@8b"], tasks=("factoid_qa",), items=60)
    with contextlib.closing(Journal(tmp_path)) as journal:
        study = "model = 'toy'\nrecipes = ['rtn@8b']\ntasks = [{name = 'factoid_qa', id = 'facts'}]\n"
        journal.note("study", study)
    with contextlib.closing(sqlite3.connect(tmp_path / JOURNAL_FILE)) as file, file:
        file.execute("DELETE FROM meta WHERE key = 'tasks'")
        for table in ("items", "records"):
            file.execute(f"UPDATE {table} SET task = 'facts'")
    (task,) = shown(tmp_path).tasks
    assert (task.name, task.task, task.groups) == ("facts", "factoid_qa", groups_of(get_task("factoid_qa")))
    assert task.groups == "strata"
