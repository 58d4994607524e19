"""What a command's help costs: `kick COMMAND --help` answers in a fraction of a second, for it imports little."""

from __future__ import annotations

import json
import subprocess
import sys

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


def test_help_imports_no_heavy_package():
    names = [command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback]
    commands = [[], *([name] for name in names)]
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=60)
    imported = json.loads(done.stdout)
    assert len(imported) == len(commands) >= 17
    assert all("typer" in packages for packages in imported.values())
    assert {name: found for name, packages in imported.items() if (found := set(HEAVY) & set(packages))} == {}
