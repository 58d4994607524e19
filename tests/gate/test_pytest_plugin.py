"""The pytest plug-in: the fixture `llmkick_gate`, in test runs of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from processes import run_commands
from toy import save_toy

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "llmkick.gate.pytest_plugin"
# Where llmkick is installed with its entry point, pytest has the plug-in already.
LOADED = [] if any(entry.value == PLUGIN for entry in entry_points(group="pytest11")) else ["-p", PLUGIN]


def test_the_plug_in_is_an_entry_point_of_pytest():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["entry-points"]["pytest11"] == {"llmkick": PLUGIN}


TESTS = """
import pytest
from llmkick import KickError

POLICY = {"model": "./dense", "reference": "./dense", "tasks": ["factoid_qa"], "budget": {"items": 2}}

def test_file(llmkick_gate):
    assert llmkick_gate("gate.toml").matches

def test_values(llmkick_gate):
    assert llmkick_gate(POLICY, dtype="float32", device="cpu").exit_code == 0

def test_error(llmkick_gate):
    with pytest.raises(KickError, match="margin"):
        llmkick_gate(POLICY, margin=2)
"""


def run_pytest(folder: str) -> None:
    """`pytest -v` in a folder, which ends the process."""
    os.chdir(folder)
    raise SystemExit(pytest.main(["-p", "no:cacheprovider", *LOADED, "-v"]))


def test_gates_pass_and_fail_as_tests_and_the_example_says_why(tmp_path: Path):
    for name, seed in (("dense", 0), ("other", 1)):
        save_toy(tmp_path / name, seed=seed, max_position_embeddings=512, chat=True)
    (tmp_path / "gate.toml").write_text(
        'model = "./dense"\nreference = "./dense"\ndtype = "float32"\ndevice = "cpu"\n'
        'tasks = [{name = "multiple_choice:letter", limit = 96, shots = 0}]\n'
    )
    example = (ROOT / "examples" / "gate" / "test_gate.py").read_text(encoding="utf-8")
    (tmp_path / "test_example.py").write_text(example)
    (tmp_path / "test_own.py").write_text(TESTS)
    variables = {"LLMKICK_CACHE": str(tmp_path / "cache"), "CANDIDATE": "./other"}
    (done,) = run_commands(run_pytest, tmp_path / "said", [variables], str(tmp_path))
    assert done.code == 1, done.out + done.err
    assert "1 failed, 3 passed" in done.out
    assert "test_example.py::test_the_build_is_shown_to_match FAILED" in done.out
    shown = done.out[done.out.index("llmkick gate") :]
    assert "other against dense: unmeasured\nmultiple_choice:letter: unmeasured – the reference is not shown" in shown


def test_the_plug_in_costs_other_tests_no_import_of_torch():
    code = f"import sys, {PLUGIN}; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]
