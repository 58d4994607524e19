"""Export of a study's numbers as Markdown, LaTeX, Parquet and flat metrics, from the same tables as the page."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from llmkick.errors import DataError
from llmkick.report import formatting
from llmkick.report.came_back import costs, interval_name, row_texts, whole_tasks
from llmkick.report.lookup import control_name, verdict_or_outcome
from llmkick.report.matrix import ControlCell, TaskCell, VerdictText, matrix
from llmkick.report.run_folder import Run
from llmkick.study.results.records import AnyComparison
from llmkick.study.results.results import StudyResult

RECORD_SCHEMA = pa.schema(
    [
        ("run_key", pa.string()), ("model", pa.string()), ("recipe", pa.string()), ("seed", pa.int64()),
        ("task", pa.string()), ("item_id", pa.string()), ("cluster", pa.string()), ("response", pa.string()),
        ("score", pa.float64()), ("unscored_reason", pa.string()), ("tokens", pa.int64()), ("truncated", pa.bool_()),
        ("details", pa.string()),
    ]
)  # fmt: skip
LATEX_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    formatting.MINUS: "$-$", "×": r"$\times$", formatting.NOTHING: "--", "≤": r"$\leq$",
}  # fmt: skip
# The texts of what came back, in the order of the table; the outcome follows the first six.
BACK = ("recipe", "task", "lost", "returned", "control", "difference", "newly_lost", "gained")
# Symbols that default fonts lack. The words next to them have the same meaning.
DROPPED = "✓✗∅…?•"


def markdown(result: StudyResult) -> str:
    """Recipes × tasks: score, verdict, loss with its interval; then what came back of recovered recipes."""
    columns, rows = _texts(result, symbols=True)
    return f"{_markdown_table(columns, rows)}\n\n{_note(result)}\n{_came_back(result)}"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_markdown_cell(text) for text in line) + " |" for line in lines)


def _came_back(result: StudyResult) -> str:
    """The table of what came back; empty without recovered models."""
    rows = [row_texts(result, row) for row in whole_tasks(result)]
    if not rows:
        return ""
    texts, of_cost = [], costs(result)
    for row in rows:
        verdict, outcome = row["verdict"], _verdict_text(row["outcome"], symbols=True)
        ours = formatting.NOTHING if verdict is None else _verdict_text(verdict, symbols=True)
        shares = [*(row[name] for name in BACK[:6]), outcome, *(row[name] for name in BACK[6:])]
        texts.append([*shares, ours, row["paper"], of_cost[row["recipe"]].text or formatting.NOTHING])
    titles = [name.replace("_", " ") for name in (*BACK[:6], "outcome", *BACK[6:], "verdict", "paper", "cost")]
    return (
        f"\n{_markdown_table(titles, texts)}\n\nWhat came back: the share of the lost score that returned, beside the "
        "control (the next calibration seed without recovery) and their paired difference, each with its "
        f"{interval_name(result)}.\n"
    )


def latex(result: StudyResult) -> str:
    """The same as a `tabular` with the rules of the package booktabs."""
    columns, rows = _texts(result, symbols=False)
    dense, compressed = rows[0], rows[1:]
    body = [_latex_row(columns), r"\midrule", _latex_row(dense), r"\addlinespace", *map(_latex_row, compressed)]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{tabular}{l" + "l" * (len(columns) - 1) + "}",
            r"\toprule", *body, r"\bottomrule", r"\end{tabular}",
            f"% {_note(result)}",
        ]
    ) + "\n"  # fmt: skip


def write_parquet(run: Run, path: Path) -> int:
    """Write all records of a run to one Parquet file, cell by cell; returns the number of records."""
    if run.journal is None:
        raise DataError(f"{run.result.folder} holds no journal that can be read: there are no records to export")
    written = 0
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(partial, RECORD_SCHEMA, compression="zstd") as writer:
            for cell in run.cells:
                frame = run.journal.cell_records(cell.run_key)
                frame["details"] = [json.dumps(details, ensure_ascii=False) for details in frame["details"]]
                frame["seed"] = frame["seed"].astype("Int64")
                table = pa.Table.from_pandas(frame, schema=RECORD_SCHEMA, preserve_index=False)
                writer.write_table(table)
                written += table.num_rows
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error}") from error
    return written


def flat_numbers(result: StudyResult, recipe: str) -> dict[str, float]:
    """The numbers of one recipe (or `dense`), under names that experiment trackers accept."""
    numbers: dict[str, float] = {}
    for row in result.results:
        if row.recipe != recipe:
            continue
        unscored = f"unscored/{_plain(row.task)}"
        numbers[unscored] = numbers.get(unscored, 0) + row.unscored  # of all seeds
        if row.value is not None and row.seed in (None, _first_seed(result, recipe)):
            numbers[f"score/{_plain(row.task)}"] = row.value
    for comparison in result.comparisons:
        if comparison.recipe == recipe:
            numbers |= _of_comparison(comparison)
    return numbers


def _of_comparison(comparison: AnyComparison) -> dict[str, float]:
    kind = "rise" if comparison.kind == "perplexity" else "loss"
    change = comparison.relative_increase if comparison.kind == "perplexity" else comparison.relative_drop
    task = _plain(comparison.task)
    low, high = comparison.interval or (None, None)
    if verdict_or_outcome(comparison) == "no signal":  # nothing that could be lost
        change, low, high = None, None, None
    values = {
        f"score/{task}": comparison.compressed,  # the mean over seeds
        f"{kind}/{task}": change,
        f"{kind}_low/{task}": low,
        f"{kind}_high/{task}": high,
        f"items/{task}": comparison.n,
    }
    return {name: float(value) for name, value in values.items() if value is not None}


def verdicts_of(result: StudyResult, recipe: str) -> dict[str, str]:
    """The verdicts of one recipe: one for each task and the overall verdict."""
    verdicts = {
        f"verdict/{_plain(comparison.task)}": verdict_or_outcome(comparison)
        for comparison in result.comparisons
        if comparison.recipe == recipe
    }
    overall = next((row.verdict for row in result.overall if row.recipe == recipe), None)
    return verdicts if overall is None else {**verdicts, "verdict/overall": overall}


def _first_seed(result: StudyResult, recipe: str) -> int | None:
    return next((row.seed for row in result.results if row.recipe == recipe), None)


def _plain(task: str) -> str:
    """The name of a task with the signs that trackers accept in names: `mmlu [shots=3]` → `mmlu.shots.3`."""
    return re.sub(r"[^\w/-]+", ".", task).strip(".")


def _texts(result: StudyResult, *, symbols: bool) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows of texts: the page's matrix without its marks."""
    table = matrix(result)
    columns = ["recipe", *(task.name for task in table.tasks), "all tasks"]
    rows = [["dense", *table.dense, ""]]
    for row in table.rows:
        overall = formatting.NOTHING if row.overall is None else _verdict_text(row.overall, symbols=symbols)
        rows.append([row.recipe, *(_cell_text(cell, symbols=symbols) for cell in row.cells), overall])
    return columns, rows


def _verdict_text(verdict: VerdictText, *, symbols: bool) -> str:
    return f"{verdict.symbol} {verdict.verdict}" if symbols else verdict.verdict


def _cell_text(cell: ControlCell | TaskCell | None, *, symbols: bool) -> str:
    if cell is None:
        return formatting.NOTHING
    if isinstance(cell, ControlCell):
        parts = (cell.score, cell.change, cell.interval)
    else:
        change = "" if cell.change == formatting.NOTHING else cell.change
        verdict = _verdict_text(cell, symbols=symbols) + ("," if change else "")
        parts = (cell.score, verdict, f"{change} {cell.interval}".strip())
    return " ".join(part for part in parts if part)


def _note(result: StudyResult) -> str:
    interval, margin = formatting.interval_name(result.study.alpha), formatting.setting(result.study.margin)
    return (
        f"{result.model.name}: score, verdict, relative loss ({formatting.GAIN_SIGN}) with its {interval}; matching "
        f"means a loss of at most {margin} is shown. {control_name(result).capitalize()} has no say."
    )


def _markdown_cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _latex_row(texts: list[str]) -> str:
    return " & ".join(_latex(text) for text in texts) + r" \\"


def _latex(text: str) -> str:
    return "".join(LATEX_SIGNS.get(sign, "" if sign in DROPPED else sign) for sign in text).strip()
