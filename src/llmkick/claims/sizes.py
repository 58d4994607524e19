"""The claim about a large sparse and a small dense model of as many parameters."""

from __future__ import annotations

from collections.abc import Sequence

from llmkick.claims.answers import DENSE, compare_models
from llmkick.claims.evidence import Evidence, NotAskedError, above, every, loss_of
from llmkick.claims.runs import Cell, ClaimRun, ModelRuns, asked_in_full, by_method, is_choice

SAME_SIZE = 0.05  # two models have as many parameters if they differ by at most this share


def sparse_is_no_better(models: Sequence[ModelRuns]) -> Evidence:
    """Claim 5: a large model pruned to the parameters of a small dense one is not better by more than the margin."""
    parts: list[Evidence] = []
    reasons: list[str] = []
    for large in models:
        small = [candidate for model in models for candidate in _dense_models(model, beside=large)]
        for cell in (cell for cells in by_method(asked_in_full(large.cells(is_choice))).values() for cell in cells):
            for run, label, parameters in small:
                if _is_as_large(cell, parameters):
                    try:
                        parts += _no_better(cell, run, label)
                    except NotAskedError as error:  # another run of the small model may hold the answers
                        reasons.append(str(error))
    if not parts:
        raise NotAskedError(
            reasons[0]
            if reasons
            else "needs multiple choice, with a signal, of a pruned model and of a dense one with as many parameters"
        )
    return every(parts)


def _dense_models(model: ModelRuns, *, beside: ModelRuns) -> list[tuple[ClaimRun, str, int | None]]:
    """Smaller models to hold a pruned one against: other dense models, and plain external models of its own runs."""
    if model is not beside:
        return [(run, DENSE, model.parameters) for run in model.runs]
    return [
        (run, external.label, external.parameters)
        for run in model.runs
        for external in run.result.models
        if external.label not in _own_labels(run) and external.source_precision == "float"
    ]


def _own_labels(run: ClaimRun) -> set[str]:
    """The dense model and the recipes, with their levels of the axes."""
    return {DENSE, *run.result.study.recipes, *(variant.label for variant in run.result.variants)}


def _is_as_large(cell: Cell, parameters: int | None) -> bool:
    """Whether a smaller model has as many parameters as a pruned one has left."""
    if not parameters or parameters >= (cell.run.result.model.parameters or 0):
        return False
    return any(abs(left / parameters - 1) <= SAME_SIZE for left in _parameters_left(cell))


def _parameters_left(cell: Cell) -> list[float]:
    """Parameters that are not zero: of all weights, as the paper counts, and of those that were pruned."""
    parameters = cell.run.result.model.parameters or 0
    shares = [1.0] + [
        compression.model_share
        for compression in cell.run.result.compression
        if compression.recipe == cell.comparison.recipe and compression.model_share is not None
    ]
    return [parameters * (1 - cell.sparsity * share) for share in shares]


def _no_better(cell: Cell, run: ClaimRun, label: str) -> list[Evidence]:
    comparison = compare_models((run, label), (cell.run, cell.comparison.recipe), cell.task)
    if comparison is None:
        return []
    name = run.result.model.name if label == DENSE else label
    text = f"{cell.comparison.recipe} of {cell.run.result.model.name} is no better than {name} on {cell.task.name}"
    return [above(loss_of(comparison), -comparison.margin, text, cell.run.name, "loss against the small model")]
