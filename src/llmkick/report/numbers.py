"""The tables below the verdict matrix: comparisons, perplexity, compression, layers and unscored items, as texts."""

from __future__ import annotations

from llmkick.report import formatting
from llmkick.report.lookup import perplexity_comparisons, task_comparisons
from llmkick.report.matrix import is_rounded_twice, verdict_text
from llmkick.report.multiplicity import AgreementText, agreements, items_asked
from llmkick.report.payload import Payload
from llmkick.report.tables import compression_table, layer_means, plain_rows, unscored_table
from llmkick.study.results.results import StudyResult


def notes(result: StudyResult) -> list[str]:
    """Notes that a reader needs to interpret the verdicts, each once; `numbers` refers to them, counting from 1."""
    return list(dict.fromkeys(note for entry in task_comparisons(result) for note in entry.notes))


def numbers(result: StudyResult) -> list[Payload]:
    """All numbers of each verdict, as texts."""
    number = {note: str(i) for i, note in enumerate(notes(result), start=1)}
    agreed = agreements(result)
    return [
        {
            "recipe": entry.recipe,
            "task": entry.task,
            "n": items_asked(entry),
            "clusters": entry.clusters,
            "dense": _three(entry.dense),
            "compressed": _three(entry.compressed),
            "loss": formatting.percent(entry.relative_drop),
            "interval": formatting.interval(entry.interval) or formatting.NOTHING,
            "raw_loss": formatting.percent(entry.raw_drop),
            "verdict": verdict_text(entry.verdict),
            "paper": entry.paper_verdict or formatting.NOTHING,
            "lost": f"{entry.lost:g}",
            "gained": f"{entry.gained:g}",
            "mcnemar": formatting.p_value(entry.mcnemar_p),
            "detectable": formatting.percent(entry.smallest_detectable_loss),
            "agreement": agreed.get((entry.recipe, entry.task), AgreementText()),
            "seeds": len(entry.seeds) or formatting.NOTHING,
            "notes": [number[note] for note in entry.notes],
        }
        for entry in task_comparisons(result)
    ]


def control_numbers(result: StudyResult) -> list[Payload]:
    """The perplexity comparisons, as texts."""
    return [
        {
            "recipe": entry.recipe,
            "task": entry.task,
            "n": entry.n,
            "dense": formatting.score(entry.dense, "perplexity"),
            "compressed": formatting.score(entry.compressed, "perplexity"),
            "increase": str(formatting.increase(entry)),
            "outcome": entry.outcome,
            "notes": "; ".join(entry.notes),
        }
        for entry in perplexity_comparisons(result)
    ]


def compression(result: StudyResult) -> list[Payload]:
    """The compression of each model, as texts."""
    return [
        {
            "recipe": row["recipe"],
            "seed": formatting.NOTHING if row["seed"] is None else str(row["seed"]),
            "rounded": is_rounded_twice(result, row["recipe"]),
            "compressed": _coverage(row["block_share"], row["model_share"]),
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


def _coverage(block_share: float | None, model_share: float | None) -> str:
    """The share of the weights that were compressed; nothing where it was not counted."""
    if block_share is None or model_share is None:
        return formatting.NOTHING
    return f"{formatting.percent(block_share)} of blocks, {formatting.percent(model_share)} of all"


def layers_payload(result: StudyResult) -> Payload:
    """Output error, zeros and damping by layer type and block; one list for each compressed model."""
    rows = plain_rows(layer_means(result))
    places = list(dict.fromkeys((row["kind"], row["depth"]) for row in rows))
    models = []
    for model in dict.fromkeys(row["model"] for row in rows):
        by_place = {(row["kind"], row["depth"]): row for row in rows if row["model"] == model}
        of_model = [by_place.get(place, {}) for place in places]
        models.append(
            {
                "label": model,
                "error": [_short(row.get("relative_output_error")) for row in of_model],
                "zeros": [_short(row.get("realised_sparsity")) for row in of_model],
                "damping": [_short(row.get("damping")) for row in of_model],
            }
        )
    return {"layers": [[kind, None if depth is None else int(depth)] for kind, depth in places], "models": models}


def unscored(result: StudyResult) -> list[Payload]:
    """The number of items without a score, by reason."""
    return plain_rows(unscored_table(result))


def missing_judgements(result: StudyResult) -> list[Payload]:
    """The missing judgements of each recipe and seed beside the dense model's, as texts."""
    return [
        {
            "recipe": row.recipe,
            "seed": formatting.NOTHING if row.seed is None else str(row.seed),
            "task": row.task,
            "items": row.items,
            "missing": f"{row.missing} ({formatting.percent(row.share)})",
            "dense": f"{row.dense_missing} ({formatting.percent(row.dense_share)})",
            "p": formatting.p_value(row.p),
            "adjusted_p": formatting.p_value(row.adjusted_p),
            "differs": "yes: incomplete" if row.differs else "not shown",
        }
        for row in result.missing_judgements
    ]


def _three(value: float | None) -> str:
    return formatting.NOTHING if value is None else f"{value:.3f}"


def _error(value: float | None) -> str:
    if value is None:
        return formatting.NOTHING
    return f"{value:.3f}" if value >= 0.01 or value == 0 else f"{value:.2g}"


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
