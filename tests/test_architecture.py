"""The page about the architecture names every module, with the first sentence of its docstring."""

from __future__ import annotations

import ast
from pathlib import Path

import llmkick

ROOT = Path(__file__).resolve().parents[1]
SOURCE = Path(llmkick.__file__).parent
PAGE = ROOT / "docs" / "architecture.md"
START, END = "<!-- modules: python tests/test_architecture.py -->", "<!-- end of modules -->"
# In the order in which data flows; a package's modules stand before those of its sub-packages.
PACKAGES = (
    *("", "models", "compression", "tasks", "study", "statistics", "paper", "claims", "report", "gate", "lm_eval"),
    "cli",
)


def module_pages() -> str:
    """A table a package: module, what it is for."""
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    ordered = [
        folder
        for package in PACKAGES
        for folder in sorted(folders)
        if ".".join(folder.relative_to(SOURCE).parts[:1]) == package
    ]
    assert set(ordered) == folders, "a package is missing in PACKAGES"
    return "\n\n".join(_table(folder) for folder in ordered)


def _table(folder: Path) -> str:
    name = "/".join(("llmkick", *folder.relative_to(SOURCE).parts))
    about = _first_sentence(folder / "__init__.py") if folder != SOURCE else ""
    rows = [f"| `{path.name}` | {_first_sentence(path)} |" for path in _modules(folder)]
    table = ["| module | what it is for |", "| --- | --- |", *rows] if rows else []
    return "\n".join([f"### `{name}`", "", *([about, ""] if about else []), *table]).rstrip()


def _modules(folder: Path) -> list[Path]:
    left_out = set() if folder == SOURCE else {"__init__.py"}
    return [path for path in sorted(folder.glob("*.py")) if path.name not in left_out]


def _first_sentence(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert text, f"{path} has no docstring"
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def test_every_module_is_named_with_what_it_is_for():
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(START) == page.count(END) == 1
    written = page.partition(START)[2].partition(END)[0].strip()
    assert written == module_pages(), "run: python tests/test_architecture.py"


def test_readme_and_contributing_point_to_the_page():
    assert "(docs/architecture.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "(docs/architecture.md)" in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(f"{before}{START}\n\n{module_pages()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
