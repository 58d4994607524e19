"""What a command's help costs: `kick COMMAND --help` answers in a fraction of a second, for it imports little."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from llmkick import cli

# Each takes from a tenth of a second to several seconds to import.
HEAVY = (
    "accelerate", "altair", "gguf", "huggingface_hub", "jinja2", "mlflow", "numba", "numpy", "openai", "pandas",
    "pyarrow", "ray", "safetensors", "scipy", "sentencepiece", "tokenizers", "torch", "transformers", "vl_convert",
    "wandb",
)  # fmt: skip

# Asks for help as the installed script does, one command after the other, and prints what each has imported.
PROGRAM = """
import contextlib, io, json, sys
from llmkick.cli import main

imported = {}
for command in json.loads(sys.argv[1]):
    sys.argv = ["kick", *command, "--help"]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main()
    assert "Usage" in text.getvalue(), command
    imported[" ".join(sys.argv)] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps(imported))
"""


THREADS = """
import os, sys
import llmkick.cli
assert "torch" not in sys.modules
print({name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")})
"""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "0"}),
        ({"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": "7", "KMP_BLOCKTIME": "0"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None}),
    ],
)
def test_threads_spin_a_little_unless_told_otherwise(given: dict[str, str], expected: dict[str, str | None]):
    """OpenMP reads this when torch is imported."""
    plain = {name: value for name, value in os.environ.items() if name not in expected}
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env={**plain, **given}, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == str(expected)


def test_help_imports_no_heavy_package():
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback]
    commands = [[], *([name] for name in names)]
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    imported = json.loads(done.stdout)
    assert len(imported) == len(commands) >= 17
    assert all("typer" in packages for packages in imported.values())
    assert {name: found for name, packages in imported.items() if (found := set(HEAVY) & set(packages))} == {}
