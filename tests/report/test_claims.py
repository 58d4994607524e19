"""The claims of the paper on the page, in the terminal and as Markdown."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

from rich.console import Console

from llmkick.claims.assess import assess
from llmkick.claims.runs import ClaimRun
from llmkick.report.claims import claims_markdown, claims_table
from llmkick.report.several.page import write_studies
from llmkick.study.results.claim_records import ClaimRow
from llmkick.study.results.results import StudyResult


def rows_of(result: StudyResult) -> list[ClaimRow]:
    return assess([ClaimRun(name="run", result=result, records=lambda: None)])


def test_the_page_shows_every_claim_with_both_numbers(page: str) -> None:
    section = page.partition('<section id="claims"')[2].partition("</section>")[0]
    assert section.count('<th scope="row">') == 11
    assert "wanda@2:4 does not match on factoid_qa" in section
    assert "Table 3, factoid QA, Wanda: 65.44 at 0 %" in section
    assert 'href="#claims"' in page


def test_the_table_fits_80_columns(plain: StudyResult) -> None:
    text = io.StringIO()
    Console(file=text, width=80).print(claims_table(rows_of(plain)))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line[:3].strip().isdigit()] == [str(n) for n in range(1, 12)]


def test_markdown_has_a_row_for_each_claim(plain: StudyResult) -> None:
    rows = rows_of(plain)
    lines = claims_markdown(rows).splitlines()
    assert len(lines) == 2 + 11
    assert all(line.count(" | ") == 5 for line in lines)
    assert all(row.outcome in line for row, line in zip(rows, lines[2:], strict=True))


def test_the_page_of_several_runs_reads_them_together_or_says_why_not(plain: StudyResult, tmp_path: Path) -> None:
    other = shutil.copytree(plain.folder, tmp_path / "other")
    together = write_studies([plain.folder, other], tmp_path / "both.html").read_text(encoding="utf-8")
    section = together.partition('<section id="claims"')[2].partition("</section>")[0]
    assert section.count('<th scope="row">') == 11
    content = json.loads((other / "results.json").read_text(encoding="utf-8"))
    content["tasks"][0]["protocol"] = "paper"
    (other / "results.json").write_text(json.dumps(content), encoding="utf-8")
    apart = write_studies([plain.folder, other], tmp_path / "apart.html").read_text(encoding="utf-8")
    section = apart.partition('<section id="claims"')[2].partition("</section>")[0]
    assert "cannot be assessed together: other protocols (strict; paper, strict)" in section
