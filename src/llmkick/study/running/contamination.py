"""Whether the text that a study's models were made with contains the questions that they are asked."""

from __future__ import annotations

from collections.abc import Sequence

from llmkick.models.transformers_model import TransformersModel
from llmkick.study.results.overlap import MadeWith, OverlapRow, overlaps
from llmkick.study.running.context import StudyContext


def text_overlap(context: StudyContext) -> list[OverlapRow]:
    """Return the overlap of every text that a recipe of the study needs with the items of every task."""
    model = context.model
    if not isinstance(model, TransformersModel):
        return []  # a server's model is not compressed here

    def decode(tokens: Sequence[int]) -> str:
        return model.engine.encoder.decode(list(tokens))

    made: dict[str, MadeWith] = {}
    for variant in context.variants():
        calibration = context.keys.calibration_of(variant) if variant.recipe.needs_calibration else None
        if calibration is not None:
            known = made.get(calibration.digest)
            made[calibration.digest] = MadeWith(
                recipes=(*(known.recipes if known else ()), variant.label),
                source=calibration.source,
                seed=calibration.seed,
                digest=calibration.digest,
                tokens=int(calibration.tokens.size),
                texts=known.texts if known else [decode(window) for window in calibration.tokens.tolist()],
            )
    return overlaps(list(made.values()), context.items, decode)
