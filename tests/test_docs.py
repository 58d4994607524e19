"""The documentation of the command line is the command line's own help."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import llmkick
from llmkick.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cli.md"
COMMANDS = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]


# One process for all of them: starting the command takes longer than its help.
PROGRAM = """
import contextlib, io, json, sys
from llmkick.cli import main

pages = {}
for command in json.loads(sys.argv[1]):
    sys.argv = [part for part in ("kick", command, "--help") if part]
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main()
    pages[command] = text.getvalue()
print(json.dumps(pages))
"""


def help_page() -> str:
    parts = ["# The `kick` command\n\nWritten by `python tests/test_docs.py`; a test keeps it true.\n"]
    for command, text in help_texts().items():
        lines = "\n".join(line.rstrip() for line in text.splitlines()).strip()
        parts.append(f"## `{f'kick {command}'.strip()}`\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


def help_texts() -> dict[str, str]:
    """The help of `kick` (under "") and of each command, as in a plain terminal of 100 columns."""
    source = str(Path(llmkick.__file__).parents[1])  # these sources, where another copy is installed too
    plain = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "PATH": "", "PYTHONIOENCODING": "utf-8"}
    arguments = [sys.executable, "-c", PROGRAM, json.dumps(["", *COMMANDS])]
    environment = {"PYTHONPATH": source, **plain}
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout))


@pytest.mark.timeout(120)
def test_docs_show_the_help_as_it_is() -> None:
    assert PAGE.read_text(encoding="utf-8") == help_page(), "run: python tests/test_docs.py"


if __name__ == "__main__":
    PAGE.write_text(help_page(), encoding="utf-8")
