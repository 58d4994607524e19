"""What tests of whole studies do less of than a user's study, where how much is of no concern."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import pytest

# A toy never ends an answer by itself, and one token takes as long as another.
ANSWER_TOKENS = 5


def few_draws(patch: pytest.MonkeyPatch) -> None:
    """Simulate the power of a study with few draws: hundreds of tests run a study, the numbers are of no concern."""
    from llmkick.statistics import design, undecided
    from llmkick.study import power_warnings

    patch.setattr(undecided, "_DRAWS", 8)
    patch.setattr(design, "_FEWEST_DRAWS", 10)
    patch.setattr(power_warnings, "_DRAWS", 20)
    patch.setattr(power_warnings, "_SEARCH_DRAWS", 10)


def few_passes(patch: pytest.MonkeyPatch) -> None:
    """Measure the speed of a model, from which a study's duration is expected, with two short passes."""
    from llmkick.study import model_speed

    patch.setattr(model_speed, "LONG", ())
    patch.setattr(model_speed, "REPEATS", 1)


def empty_drawings(patch: pytest.MonkeyPatch) -> None:
    """Write empty SVG files: drawing the figures of a report takes a process of its own and half a second."""
    from llmkick.report.figures import figure

    @contextlib.contextmanager
    def drawn(specs: Sequence[str], version: str) -> Iterator[Callable[[], list[str]]]:
        yield lambda: ['<svg xmlns="http://www.w3.org/2000/svg"/>' for _ in specs]

    patch.setattr(figure, "drawn_aside", drawn)


def short_answers(patch: pytest.MonkeyPatch) -> None:
    """End the answers to questions after a few tokens."""
    from llmkick.tasks.suite import context_qa, factoid_qa

    for task in (context_qa, factoid_qa):
        patch.setattr(task, "MAX_NEW_TOKENS", ANSWER_TOKENS)
