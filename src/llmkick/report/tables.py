"""A study's result as plain tables: data frames, CSV files, and the table a terminal shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table
from rich.text import Text

from llmkick.errors import DataError
from llmkick.report import wording
from llmkick.study.results import StudyResult

# The paper's settings, in its order (arXiv 2310.01382, sections 3.1 to 3.3); perplexity is the control.
SETTINGS: Mapping[str, str] = {
    "knowledge": "Access to remaining knowledge",
    "synthesis": "Synthesis of given knowledge",
    "instruction": "Instruction following",
    "control": "Control",
}

SCORES = (
    "model", "recipe", "seed", "task", "metric", "value", "n", "unscored", "truncated", "tokens",
)  # fmt: skip
COMPARISONS = (
    "task", "recipe", "seeds", "n", "unscored", "clusters", "dense", "compressed", "loss", "loss_low",
    "loss_high", "verdict", "paper_verdict", "gained", "lost", "mcnemar_p", "p_matching", "p_not_matching",
    "smallest_detectable_loss", "loss_above_chance", "loss_above_chance_low", "loss_above_chance_high",
    "chance", "margin", "alpha", "notes",
)  # fmt: skip
PERPLEXITY = (
    "task", "recipe", "seeds", "n", "dense", "compressed", "increase", "increase_low", "increase_high",
    "outcome", "p_within", "p_beyond", "margin", "alpha", "notes",
)  # fmt: skip
COMPRESSION = (
    "recipe", "seed", "layers", "realised_sparsity", "mean_output_error", "max_output_error", "worst_layer",
    "dense_bytes", "stored_bytes", "seconds", "calibration", "digest", "warnings",
)  # fmt: skip
LAYERS = (
    "recipe", "seed", "depth", "kind", "name", "rows", "columns", "realised_sparsity",
    "relative_output_error", "damping", "tokens",
)  # fmt: skip
UNSCORED = ("recipe", "seed", "task", "reason", "count")


def scores_table(result: StudyResult) -> pd.DataFrame:
    """One row for each model × recipe × seed × task; the numbers beside the metric are further columns."""
    rows = [{**{key: row[key] for key in SCORES}, **row["details"]} for row in result.results]
    details = dict.fromkeys(key for row in result.results for key in row["details"])
    return _frame(rows, [*SCORES, *(key for key in details if key not in SCORES)])


def comparisons_table(result: StudyResult) -> pd.DataFrame:
    """One row for each recipe × task that has a verdict."""
    rows = []
    for entry in task_comparisons(result):
        low, high = entry["interval"] or (None, None)
        above_low, above_high = entry["interval_above_chance"] or (None, None)
        known = {key: entry[key] for key in COMPARISONS if key in entry}
        rows.append(
            {
                **known,
                "seeds": _joined(entry["seeds"], " "),
                "notes": _joined(entry["notes"], "; "),
                "loss": entry["relative_drop"],
                "loss_low": low,
                "loss_high": high,
                "loss_above_chance": entry["drop_above_chance"],
                "loss_above_chance_low": above_low,
                "loss_above_chance_high": above_high,
            }
        )
    return _frame(rows, COMPARISONS)


def perplexity_table(result: StudyResult) -> pd.DataFrame:
    """One row for each recipe whose perplexity was measured."""
    rows = []
    for entry in perplexity_comparisons(result):
        low, high = entry["interval"] or (None, None)
        known = {key: entry[key] for key in PERPLEXITY if key in entry}
        lists = {"seeds": _joined(entry["seeds"], " "), "notes": _joined(entry["notes"], "; ")}
        bounds = {"increase": entry["relative_increase"], "increase_low": low, "increase_high": high}
        rows.append({**known, **lists, **bounds})
    return _frame(rows, PERPLEXITY)


def overall_table(result: StudyResult) -> pd.DataFrame:
    """The verdict over all tasks, one row for each recipe."""
    return _frame([dict(row) for row in result.overall], ("recipe", "verdict"))


def compression_table(result: StudyResult) -> pd.DataFrame:
    """One row for each compressed model: what was made of the weights, how large it is, how long it took."""
    seconds = result.timing.get("compression_seconds", {})
    rows = []
    for report in result.compression:
        layers = report["layers"]
        errors = {
            layer["name"]: layer["relative_output_error"]
            for layer in layers
            if layer["relative_output_error"] is not None
        }
        weights = [rows * columns for rows, columns in (layer["shape"] for layer in layers)]
        zeros = sum(w * layer["realised_sparsity"] for w, layer in zip(weights, layers, strict=True))
        rows.append(
            {
                **{key: report[key] for key in ("recipe", "dense_bytes", "stored_bytes", "digest")},
                "seed": report_seed(report),
                "layers": len(layers),
                "realised_sparsity": zeros / sum(weights) if weights else None,
                "mean_output_error": sum(errors.values()) / len(errors) if errors else None,
                "max_output_error": max(errors.values()) if errors else None,
                "worst_layer": max(errors, key=errors.__getitem__) if errors else None,
                "seconds": seconds.get(report["recipe"]),
                "calibration": report["calibration"],
                "warnings": _joined(report["warnings"], "; "),
            }
        )
    return _frame(rows, COMPRESSION)


def layers_table(result: StudyResult) -> pd.DataFrame:
    """One row for each compressed weight matrix; `depth` is its block, `kind` its name inside the block."""
    rows = []
    for report in result.compression:
        for layer in report["layers"]:
            depth, kind = layer_place(layer["name"])
            place = {"recipe": report["recipe"], "seed": report_seed(report), "depth": depth, "kind": kind}
            height, width = layer["shape"]
            rows.append({**layer, **place, "rows": height, "columns": width})
    return _frame(rows, LAYERS)


def unscored_table(result: StudyResult) -> pd.DataFrame:
    """How many items got no score, by reason."""
    rows = [
        {"recipe": row["recipe"], "seed": row["seed"], "task": row["task"], "reason": reason, "count": count}
        for row in result.results
        for reason, count in row["unscored_reasons"].items()
    ]
    return _frame(rows, UNSCORED)


def write_tables(result: StudyResult, folder: Path) -> list[Path]:
    """Write every table to `folder/tables/NAME.csv`: plain numbers in full precision, empty where undefined."""
    frames = {
        "scores": scores_table(result),
        "comparisons": comparisons_table(result),
        "perplexity": perplexity_table(result),
        "overall": overall_table(result),
        "compression": compression_table(result),
        "layers": layers_table(result),
        "unscored": unscored_table(result),
    }
    return [
        write_text(folder / "tables" / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
        for name, frame in frames.items()
    ]


def verdict_table(result: StudyResult) -> Table:
    """Recipes × tasks for a terminal: verdict, score, and loss with its interval; dense first.

    Verdicts have a sign, a word and a colour, so the table reads the same without colours.
    """
    tasks = ordered_tasks(result)
    by_cell = comparisons_by_cell(result)
    dense = dense_scores(result)
    overall = {row["recipe"]: row["verdict"] for row in result.overall}
    level = wording.setting(1 - result.study["alpha"])
    table = Table(
        title=f"What {result.model['name']} lost: score, relative loss [{level} interval]",
        caption=f"Matching: a loss of at most {wording.setting(result.study['margin'])} is shown. "
        "Perplexity has no say in the overall verdict.",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_lines=False,
    )
    table.add_column("recipe", no_wrap=True)
    for task in tasks:
        table.add_column(task["name"].replace(":", "\n"), overflow="fold")
    table.add_column("overall", overflow="fold")
    scores = [Text(wording.score(dense.get(task["name"]), task["metric"])) for task in tasks]
    table.add_row(Text("dense", style="bold"), *scores, Text(""), end_section=True)
    for recipe in result.study["recipes"]:
        cells = [_cell(by_cell.get((recipe, task["name"]))) for task in tasks]
        table.add_row(Text(recipe), *cells, _verdict(overall.get(recipe)), end_section=True)
    return table


def _cell(entry: Mapping[str, Any] | None) -> Text:
    """Verdict, score and loss, interval: one a line."""
    if entry is None:
        return Text(wording.NOTHING, style="dim")
    control = "outcome" in entry
    change, _, bounds = (wording.increase(entry) if control else wording.loss(entry)).partition(" [")
    value = wording.score(entry["compressed"], "perplexity" if control else "")
    head = Text(entry["outcome"]) if control else _verdict(entry["verdict"])
    return Text("\n").join([head, Text(f"{value}  {change}"), Text(bounds and f"[{bounds}")])


def _verdict(verdict: str | None) -> Text:
    if verdict is None:
        return Text(wording.NOTHING, style="dim")
    mark = wording.mark(verdict)
    return Text(f"{mark.symbol} {verdict}", style=mark.style)


def task_comparisons(result: StudyResult) -> list[Mapping[str, Any]]:
    """The comparisons that carry a verdict."""
    return [entry for entry in result.comparisons if "verdict" in entry]


def perplexity_comparisons(result: StudyResult) -> list[Mapping[str, Any]]:
    """The comparisons of perplexity, which carry none."""
    return [entry for entry in result.comparisons if "outcome" in entry]


def comparisons_by_cell(result: StudyResult) -> dict[tuple[str, str], Mapping[str, Any]]:
    """(recipe, task) → comparison of either sort."""
    return {(entry["recipe"], entry["task"]): entry for entry in result.comparisons}


def dense_scores(result: StudyResult) -> dict[str, float | None]:
    """Task → score of the dense model over all its scored items."""
    return {row["task"]: row["value"] for row in result.results if row["recipe"] == "dense"}


def ordered_tasks(result: StudyResult) -> list[Mapping[str, Any]]:
    """The tasks by the paper's settings, the control last, otherwise in the study's order."""
    order = list(SETTINGS)
    return sorted(result.tasks, key=lambda task: order.index(task["setting"]) if task["setting"] in order else -1)


def report_seed(report: Mapping[str, Any]) -> int | None:
    """The calibration seed of a compressed model; None for a method that uses no calibration."""
    return None if report["calibration"] is None else int(report["seed"])


def layer_place(name: str) -> tuple[int | None, str]:
    """`model.layers.3.mlp.experts.7.up_proj` → (3, "mlp.experts.*.up_proj")."""
    found = re.match(r"(?:.*?\.)?([0-9]+)\.(.+)", name)
    return (int(found[1]), re.sub(r"\b[0-9]+\b", "*", found[2])) if found else (None, name)


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all. Raises DataError when the folder cannot be written to."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A lone surrogate in a model's answer has no UTF-8 form; shown as its escape it spoils nothing.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error}") from error
    return path


def _frame(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(list(rows), columns=list(columns)).convert_dtypes(
        convert_string=False, convert_boolean=False, convert_floating=False
    )


def _joined(values: Iterable[Any], separator: str) -> str:
    return separator.join(str(value) for value in values)
