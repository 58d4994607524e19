"""Studies with axes on a toy model: every level is a run of its own, paired with the dense model asked alike."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llmkick.compression.walk import self_sampling
from llmkick.errors import ConfigError, DataError
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.announcement import Announcement
from llmkick.study.forecast import Forecast
from llmkick.study.journal.database import JOURNAL_FILE
from llmkick.study.journal.journal import Journal
from llmkick.study.plan import plan_study
from llmkick.study.progress import Silent
from llmkick.study.results.from_journal import partial_result
from llmkick.study.results.results import RESULTS_FILE, StudyResult, read_results
from llmkick.study.results.unfinished import what_is_left
from llmkick.study.run import run_study
from llmkick.study.running import compressor as compressor_module
from llmkick.study.spec.study import Study, make_study
from llmkick.tasks import evaluate as asking
from toy import save_toy

COUNTS = (1, 3, 6)
SHOTS = (0, 2)


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(asking, "BATCH_ITEMS", 4)
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, max_position_embeddings=512)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(" ".join(f"the {number} and then" for number in range(400)), encoding="utf-8")
    return file


def study_of(toy: Path, text: Path, **changes: Any) -> Study:
    values = {
        "name": "axes",
        "model": str(toy),
        "dtype": "float32",
        "device": "cpu",
        "recipes": ["magnitude@0.5", "wanda@0.5", "sparsegpt@0.5"],
        "tasks": [
            {"name": "multiple_choice", "id": "mmlu", "limit": 12, "shots": list(SHOTS)},
            {"name": "perplexity", "window": 48, "limit": 3},
        ],
        "calibration": {"source": str(text), "sequences": list(COUNTS), "length": 32},
    }
    return make_study({**values, **changes})


@pytest.fixture(scope="module")
def result(toy: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return run_study(study_of(toy, text), out=tmp_path_factory.mktemp("runs") / "axes")


def values(result: StudyResult, *, recipe: str, task: str) -> list[float | None]:
    return [row.value for row in result.results if (row.recipe, row.task) == (recipe, task)]


@pytest.mark.parametrize(("count", "shots"), [(1, 0), (3, 2), pytest.param(6, 0, marks=pytest.mark.slow)])
def test_every_level_is_what_a_study_of_this_level_alone_gives(
    toy: Path, text: Path, result: StudyResult, tmp_path: Path, count: int, shots: int
):
    alone = run_study(
        study_of(
            toy,
            text,
            tasks=[
                {"name": "multiple_choice", "limit": 12, "shots": shots},
                {"name": "perplexity", "window": 48, "limit": 3},
            ],
            calibration={"source": str(text), "sequences": count, "length": 32},
        ),
        out=tmp_path / "alone",
    )
    digests = {row.recipe: row.digest for row in result.compression}
    for row in alone.compression:
        label = row.recipe if row.recipe.startswith("magnitude") else f"{row.recipe} [sequences={count}]"
        assert digests[label] == row.digest, "the same weights, bit for bit"
        for of_level, of_alone in ((f"mmlu [shots={shots}]", "multiple_choice:letter"), ("perplexity", "perplexity")):
            here, there = values(result, recipe=label, task=of_level), values(alone, recipe=row.recipe, task=of_alone)
            assert here == there
            assert len(here) == 1
        compared = next(c for c in result.comparisons if (c.recipe, c.task) == (label, f"mmlu [shots={shots}]"))
        same = next(c for c in alone.comparisons if (c.recipe, c.task) == (row.recipe, "multiple_choice:letter"))
        assert (compared.dense, compared.compressed, compared.interval) == (same.dense, same.compressed, same.interval)


def test_results_say_the_level_of_every_row(result: StudyResult):
    again = read_results(result.folder)
    assert [row.label for row in again.variants] == again.labels
    assert again.axes_of("wanda@0.5 [sequences=3]", "mmlu [shots=2]") == {"calibration.sequences": 3, "shots": 2}
    assert again.axes_of("magnitude@0.5", "perplexity") == {}
    for row in again.results:
        assert row.axes == (
            {} if row.recipe == "dense" and row.task == "perplexity" else again.axes_of(row.recipe, row.task)
        )
    assert [(task.name, task.task, task.axes) for task in again.tasks] == [
        ("mmlu [shots=0]", "multiple_choice:letter", {"shots": 0}),
        ("mmlu [shots=2]", "multiple_choice:letter", {"shots": 2}),
        ("perplexity", None, {}),
    ]
    assert {row.recipe: row.axes for row in again.compression}["sparsegpt@0.5 [sequences=6]"] == {
        "calibration.sequences": 6
    }
    level = again.level("wanda@0.5 [sequences=3]")
    assert (level.method, level.kind, level.label, level.sparsity) == ("wanda [sequences=3]", "sparsity", "0.5", 0.5)


def test_a_method_without_calibration_runs_once_and_says_so(result: StudyResult):
    assert len(values(result, recipe="magnitude@0.5", task="perplexity")) == 1
    assert "magnitude has no calibration: run once, not for each level of calibration.sequences" in result.warnings


def test_an_unfinished_run_shows_its_levels(result: StudyResult):
    journal = Journal(result.folder)
    try:
        shown = partial_result(journal, result.folder)
    finally:
        journal.close()
    assert shown.labels == result.labels
    assert [(c.recipe, c.task) for c in shown.comparisons] == [(c.recipe, c.task) for c in result.comparisons]
    assert [row.axes for row in shown.results] == [row.axes for row in result.results]
    assert {row.recipe for row in shown.compression} == {row.recipe for row in result.compression}


def test_a_resumed_run_asks_and_compresses_nothing(
    toy: Path, text: Path, result: StudyResult, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(asking, "evaluate_items", lambda *_, **__: pytest.fail("asked again"))
    before = json.loads((result.folder / RESULTS_FILE).read_text(encoding="utf-8"))["comparisons"]
    run_study(study_of(toy, text), out=result.folder)
    assert json.loads((result.folder / RESULTS_FILE).read_text(encoding="utf-8"))["comparisons"] == before


def test_the_plan_counts_every_level(toy: Path, text: Path):
    plan = plan_study(study_of(toy, text, seeds=[0, 1]))
    assert plan.models == 1 + 1 + 2 * 3 * 2
    assert plan.cells == plan.models * 3
    assert plan.calibration_tokens == 6 * 32, "smaller counts are part of the largest"
    assert any("magnitude has no calibration: run once" in line for line in plan.lines())


class Watching(Silent):
    """An observer that keeps the plan of a run, and how much of each kind of work it begins with."""

    def plan(self, forecast: Forecast, announcement: Announcement) -> None:
        self.forecast, self.announcement = forecast, announcement
        self.begun = {kind: forecast.left(kind) for kind in ("calibrate", "compress", "ask")}


@pytest.mark.parametrize("propagate", [True, False])
def test_the_forecast_has_parts_for_every_level_and_all_of_them_end(
    toy: Path, text: Path, tmp_path: Path, propagate: bool
):
    calibration = {"source": str(text), "sequences": [2, 4], "length": [16, 32]}
    tasks = [{"name": "multiple_choice", "id": "mmlu", "limit": 4, "shots": [0, 1]}]
    recipes = ["magnitude@0.5", "wanda@0.5"]
    study = study_of(
        toy, text, recipes=recipes, calibration=calibration, propagate=propagate, seeds=[0, 1], tasks=tasks
    )
    watching = Watching()
    run_study(study, out=tmp_path / "run", observer=watching)
    models = 1 + 2 * 2 * 2
    assert watching.announcement.cells == (1 + models) * 2
    assert watching.announcement.compressions == models
    assert watching.begun["calibrate"] == (2 * 2, 2 * 4 * (16 + 32)), "smaller counts are part of the largest"
    passes = 1 + 2 * 2
    assert watching.begun["compress"][0] == (models if propagate else passes)
    assert {kind: watching.forecast.left(kind)[1] for kind in watching.begun} == dict.fromkeys(watching.begun, 0)
    again = Watching()
    run_study(study, out=tmp_path / "run", observer=again)
    assert again.announcement.is_empty
    assert again.begun["calibrate"][0] == 0


def test_what_is_left_counts_every_level(toy: Path, text: Path):
    study = study_of(toy, text)
    said = what_is_left(study, [], {}, {}, compressed=0)
    assert said.startswith(f"0 of {(1 + 1 + 2 * 3) * 3} cells are done")


def test_without_propagation_one_pass_serves_all_counts(
    toy: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    passes: list[list[tuple[str, int]]] = []
    together = compressor_module.compress_into

    def counting(model: TransformersModel, jobs: Any, **options: Any) -> Any:
        passes.append(sorted((str(job.recipe), len(job.windows.tokens)) for job in jobs))
        return together(model, jobs, **options)

    monkeypatch.setattr(compressor_module, "compress_into", counting)
    study = study_of(toy, text, propagate=False, tasks=[{"name": "perplexity", "window": 48, "limit": 2}])
    found = run_study(study, out=tmp_path / "run")
    assert passes == [sorted((recipe, count) for recipe in ("wanda@0.5", "sparsegpt@0.5") for count in COUNTS)]
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", "0")
    one_by_one = run_study(study, out=tmp_path / "one-by-one")
    assert found.results == one_by_one.results
    assert [row.digest for row in found.compression] == [row.digest for row in one_by_one.compression]


def test_sampled_text_is_sampled_once_for_all_counts(
    toy: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sampled: list[int] = []
    sample = self_sampling._sample

    def counted(model: Any, batch: range, *others: Any) -> Any:
        sampled.append(len(batch))
        return sample(model, batch, *others)

    monkeypatch.setattr(self_sampling, "_sample", counted)
    calibration = {"sequences": [2, 5], "length": 24}
    run_study(study_of(toy, text, recipes=["wanda@0.5"], calibration=calibration), out=tmp_path / "run")
    assert sampled == [5]
    journal = Journal(tmp_path / "run")
    try:
        rows = journal.rows("SELECT sequences FROM calibrations ORDER BY sequences")
    finally:
        journal.close()
    assert [row[0] for row in rows] == [2, 5]


def test_too_many_windows_for_the_text_are_refused_before_anything_is_asked(toy: Path, text: Path, tmp_path: Path):
    calibration = {"source": str(text), "sequences": [2, 5000], "length": 32}
    with pytest.raises(DataError, match=r"calibration\.sequences 5000: as many windows of 32 tokens are 160,000"):
        run_study(study_of(toy, text, calibration=calibration), out=tmp_path / "run")
    journal = Journal(tmp_path / "run")
    try:
        assert not journal.run_keys()
    finally:
        journal.close()
    assert (tmp_path / "run" / JOURNAL_FILE).is_file()


def test_two_sources_with_one_text_are_refused(toy: Path, text: Path, tmp_path: Path):
    same = tmp_path / "same.txt"
    same.write_text(text.read_text(encoding="utf-8"), encoding="utf-8")
    calibration = {"source": [str(text), str(same)], "sequences": 2, "length": 32}
    with pytest.raises(ConfigError, match=r"calibration\.source: .*text\.txt and .*same\.txt give the same windows"):
        run_study(study_of(toy, text, calibration=calibration), out=tmp_path / "run")


def test_pocket_calibration_says_what_it_is(toy: Path, text: Path, tmp_path: Path):
    study = study_of(
        toy,
        text,
        recipes=["wanda@0.5"],
        tasks=[{"name": "factoid_qa", "limit": 4}, {"name": "perplexity", "window": 48, "limit": 3}],
        calibration={"source": "pocket", "sequences": 2, "length": 32},
    )
    result = run_study(study, out=tmp_path / "run")
    assert result.compression[0].calibration_source == "pocket"
    assert "calibrated on the pocket texts of this package" in result.warnings
    assert "perplexity: asked about the texts that calibrated, which flatters calibrated recipes" in result.warnings
    assert not any("overlap" in line for line in result.warnings)
