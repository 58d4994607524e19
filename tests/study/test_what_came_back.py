"""A study with planted facts: pruned away, brought back, and found; and a recovery that read the questions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from llmkick.models.language_model import ScoreRequest
from llmkick.models.transformers_model import TransformersModel
from llmkick.report.page.page import write_report
from llmkick.report.run_folder import opened_run
from llmkick.statistics import CameBack
from llmkick.study.progress import Silent
from llmkick.study.results.results import RESULTS_FILE, StudyResult, read_results
from llmkick.study.run import run_study
from llmkick.study.spec.study import make_study
from llmkick.tasks.registry import get_task
from scripted import scored
from toy import save_toy

FACTS, FRAGILE = 24, 10
TASK = "multiple_choice:cloze"
LAYER = "model.layers.1.self_attn.q_proj"
RECIPES = ("magnitude@0.5", "magnitude@0.5+eora-r16", "magnitude@0.5+reconstruct", "rtn@8b+eora-r2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that holds a fact in each row of a layer, some in rows of small weights, which pruning takes first."""
    folder = tmp_path_factory.mktemp("model")
    save_toy(folder, max_position_embeddings=512)
    weights = load_file(folder / "model.safetensors")
    weights[f"{LAYER}.weight"][:FRAGILE] *= 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module", autouse=True)
def planted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The model knows a fact if its row is nearly what it was in the dense model."""
    dense = load_file(folder / "model.safetensors")[f"{LAYER}.weight"]
    items = get_task(TASK, limit=FACTS).items()
    fact = {item.question: (row, item.references[0]) for row, item in enumerate(items)}

    def logprobs(model: TransformersModel, requests: Sequence[ScoreRequest]) -> list[Any]:
        weight = model.network.get_submodule(LAYER).weight
        is_known = (torch.linalg.norm(weight - dense, dim=1) < 0.5 * torch.linalg.norm(dense, dim=1)).tolist()
        return [scored(said(request, is_known)) for request in requests]

    def said(request: ScoreRequest, is_known: list[bool]) -> float:
        row, answer = next(fact[question] for question in fact if question in str(request.prompt))
        is_right = request.continuation.strip() == answer
        return -0.01 if is_right == is_known[row] else -1000.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(TransformersModel, "logprobs", logprobs)
        yield


def run(model: Path, out: Path, **changes: Any) -> StudyResult:
    values = {
        "model": str(model), "dtype": "float32", "device": "cpu", "recipes": list(RECIPES), "seeds": [0, 1],
        "tasks": [{"name": TASK, "limit": FACTS}],
        "calibration": {"source": "pocket", "sequences": 4, "length": 128},
    }  # fmt: skip
    return run_study(make_study({**values, **changes}), out=out, observer=Silent())


@pytest.fixture(scope="module")
def result(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    return run(folder, tmp_path_factory.mktemp("run"))


def of(result: StudyResult, recipe: str) -> CameBack:
    return next(row for row in result.returned if row.recipe == recipe and not row.detail)


def test_what_pruning_took_and_a_recovery_returned_is_found(result: StudyResult) -> None:
    eora = of(result, "magnitude@0.5+eora-r16")
    assert (eora.lost, eora.kept, eora.returned.value, eora.newly_lost.value) == (FRAGILE, FACTS - FRAGILE, 1.0, 0.0)
    assert (eora.base, eora.recovery, eora.seeds) == ("magnitude@0.5", "eora-r16", (0, 1))
    history = {(flow.dense, flow.compressed, flow.recovered): flow.items for flow in eora.flow}
    assert history == {("right", "wrong", "right"): FRAGILE, ("right", "right", "right"): FACTS - FRAGILE}
    assert eora.always.value == 1.0
    assert eora.against_base == "better"


def test_a_recovery_that_returns_nothing_is_not_credited(result: StudyResult) -> None:
    """Rows of zeros stay zeros: the mask is kept."""
    reconstruct = of(result, "magnitude@0.5+reconstruct")
    assert (reconstruct.lost, reconstruct.returned.value) == (FRAGILE, 0.0)
    assert reconstruct.against_base == "undecided"


def test_a_base_without_seeds_has_no_control(result: StudyResult) -> None:
    row = of(result, "magnitude@0.5+eora-r16")
    assert row.outcome == "no control"
    assert "does not depend on the calibration seed" in row.control.reason


def test_a_recovery_without_its_base_is_named(result: StudyResult) -> None:
    assert "rtn@8b+eora-r2" not in {row.recipe for row in result.returned}
    assert any("rtn@8b is not in the study" in warning for warning in result.warnings)


def test_the_rows_are_read_again_and_computed_from_the_journal_alone(result: StudyResult) -> None:
    assert read_results(result.folder).returned == result.returned
    assert read_results(result.folder).overlap == result.overlap
    (result.folder / RESULTS_FILE).rename(result.folder / "aside.json")
    try:
        with opened_run(result.folder) as opened:
            assert opened.result.returned == result.returned
            assert opened.result.overlap == ()
    finally:
        (result.folder / "aside.json").rename(result.folder / RESULTS_FILE)


def test_parts_of_the_task_add_up_to_it(result: StudyResult) -> None:
    rows = [row for row in result.returned if row.recipe == "magnitude@0.5+eora-r16" and row.detail == "discipline"]
    assert len(rows) > 1
    assert sum(row.n for row in rows) == FACTS
    assert sum(row.lost for row in rows) == FRAGILE


def test_models_that_were_recovered_elsewhere_are_measured_by_their_names(folder: Path, tmp_path: Path) -> None:
    """Ten facts are gone; the other model has six of them again, and lost two others."""
    for name, rows in (("pruned", [*range(FRAGILE)]), ("tuned", [*range(4), FRAGILE, FRAGILE + 1])):
        shutil.copytree(folder, tmp_path / name)
        weights = load_file(folder / "model.safetensors")
        weights[f"{LAYER}.weight"][rows] = 0
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    others = [f"sparse@0.5={tmp_path / 'pruned'}", f"sparse@0.5+lora={tmp_path / 'tuned'}"]
    result = run(folder, tmp_path / "run", recipes=[], others=others)
    row = of(result, "sparse@0.5+lora")
    assert (row.base, row.seeds, row.lost, row.kept) == ("sparse@0.5", (), FRAGILE, FACTS - FRAGILE)
    assert (row.returned.value, row.newly_lost.value) == (6 / FRAGILE, 2 / (FACTS - FRAGILE))
    assert row.outcome == "no control"
    assert result.overlap == ()
    assert write_report(result.folder).is_file()


def test_a_model_recovered_elsewhere_beside_a_base_with_seeds_is_named(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "run", recipes=["wanda@0.5"], seeds=[0], others=[f"wanda@0.5+lora={folder}"])
    assert result.returned == ()
    (warning,) = [line for line in result.warnings if "what came back is not known" in line]
    assert "the weights of wanda@0.5 depend on the calibration seed (here 0)" in warning


@pytest.mark.parametrize("is_planted", [True, False])
def test_a_recovery_that_read_the_questions_is_said_to_be_contaminated(
    folder: Path, tmp_path: Path, is_planted: bool
) -> None:
    filler = "The baker kneads the dough and lets it rest before it is baked in the hot oven of the old village. "
    items = get_task(TASK, limit=FACTS).items()[:3]
    lines = [f"{item.question} {item.references[0]}. " for item in items] if is_planted else []
    text = tmp_path / "notes.txt"
    text.write_text("".join(line + filler for line in lines * 4) + filler * 20)
    calibration = {"source": str(text), "sequences": 16, "length": 256}
    result = run(folder, tmp_path / "run", recipes=RECIPES[:2], seeds=[0], calibration=calibration)
    (row,) = result.overlap
    assert (row.task, row.recipes, row.items) == (TASK, ("magnitude@0.5+eora-r16",), FACTS)
    warned = [warning for warning in result.warnings if warning.startswith("contamination")]
    if is_planted:
        assert row.answered >= 1
        assert set(row.examples) <= {item.id for item in items}
        assert len(warned) == 1
        assert f"{row.answered} of {FACTS} questions of {TASK}" in warned[0]
    else:
        assert (row.exact, row.ngram, row.answered, warned) == (0, 0, 0, [])


def test_items_that_differ_between_models_are_not_compared(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "run", recipes=RECIPES[:2], seeds=[0], stop="decided")
    assert result.returned == ()
    assert any("what came back is not measured on multiple_choice:cloze" in warning for warning in result.warnings)
