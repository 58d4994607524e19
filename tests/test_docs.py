"""The documentation of the command line is the command line's own help."""

import subprocess
import sys
from pathlib import Path

import pytest

import llmkick
from llmkick.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cli.md"
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


def help_page() -> str:
    parts = ["# The `kick` command\n\nWritten by `python tests/test_docs.py`; a test keeps it true.\n"]
    for command in ("", *COMMANDS):
        title = f"kick {command}".strip()
        parts.append(f"## `{title}`\n\n```text\n{help_of(command)}\n```\n")
    return "\n".join(parts)


def help_of(command: str) -> str:
    arguments = [sys.executable, "-m", "llmkick.cli", *([command] if command else []), "--help"]
    source = str(Path(llmkick.__file__).parents[1])  # these sources, where another copy is installed too
    plain = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PATH": "", "PYTHONIOENCODING": "utf-8"}
    environment = {"PYTHONPATH": source, **plain}
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    lines = [line.rstrip() for line in done.stdout.replace("python -m llmkick.cli", "kick").splitlines()]
    return "\n".join(lines).strip()


@pytest.mark.timeout(120)
def test_docs_show_the_help_as_it_is() -> None:
    assert PAGE.read_text(encoding="utf-8") == help_page(), "run: python tests/test_docs.py"


if __name__ == "__main__":
    PAGE.write_text(help_page(), encoding="utf-8")
