"""The pages say what is true: the help of the commands, the public names, links that lead somewhere."""

import json
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llmkick
from llmkick import extend
from llmkick.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cli.md"
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks" / "results").glob("*.md")])
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


def without_code(page: str) -> str:
    return re.sub(
        r"^```.*?^```|^ {4}.*?$|`[^`\n]*`", lambda code: "code" * (code[0][0] == "`"), page, flags=re.M | re.S
    )


def anchors(page: str) -> set[str]:
    """The anchors of the headings, as GitHub and mkdocs.yml make them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page, flags=re.M | re.S), re.M)
    shown = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in shown}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8")))
    for link in links:
        if re.match("https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = Path(posixpath.normpath(page.parent / path)) if path else page
        assert target.is_file(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), f"{link}: no such heading"


def test_the_page_about_python_shows_every_public_name_once() -> None:
    named = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.M)
    only_for_plugins = set(extend.__all__) - set(llmkick.__all__)
    expected = {f"llmkick.{name}" for name in llmkick.__all__} | {f"llmkick.extend.{name}" for name in only_for_plugins}
    assert sorted(named) == sorted({"llmkick.extend", *expected})


def test_the_readme_shows_cells_of_the_published_run() -> None:
    def rows(page: str) -> dict[str, list[str]]:
        table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line[:2] == "| "]
        return {cells[0]: cells[1:] for cells in reversed(table)}  # of two tables, the first

    shown = rows((ROOT / "README.md").read_text(encoding="utf-8"))
    published = rows((ROOT / "benchmarks" / "results" / "quickstart.md").read_text(encoding="utf-8"))
    columns = [re.fullmatch(r"(\S+) \((\S+)\)", title) for title in shown.pop("recipe")]
    places = [published["recipe"].index(column[1]) for column in columns if column]
    assert len(places) == len(columns) == 3
    assert [column[2] for column in columns if column] == [published["dense"][place] for place in places]
    del shown["---"]
    assert len(shown) == 4
    for recipe, cells in shown.items():
        assert cells == [published[recipe][place] for place in places], recipe


if __name__ == "__main__":
    PAGE.write_text(help_page(), encoding="utf-8")
