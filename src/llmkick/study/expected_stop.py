"""After how many items cells with early stopping are expected to end."""

from __future__ import annotations

from llmkick.compression.recipe import Recipe

# Items after which early stopping sees a large loss, and after which it sees that there is none.
ITEMS_FOR_A_LOSS, ITEMS_FOR_A_MATCH = 100, 600


def stopping_share(items: int) -> float:
    """The expected share of a task's items after which a verdict is known: half of the recipes lose much."""
    shares = [min(1.0, needed / max(1, items)) for needed in (ITEMS_FOR_A_LOSS, ITEMS_FOR_A_MATCH)]
    return sum(shares) / len(shares)


def stopping_factor(recipe: Recipe) -> float:
    """How many items a recipe takes until its verdict, against others of a task.

    In the long study of the built-in model (examples/full.toml), recipes up to a quarter of zeros and of 8 bits mostly
    took all items, half of zeros and more a tenth of them.
    """
    factors = list[float]()
    if recipe.sparsity is not None:
        factors.append(min(2.0, max(0.2, 2.0 - (recipe.sparsity - 0.25) * 7.2)))
    if recipe.bits is not None:
        factors.append({2: 0.2, 3: 0.2, 4: 1.0}.get(recipe.bits, 2.0))
    return min(factors, default=1.0)
