"""Warnings before a run about tasks with too few items for a verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmkick.statistics import items_needed, smallest_detectable_loss, verdict_power
from llmkick.tasks.task import Item

# The dense score is not known before the run. A high score, few changed answers and independent items are favourable
# assumptions. A task that is undecided under these assumptions cannot be decided at all.
ACCURACY, DISCORDANCE = 0.75, 0.1
# Warn if a model without any loss gets the verdict "matching" with a lower probability.
LEAST_POWER = 0.5


def warn_of_low_power(judged: Mapping[str, Sequence[Item]], *, margin: float, alpha: float) -> list[str]:
    """Return warnings about tasks whose items never or rarely give a verdict.

    `judged` holds the items of every task that has a verdict.
    """
    if not judged:
        return []
    hopeless = {name: _hopeless(items, margin, alpha) for name, items in judged.items()}
    if all(hopeless.values()):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in hopeless.items())
        return [f"this study cannot decide anything: {reasons}"]
    warnings = [f"{name} cannot be decided: {reason}" for name, reason in hopeless.items() if reason]
    needed = items_needed(ACCURACY, discordance=DISCORDANCE, margin=margin, alpha=alpha)
    few = []
    assumed = {"discordance": DISCORDANCE, "margin": margin, "alpha": alpha}
    for name, items in judged.items():
        power = verdict_power(len(items), ACCURACY, **assumed)
        if not hopeless[name] and power < LEAST_POWER:
            smallest = smallest_detectable_loss(
                len(items), ACCURACY, discordance=DISCORDANCE, margin=margin, alpha=alpha
            )
            few.append(f"{name} ({len(items)} items: {power:.0%}, and losses under {smallest or 1:.0%} stay undecided)")
    if few:
        warnings.append(
            f"too few items to call a model that lost nothing matching in most runs, even at a dense score of "
            f"{ACCURACY}: {', '.join(few)}; {needed:,} items would do it in 80 % (see `kick power`)"
        )
    return warnings


def _hopeless(items: Sequence[Item], margin: float, alpha: float) -> str:
    """Return the reason why the items cannot even show a total loss, or an empty string if they can."""
    if len({item.cluster for item in items}) < 2:
        return f"{len(items)} items in one cluster do not tell how clusters differ"
    if smallest_detectable_loss(len(items), ACCURACY, discordance=DISCORDANCE, margin=margin, alpha=alpha) is None:
        return f"with {len(items)} items not even a loss of everything would show"
    return ""
