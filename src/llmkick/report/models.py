"""Tables of the compared models: their size and how they were compressed."""

from __future__ import annotations

import pandas as pd
from rich import box
from rich.table import Table

from llmkick.report import formatting
from llmkick.study.results.records import ComparedModel, ModelZeros
from llmkick.study.results.results import StudyResult

COLUMNS = (
    "model", "reference", "architecture", "parameters", "nonzero", "stored_bytes", "precision", "dtype", "zeros",
    "pattern", "pruned_layers", "layers", "digest",
)  # fmt: skip


def models_frame(result: StudyResult) -> pd.DataFrame:
    """One row for each model of a study of existing models; values that a server does not report are empty."""
    rows = []
    for model in result.models:
        zeros = model.zeros or ModelZeros()
        nonzero = None if model.parameters is None or zeros.count is None else model.parameters - zeros.count
        rows.append(
            {
                **{key: model[key] for key in ("reference", "architecture", "dtype", "digest")},
                "model": model.label,
                "parameters": model.parameters,
                "nonzero": nonzero,
                "stored_bytes": model.stored_bytes,
                "precision": model.source_precision,
                "zeros": zeros.share,
                "pattern": None if model.zeros is None else zeros.pattern,
                "pruned_layers": zeros.pruned_layers,
                "layers": zeros.layers,
            }
        )
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    whole = ("parameters", "nonzero", "stored_bytes", "pruned_layers", "layers")
    return frame.astype(dict.fromkeys(whole, "Int64"))


def model_facts(result: StudyResult) -> list[tuple[str, str]]:
    """Label and description of each model, for the provenance section of the report."""
    return [(model.label, _description(model)) for model in result.models]


def _description(model: ComparedModel) -> str:
    parameters, stored, zeros = _parameters(model), _stored(model), _zeros(model)
    parts = [
        parameters and f"{parameters} parameters",
        stored and f"{stored} stored",
        f"as {model.source_precision}",
        zeros and f"{zeros[0]} zeros{zeros[1]}",
        "" if model.architecture == "server" else model.architecture,
    ]
    return ", ".join(part for part in parts if part)


def models_table(result: StudyResult) -> Table:
    """The models for a terminal: parameters, bytes as stored, precision, zeros and their pattern."""
    table = Table("model", "parameters", "stored", "as", "zeros", box=box.SIMPLE_HEAD, pad_edge=False)
    for model in result.models:
        texts = (_parameters(model), _stored(model), model.source_precision, "".join(_zeros(model)))
        table.add_row(model.label, *(text or formatting.NOTHING for text in texts))
    return table


def _parameters(model: ComparedModel) -> str:
    return "" if model.parameters is None else f"{model.parameters:,}"


def _stored(model: ComparedModel) -> str:
    return "" if model.stored_bytes is None else formatting.size(model.stored_bytes)


def _zeros(model: ComparedModel) -> tuple[str, ...]:
    """The share of zeros and, in brackets, their pattern; empty if a server does not report it."""
    if model.zeros is None:
        return ()
    return formatting.percent(model.zeros.share), f" ({model.zeros.pattern})" if model.zeros.pattern else ""
