"""A study's result as tables: data frames, CSV files, and a table for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from llmkick.files import write_text
from llmkick.report import formatting
from llmkick.report.lookup import (
    comparisons_by_cell,
    control_name,
    dense_scores,
    layer_place,
    ordered_tasks,
    perplexity_comparisons,
    task_comparisons,
)
from llmkick.report.models import models_frame
from llmkick.report.multiplicity import agreement_table, families_table
from llmkick.report.payload import Payload
from llmkick.report.returned_tables import flows_table, overlap_table, returned_table
from llmkick.statistics import PerplexityComparison
from llmkick.study.results.records import AnyComparison, CompressionSummary
from llmkick.study.results.results import StudyResult

SCORES = (
    "model", "recipe", "seed", "task", "metric", "value", "n", "unscored", "truncated", "tokens",
)  # fmt: skip
COMPARISONS = (
    "task", "recipe", "seeds", "n", "unscored", "clusters", "dense", "compressed", "loss", "loss_low",
    "loss_high", "verdict", "paper_verdict", "gained", "lost", "mcnemar_p", "p_matching", "p_not_matching",
    "smallest_detectable_loss", "raw_loss",
    "chance", "margin", "alpha", "notes",
)  # fmt: skip
PERPLEXITY = (
    "task", "recipe", "seeds", "n", "dense", "compressed", "increase", "increase_low", "increase_high",
    "outcome", "p_within", "p_beyond", "margin", "alpha", "notes",
)  # fmt: skip
COMPRESSION = (
    "recipe", "seed", "layers", "block_share", "model_share", "realised_sparsity", "mean_output_error",
    "max_output_error", "worst_layer",
    "dense_bytes", "stored_bytes", "seconds", "calibration", "digest", "warnings",
)  # fmt: skip
LAYERS = (
    "recipe", "seed", "depth", "kind", "name", "rows", "columns", "realised_sparsity",
    "relative_output_error", "damping", "tokens",
)  # fmt: skip
MISSING_JUDGEMENTS = (
    "task", "recipe", "seed", "items", "missing", "share", "dense_missing", "dense_share", "p", "adjusted_p", "differs",
)  # fmt: skip
UNSCORED = ("recipe", "seed", "task", "reason", "count")


def scores_table(result: StudyResult) -> pd.DataFrame:
    """One row for each model × recipe × seed × task; the numbers other than the metric are additional columns."""
    rows = [{**{key: row[key] for key in SCORES}, **row.details} for row in result.results]
    details = dict.fromkeys(key for row in result.results for key in row.details)
    return _frame(rows, [*SCORES, *(key for key in details if key not in SCORES)])


def comparisons_table(result: StudyResult) -> pd.DataFrame:
    """One row for each recipe × task that has a verdict."""
    rows = []
    for entry in task_comparisons(result):
        low, high = entry.interval or (None, None)
        entries = {key: value for key, value in vars(entry).items() if key in COMPARISONS}
        rows.append(
            {
                **entries,
                "seeds": _joined(entry.seeds, " "),
                "notes": _joined(entry.notes, "; "),
                "loss": entry.relative_drop,
                "loss_low": low,
                "loss_high": high,
                "raw_loss": entry.raw_drop,
            }
        )
    return _frame(rows, COMPARISONS)


def perplexity_table(result: StudyResult) -> pd.DataFrame:
    """One row for each recipe whose perplexity was measured."""
    rows = []
    for entry in perplexity_comparisons(result):
        low, high = entry.interval or (None, None)
        entries = {key: value for key, value in vars(entry).items() if key in PERPLEXITY}
        lists = {"seeds": _joined(entry.seeds, " "), "notes": _joined(entry.notes, "; ")}
        bounds = {"increase": entry.relative_increase, "increase_low": low, "increase_high": high}
        rows.append({**entries, **lists, **bounds})
    return _frame(rows, PERPLEXITY)


def overall_table(result: StudyResult) -> pd.DataFrame:
    """The verdict over all tasks, one row for each recipe."""
    return _frame([row.facts for row in result.overall], ("recipe", "verdict"))


def compression_table(result: StudyResult) -> pd.DataFrame:
    """One row for each compressed model: the kind of compression, its size, and the time it took."""
    rows = [_compression_row(report, result.timing.compression_seconds) for report in result.compression]
    return _frame(rows, COMPRESSION)


def _compression_row(report: CompressionSummary, seconds: Mapping[str, float]) -> Payload:
    errors = {
        layer.name: layer.relative_output_error for layer in report.layers if layer.relative_output_error is not None
    }
    weights = [height * width for height, width in (layer.shape for layer in report.layers)]
    zeros = sum(count * layer.realised_sparsity for count, layer in zip(weights, report.layers, strict=True))
    return {
        **{key: report[key] for key in ("recipe", "dense_bytes", "stored_bytes", "digest")},
        "seed": report.calibration_seed,
        "layers": len(report.layers),
        "block_share": report.block_share,
        "model_share": report.model_share,
        "realised_sparsity": zeros / sum(weights) if weights else None,
        "mean_output_error": sum(errors.values()) / len(errors) if errors else None,
        "max_output_error": max(errors.values()) if errors else None,
        "worst_layer": max(errors, key=errors.__getitem__) if errors else None,
        "seconds": seconds.get(report.digest),
        "calibration": report.calibration,
        "warnings": _joined(report.warnings, "; "),
    }


def layers_table(result: StudyResult) -> pd.DataFrame:
    """One row for each compressed weight matrix; `depth` is its block, `kind` its name inside the block."""
    rows = []
    for report in result.compression:
        for layer in report.layers:
            depth, kind = layer_place(layer.name)
            place = {"recipe": report.recipe, "seed": report.calibration_seed, "depth": depth, "kind": kind}
            height, width = layer.shape
            rows.append({**vars(layer), **place, "rows": height, "columns": width})
    return _frame(rows, LAYERS)


def layer_means(result: StudyResult) -> pd.DataFrame:
    """Output error, zeros and damping by compressed model, layer kind and depth: experts of one block are averaged."""
    frame = layers_table(result)
    seeds = frame["seed"].map(lambda seed: "" if pd.isna(seed) else f", seed {seed}")
    several = frame.groupby("recipe")["seed"].transform("nunique") > 1
    frame["model"] = frame["recipe"] + seeds.where(several, "")
    grouped = frame.groupby(["model", "kind", "depth"], sort=False, dropna=False, as_index=False)
    # Convert to numbers even if no error was measured: a column of objects keeps NaN, which charts cannot represent.
    return (
        grouped[["relative_output_error", "realised_sparsity", "damping"]]
        .mean()
        .astype({"relative_output_error": float, "realised_sparsity": float, "damping": float})
    )


def unscored_table(result: StudyResult) -> pd.DataFrame:
    """The number of items without a score, by reason."""
    rows = [
        {"recipe": row.recipe, "seed": row.seed, "task": row.task, "reason": reason, "count": count}
        for row in result.results
        for reason, count in row.unscored_reasons.items()
    ]
    return _frame(rows, UNSCORED)


def missing_judgements_table(result: StudyResult) -> pd.DataFrame:
    """One row for each recipe × seed × judged task: the missing judgements, and whether they depend on the model."""
    return _frame([row.facts for row in result.missing_judgements], MISSING_JUDGEMENTS)


def plain_rows(frame: pd.DataFrame) -> list[Payload]:
    """The rows as dicts, with None for undefined values."""
    return [
        {str(key): None if pd.isna(value) else value for key, value in row.items()} for row in frame.to_dict("records")
    ]


def write_tables(result: StudyResult, folder: Path, *, more: Mapping[str, pd.DataFrame] | None = None) -> list[Path]:
    """Write every table to `folder/tables/NAME.csv`: plain numbers in full precision, empty where undefined."""
    frames = {
        "scores": scores_table(result),
        "comparisons": comparisons_table(result),
        "perplexity": perplexity_table(result),
        "overall": overall_table(result),
        "compression": compression_table(result),
        "layers": layers_table(result),
        "unscored": unscored_table(result),
        **({"models": models_frame(result)} if result.models else {}),
        **{name: frame for name, frame in (more or {}).items() if not frame.empty},
    }
    further = {
        "agreement": agreement_table(result),
        "families": families_table(result),
        "missing_judgements": missing_judgements_table(result),
        "returned": returned_table(result),
        "flows": flows_table(result),
        "overlap": overlap_table(result),
    }
    frames |= {name: frame for name, frame in further.items() if not frame.empty}
    return [
        write_text(folder / "tables" / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
        for name, frame in frames.items()
    ]


class _VerdictTable(Table):
    """A matrix if it fits the terminal; otherwise one line for each recipe and task."""

    narrow: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = self.__rich_measure__(console, options.update_width(10_000)).maximum
        narrow = needed > options.max_width
        yield from (
            self.narrow.__rich_console__(console, options) if narrow else super().__rich_console__(console, options)
        )


def verdict_table(result: StudyResult) -> Table:
    """Recipes × tasks for a terminal: verdict, score, and loss with its interval; dense first.

    Verdicts have a sign, a word and a colour, so the table reads the same without colours. On a terminal too
    narrow for the matrix it becomes a list.
    """
    tasks = ordered_tasks(result)
    by_cell, dense = comparisons_by_cell(result), dense_scores(result)
    overall = {row.recipe: _verdict(row.verdict) for row in result.overall}
    table = _VerdictTable(**_frame_of(result))
    task_column = Column("task", overflow="fold")
    table.narrow = Table(
        Column("recipe", overflow="fold"), task_column, "verdict", "score", "loss", **_frame_of(result)
    )
    table.add_column("recipe", no_wrap=True)
    for task in tasks:
        table.add_column(re.sub("([_:])", "\\1\n", task.name))
        table.narrow.add_row("dense", task.name, "", formatting.score(dense.get(task.name), task.metric), "")
    table.add_column("overall")
    table.narrow.add_section()
    scores = [Text(formatting.score(dense.get(task.name), task.metric)) for task in tasks]
    table.add_row(Text("dense", style="bold"), *scores, Text(""), end_section=True)
    for recipe in result.labels:
        cells = [_cell(by_cell.get((recipe, task.name))) for task in tasks]
        verdict = overall.get(recipe, Text(formatting.NOTHING))
        table.add_row(Text(recipe), *(Text("\n").join(cell) for cell in cells), verdict, end_section=True)
        for task, (head, value, loss, bounds) in zip(tasks, cells, strict=True):
            table.narrow.add_row(Text(recipe), task.name, head, value, Text(" ").join([loss, bounds]))
        table.narrow.add_row(Text(recipe), Text("overall", style="bold"), verdict, end_section=True)
    return table


def _frame_of(result: StudyResult) -> Payload:
    """Title, caption and lines of the table."""
    interval, margin = formatting.interval_name(result.study.alpha), formatting.setting(result.study.margin)
    control = control_name(result).capitalize()
    return {
        "title": f"What {result.model.name} lost: score, relative loss ({formatting.GAIN_SIGN}) [{interval}]",
        "caption": f"Matching: a loss of at most {margin} is shown. {control} has no say in the overall verdict.",
        "box": box.SIMPLE_HEAD,
        "pad_edge": False,
        "collapse_padding": True,
    }


def _cell(comparison: AnyComparison | None) -> tuple[Text, Text, Text, Text]:
    """Verdict, score, loss and its interval."""
    if comparison is None:
        return Text(formatting.NOTHING, style="dim"), Text(""), Text(""), Text("")
    if isinstance(comparison, PerplexityComparison):
        head, change = Text(comparison.outcome), formatting.increase(comparison)
        score = formatting.score(comparison.compressed, "perplexity")
    else:
        head, change = _verdict(comparison.verdict), formatting.loss(comparison)
        score = formatting.score(comparison.compressed)
    return head, Text(score), Text(change.value), Text(change.interval)


def _verdict(verdict: str) -> Text:
    mark = formatting.mark(verdict)
    return Text(f"{mark.symbol} {verdict}", style=mark.style)


def _frame(rows: Iterable[Payload], columns: Sequence[str]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=list(columns))
    if "seed" in frame:
        frame["seed"] = frame["seed"].astype("Int64")  # integer or undefined, never 0.0
    return frame


def _joined(values: Iterable[object], separator: str) -> str:
    return separator.join(str(value) for value in values)
