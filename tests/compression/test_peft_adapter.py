"""A recovered model as compressed weights and an adapter: peft gives what our own sum gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llmkick.compression.recipe import with_training
from llmkick.compression.recoveries import Training
from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage.compress_to_disk import CalibrationPlan, compress_checkpoint
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.loading import load_model
from llmkick.study.progress import Silent
from toy import save_toy

PLAN = CalibrationPlan(source="pocket", sequences=8, length=32)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder)
    return folder


def written(toy: Path, recipe: str, folder: Path, form: str) -> tuple[str, ...]:
    parsed = with_training(parse_recipe(recipe), Training(steps=4, learning_rate=0.02))
    report = compress_checkpoint(
        str(toy),
        parsed,
        folder,
        form=form,
        calibration=PLAN,
        dtype="float32",
        device="cpu",
        observer=Silent(),  # type: ignore[arg-type]
    )
    return report.warnings


def test_the_adapter_names_its_model_wherever_it_is_read(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    notes = written(toy, "gptq@3b-g8+eora-r4", Path(), "adapter")
    settings = json.loads(Path("adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "out")
    assert any(f"'{tmp_path / 'out' / 'adapter'}'" in note for note in notes)


@pytest.mark.parametrize("recipe", [
        "wanda@2:4+eora-r4", "gptq@2b-g8+lora-r4", pytest.param("gptq@3b-g8+eora-r4", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_peft_adds_up_what_we_add_up(recipe: str, toy: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    notes = written(toy, recipe, tmp_path / "apart", "adapter")
    assert any("those of " + recipe.rpartition("+")[0] in note for note in notes)
    written(toy, recipe, tmp_path / "sum", "folder")
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "apart", dtype=torch.float32)
    of_base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "apart", dtype=torch.float32).state_dict()
    own = load_model(str(tmp_path / "sum"), dtype="float32", device="cpu").network
    recovered = peft.PeftModel.from_pretrained(base, tmp_path / "apart" / "adapter")
    ids = torch.arange(1, 25).view(2, 12)
    with torch.no_grad():
        assert torch.allclose(recovered(ids).logits, own(ids).logits, rtol=1e-4, atol=1e-5)
    added = recovered.merge_and_unload().state_dict()
    changed = 0
    for name, weight in own.state_dict().items():
        assert torch.allclose(added[name], weight, rtol=1e-5, atol=1e-6), name
        changed += not torch.equal(of_base[name], weight)
    assert changed  # the compressed weights alone are another model
    if recipe.startswith("wanda"):
        zeros = [float((weight == 0).float().mean()) for name, weight in of_base.items() if "q_proj" in name]
        assert zeros == pytest.approx([0.5] * len(zeros))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("wanda@2:4+lora", "merged into the weights that are left"),
        ("wanda@0.5+reconstruct", "no matrices beside the weights"),
        ("rtn@4b", "no matrices beside the weights"),
    ],
)
def test_a_recipe_without_matrices_beside_the_weights_is_refused(
    recipe: str, message: str, toy: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        written(toy, recipe, tmp_path / "out", "adapter")
    assert not (tmp_path / "out").exists()
