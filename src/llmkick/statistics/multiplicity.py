"""Multiple testing: joint verdicts over all tasks of a recipe and all recipes of a study."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from llmkick.errors import ConfigError
from llmkick.statistics.verdict import Verdict


class HasVerdict(Protocol):
    """The part of a comparison that `overall_verdict` reads."""

    @property
    def verdict(self) -> Verdict:
        """The verdict on a task."""


def overall_verdict(comparisons: Iterable[HasVerdict]) -> Verdict:
    """One verdict over all tasks, as an intersection-union test, which needs no correction for the number of tasks.

    "matching" if every task with a signal matches, "not matching" if any task does not, "no signal" if no task has a
    signal. Raises ConfigError for no tasks, and for perplexity comparisons, which have no verdict.
    """
    entries = list(comparisons)
    if not entries or not all(hasattr(entry, "verdict") for entry in entries):
        raise ConfigError("an overall verdict needs one task or more, and nothing but tasks: no perplexity")
    verdicts = {entry.verdict for entry in entries}
    order: tuple[Verdict, ...] = ("not matching", "incomplete", "undecided", "matching")
    return next((verdict for verdict in order if verdict in verdicts), "no signal")


def holm(p_values: Mapping[str, float | None], *, alpha: float = 0.05) -> dict[str, tuple[float, bool]]:
    """Holm's step-down (1979): name → (adjusted p, rejected at alpha); an undefined p is never rejected."""
    ordered = sorted(p_values, key=lambda name: _p_or_one(p_values[name]))
    adjusted, running = {}, 0.0
    for rank, name in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - rank) * _p_or_one(p_values[name])))
        adjusted[name] = (running, running < alpha)
    return {name: adjusted[name] for name in p_values}


def fixed_sequence(p_values: Sequence[tuple[str, float | None]], *, alpha: float = 0.05) -> dict[str, bool]:
    """Tests in an order fixed in advance (mild → severe), each at alpha, until the first that does not reject."""
    results: dict[str, bool] = {}
    going = True
    for name, p in p_values:
        if name in results:
            raise ConfigError(f"{name!r} is twice in the sequence; give every recipe one place")
        going = going and _p_or_one(p) < alpha
        results[name] = going
    return results


def _p_or_one(p: float | None) -> float:
    """A p value, 1 for an undefined one. Raises ConfigError for a number outside 0 … 1."""
    if p is None:
        return 1.0
    if not 0 <= p <= 1:
        raise ConfigError(f"{p} is not a p value: those lie between 0 and 1")
    return p
