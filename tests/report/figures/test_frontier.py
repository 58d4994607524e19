"""Frontiers drawn and told: what is known, what is not, and perplexity beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llmkick.report.figures.figures import frontier_figures
from llmkick.report.figures.frontier import (
    OVERALL,
    answer,
    frontier_chart,
    frontier_table,
    row_name,
    write_frontier_figure,
)
from llmkick.report.tables import plain_rows
from llmkick.study.frontier.result import FrontierResult, FrontierRow
from report.specs import validate

LEVELS = ["0.1", "0.2", "0.3", "0.4"]


def row(task: str, verdicts: list[str | None], *, metric: str = "accuracy", margin: float = 0.05) -> dict[str, Any]:
    seen = [(level, verdict) for level, verdict in zip(LEVELS, verdicts, strict=True) if verdict]
    matching = [level for level, verdict in seen if verdict == "matching"]
    failing = [level for level, verdict in seen if verdict == "not matching"]
    return {
        "name": "wanda", "method": "wanda", "kind": "sparsity", "task": task, "metric": metric, "margin": margin,
        "levels": LEVELS, "strongest_matching": matching[-1] if matching else None,
        "weakest_not_matching": failing[0] if failing else None,
        "verdicts": [
            {"level": level, "recipe": f"wanda@{level}", "verdict": verdict, "confirmed": verdict == "matching",
             "items": 64, "of": 480, "dense": 0.5, "compressed": 0.4, "loss": 0.2, "interval": [0.1, 0.3]}
            for level, verdict in seen
        ],
        "order": [], "violations": [], "notes": [],
    }  # fmt: skip


@pytest.fixture
def result(tmp_path: Path) -> FrontierResult:
    rows = [
        row("facts<script>", ["matching", "undecided", "not matching", "not matching"]),
        row("hopeless", [None, "no signal", None, None]),
        row("open", ["undecided", "undecided", "undecided", "undecided"]),
        row("perplexity", ["matching", "matching", None, "not matching"], metric="perplexity"),
        row("perplexity", ["matching", "matching", "matching", None], metric="perplexity", margin=0.1),
    ]
    overall = {
        key: rows[0][key] for key in ("name", "method", "kind", "levels", "strongest_matching", "weakest_not_matching")
    }
    cost = {"name": "wanda", "metric": "accuracy", "items": 300, "full": 1920, "models": 3, "levels": 4}
    return FrontierResult(
        folder=tmp_path, study={"margin": 0.05}, settings={}, environment={}, timing={},
        model={"name": "toy", "source_precision": "float"},
        tasks=[], frontiers=rows, overall=[overall],
        cost=[{**cost, "task": "facts<script>"}, {**cost, "task": "perplexity", "metric": "perplexity", "items": 999}],
        warnings=[],
    )  # fmt: skip


def test_the_table_tells_intervals(result: FrontierResult):
    console = Console(width=160, record=True)
    console.print(frontier_table(result))
    lines = {line.split("  ")[1].strip(): line for line in console.export_text().splitlines() if "  " in line.strip()}
    assert "0.1 … 0.3" in lines["facts<script>"]
    assert "no signal" in lines["hopeless"]
    assert "– … –" in lines["open"]
    assert "0.2 … 0.4" in lines["perplexity ≤ +5 %"]
    assert "0.3 … –" in lines["perplexity ≤ +10 %"]
    assert "0.1 … 0.3" in lines[OVERALL]
    assert "300 of 1,920 (16 %)" in console.export_text(clear=False) or "300 of 1,920 (16 %)" in "".join(lines.values())


def test_the_figure_shows_every_level_seen_and_what_is_not_known(result: FrontierResult):
    spec = frontier_chart(result).to_dict()
    text = json.dumps(spec)
    datasets = list(spec["datasets"].values())
    points = next(rows for rows in datasets if "verdict" in rows[0])
    assert len(points) == sum(len(one["verdicts"]) for one in result.frontiers)
    assert {point["asked"] for point in points} == {"64 of 480", "64 of 480 (confirmed)"}
    bars = {bar["task"]: bar for rows in datasets for bar in rows if "start" in bar}
    assert (bars["facts<script>"]["start"], bars["facts<script>"]["end"]) == ("0.1", "0.3")
    # An end that was not found is that of the grid; where nothing is known nothing is drawn.
    assert (bars["perplexity ≤ +10 %"]["start"], bars["perplexity ≤ +10 %"]["end"]) == ("0.3", "0.4")
    assert "open" not in bars
    assert "hopeless" not in bars
    assert OVERALL in text


def test_the_page_of_the_same_folder_shows_it(result: FrontierResult):
    assert frontier_figures(result.folder) == []
    result.write()
    (figure,) = frontier_figures(result.folder)
    validate(figure.spec)
    found = [row["strongest_matching"] for row in plain_rows(figure.rows)]
    assert found == [row["strongest_matching"] for row in result.frontiers]


def test_files(result: FrontierResult):
    svg, page = write_frontier_figure(result)
    assert svg.read_text(encoding="utf-8").startswith("<svg")
    assert "<script>alert" not in page.read_text(encoding="utf-8")
    assert "http-equiv" not in svg.read_text(encoding="utf-8")
    assert (svg.name, page.name) == ("frontier.svg", "frontier.html")


def test_names_and_answers():
    assert (
        row_name(FrontierRow.model_validate(row("perplexity", ["matching"] * 4, metric="perplexity", margin=0.1)))
        == "perplexity ≤ +10 %"
    )
    assert answer(FrontierRow.model_validate(row("facts", ["matching"] * 4))) == "0.4 … –"
    assert answer(FrontierRow.model_validate(row("facts", ["not matching"] * 4))) == "– … 0.1"
