"""What came back, as texts: for the page, the terminal and Markdown; with the cost of each recovery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from llmkick.report import formatting
from llmkick.report.formatting import Mark
from llmkick.report.lookup import task_comparisons
from llmkick.report.matrix import VerdictText, verdict_text
from llmkick.report.payload import Payload
from llmkick.statistics import BackOutcome, CameBack, Comparison, Ratio
from llmkick.study.results.overlap import OverlapRow
from llmkick.study.results.records import CompressionSummary
from llmkick.study.results.results import StudyResult

OUTCOMES: Mapping[BackOutcome, Mark] = {
    "brought back": Mark(
        symbol="✓", style="cyan", meaning="more returned than in the control", legend="more than in the control"
    ),
    "less than control": Mark(
        symbol="✗", style="bold red", meaning="less returned than in the control", legend="less than in the control"
    ),
    "undecided": Mark(
        symbol="?", style="yellow", meaning="no difference to the control is shown", legend="no difference shown"
    ),
    "no control": Mark(
        symbol=formatting.NOTHING, style="dim", meaning="there is nothing to compare with", legend="no control"
    ),
    "nothing lost": Mark(
        symbol="∅", style="dim", meaning="compression lost none of these items", legend="nothing was lost"
    ),
}
JUDGED = ":judge"  # the end of the name of a task whose answers a judge scores
PARTS: Mapping[str, str] = {"bucket": "length"}  # what a detail is called, if not by its name


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a recovery costs beyond its base, mean over seeds; None where the run does not say it."""

    seconds: float | None
    tokens: float | None
    extra_bytes: float | None
    extra_bits: float | None  # per weight of the compressed layers

    @property
    def text(self) -> str:
        """The cost in words; empty if nothing is known of it."""
        parts = []
        if self.seconds is not None:
            parts.append(formatting.duration(self.seconds))
        if self.tokens is not None:
            parts.append(f"{self.tokens:,.0f} tokens")
        if self.extra_bytes is not None:
            bits = "" if self.extra_bits is None else f" ({self.extra_bits:.2g} bits a weight)"
            sign = formatting.MINUS if self.extra_bytes < 0 else ""
            size = f"{sign}{formatting.size(abs(self.extra_bytes))} more{bits}"
            parts.append(size if self.extra_bytes else "no more bytes")
        return ", ".join(parts)


def costs(result: StudyResult) -> dict[str, Cost]:
    """Recovered recipe → what its recovery costs: as its report says, or from the difference to its base."""
    bases = {row.recipe: row.base for row in result.returned}
    return {recipe: _cost(result, recipe, base) for recipe, base in bases.items()}


def _cost(result: StudyResult, recipe: str, base: str) -> Cost:
    of_base = [report for report in result.compression if report.recipe == base]
    seconds = result.timing.compression_seconds
    rows = []
    for report in (report for report in result.compression if report.recipe == recipe):
        its_base = next((one for one in of_base if one.seed == report.seed), of_base[0] if of_base else None)
        rows.append(_cost_of_model(report, its_base, seconds))
    names = ("seconds", "tokens", "extra_bytes", "extra_bits")
    return Cost(**{name: _mean([row[name] for row in rows]) for name in names})


def _cost_of_model(
    report: CompressionSummary, base: CompressionSummary | None, seconds: Mapping[str, float]
) -> dict[str, float | None]:
    said = report.facts.get("recovery")
    noted = said if isinstance(said, dict) else {}
    numbers = {name: value for name, value in noted.items() if isinstance(value, int | float)}
    weights = sum(height * width for height, width in (layer.shape for layer in report.layers))
    extra = numbers.get("extra_bytes", None if base is None else report.stored_bytes - base.stored_bytes)
    bits = numbers.get("extra_bits_per_weight", 8 * extra / weights if extra is not None and weights else None)
    both = [None if one is None else seconds.get(one.digest) for one in (report, base)]
    more = both[0] - both[1] if both[0] is not None and both[1] is not None else None
    return {
        "seconds": numbers.get("seconds", more),
        "tokens": numbers.get("tokens"),
        "extra_bytes": extra,
        "extra_bits": bits,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def share(ratio: Ratio) -> str:
    """A share with its interval: "26 % [15, 40]"; a dash without a value."""
    return f"{formatting.percent(ratio.value)} {formatting.interval(ratio.interval)}".strip()


def points(ratio: Ratio) -> str:
    """A difference of shares in percentage points, with its interval: "+8.1 [−2.0, 18]"."""
    value = formatting.percent(ratio.value, signed=True).removesuffix(" %")
    return f"{value} {formatting.interval(ratio.interval)}".strip()


def score_change(ratio: Ratio) -> str:
    """A change of score with its interval: "+0.12 [+0.04, +0.20]"."""
    return formatting.difference(ratio.value, ratio.interval)


def outcome_text(row: CameBack) -> VerdictText:
    """The outcome of a row with its sign."""
    return VerdictText(verdict=row.outcome, symbol=OUTCOMES[row.outcome].symbol, css=row.outcome.replace(" ", "-"))


def whole_tasks(result: StudyResult) -> list[CameBack]:
    """The rows of whole tasks."""
    return [row for row in result.returned if not row.detail]


def overlap_with(result: StudyResult, recipe: str, task: str) -> OverlapRow | None:
    """The overlap of the items of a task with the text that made a model; of several texts, that with most answers.

    A judge scores the answers to the items of the task that it judges.
    """
    rows = [row for row in result.overlap if recipe in row.recipes and row.task == task.removesuffix(JUDGED)]
    return max(rows, key=lambda row: row.answered, default=None)


def _contaminated(result: StudyResult, row: CameBack) -> str:
    """How many questions stand beside an answer in the text that made the model."""
    overlap = overlap_with(result, row.recipe, row.task)
    if row.recipe not in result.labels:
        return "no text was read"
    if overlap is None:
        return "not checked"
    return f"{overlap.answered} of {overlap.items} questions" if overlap.answered else "none found"


def row_texts(result: StudyResult, row: CameBack) -> Payload:
    """One recovered model on one task or part, as texts; both rules beside each other."""
    comparisons = {(one.recipe, one.task): one for one in task_comparisons(result)}
    ours, of_base = comparisons.get((row.recipe, row.task)), comparisons.get((row.base, row.task))
    return {
        "recipe": row.recipe,
        "base": row.base,
        "task": row.task,
        "part": f"{PARTS.get(row.detail, row.detail)} {row.group}" if row.detail else "",
        "n": row.n,
        "lost": f"{row.lost:.4g}",
        "kept": f"{row.kept:.4g}",
        "returned": share(row.returned),
        "newly_lost": share(row.newly_lost),
        "newly_lost_control": share(row.newly_lost_control),
        "gained": share(row.gained),
        "control": share(row.control),
        "difference": points(row.difference),
        "p": formatting.p_value(row.difference.p),
        "outcome": outcome_text(row),
        "reason": row.control.reason or row.returned.reason,
        "change": score_change(row.change),
        "against_base": row.against_base,
        "scores": " → ".join(formatting.score(score) for score in _scores(row, ours, of_base)),
        "has_answers": row.recipe in result.labels,  # more shots are another task of the base
        "verdict": _verdict(ours),
        "paper": _paper(ours),
        "base_verdict": _verdict(of_base),
        "base_paper": _paper(of_base),
        "contaminated": _contaminated(result, row),
        "notes": "; ".join(row.notes),
    }


def _scores(row: CameBack, ours: Comparison | None, of_base: Comparison | None) -> Sequence[float | None]:
    """The scores of the dense, the compressed and the recovered model."""
    dense, base = (None, None) if of_base is None else (of_base.dense, of_base.compressed)
    if ours is not None:
        return dense, base, ours.compressed
    return dense, base, None if base is None or row.change.value is None else base + row.change.value


def _verdict(comparison: Comparison | None) -> VerdictText | None:
    return None if comparison is None else verdict_text(comparison.verdict)


def _paper(comparison: Comparison | None) -> str:
    return formatting.NOTHING if comparison is None or comparison.paper_verdict is None else comparison.paper_verdict


def payload(result: StudyResult) -> list[Payload]:
    """One entry for each recovered recipe: its cost, its tasks and their parts, as texts."""
    of_cost = costs(result)
    entries = []
    for recipe in dict.fromkeys(row.recipe for row in result.returned):
        rows = [row for row in result.returned if row.recipe == recipe]
        texts = [row_texts(result, row) for row in rows]
        entries.append(
            {
                "recipe": recipe,
                "base": rows[0].base,
                "recovery": rows[0].recovery,
                "cost": of_cost[recipe].text,
                "rows": [text for text in texts if not text["part"]],
                "parts": [text for text in texts if text["part"]],
                "reasons": list(dict.fromkeys(text["reason"] for text in texts if text["reason"] and not text["part"])),
                "always": _always(rows),
                "notes": _notes([row for row in rows if not row.detail]),
            }
        )
    return entries


def _notes(rows: Sequence[CameBack]) -> list[str]:
    """Each note once, with the tasks that it is about unless it is about all."""
    tasks: dict[str, list[str]] = {}
    for row in rows:
        for note in row.notes:
            tasks.setdefault(note, []).append(row.task)
    return [note if len(of) == len(rows) else f"{', '.join(of)}: {note}" for note, of in tasks.items()]


def _always(rows: Sequence[CameBack]) -> str:
    """By task, what returned under every seed of a recovery; empty where that is not measured."""
    return ", ".join(
        f"{row.task} {share(row.always)}" for row in rows if not row.detail and row.always.value is not None
    )


def legend(result: StudyResult) -> list[Mark]:
    """The marks of the outcomes that occur."""
    present = {row.outcome for row in result.returned}
    return [mark for outcome, mark in OUTCOMES.items() if outcome in present]


def overlap_texts(result: StudyResult) -> list[Payload]:
    """The overlap of each text with each task, as texts; texts that share nothing with a task are counted too."""
    return [
        {
            "task": row.task,
            "source": f"{row.source}, seed {row.seed}",
            "recipes": ", ".join(row.recipes),
            "windows": f"{row.windows:,}",
            "items": f"{row.items:,}",
            "exact": f"{row.exact:,}",
            "ngram": f"{row.ngram:,}",
            "answered": f"{row.answered:,} of {row.with_answer:,}",
            "passages": f"{row.passages:,}",
            "examples": ", ".join(row.examples),
            "is_contaminated": row.answered > 0,
        }
        for row in result.overlap
    ]


def came_back_table(result: StudyResult) -> Table:
    """What came back, for a terminal: a line for each recovered recipe and task."""
    table = Table(
        "recipe", "task", "lost", "returned", "control", "", "newly lost",
        title=f"What came back of the lost items, and what is newly lost [{interval_name(result)}]",
        caption="Control: what returns under the next calibration seed without recovery.",
        box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    table.columns[0].overflow = table.columns[1].overflow = "fold"
    for row in whole_tasks(result):
        mark = OUTCOMES[row.outcome]
        cells = (f"{row.lost:.4g}", share(row.returned), share(row.control))
        outcome = Text(f"{mark.symbol} {row.outcome}", style=mark.style)
        table.add_row(Text(row.recipe), row.task, *cells, outcome, share(row.newly_lost))
    return table


def interval_name(result: StudyResult) -> str:
    """What the intervals of shares are called: two-sided, unlike the bounds of a verdict."""
    return f"{formatting.setting(1 - result.study.alpha)} interval"
