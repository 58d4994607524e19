"""Studies that stop when decided, and searches for the frontier: on a toy whose answers are made up by its weights."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import timelines
from llmkick.errors import ConfigError, DataError, ModelError, NumericalError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.transformers_model import TransformersModel
from llmkick.statistics import Verdict, compare, compare_stopped, order_items
from llmkick.statistics.frontier import looks
from llmkick.study.cells import Variant
from llmkick.study.frontier import levels as levels_module
from llmkick.study.frontier.levels import LevelJudge
from llmkick.study.frontier.result import FRONTIER_FILE, Judged, read_frontier
from llmkick.study.frontier.search import PERPLEXITY_MARGINS, run_frontier
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import Journal
from llmkick.study.levels import level_text
from llmkick.study.progress import Silent
from llmkick.study.results.from_journal import partial_result
from llmkick.study.results.multiplicity import family_size
from llmkick.study.results.results import RESULTS_FILE
from llmkick.study.run import run_study
from llmkick.study.running import evaluation as evaluation_module
from llmkick.study.running.context import StudyContext
from llmkick.study.running.early_stopping import stopping_rules
from llmkick.study.running.executor import LocalExecutor
from llmkick.study.spec.study import Study, make_study
from llmkick.tasks.registry import get_task
from llmkick.tasks.task import Item, Record, Task
from toy import save_toy

CALIBRATION = {"sequences": 2, "length": 32}


def share(*words: str) -> float:
    """A number in [0, 1) that belongs to the words."""
    return int(hashlib.sha256("/".join(words).encode()).hexdigest()[:8], 16) / 2**32


class MadeUp:
    """Answers by weights: the dense model is right on 95 %, a pruned one loses of those the cube of its zeros."""

    def __init__(self, dense_digest: str) -> None:
        self.dense = dense_digest
        self.asked: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self.stop_after: int | None = None
        self.unscored: set[str] = set()

    def __call__(self, model: TransformersModel, task: Task, items: Sequence[Item], **_options: Any) -> list[Record]:
        if self.stop_after is not None and sum(self.asked.values()) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked[model.info.digest, tuple(item.id for item in items)] += 1
        loss = 0.0 if model.info.digest == self.dense else zeros(model) ** 3
        return [self._record(task, item, loss) for item in items]

    def _record(self, task: Task, item: Item, loss: float) -> Record:
        if loss and item.id in self.unscored:
            return Record(item_id=item.id, cluster=item.cluster, response="", score=None, unscored_reason="made up")
        right = share(task.name, item.id) < 0.95 and share("lost", item.id) >= loss
        return Record(item_id=item.id, cluster=item.cluster, response=str(right), score=float(right))

    @property
    def batches_of_the_dense(self) -> list[tuple[str, ...]]:
        return [batch for (digest, batch), count in self.asked.items() for _ in range(count) if digest == self.dense]


def zeros(model: TransformersModel) -> float:
    weight = model.network.model.layers[0].self_attn.q_proj.weight
    return round(float((weight == 0).float().mean()), 1)


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, max_position_embeddings=128)
    return folder


@pytest.fixture
def answers(toy: Path, monkeypatch: pytest.MonkeyPatch) -> MadeUp:
    made_up = MadeUp(load_model(str(toy), dtype="float32").info.digest)
    monkeypatch.setattr(evaluation_module, "evaluate_items", made_up)
    return made_up


def values_of(toy: Path, **changes: Any) -> dict[str, Any]:
    tasks = [{"name": "factoid_qa", "limit": 480}, {"name": "perplexity", "window": 48, "limit": 2}]
    values = {"model": str(toy), "dtype": "float32", "device": "cpu", "tasks": tasks, "calibration": CALIBRATION}
    return {**values, **changes}


def study_of(toy: Path, **changes: Any) -> Study:
    recipes = ["magnitude@0.1", "magnitude@0.4", "magnitude@0.9"]
    return make_study(values_of(toy, **{"recipes": recipes, "stop": "decided", **changes}))


def journalled(folder: Path) -> pd.DataFrame:
    with contextlib.closing(sqlite3.connect(folder / JOURNAL_FILE)) as connection:
        return pd.read_sql_query("SELECT * FROM records ORDER BY run_key, item_id", connection)


def content(folder: Path, name: str = RESULTS_FILE) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    del values["timing"]
    return values


def of_facts(folder: Path) -> dict[str, dict[str, Any]]:
    return {c["recipe"]: c for c in content(folder)["comparisons"] if c["task"] == "factoid_qa"}


# Studies


def test_each_recipe_stops_where_it_is_decided(toy: Path, answers: MadeUp, tmp_path: Path):
    tasks = [{"name": "factoid_qa", "limit": 360}, {"name": "perplexity", "window": 48, "limit": 2}]
    run_study(study_of(toy, tasks=tasks), out=tmp_path)
    found = of_facts(tmp_path)
    assert [found[recipe]["verdict"] for recipe in found] == ["matching", "undecided", "not matching"]
    for comparison in found.values():
        stopping = comparison["stopping"]
        assert comparison["n"] == stopping["items"]
        assert (stopping["of"], stopping["unit"]) == (360, "item")
    assert found["magnitude@0.9"]["stopping"]["items"] <= 64
    assert found["magnitude@0.4"]["stopping"] | {"p_matching": 0, "p_not_matching": 0} == {
        "outcome": "undecided", "stopped": False, "items": 360, "of": 360, "unscored": 0, "unit": "item",
        "decided_after": None, "p_matching": 0, "p_not_matching": 0,
    }  # fmt: skip
    # Perplexity has no verdict to wait for.
    rows = {(row["recipe"], row["task"]): row["n"] for row in content(tmp_path)["results"]}
    assert all(rows[recipe, "perplexity"] == 2 for recipe in ("dense", *found))


@pytest.mark.parametrize("correction", ["holm", "fixed sequence"])
def test_with_a_correction_a_match_is_asked_until_it_passes(
    toy: Path, answers: MadeUp, tmp_path: Path, correction: str
):
    recipes = ["magnitude@0.1", "magnitude@0.2", "wanda@0.1", "magnitude@0.9"]
    tasks = [{"name": "factoid_qa", "limit": 480}]
    run_study(study_of(toy, recipes=recipes, tasks=tasks), out=tmp_path / "alone")
    study = study_of(toy, recipes=recipes, tasks=tasks, correction=correction)
    found = run_study(study, out=tmp_path / "together")
    alone, together = of_facts(tmp_path / "alone"), of_facts(tmp_path / "together")
    family = family_size(recipes, correction)
    assert family == (4 if correction == "holm" else 2)
    for recipe in recipes[:3]:
        assert together[recipe]["verdict"] == "matching"
        assert together[recipe]["p_matching"] < 0.05 / family
        assert together[recipe]["alpha"] == 0.05
        assert together[recipe]["n"] >= alone[recipe]["n"]
    assert sum(row["n"] for row in together.values()) > sum(row["n"] for row in alone.values())
    assert together["magnitude@0.9"] == alone["magnitude@0.9"], "a loss is shown as soon as without a correction"
    (facts,) = [one for one in found.families if one["scope"] == "factoid_qa"]
    assert [row["recipe"] for row in facts["recipes"] if row["matching"]] == recipes[:3]
    # The journal alone and a second command agree on where the cells ended.
    with contextlib.closing(Journal(tmp_path / "together", read_only=True)) as journal:
        assert partial_result(journal, tmp_path / "together").comparisons == found.comparisons
    answers.asked.clear()
    run_study(study, out=tmp_path / "together")
    assert not answers.asked


def test_the_dense_records_are_made_once_and_in_the_same_batches(toy: Path, answers: MadeUp, tmp_path: Path):
    run_study(study_of(toy), out=tmp_path)
    assert len(answers.batches_of_the_dense) == len(set(answers.batches_of_the_dense))
    by_model: dict[str, set[tuple[str, ...]]] = {}
    for digest, batch in answers.asked:
        by_model.setdefault(digest, set()).add(batch)
    longest = max(by_model.values(), key=len)
    assert by_model[answers.dense] == longest
    assert all(batches <= longest for batches in by_model.values())


def test_no_more_is_asked_of_the_dense_than_any_recipe_needs(toy: Path, answers: MadeUp, tmp_path: Path):
    run_study(study_of(toy, recipes=["magnitude@0.9"]), out=tmp_path)
    assert len(answers.batches_of_the_dense) == of_facts(tmp_path)["magnitude@0.9"]["stopping"]["items"] / 32 <= 2


def test_without_a_signal_one_batch_is_asked(toy: Path, answers: MadeUp, tmp_path: Path, monkeypatch: Any):
    def wrong(self: MadeUp, task: Task, item: Item, loss: float) -> Record:
        return Record(item_id=item.id, cluster=item.cluster, response="", score=0.0)

    monkeypatch.setattr(MadeUp, "_record", wrong)
    run_study(study_of(toy, tasks=[{"name": "factoid_qa", "limit": 100}]), out=tmp_path)
    found = of_facts(tmp_path)
    assert {comparison["verdict"] for comparison in found.values()} == {"no signal"}
    assert {comparison["n"] for comparison in found.values()} == {32}
    assert sum(map(len, answers.batches_of_the_dense)) == 100


def test_unscored_items_that_could_change_it_make_it_incomplete(toy: Path, answers: MadeUp, tmp_path: Path):
    answers.unscored = {item.id for item in make_study(values_of(toy, recipes=["rtn@4b"])).tasks[0].make().items()[::6]}
    run_study(study_of(toy, recipes=["magnitude@0.1", "magnitude@0.9"]), out=tmp_path)
    found = of_facts(tmp_path)
    assert {recipe: c["verdict"] for recipe, c in found.items()} == {
        "magnitude@0.1": "incomplete", "magnitude@0.9": "not matching",
    }  # fmt: skip
    assert found["magnitude@0.1"]["unscored"] == len(answers.unscored)


def test_an_unfinished_run_has_the_verdicts_that_are_known(toy: Path, answers: MadeUp, tmp_path: Path):
    """Also of cells that ended before their last item, and no others."""
    recipes = ["magnitude@0.9", "magnitude@0.1", "magnitude@0.4"]
    study = study_of(toy, recipes=recipes)
    whole = run_study(study, out=tmp_path / "whole")
    final = {(c.recipe, c.task): c for c in whole.comparisons}
    folder, seen = tmp_path / "stopped", [0]
    for _ in range(sum(answers.asked.values())):
        answers.asked.clear()
        answers.stop_after = 5
        try:
            run_study(study, out=folder)
            break
        except KeyboardInterrupt:
            with contextlib.closing(Journal(folder, read_only=True)) as journal:
                shown = partial_result(journal, folder)
        found = {(c.recipe, c.task): c for c in shown.comparisons}
        assert all(final[cell] == comparison for cell, comparison in found.items())
        assert ("magnitude@0.4", "factoid_qa") not in found, "all its items are needed"
        assert not [text for text in shown.warnings if any(f"{cell[0]} on {cell[1]}" in text for cell in found)]
        seen.append(len(found))
    assert seen == sorted(seen)
    assert len(set(seen)) >= 3
    assert seen[-1] >= 4


def test_stopped_anywhere_it_goes_on_to_the_same_item(toy: Path, answers: MadeUp, tmp_path: Path):
    study = study_of(toy)
    run_study(study, out=tmp_path / "whole")
    asked = sum(answers.asked.values())
    folder = tmp_path / "stopped"
    for _ in range(asked):
        answers.asked.clear()
        answers.stop_after = 17
        try:
            run_study(study, out=folder)
            break
        except KeyboardInterrupt:
            assert not (folder / RESULTS_FILE).exists()
    else:
        pytest.fail("it never ended")
    assert content(folder) == content(tmp_path / "whole")
    pd.testing.assert_frame_equal(journalled(folder), journalled(tmp_path / "whole"))
    answers.asked.clear()
    run_study(study, out=folder)
    assert not answers.asked


def test_whoever_watches_is_warned_before_anything_is_asked(toy: Path, answers: MadeUp, tmp_path: Path):
    class Watching(Silent):
        def __init__(self) -> None:
            self.told: list[tuple[str, int]] = []

        def warn(self, text: str) -> None:
            self.told.append((text, sum(answers.asked.values())))

    watcher = Watching()
    tasks = [{"name": "factoid_qa", "limit": 1}]
    run_study(study_of(toy, tasks=tasks, recipes=["magnitude@0.9"]), out=tmp_path, observer=watcher)
    assert watcher.told == [
        ("this study cannot decide anything: factoid_qa: 1 items in one cluster do not tell how clusters differ", 0)
    ]


def test_stopping_early_has_keys_of_its_own(toy: Path, answers: MadeUp, tmp_path: Path):
    """An item's company is another one: records must not mix with those of a study that asks in the task's order."""
    tasks = [{"name": "multiple_choice:cloze", "limit": 40}]
    run_study(study_of(toy, recipes=["magnitude@0.9"], tasks=tasks), out=tmp_path / "a")
    run_study(study_of(toy, recipes=["magnitude@0.9"], tasks=tasks, stop="never"), out=tmp_path / "b")
    assert set(journalled(tmp_path / "a")["run_key"]).isdisjoint(journalled(tmp_path / "b")["run_key"])


def test_a_turn_is_never_parted_from_the_one_before():
    task = get_task("instruction", limit=24)
    items = task.items()
    rule = stopping_rules([task], {task.name: items}, margin=0.05, alpha=0.05)[task.name]
    place = {item: number for number, item in enumerate(rule.order.ids)}
    batch_of = {item: number for number, batch in enumerate(rule.order.batches) for item in batch}
    following = [item for item in items if item.follows]
    assert following
    assert all(batch_of[item.id] == batch_of[item.follows] for item in following)
    assert all(place[item.id] > place[item.follows] for item in following)


# Frontiers

LEVELS = "magnitude@" + ",".join(f"{tenth / 10}" for tenth in range(1, 10))


def brute_force(answers: MadeUp, alpha: float) -> tuple[dict[str, str], dict[str, str]]:
    """The verdict of every level where it would stop, and on all items."""
    task = get_task("factoid_qa", limit=480)
    items = task.items()
    strata = {item.id: item.cluster for item in items}
    order = order_items(list(strata), strata=strata)
    dense = {item.id: answers._record(task, item, 0.0).score for item in items}
    stopped, fixed = {}, {}
    for tenth in range(1, 10):
        scores = {item.id: answers._record(task, item, (tenth / 10) ** 3).score for item in items}
        stopped[f"0.{tenth}"] = compare_stopped(order, dense, scores, alpha=alpha).verdict
        fixed[f"0.{tenth}"] = compare(
            dense, scores, strata=strata, explain=False, same_model=False, alpha=alpha
        ).verdict
    return stopped, fixed


def test_a_search_finds_what_the_full_grid_says(toy: Path, answers: MadeUp, tmp_path: Path):
    """Both ends hold at an alpha divided by the looks of the search: matching on all items, failing where it stops."""
    result = run_frontier(values_of(toy), [LEVELS], out=tmp_path)
    facts = result.frontiers[0]
    searched, _ = brute_force(answers, 0.05)
    stopped, fixed = brute_force(answers, 0.05 / looks(9))
    strongest = max(level for level in searched if searched[level] == fixed[level] == "matching")
    assert facts["strongest_matching"] == strongest
    assert facts["weakest_not_matching"] == min(level for level in stopped if stopped[level] == "not matching")
    # The search alone would have said more.
    assert max(level for level in searched if searched[level] == "matching") > strongest
    assert facts["violations"] == ()
    matching = {row["level"]: row for row in facts["verdicts"] if row["verdict"] == "matching"}
    for row in facts["verdicts"]:
        confirmed = {fixed[row["level"]], stopped[row["level"]]}
        assert row["verdict"] in (confirmed if row["confirmed"] else {searched[row["level"]]})
    assert [level for level, row in matching.items() if row["confirmed"]] == [strongest]
    assert (matching[strongest]["items"], matching[strongest]["of"]) == (480, 480)
    # One task: over all tasks the same.
    assert result.overall[0]["strongest_matching"] == facts["strongest_matching"]
    assert result.overall[0]["weakest_not_matching"] == facts["weakest_not_matching"]


def test_what_it_cost_is_what_was_asked(toy: Path, answers: MadeUp, tmp_path: Path):
    result = run_frontier(values_of(toy), [LEVELS], out=tmp_path)
    records = journalled(tmp_path)
    compressed = records[(records["recipe"] != "dense") & (records["task"] == "factoid_qa")]
    cost = {row["task"]: row for row in result.cost}
    assert cost["factoid_qa"]["items"] == len(compressed)
    assert cost["factoid_qa"]["full"] == 9 * 480
    assert cost["factoid_qa"]["models"] <= cost["factoid_qa"]["levels"] == 9
    assert len(compressed) < 0.6 * 9 * 480


def test_perplexity_has_a_frontier_for_each_margin(toy: Path, answers: MadeUp, tmp_path: Path):
    result = run_frontier(values_of(toy), ["rtn@8b,4b,2b"], out=tmp_path)
    control = [row for row in result.frontiers if row["task"] == "perplexity"]
    assert [row["margin"] for row in control] == list(PERPLEXITY_MARGINS)
    assert all(row["of"] == 2 for one in control for row in one["verdicts"])
    assert result.overall[0]["tasks"] == ("factoid_qa",)


def test_bits_per_byte_have_no_say(toy: Path, answers: MadeUp, tmp_path: Path):
    tasks = [{"name": "factoid_qa", "limit": 60}, {"name": "perplexity", "unit": "bytes", "window": 48, "limit": 2}]
    result = run_frontier(values_of(toy, tasks=tasks), ["rtn@8b,2b"], out=tmp_path)
    assert {row.metric for row in result.frontiers} == {"accuracy", "bits_per_byte"}
    assert result.overall[0].tasks == ("factoid_qa",)


def test_several_tasks_match_together_or_not_at_all(toy: Path, answers: MadeUp, tmp_path: Path):
    tasks = [{"name": "factoid_qa", "limit": 480}, {"name": "multiple_choice:cloze", "limit": 120}]
    result = run_frontier(values_of(toy, tasks=tasks), [LEVELS], out=tmp_path)
    rows, (overall,) = {row["task"]: row for row in result.frontiers}, result.overall
    assert overall["tasks"] == ("factoid_qa", "multiple_choice:cloze")
    failing = [row["weakest_not_matching"] for row in rows.values()]
    assert overall["weakest_not_matching"] == min(failing)
    strongest = [row["strongest_matching"] for row in rows.values()]
    assert (
        overall["strongest_matching"] is None if None in strongest else overall["strongest_matching"] <= min(strongest)
    )


def test_a_level_that_only_a_refutation_calls_matching_is_in_no_answer(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Level 0.4 fails in the search, and matches with the statistics and seeds of the second look."""
    judge = levels_that_match(lambda _task, level, second: level < 0.4 or (level == 0.4 and second))
    monkeypatch.setattr(LevelJudge, "judge", judge)
    result = run_frontier(values_of(toy), [LEVELS], out=tmp_path)
    facts, (overall,) = result.frontiers[0], result.overall
    assert (facts.strongest_matching, facts.weakest_not_matching) == ("0.3", "0.5")
    assert (overall.strongest_matching, overall.weakest_not_matching) == ("0.3", "0.5")
    assert {row.level for row in facts.verdicts if row.verdict == "matching" and row.confirmed} == {"0.3"}
    assert any("0.4: matching in one look and not confirmed" in note for note in facts.notes)


def test_what_a_refutation_calls_matching_is_confirmed_where_all_tasks_need_it(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On one task 0.4 fails in the search though 0.5 matches; on the other 0.4 is the strongest."""
    asked: list[tuple[str, float]] = []

    def matches(task: str, level: float, second: bool) -> bool:
        return level <= 0.4 if task != "factoid_qa" else level <= 0.3 or level == 0.5 or (level == 0.4 and second)

    def confirmed(task: str, level: float) -> None:
        asked.append((task, level))

    monkeypatch.setattr(LevelJudge, "judge", levels_that_match(matches, on_every_item=confirmed))
    tasks = [{"name": "factoid_qa", "limit": 24}, {"name": "multiple_choice:cloze", "limit": 24}]
    result = run_frontier(values_of(toy, tasks=tasks), [LEVELS], out=tmp_path)
    rows = {row.task: row for row in result.frontiers}
    assert (rows["factoid_qa"].strongest_matching, rows["multiple_choice:cloze"].strongest_matching) == ("0.5", "0.4")
    assert result.overall[0].strongest_matching == "0.4"
    assert {task for task, level in asked if level == 0.4} == {"factoid_qa", "multiple_choice:cloze"}


def levels_that_match(
    matches: Callable[[str, float, bool], bool], on_every_item: Callable[[str, float], None] = lambda *_: None
) -> Callable[..., Judged]:
    """A judge of levels by task, level, and whether it is the second look."""

    def judge(
        self: LevelJudge, grid: Any, recipe: Any, task: Task, *, confirming: bool = False, every_item: bool = False,
        **_: Any,
    ) -> Judged:  # fmt: skip
        level = float(level_text(recipe))
        if every_item:
            on_every_item(task.name, level)
        verdict: Verdict = "matching" if matches(task.name, level, confirming) else "not matching"
        return Judged(verdict=verdict, comparison=None, items=1, of=1, confirmed=confirming)

    return judge


def test_a_search_goes_on_where_it_stopped(toy: Path, answers: MadeUp, tmp_path: Path):
    values = values_of(toy)
    run_frontier(values, [LEVELS], out=tmp_path / "whole")
    folder = tmp_path / "stopped"
    for _ in range(40):
        answers.asked.clear()
        answers.stop_after = 30
        try:
            run_frontier(values, [LEVELS], out=folder)
            break
        except KeyboardInterrupt:
            assert not (folder / FRONTIER_FILE).exists()
    else:
        pytest.fail("it never ended")
    assert content(folder, FRONTIER_FILE) == content(tmp_path / "whole", FRONTIER_FILE)
    answers.asked.clear()
    again = run_frontier(values, [LEVELS], out=folder)
    assert not answers.asked
    assert read_frontier(folder) == again


def test_a_level_whose_weights_changed_is_judged_anew_on_every_task(toy: Path, answers: MadeUp, tmp_path: Path):
    """The first task has all its records of the earlier weights; only the second compresses again, and drops them."""
    tasks = [{"name": "factoid_qa", "limit": 480}, {"name": "multiple_choice:cloze", "limit": 120}]
    whole = run_frontier(values_of(toy, tasks=tasks), [LEVELS], out=tmp_path)
    level = next(
        row.level for row in whole.frontiers[0].verdicts
        if row.level in {other.level for other in whole.frontiers[1].verdicts} and row.verdict == "matching"
    )  # fmt: skip
    recipe = f"magnitude@{level}"
    with contextlib.closing(sqlite3.connect(tmp_path / JOURNAL_FILE)) as connection, connection:
        connection.execute("UPDATE records SET score = 0 WHERE recipe = ?", [recipe])
        connection.execute("DELETE FROM records WHERE recipe = ? AND task LIKE 'multiple_choice%'", [recipe])
        connection.execute("UPDATE artifacts SET digest = 'other' WHERE report LIKE ?", [f"%{recipe}%"])
    again = run_frontier(values_of(toy, tasks=tasks), [LEVELS], out=tmp_path)
    assert (again.frontiers, again.overall) == (whole.frontiers, whole.overall)
    assert [line for line in again.warnings if "gave other weights" in line]


def test_weights_that_never_come_out_alike_end_the_search(
    toy: Path, answers: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Nothing can be said of a level whose records are dropped whenever it is compressed."""
    tasks = [{"name": "factoid_qa", "limit": 480}, {"name": "multiple_choice:cloze", "limit": 120}]
    digests = iter(range(1000))
    monkeypatch.setattr(StudyContext, "recorded_digest", lambda *_: f"weights {next(digests)}")
    monkeypatch.setattr(levels_module, "MODELS_KEPT", 1)
    for name in ("is_complete", "has_every_item"):
        monkeypatch.setattr(evaluation_module.Evaluation, name, lambda *_: False)
    with pytest.raises(ModelError, match="other weights twice in one search"):
        run_frontier(values_of(toy, tasks=tasks), ["magnitude@0.1,0.5,0.9"], out=tmp_path)


def test_a_search_of_two_versions_says_so(toy: Path, answers: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = run_frontier(values_of(toy), ["magnitude@0.1,0.9"], out=tmp_path)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9" if name == "torch" else version(name))
    assert run_frontier(values_of(toy), ["magnitude@0.1,0.9"], out=tmp_path).warnings == whole.warnings  # asks nothing
    with contextlib.closing(sqlite3.connect(tmp_path / JOURNAL_FILE)) as connection, connection:
        connection.execute("DELETE FROM records WHERE recipe = 'magnitude@0.9'")
    (said,) = set(run_frontier(values_of(toy), ["magnitude@0.1,0.9"], out=tmp_path).warnings) - set(whole.warnings)
    assert said.startswith(f"the answers in this folder were made with torch {version('torch')} and 9.9")


def test_a_level_that_cannot_be_compressed_is_not_judged(
    toy: Path, answers: MadeUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As a level too severe for float16: the search goes on among the others."""
    compressed, tried = LocalExecutor.compressed, Counter[str]()

    def too_severe(executor: LocalExecutor, variant: Variant, *others: Any) -> TransformersModel:
        tried[variant.label] += 1
        if variant.label == "magnitude@0.9":
            raise NumericalError("leads to values that float16 cannot hold")
        return compressed(executor, variant, *others)

    monkeypatch.setattr(LocalExecutor, "compressed", too_severe)
    result = run_frontier(values_of(toy), ["magnitude@0.1,0.9"], out=tmp_path)
    facts = result.frontiers[0]
    assert (facts.strongest_matching, facts.weakest_not_matching) == ("0.1", None)
    verdicts = {row.level: (row.verdict, row.items, row.of) for row in facts.verdicts}
    assert verdicts["0.9"] == ("incomplete", 0, 480)
    assert "magnitude@0.9 cannot be judged: leads to values that float16 cannot hold" in result.warnings
    assert tried["magnitude@0.9"] == 1  # for all tasks


def test_searched_without_propagation_and_confirmed_with_it_and_with_other_seeds(
    toy: Path, answers: MadeUp, tmp_path: Path
):
    result = run_frontier(
        values_of(toy, tasks=[{"name": "factoid_qa", "limit": 480}]),
        ["wanda@0.1,0.3,0.9"],
        out=tmp_path,
        seeds=(0, 1),
        search_propagate=False,
    )
    assert result.settings["search_propagate"] is False
    assert any("searched without propagation" in warning for warning in result.warnings)
    (facts,) = result.frontiers
    assert (facts["strongest_matching"], facts["weakest_not_matching"]) == ("0.3", "0.9")
    (confirmed,) = [row for row in facts["verdicts"] if row["level"] == "0.3"]
    assert (confirmed["confirmed"], confirmed["items"], confirmed["of"]) == (True, 480, 480)  # of both seeds
    records = journalled(tmp_path)
    cells = records[records["recipe"] == "wanda@0.3"].groupby("run_key")
    # The search's cell, and one propagated for each seed with every item.
    assert sorted(len(cell) for _, cell in cells)[1:] == [480, 480]
    assert sorted(int(cell["seed"].iloc[0]) for _, cell in cells) == [0, 0, 1]


@pytest.mark.parametrize(
    ("methods", "options", "changes", "reason"),
    [
        ([], {}, {}, "at least one method"),
        (["magnitude@0.1,0.2", "magnitude@0.2,0.3"], {}, {}, "a level is in two of the grids"),
        (["magnitude"], {"seeds": ()}, {}, "at least one"),
        (["magnitude"], {"seeds": (1, 1)}, {}, "distinct calibration seeds"),
        (["wanda"], {"seeds": (-1,)}, {}, "greater than or equal to 0"),
        (["wander"], {}, {}, "unknown method 'wander'"),
        (["magnitude"], {}, {"stop": "never"}, "a frontier sets stop itself"),
        (["magnitude"], {}, {"margin": 1.5}, "margin: Input should be less than 1"),
        (["magnitude"], {}, {"tasks": []}, "at least one task"),
        (["wanda"], {"search_propagate": False}, {"propagate": False}, "nothing to confirm propagated"),
    ],
)
def test_a_search_that_cannot_be_is_refused(
    toy: Path, tmp_path: Path, methods: list[str], options: dict[str, Any], changes: dict[str, Any], reason: str
):
    with pytest.raises(ConfigError) as raised:
        run_frontier(values_of(toy, **changes), methods, out=tmp_path / "new", **options)
    assert reason in str(raised.value)
    assert not (tmp_path / "new").exists()


def test_levels_that_do_not_fit_the_model_are_refused_before_any_work(toy: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="7"):
        run_frontier(values_of(toy), ["magnitude@6:7,5:7"], out=tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 99}', '{"schema": 1, "study": {}}'])
def test_a_file_that_is_no_frontier(tmp_path: Path, text: str):
    with pytest.raises(DataError, match="run `kick frontier` to its end first"):
        read_frontier(tmp_path)
    (tmp_path / FRONTIER_FILE).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"frontier\.json"):
        read_frontier(tmp_path)


def test_a_run_tells_its_forecast_what_it_sees_and_asks_perplexity_first(
    toy: Path, tmp_path: Path, answers: MadeUp
) -> None:
    with timelines.recorded() as lines:
        run_study(study_of(toy, recipes=["magnitude@0.4", "magnitude@0.9"]), out=tmp_path / "run")
    events = [(name, *arguments) for _, name, arguments in lines[0].events]
    told = [event[1] for event in events if event[0] in ("see_rise", "see_loss")]
    of_recipes = list(dict.fromkeys(told))
    assert of_recipes == [
        f"magnitude@{level} on {task}" for level in (0.4, 0.9) for task in ("perplexity", "factoid_qa")
    ]
    loss, error = [rest for name, key, *rest in events if name == "see_loss" and key.startswith("magnitude@0.9")][-1]
    assert loss == pytest.approx(0.9**3, abs=4 * error)
    accuracy, has_signal = [rest for name, key, *rest in events if name == "see_accuracy"][-1]
    assert has_signal
    assert accuracy == pytest.approx(0.95, abs=0.06)
    # The same command knows from the journal what the earlier session saw, and that nothing is left.
    with timelines.recorded() as lines:
        run_study(study_of(toy, recipes=["magnitude@0.4", "magnitude@0.9"]), out=tmp_path / "run")
    again = {(name, arguments[0]) for _, name, arguments in lines[0].events}
    assert {("see_loss", f"magnitude@{level} on factoid_qa") for level in (0.4, 0.9)} <= again
    assert not any(name == "work" and "on factoid_qa" in key for name, key in again)
