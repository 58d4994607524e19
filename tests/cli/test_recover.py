"""`kick recover`: a folder with the recovered model, and options that do not fit are refused before any work."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path

import pytest

from commands import Kick
from llmkick.cli import recover
from llmkick.compression.recipe import with_training
from llmkick.compression.recoveries import RECOVERIES, Objective, Training
from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage.compress_to_disk import CalibrationPlan, compress_checkpoint
from llmkick.compression.storage.source_files import REPORT_FILE
from llmkick.compression.walk.calibration import calibrate
from llmkick.compression.walk.compress import compress
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.weights import weights_digest
from llmkick.study.progress import Silent
from toy import save_toy

SMALL = ("--calibration", "pocket", "--sequences", "8", "--length", "32", "--dtype", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, max_position_embeddings=512)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))


def test_choices_are_those_of_recipes() -> None:
    assert set(typing.get_args(recover.By)) == {*RECOVERIES, "shots"}
    assert typing.get_args(recover.Objective) == typing.get_args(Objective)


@pytest.mark.parametrize(
    ("base", "options", "recipe"),
    [
        ("wanda@2:4", ("--by", "lora", "--rank", "2", "--steps", "3", "--learning-rate", "0.01"), "wanda@2:4+lora-r2"),
        ("gptq@3b-g8", ("--by", "eora", "--rank", "4", "--packed"), "gptq@3b-g8+eora-r4"),
        ("wanda@0.5", ("--by", "reconstruct"), "wanda@0.5+reconstruct"),
    ],
)
def test_the_folder_holds_the_recovered_model(
    base: str, options: tuple[str, ...], recipe: str, toy: Path, tmp_path: Path, kick: Kick
) -> None:
    code, out, err = kick("recover", toy, base, *options, *SMALL, "-o", tmp_path / "out", "--quiet")
    assert code == 0, err
    dense = load_model(str(toy), dtype="float32", device="cpu")
    windows = calibrate(dense, source="pocket", sequences=8, length=32)
    parsed = with_training(parse_recipe(recipe), Training(steps=3, learning_rate=0.01))
    model, report = compress(dense, parsed, calibration=windows)
    saved = load_model(str(tmp_path / "out"), dtype="float32", device="cpu")
    assert weights_digest(saved.network) == weights_digest(model.network)
    written = json.loads((tmp_path / "out" / REPORT_FILE).read_text("utf-8"))
    assert (written["recipe"], written["digest"]) == (recipe, report.digest)
    assert written["recovery"]["extra_bytes"] == (report.recovery.extra_bytes if report.recovery else None)
    assert recipe in out
    assert re.search(r"MB more \(\d+\.\d+ bits a weight\)", out)
    assert ("3 steps" in out) == ("lora" in recipe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wanda@2:4", "--by", "shots"), "it is the same task with worked examples in its prompt"),
        (("wanda@2:4", "--by", "eora", "--steps", "3"), "--steps is no option of eora; it takes --rank"),
        (("wanda@2:4", "--by", "reconstruct", "--rank", "3"), "--rank is no option of reconstruct; it takes none"),
        (("wanda@2:4", "--by", "lora", "--rank", "99"), "rank 99 is more than model.layers.0"),
        (("wanda@2:4", "--by", "lora", "--rank", "0"), "rank 0 of lora"),
        (("wanda@2:4", "--by", "lora", "--steps", "-1"), "steps -1 of a training"),
        (("wanda@2:4", "--by", "lora", "--tokens", "3"), "3 tokens are less than a step reads, 64"),
        (("wanda@2:4", "--by", "lora", "--adapter"), "merged into the weights that are left"),
        (("gptq@3b", "--by", "eora", "--adapter", "--packed"), "--packed and --adapter are two ways"),
        (("wanda@2:4+lora", "--by", "lora"), "names a recovery already; give wanda@2:4"),
        (("dense", "--by", "lora"), "dense has lost nothing"),
        (("wanda@2:4", "--by", "qlora"), "'qlora' is not one of"),
        (("wanda@2:4", "--by", "lora", "--seed", "-1"), "seed must be a whole number"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: tuple[str, ...], message: str, toy: Path, tmp_path: Path, kick: Kick
) -> None:
    code, _, err = kick("recover", toy, *arguments, *SMALL, "-o", tmp_path / "out")
    assert code == 2
    assert message in " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())
    assert not (tmp_path / "out").exists()


def test_too_few_tokens_are_refused_before_the_calibration(toy: Path, tmp_path: Path) -> None:
    stages: list[str] = []

    class Watching(Silent):
        def stage(self, title: str, total: int) -> None:
            stages.append(title)

    recipe = with_training(parse_recipe("wanda@2:4+lora"), Training(tokens=63, batch=2))
    plan = CalibrationPlan(source="pocket", sequences=8, length=32)
    with pytest.raises(ConfigError, match="63 tokens are less than a step reads, 64"):
        compress_checkpoint(str(toy), recipe, tmp_path / "out", calibration=plan, observer=Watching())
    assert stages == [f"reading {toy}"]
