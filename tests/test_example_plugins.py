"""The example plug-ins: installed by pip, used by a study; the documentation shows exactly their files."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from processes import run_commands, run_kick
from toy import save_toy

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "plugins"
PAGES = {
    "llmkick-random-pruning": ROOT / "docs" / "add-a-method.md",
    "llmkick-one-file-task": ROOT / "docs" / "add-a-task.md",
}


@pytest.mark.parametrize("package", PAGES)
def test_the_page_shows_the_files_as_they_are(package: str):
    blocks = re.findall(r"^```\w+\n(.*?)^```", PAGES[package].read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    files = sorted(path for path in (EXAMPLES / package).iterdir() if path.suffix in (".py", ".toml"))
    assert len(files) == 2
    for path in files:
        assert path.read_text(encoding="utf-8") in blocks, path.name
    commands = "".join(block for block in blocks if "kick " in block)
    assert f"examples/plugins/{package}" in commands


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Both packages installed into a folder that only these tests' processes see."""
    target = tmp_path_factory.mktemp("installed")
    built = tmp_path_factory.mktemp("built")
    for package in PAGES:  # a build leaves files beside its sources
        (built / package).mkdir()
        for path in (EXAMPLES / package).iterdir():
            if path.is_file():
                (built / package / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
               "--disable-pip-version-check", "--target", str(target)]  # fmt: skip
    subprocess.run([*command, *(str(built / package) for package in PAGES)], check=True, timeout=200)
    return {"INSTALLED": str(target), "LLMKICK_CACHE": str(tmp_path_factory.mktemp("cache")), "COLUMNS": "200"}


def run_kick_with_packages(*arguments: str) -> None:
    sys.path.insert(0, os.environ["INSTALLED"])
    run_kick(*arguments)


def kick(surroundings: dict[str, str], folder: Path, *arguments: object) -> str:
    """What a command prints in a process of its own, whose output goes to a new folder."""
    (done,) = run_commands(run_kick_with_packages, folder, [surroundings], *map(str, arguments))
    assert done.code == 0, done.err
    return done.out


def test_a_study_with_both(surroundings: dict[str, str], tmp_path: Path):
    methods = kick(surroundings, tmp_path / "methods", "methods")
    assert "zero randomly chosen weights (from llmkick-random-pruning 0.1.0)" in methods
    save_toy(tmp_path / "toy", max_position_embeddings=512)
    options = ["-r", "random@0.5", "-r", "random@2:4-seed3", "-r", "random@0.5+rtn@4b", "-t", "opposites",
               "-t", "factoid_qa", "--limit", 6, "--sequences", 2, "--length", 16, "--dtype", "float32"]  # fmt: skip
    study = ("run", "-m", tmp_path / "toy", *options, "-o", tmp_path / "run", "-q")
    out = kick(surroundings, tmp_path / "out", *study)
    assert "random@2:4-seed3" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    cells = {(row["recipe"], row["task"]): row["n"] for row in results["results"]}
    recipes = ("dense", "random@0.5", "random@2:4-seed3", "random@0.5+rtn@4b")
    assert cells == {(recipe, task): 6 for recipe in recipes for task in ("opposites", "factoid_qa")}
    sparsity = {r["recipe"]: [layer["realised_sparsity"] for layer in r["layers"]] for r in results["compression"]}
    assert set(sparsity["random@0.5"]) == set(sparsity["random@2:4-seed3"]) == {0.5}
    assert min(sparsity["random@0.5+rtn@4b"]) >= 0.5
    assert [task.get("plugin") for task in results["tasks"]] == ["llmkick-one-file-task 0.1.0", None]
    packages = results["environment"]["packages"]
    assert packages["llmkick-random-pruning"] == packages["llmkick-one-file-task"] == "0.1.0"
    with sqlite3.connect(tmp_path / "run" / "journal.sqlite") as journal:
        assert journal.execute("select count(*) from records").fetchone() == (48,)
    cached = kick(surroundings, tmp_path / "cached", "cache")
    assert "random@2:4-seed3" in cached
