"""How large the compared models are and what was done to them, beside their scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from llmkick.report import formatting
from llmkick.study.results.results import StudyResult

COLUMNS = (
    "model", "reference", "architecture", "parameters", "nonzero", "stored_bytes", "precision", "dtype", "zeros",
    "pattern", "pruned_layers", "layers", "digest",
)  # fmt: skip


def models_frame(result: StudyResult) -> pd.DataFrame:
    """One row for each model of a study with models made elsewhere; empty where a server does not tell."""
    rows = []
    for model in result.models:
        zeros: Mapping[str, Any] = model["zeros"] or {}
        known = model["parameters"] is not None and "count" in zeros
        rows.append(
            {
                **{key: model[key] for key in ("reference", "architecture", "dtype", "digest")},
                "model": model["label"],
                "parameters": model["parameters"],
                "nonzero": model["parameters"] - zeros["count"] if known else None,
                "stored_bytes": model["stored_bytes"],
                "precision": model["source_precision"],
                "zeros": zeros.get("share"),
                "pattern": zeros.get("pattern"),
                "pruned_layers": zeros.get("pruned_layers"),
                "layers": zeros.get("layers"),
            }
        )
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    whole = ("parameters", "nonzero", "stored_bytes", "pruned_layers", "layers")
    return frame.astype(dict.fromkeys(whole, "Int64"))


def model_facts(result: StudyResult) -> list[tuple[str, str]]:
    """Label and description of each model, for the report's list of what was run on what."""
    return [(str(model["label"]), ", ".join(filter(None, _texts(model)))) for model in result.models]


def models_table(result: StudyResult) -> Table:
    """The models for a terminal: parameters, bytes as stored, precision, zeros and their pattern."""
    table = Table("model", "parameters", "stored", "as", "zeros", box=box.SIMPLE_HEAD, pad_edge=False)
    for model in result.models:
        parameters, stored, precision, zeros, _ = _texts(model)
        table.add_row(
            str(model["label"]),
            parameters.removesuffix(" parameters") or formatting.NOTHING,
            stored.removesuffix(" stored") or formatting.NOTHING,
            precision.removeprefix("as ") or formatting.NOTHING,
            zeros.replace(" zeros", "") or formatting.NOTHING,
        )
    return table


def _texts(model: Mapping[str, Any]) -> tuple[str, str, str, str, str]:
    zeros: Mapping[str, Any] | None = model["zeros"]
    pattern = f" ({zeros['pattern']})" if zeros and zeros["pattern"] else ""
    return (
        "" if model["parameters"] is None else f"{model['parameters']:,} parameters",
        "" if model["stored_bytes"] is None else f"{formatting.size(model['stored_bytes'])} stored",
        f"as {model['source_precision']}",
        f"{formatting.percent(zeros['share'])} zeros{pattern}" if zeros else "",
        "" if model["architecture"] == "server" else str(model["architecture"]),
    )
