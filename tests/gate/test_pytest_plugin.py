"""The pytest plug-in: the fixture `llmkick_gate`, in test runs of its own."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from toy import save_toy

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = "llmkick.gate.pytest_plugin"
# Where llmkick is installed with its entry point, pytest has the plug-in already.
LOADED = [] if any(entry.value == PLUGIN for entry in entry_points(group="pytest11")) else ["-p", PLUGIN]


@pytest.fixture
def toys(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLMKICK_CACHE", str(pytester.path / "cache"))
    for name, seed in (("dense", 0), ("other", 1)):
        save_toy(pytester.path / name, seed=seed, max_position_embeddings=512, chat=True)
    (pytester.path / "gate.toml").write_text(
        'model = "./dense"\nreference = "./dense"\ndtype = "float32"\ndevice = "cpu"\n'
        'tasks = [{name = "multiple_choice:letter", limit = 80, shots = 0}]\n'
    )
    return pytester.path


def test_the_plug_in_is_an_entry_point_of_pytest():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["entry-points"]["pytest11"] == {"llmkick": PLUGIN}


def test_the_example_passes_for_the_same_model_and_says_why_it_fails_for_another(
    toys: Path, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
):
    (toys / "test_gate.py").write_text((ROOT / "examples" / "gate" / "test_gate.py").read_text(encoding="utf-8"))
    pytester.runpytest_inprocess(*LOADED, "test_gate.py").assert_outcomes(passed=1)
    monkeypatch.setenv("CANDIDATE", "./other")
    failed = pytester.runpytest_inprocess(*LOADED, "test_gate.py")
    failed.assert_outcomes(failed=1)
    failed.stdout.fnmatch_lines(
        ["*llmkick gate*", "other against dense: unmeasured", "multiple_choice:letter: unmeasured*not shown to be above*"]
    )


def test_a_policy_may_be_values_and_a_gate_that_cannot_run_is_an_error(toys: Path, pytester: pytest.Pytester):
    pytester.makepyfile(
        """
        import pytest
        from llmkick import KickError

        POLICY = {"model": "./dense", "reference": "./dense", "tasks": ["factoid_qa"], "budget": {"items": 2}}

        def test_values(llmkick_gate):
            assert llmkick_gate(POLICY, dtype="float32", device="cpu").exit_code == 0

        def test_error(llmkick_gate):
            with pytest.raises(KickError, match="margin"):
                llmkick_gate(POLICY, margin=2)
        """
    )
    pytester.runpytest_inprocess(*LOADED).assert_outcomes(passed=2)


def test_the_plug_in_costs_other_tests_no_import_of_torch():
    code = f"import sys, {PLUGIN}; print('torch' in sys.modules, 'pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]
