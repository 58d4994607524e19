"""The verdict matrix and the tables under it, as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

from llmkick.report import formatting
from llmkick.report.level_axes import level_of
from llmkick.report.lookup import (
    SETTINGS,
    comparisons_by_cell,
    dense_scores,
    ordered_tasks,
    perplexity_comparisons,
    task_comparisons,
)
from llmkick.report.multiplicity import agreements, asked
from llmkick.report.tables import compression_table, layer_means, plain_rows, unscored_table
from llmkick.study.results.results import CONTROL_METRICS, StudyResult


def matrix(result: StudyResult) -> dict[str, Any]:
    """Recipes × tasks, the tasks under the paper's settings."""
    tasks, cells = ordered_tasks(result), comparisons_by_cell(result)
    overall = {row["recipe"]: row["verdict"] for row in result.overall}
    dense = {row["task"]: row for row in result.results if row["recipe"] == "dense"}
    settings = [(key, len(list(group))) for key, group in groupby(tasks, key=lambda task: str(task["setting"]))]
    return {
        "settings": [{"title": SETTINGS.get(key, key), "span": span, "key": key} for key, span in settings],
        "tasks": [{**task, "asked": _asked(dense.get(task["name"]))} for task in tasks],
        "dense": [formatting.score(dense_scores(result).get(task["name"]), task["metric"]) for task in tasks],
        "rows": [
            {
                "recipe": recipe,
                "rounded": is_rounded_twice(result, recipe),
                "overall": overall.get(recipe) and _verdict(overall[recipe]),
                "cells": [
                    _cell(cells.get((recipe, task["name"])) or _uncompared(result, recipe, task)) for task in tasks
                ],
            }
            for recipe in result.labels
        ],
    }


def is_rounded_twice(result: StudyResult, recipe: str) -> bool:
    """Whether the recipe rounds weights that had been rounded before they came here."""
    kind = level_of(recipe).kind
    return bool(result.model["source_precision"] != "float" and kind in ("bits", "combined"))


def legend() -> list[dict[str, str]]:
    """What each verdict means."""
    return [{**_verdict(verdict), "meaning": mark.meaning} for verdict, mark in formatting.VERDICTS.items()]


def notes(result: StudyResult) -> list[str]:
    """What must be known to read the verdicts rightly, each note once; `numbers` refers to them from 1."""
    return list(dict.fromkeys(note for entry in task_comparisons(result) for note in entry["notes"]))


def numbers(result: StudyResult) -> list[dict[str, Any]]:
    """Everything known about each verdict, as texts."""
    number = {note: str(i) for i, note in enumerate(notes(result), start=1)}
    agreed = agreements(result)
    return [
        {
            "recipe": entry["recipe"],
            "task": entry["task"],
            "n": asked(entry),
            "clusters": entry["clusters"],
            "dense": _three(entry["dense"]),
            "compressed": _three(entry["compressed"]),
            "loss": formatting.percent(entry["relative_drop"]),
            "interval": formatting.interval(entry["interval"]) or formatting.NOTHING,
            "above_chance": _above_chance(entry),
            "verdict": _verdict(entry["verdict"]),
            "paper": entry["paper_verdict"] or formatting.NOTHING,
            "lost": f"{entry['lost']:g}",
            "gained": f"{entry['gained']:g}",
            "mcnemar": formatting.p_value(entry["mcnemar_p"]),
            "detectable": formatting.percent(entry["smallest_detectable_loss"]),
            "agreement": agreed.get(
                (entry["recipe"], entry["task"]), {"same": formatting.NOTHING, "kl": formatting.NOTHING}
            ),
            "seeds": len(entry["seeds"]) or formatting.NOTHING,
            "notes": [number[note] for note in entry["notes"]],
        }
        for entry in task_comparisons(result)
    ]


def control_numbers(result: StudyResult) -> list[dict[str, Any]]:
    """The perplexity comparisons, as texts."""
    return [
        {
            "recipe": entry["recipe"],
            "task": entry["task"],
            "n": entry["n"],
            "dense": formatting.score(entry["dense"], "perplexity"),
            "compressed": formatting.score(entry["compressed"], "perplexity"),
            "increase": formatting.increase(entry),
            "outcome": entry["outcome"],
            "notes": "; ".join(entry["notes"]),
        }
        for entry in perplexity_comparisons(result)
    ]


def compression(result: StudyResult) -> list[dict[str, Any]]:
    """What was made of the weights, as texts."""
    return [
        {
            "recipe": row["recipe"],
            "seed": formatting.NOTHING if row["seed"] is None else str(row["seed"]),
            "rounded": is_rounded_twice(result, row["recipe"]),
            "sparsity": formatting.percent(row["realised_sparsity"]),
            "mean_error": _error(row["mean_output_error"]),
            "max_error": _error(row["max_output_error"]),
            "worst": row["worst_layer"] or "",
            "dense": formatting.size(row["dense_bytes"]),
            "stored": formatting.size(row["stored_bytes"]),
            "share": formatting.percent(row["stored_bytes"] / row["dense_bytes"] if row["dense_bytes"] else None),
            "seconds": formatting.NOTHING if row["seconds"] is None else formatting.duration(row["seconds"]),
            "digest": row["digest"],
            "warnings": row["warnings"],
        }
        for row in plain_rows(compression_table(result))
    ]


def layers_payload(result: StudyResult) -> dict[str, Any]:
    """Output error, zeros and damping by layer type and block, a list for each compressed model."""
    rows = plain_rows(layer_means(result))
    places = list(dict.fromkeys((row["kind"], row["depth"]) for row in rows))
    models = []
    for model in dict.fromkeys(row["model"] for row in rows):
        found = {(row["kind"], row["depth"]): row for row in rows if row["model"] == model}
        of_model = [found.get(place, {}) for place in places]
        models.append(
            {
                "label": model,
                "error": [_short(row.get("relative_output_error")) for row in of_model],
                "zeros": [_short(row.get("realised_sparsity")) for row in of_model],
                "damping": [_short(row.get("damping")) for row in of_model],
            }
        )
    return {"layers": [[kind, None if depth is None else int(depth)] for kind, depth in places], "models": models}


def unscored(result: StudyResult) -> list[dict[str, Any]]:
    """Items without a score by reason."""
    return plain_rows(unscored_table(result))


def _uncompared(result: StudyResult, recipe: str, task: Mapping[str, Any]) -> dict[str, Any] | None:
    """A perplexity that was measured but cannot be held against the dense one: not over the same windows."""
    rows = [row for row in result.results if (row["recipe"], row["task"]) == (recipe, task["name"])]
    if not rows or task["metric"] not in CONTROL_METRICS:
        return None
    return {"outcome": "not comparable", "compressed": rows[0]["value"], "relative_increase": None}


def _cell(entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if entry is None:
        return None
    if "outcome" in entry and entry["relative_increase"] is None:
        blank = dict.fromkeys(("change", "interval"), "")
        value, why = (
            formatting.score(entry["compressed"], "perplexity"),
            "a window has no score, or none that is finite",
        )
        return {"control": True, "outcome": entry["outcome"], "score": value, "title": why, **blank}
    if "outcome" in entry:
        change, _, bounds = formatting.increase(entry).partition(" [")
        return {
            "control": True,
            "outcome": entry["outcome"],
            "score": formatting.score(entry["compressed"], "perplexity"),
            "change": change,
            "interval": bounds and f"[{bounds}",
            "title": "; ".join(entry["notes"]),
        }
    change, _, bounds = formatting.loss(entry).partition(" [")
    return {
        **_verdict(entry["verdict"]),
        "control": False,
        "recipe": entry["recipe"],
        "task": entry["task"],
        "score": formatting.score(entry["compressed"]),
        "change": change,
        "interval": (bounds and f"[{bounds}") + (f" of n = {entry['n']}" if entry["unscored"] else ""),
        "paper": entry["paper_verdict"],
        "paper_symbol": formatting.mark(entry["paper_verdict"]).symbol
        if entry["paper_verdict"]
        else formatting.NOTHING,
        "title": _title(entry),
    }


def _title(entry: Mapping[str, Any]) -> str:
    """What a pointer that rests on the cell is told."""
    parts = [
        f"{formatting.counted(entry['n'], 'item')}: {entry['lost']:g} lost, {entry['gained']:g} gained",
        f"McNemar p = {formatting.p_value(entry['mcnemar_p'])}" if entry["mcnemar_p"] is not None else "",
        f"a loss of {formatting.percent(entry['smallest_detectable_loss'])} would usually show"
        if entry["smallest_detectable_loss"] is not None
        else "",
        *entry["notes"],
    ]
    return "; ".join(part for part in parts if part)


def _verdict(verdict: str) -> dict[str, str]:
    return {"verdict": verdict, "symbol": formatting.mark(verdict).symbol, "css": verdict.replace(" ", "-")}


def _asked(row: Mapping[str, Any] | None) -> str:
    return "" if row is None else f"n = {row['n'] + row['unscored']}"


def _above_chance(entry: Mapping[str, Any]) -> str:
    if entry["drop_above_chance"] is None:
        return formatting.NOTHING
    drop, interval = entry["drop_above_chance"], entry["interval_above_chance"]
    return f"{formatting.percent(drop)} {formatting.interval(interval)}".strip()


def _three(value: float | None) -> str:
    return formatting.NOTHING if value is None else f"{value:.3f}"


def _error(value: float | None) -> str:
    if value is None:
        return formatting.NOTHING
    return f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.2g}"


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
