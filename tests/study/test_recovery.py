"""Studies with recovered recipes: the section of the file, keys, a run that is stopped and resumed, plan, frontier."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmkick.claims.runs import ClaimRun, models_of
from llmkick.compression.recipe import Recovered
from llmkick.compression.recoveries import LoRA, Training
from llmkick.compression.storage import whole_model
from llmkick.compression.storage.cache import entries
from llmkick.compression.walk.calibration import calibrate
from llmkick.compression.walk.compress import compress
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.loading import load_model
from llmkick.study.frontier.search import run_frontier
from llmkick.study.levels import level_grid, level_text
from llmkick.study.plan import plan_study
from llmkick.study.progress import Silent
from llmkick.study.results.results import RESULTS_FILE, StudyResult
from llmkick.study.run import run_study
from llmkick.study.spec.study import Study, load_study, make_study
from toy import save_toy

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "recover.toml"
RECIPES = ("wanda@2:4", "wanda@2:4+lora-r2", "wanda@2:4+reconstruct", "gptq@3b-g8", "gptq@3b-g8+eora-r4")


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, max_position_embeddings=512)
    return folder


def study_of(toy: Path, **changes: Any) -> Study:
    values = {
        "model": str(toy),
        "dtype": "float32",
        "device": "cpu",
        "recipes": list(RECIPES),
        "seeds": [3],
        "tasks": [{"name": "factoid_qa", "limit": 4}, {"name": "perplexity", "window": 48, "limit": 3}],
        "calibration": {"source": "pocket", "sequences": 8, "length": 32},
        "recovery": {"steps": 4, "learning_rate": 0.01},
    }
    return make_study({**values, **changes})


@pytest.fixture(scope="module")
def finished(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return run_study(study_of(toy), out=tmp_path_factory.mktemp("runs") / "finished")


def test_the_rows_are_those_of_the_recovered_models(toy: Path, finished: StudyResult) -> None:
    model = load_model(str(toy), dtype="float32", device="cpu")
    windows = calibrate(model, source="pocket", sequences=8, length=32, seed=3)
    rows = {row.recipe: row for row in finished.compression}
    assert set(rows) == set(RECIPES)
    for recipe in study_of(toy).parsed_recipes():
        _, report = compress(model, recipe, calibration=windows)
        row = rows[str(recipe)]
        assert (row.digest, row.stored_bytes) == (report.digest, report.stored_bytes)
        assert (row.recovery is None) == (not isinstance(recipe, Recovered))
        if row.recovery is not None and report.recovery is not None:
            assert row.recovery.layers == report.recovery.layers
            assert (row.recovery.tokens, row.recovery.steps) == (report.recovery.tokens, report.recovery.steps)
            assert row.recovery.extra_bytes == report.recovery.extra_bytes
    trained = rows["wanda@2:4+lora-r2"].recovery
    assert trained is not None
    assert (trained.steps, trained.tokens, trained.objective) == (4, 4 * 2 * 32, "distillation")
    kept = rows["gptq@3b-g8+eora-r4"].recovery
    assert kept is not None
    assert kept.extra_bytes > 0
    assert rows["gptq@3b-g8+eora-r4"].stored_bytes - rows["gptq@3b-g8"].stored_bytes == kept.extra_bytes


def test_rows_without_a_recovery_have_no_entry_for_it(finished: StudyResult) -> None:
    rows = json.loads((finished.folder / RESULTS_FILE).read_text("utf-8"))["compression"]
    assert {row["recipe"]: "recovery" in row for row in rows} == {text: text.count("+") == 1 for text in RECIPES}


def test_levels_are_those_of_the_base(finished: StudyResult) -> None:
    level = finished.level("wanda@2:4+lora-r2")
    assert (level.method, level.label, level.kind, level.recovery) == ("wanda+lora-r2", "2:4", "n:m", "lora-r2")


def test_the_claims_leave_recovered_recipes_out(finished: StudyResult) -> None:
    (models,) = models_of([ClaimRun(name="run", result=finished, records=lambda: None)])
    cells = models.cells(lambda task: True, every_run=True)
    assert not any(cell.level.recovery for cell in cells)


def test_a_run_that_was_stopped_ends_with_the_same_results(
    toy: Path, finished: StudyResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))

    class Stopping(Silent):
        def stage(self, title: str, total: int) -> None:
            if "reconstruct" in title:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(study_of(toy), out=tmp_path / "run", observer=Stopping())
    resumed = run_study(study_of(toy), out=tmp_path / "run")
    one, other = (
        json.loads((folder / RESULTS_FILE).read_text("utf-8")) for folder in (finished.folder, resumed.folder)
    )
    assert one["results"] == other["results"]
    assert one["comparisons"] == other["comparisons"]
    assert [row["digest"] for row in one["compression"]] == [row["digest"] for row in other["compression"]]


def test_the_base_of_a_training_is_the_cached_model(toy: Path, finished: StudyResult) -> None:
    recipes = [entry.recipe for entry in entries() if entry.complete]
    assert sorted(recipes) == sorted(RECIPES)


def test_one_pass_and_trainings_after_it(toy: Path, tmp_path: Path) -> None:
    result = run_study(study_of(toy, propagate=False), out=tmp_path / "run")
    model = load_model(str(toy), dtype="float32", device="cpu")
    windows = calibrate(model, source="pocket", sequences=8, length=32, seed=3)
    for recipe, row in zip(study_of(toy).parsed_recipes(), result.compression, strict=True):
        assert row.digest == compress(model, recipe, calibration=windows, propagate=False)[1].digest


def test_the_settings_are_in_the_hash_only_where_a_recipe_is_trained(toy: Path) -> None:
    def hashed(recipes: list[str], **recovery: Any) -> str:
        return study_of(toy, recipes=recipes, recovery=recovery).hash()

    assert hashed(["wanda@2:4", "wanda@2:4+eora-r4"], steps=5) == hashed(["wanda@2:4", "wanda@2:4+eora-r4"])
    assert hashed(["wanda@2:4+lora"], steps=5) != hashed(["wanda@2:4+lora"])
    assert hashed(["wanda@2:4+lora"], minutes=2.0) != hashed(["wanda@2:4+lora"])


def test_the_section_is_what_its_recipes_are_trained_with(toy: Path) -> None:
    settings = {"steps": 7, "learning_rate": 0.5, "objective": "next-token", "batch": 3, "tokens": 999, "minutes": 2.5}
    study = study_of(toy, recipes=["wanda@2:4+lora", "wanda@2:4+eora-r4"], recovery=settings)
    trained, computed = study.parsed_recipes()
    assert isinstance(trained, Recovered)
    assert isinstance(trained.recovery, LoRA)
    assert trained.recovery.training == Training(**settings)  # type: ignore[arg-type]
    assert str(computed) == "wanda@2:4+eora-r4"
    assert make_study({"model": "m", "others": ["n"], "tasks": ["factoid_qa"]}).recovery.training() == Training()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, "steps: Input should be greater than or equal to 0, got -1"),
        ({"learning_rate": 2.0}, "learning_rate: Input should be less than or equal to 1"),
        ({"objective": "mse"}, "unknown objective 'mse'.*choose from: distillation, next-token"),
        ({"tokens": 0}, "tokens: Input should be greater than or equal to 1"),
        ({"minutes": 0.0}, "minutes: Input should be greater than 0"),
        ({"epochs": 3}, "unknown key; choose from: steps, learning_rate, objective, batch, tokens, minutes"),
    ],
)
def test_a_wrong_setting_is_named(toy: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_of(toy, recovery=values)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [("wanda@2:4+lora+eora-r4", "two recoveries"), ("wanda@2:4+lora-x", "unknown option 'x' of lora")],
)
def test_a_wrong_recipe_is_named(toy: Path, recipe: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_of(toy, recipes=[recipe])


def test_a_rank_above_the_width_is_refused_before_any_work(toy: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rank 99 is more than"):
        run_study(study_of(toy, recipes=["wanda@2:4+lora-r99"]), out=tmp_path / "run")


@pytest.mark.parametrize("command", ["run", "frontier"])
def test_a_training_that_does_not_fit_into_memory_is_refused_before_any_work(
    command: str, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the model in memory a training needs three times its weights."""
    model = load_model(str(toy), dtype="float32", device="cpu")
    needed = 3 * 4 * model.info.parameters

    def start(recipe: str, free: int) -> None:
        monkeypatch.setattr(whole_model.psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
        if command == "run":
            run_study(study_of(toy, recipes=[recipe]), out=tmp_path / f"{recipe} {free}", observer=Stopping())
            return
        values = study_of(toy).model_dump(mode="json", exclude={"recipes", "seeds", "stop"}, exclude_none=True)
        level = recipe.replace("2:4", "0.2,0.5")
        run_frontier(values, [level], out=tmp_path / f"{recipe} {free}", observer=Stopping())

    class Stopping(Silent):
        def stage(self, title: str, total: int) -> None:
            if not title.startswith("loading"):
                raise KeyboardInterrupt  # the checks are over

    with pytest.raises(ConfigError, match=r"a training of toy needs .* GB beside the model on cpu"):
        start("wanda@2:4+lora-r2", needed - 1)
    for recipe, free in (("wanda@2:4+lora-r2", needed), ("wanda@2:4+eora-r2", 0), ("wanda@2:4", 0)):
        with pytest.raises(KeyboardInterrupt):
            start(recipe, free)


def test_a_study_whose_training_is_done_asks_for_no_memory(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(toy, recipes=["wanda@2:4+lora-r2"])
    run_study(study, out=tmp_path / "run")
    monkeypatch.setattr(whole_model, "_free_beside", lambda _: 0)
    assert run_study(study, out=tmp_path / "run").failures == ()
    with pytest.raises(ConfigError, match="a training of toy needs"):
        run_study(study, out=tmp_path / "another")


def test_a_server_cannot_be_recovered() -> None:
    with pytest.raises(ConfigError, match="is a server, whose model cannot be compressed here"):
        make_study({"model": "openai:http://x/v1#m", "recipes": ["wanda@2:4+lora"], "tasks": ["factoid_qa"]})


@pytest.mark.parametrize(
    ("text", "base", "method"),
    [
        ("wanda+lora", "wanda", "wanda+lora"),
        ("gptq@8b,4b+eora-r4", "gptq@8b,4b", "gptq+eora-r4"),
        ("magnitude@n:m+reconstruct", "magnitude@n:m", "magnitude+reconstruct"),
    ],
)
def test_the_grid_of_a_recovered_method_has_the_levels_of_its_base(text: str, base: str, method: str) -> None:
    grid, plain = level_grid(text), level_grid(base)
    assert (grid.name, grid.method, grid.kind) == (text, method, plain.kind)
    assert [str(recipe) for recipe in grid.recipes] == [
        f"{recipe}+{text.rpartition('+')[2]}" for recipe in plain.recipes
    ]
    assert [level_text(recipe) for recipe in grid.recipes] == [level_text(recipe) for recipe in plain.recipes]


def test_a_frontier_of_recovered_recipes(toy: Path, tmp_path: Path) -> None:
    values = study_of(toy).model_dump(mode="json", exclude={"recipes", "seeds", "stop"}, exclude_none=True)
    values["tasks"] = [{"name": "factoid_qa", "limit": 4}]
    result = run_frontier(values, methods=["wanda@0.2,0.5+lora-r2"], seeds=(0,), out=tmp_path / "frontier")
    assert [overall.method for overall in result.overall] == ["wanda+lora-r2"]
    assert result.overall[0].levels == ("0.2", "0.5")
    assert any("what came back is not measured on factoid_qa: " in warning for warning in result.warnings)


def test_the_example_is_planned(tmp_path: Path) -> None:
    study = load_study(EXAMPLE)
    bases = ("wanda@0.5", "wanda@2:4", "gptq@3b-g128")
    assert set(study.recipes) == {
        f"{base}{recovery}" for base in bases for recovery in ("", "+eora-r64", "+reconstruct", "+lora")
    }
    assert {level.axes.get("shots") for level in study.task_levels()} == {None, 0, 3}
    save_toy(tmp_path / "toy", max_position_embeddings=2048)
    both = []
    for recipes in (study.recipes, bases):
        values = study.model_copy(update={"recipes": recipes, "model": str(tmp_path / "toy")}).model_dump(mode="json")
        both.append(plan_study(make_study({name: value for name, value in values.items() if value is not None})))
    plan, plain = both
    assert (plan.models, plain.models) == (1 + 12 * 3, 1 + 3 * 3)
    assert plan.compression_hours is not None
    assert plain.compression_hours is not None
    assert plan.compression_hours > 2 * plain.compression_hours
