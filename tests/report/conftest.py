"""Run folders that the tests of the report read."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkick.report.page.page import write_report
from llmkick.study.results.results import StudyResult
from report.synthetic import build_run


@pytest.fixture(scope="session")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """A study with several seeds, hostile texts and items without a score; its report is written."""
    found = build_run(
        tmp_path_factory.mktemp("run"), seeds=(0, 1), hostile=True, unscored={"context_qa:open": 3}, items=60
    )
    write_report(found.folder)
    return found


@pytest.fixture(scope="session")
def page(result: StudyResult) -> str:
    """The page of that study."""
    return (result.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """A study with one seed, enough items to decide something, and no report yet."""
    return build_run(tmp_path_factory.mktemp("plain"), items=200, source_precision="float")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder for a run."""
    return tmp_path / "run"
