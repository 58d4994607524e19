"""The claims of the paper as a table of the page, of the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from llmkick.claims.assess import assess
from llmkick.claims.runs import ClaimRun
from llmkick.paper.numbers import paper_source
from llmkick.report import formatting
from llmkick.report.formatting import Mark
from llmkick.report.payload import Payload
from llmkick.report.run_folder import Run
from llmkick.study.results.claim_records import ClaimRow, ClaimStatement

OUTCOMES: Mapping[str, Mark] = {
    "supported": Mark(symbol="✓", style="cyan", meaning="every statement of its rule is shown", legend="shown"),
    "contradicted": Mark(symbol="✗", style="bold red", meaning="a statement of its rule is refuted", legend="refuted"),
    "undecided": Mark(symbol="?", style="yellow", meaning="statements are open, or were not asked", legend="open"),
    "not asked": Mark(
        symbol=formatting.NOTHING, style="dim", meaning="the runs say nothing about it", legend="not asked"
    ),
}
STATES: Mapping[str, str] = {"shown": "✓", "refuted": "✗", "open": "?"}


def claims_of(runs: Sequence[Run], names: Sequence[str]) -> list[ClaimRow]:
    """The claims on runs together. Raises DataError for runs that must not be read together."""
    return assess(
        [
            ClaimRun(name=name, result=run.result, records=partial(_records, run))
            for name, run in zip(names, runs, strict=True)
        ]
    )


def _records(run: Run) -> pd.DataFrame | None:
    return None if run.journal is None else run.records


def claims_of_run(run: Run) -> Sequence[ClaimRow]:
    """The claims in results.json; for earlier and for unfinished runs, assessed now."""
    return run.result.claims or claims_of([run], [run.result.study.name])


def claim_payload(rows: Sequence[ClaimRow]) -> list[Payload]:
    """The claims as texts for the page."""
    return [
        {
            "id": row.id, "title": row.title, "claim": row.claim, "outcome": row.outcome,
            "symbol": OUTCOMES[row.outcome].symbol, "css": row.outcome.replace(" ", "-"), "reason": row.reason,
            "rule": row.rule, "paper": list(row.paper),
            "numbers": [
                {"symbol": STATES[line.outcome], "state": line.outcome, "statement": line.statement, "run": line.run,
                 "numbers": statement_numbers(line), "p": f"{formatting.p_value(line.p_for)} / "
                 f"{formatting.p_value(line.p_against)}"}
                for line in row.statements
            ],
        }
        for row in rows
    ]  # fmt: skip


def statement_numbers(line: ClaimStatement) -> str:
    """The quantity of a statement with its interval: "loss of 12 % [8.1, 16]"."""
    if line.value is None:
        return line.quantity
    bounds = None if line.low is None or line.high is None else (line.low, line.high)
    if line.quantity == "relative loss":
        return formatting.stated_loss(line.value, bounds)
    if line.quantity.startswith("change of"):
        return f"{line.quantity} {formatting.difference(line.value, bounds)}"
    return f"{line.quantity} {formatting.percent(line.value)} {formatting.interval(bounds)}".strip()


def claims_table(rows: Sequence[ClaimRow]) -> Table:
    """The claims for a terminal of 80 columns: outcome and reason."""
    table = Table("", "claim of the paper", "outcome", "why", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in (table.columns[0], table.columns[2]):
        column.no_wrap, column.overflow = True, "fold"
    for row in rows:
        mark = OUTCOMES[row.outcome]
        outcome = Text(f"{mark.symbol} {row.outcome}", style=mark.style)
        table.add_row(str(row.id), Text(row.title), outcome, Text(row.reason))
    return table


def claim_lines(row: ClaimRow) -> list[str]:
    """One claim in full: rule, statements with their numbers, and the paper's numbers."""
    lines = [f"{row.id}. {row.claim}", f"{OUTCOMES[row.outcome].symbol} {row.outcome}: {row.reason}", "", row.rule, ""]
    for line in row.statements:
        p = f"p for {formatting.p_value(line.p_for)}, against {formatting.p_value(line.p_against)}"
        lines.append(f"{STATES[line.outcome]} {line.statement} ({line.run}): {statement_numbers(line)}; {p}")
    return [*lines, *([""] if row.statements else []), *row.paper, f"({paper_source()})"]


def claims_markdown(rows: Sequence[ClaimRow]) -> str:
    """The claims as a Markdown table: outcome, reason, our numbers, the paper's."""
    lines = [["", "claim", "outcome", "why", "our numbers", "the paper's numbers"], ["---"] * 6]
    for row in rows:
        ours = [f"{STATES[s.outcome]} {s.statement}: {statement_numbers(s)}" for s in row.statements]
        lines.append(
            [
                str(row.id),
                row.claim,
                f"{OUTCOMES[row.outcome].symbol} {row.outcome}",
                row.reason,
                "<br>".join(ours),
                "<br>".join(row.paper),
            ]
        )
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"
