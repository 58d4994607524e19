"""What scores so far say to a forecast."""

from __future__ import annotations

import math
from collections.abc import Mapping

from llmkick.study.results.records import CONTROL_METRICS
from llmkick.tasks.task import Task

Scores = Mapping[str, float | None]
# Bits per byte are turned into nats per token with this many bytes a token.
BYTES_A_TOKEN = 4.0


def mean_score(scores: Scores) -> float:
    """The mean of the scores that are there; 0 without any."""
    scored = [score for score in scores.values() if score is not None]
    return sum(scored) / max(1, len(scored))


def rise_of_perplexity(task: Task, dense: Scores, compressed: Scores) -> float | None:
    """By how much the logarithm of perplexity is above that of the dense model; None where no such thing is measured.

    Only windows that both models read count.
    """
    both = [(dense.get(item), score) for item, score in compressed.items()]
    rises = [score - before for before, score in both if before is not None and score is not None]
    if task.metric not in CONTROL_METRICS or not rises:
        return None
    scale = 1.0 if task.metric == "perplexity" else BYTES_A_TOKEN * math.log(2)
    return scale * sum(rises) / len(rises)
