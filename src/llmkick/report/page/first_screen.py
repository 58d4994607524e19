"""The first screen of a report: verdicts counted, the headline, and the matrix's rows in the order of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmkick.report import formatting
from llmkick.report.figures.methods import GLYPHS, Methods
from llmkick.report.findings import Finding
from llmkick.report.level_axes import KINDS
from llmkick.report.matrix import Matrix, Row, VerdictText, verdict_text
from llmkick.study.results.results import StudyResult

# Up to so many rows a matrix is roomy or normal; with more it is compact, so that 40 rows fit a laptop's screen.
ROOMY, NORMAL = 8, 20


@dataclass(frozen=True, kw_only=True)
class MethodMark:
    """A method with the sign and the colour that it has in every figure."""

    name: str
    glyph: str
    colour: str


@dataclass(frozen=True, kw_only=True)
class Tally(VerdictText):
    """The number of recipes with an overall verdict, and what that says in few words."""

    count: int
    words: str


def tally(result: StudyResult) -> list[Tally]:
    """How many recipes have each overall verdict."""
    count = Counter[str](row.verdict for row in result.overall)
    words = {
        "matching": "match the dense model",
        "not matching": f"lost more than {formatting.setting(result.study.margin)}",
        "incomplete": "incomplete",
    }
    order = [*formatting.VERDICTS, *(verdict for verdict in count if verdict not in formatting.VERDICTS)]
    return [
        Tally(**vars(verdict_text(verdict)), count=count[verdict], words=words.get(verdict, verdict))
        for verdict in order
        if count[verdict]
    ]


def headline(findings: Sequence[Finding], *, recipes: int) -> tuple[Finding, list[Finding]]:
    """The sentence of the first screen, and the other findings.

    A loss that perplexity does not show comes first. Of a single recipe, what it keeps or loses says more than a count.
    """
    topics = ("perplexity", "method") if recipes == 1 else ("perplexity",)
    lead = next((finding for topic in topics for finding in findings if finding.topic == topic), findings[0])
    return lead, [finding for finding in findings if finding is not lead]


def methods(result: StudyResult) -> list[MethodMark]:
    """The methods of a study's recipes, in the order of the figures."""
    styles = Methods.of_study(result)
    return [
        MethodMark(name=name, glyph=GLYPHS[shape], colour=colour)
        for name, shape, colour in zip(styles.names, styles.shapes, styles.colours, strict=True)
    ]


def page_rows(result: StudyResult, table: Matrix) -> list[tuple[Row, MethodMark]]:
    """The rows with the marks of their methods: by method, and each method's from mild to severe."""
    marks = {mark.name: mark for mark in methods(result)}
    names, kinds = list(marks), list(KINDS)

    def place(row: Row) -> tuple[int, int, tuple[float, ...]]:
        level = result.level(row.recipe)
        return names.index(level.method), kinds.index(level.kind), level.severity

    return [(row, marks[row.method]) for row in sorted(table.rows, key=place)]


def density(rows: int) -> str:
    """How close the rows of the matrix are: a class in the page's style sheet."""
    return "roomy" if rows <= ROOMY else "normal" if rows <= NORMAL else "compact"
