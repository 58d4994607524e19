"""Before a run: what its numbers of items can tell, so that nobody waits hours for "undecided"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from llmkick.statistics import items_needed, smallest_detectable_loss, verdict_power
from llmkick.tasks.task import Item

# Nobody knows the dense score yet. A high one, few changed answers and items on their own are favourable: whatever
# is not decided then will not be decided at all.
ACCURACY, DISCORDANCE = 0.75, 0.1
# Below this chance a model that lost nothing will rarely be called matching.
RARELY = 0.5


def warn_of_low_power(judged: Mapping[str, Sequence[Item]], *, margin: float, alpha: float) -> list[str]:
    """Warnings about the verdicts that these items cannot give, for the tasks that have a verdict."""
    if not judged:
        return []
    hopeless = {name: _hopeless(some, margin, alpha) for name, some in judged.items()}
    if all(hopeless.values()):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in hopeless.items())
        return [f"this study cannot decide anything: {reasons}"]
    warnings = [f"{name} cannot be decided: {reason}" for name, reason in hopeless.items() if reason]
    needed = items_needed(ACCURACY, discordance=DISCORDANCE, margin=margin, alpha=alpha)
    few = []
    assumed = {"discordance": DISCORDANCE, "margin": margin, "alpha": alpha}
    for name, some in judged.items():
        chance = verdict_power(len(some), ACCURACY, **assumed)
        if not hopeless[name] and chance < RARELY:
            smallest = smallest_detectable_loss(
                len(some), ACCURACY, discordance=DISCORDANCE, margin=margin, alpha=alpha
            )
            few.append(f"{name} ({len(some)} items: {chance:.0%}, and losses under {smallest or 1:.0%} stay undecided)")
    if few:
        warnings.append(
            f"too few items to call a model that lost nothing matching in most runs, even at a dense score of "
            f"{ACCURACY}: {', '.join(few)}; {needed:,} items would do it in 80 % (see `kick power`)"
        )
    return warnings


def _hopeless(items: Sequence[Item], margin: float, alpha: float) -> str:
    """Why not even a loss of everything would be decided; empty when it would."""
    if len({item.cluster for item in items}) < 2:
        return f"{len(items)} items in one cluster do not tell how clusters differ"
    if smallest_detectable_loss(len(items), ACCURACY, discordance=DISCORDANCE, margin=margin, alpha=alpha) is None:
        return f"with {len(items)} items not even a loss of everything would show"
    return ""
