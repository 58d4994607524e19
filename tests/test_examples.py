"""The examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmkick.study.spec.study import load_study

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
STUDIES = sorted(path for path in EXAMPLES.rglob("*.toml") if path.name not in ("pyproject.toml", "gate.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.name)
def test_study_files_are_valid(path: Path) -> None:
    assert load_study(path).recipes


@pytest.mark.model
@pytest.mark.slow
def test_one_recipe() -> None:
    arguments = [sys.executable, str(EXAMPLES / "one_recipe.py"), "magnitude@0.5", "12"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    # bfloat16 has many ties at the threshold, and magnitude pruning takes them all.
    assert re.search(r"5[0-2]\.\d% of the weights are zero", done.stdout)
    assert "not matching" in done.stdout or "undecided" in done.stdout
