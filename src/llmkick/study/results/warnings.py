"""What a score hides, found in the records beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

# An answer is a loop when so many of its 4-grams stood in it before, or when so few of its tokens are different (a line
# of dots has no words). It is worth a sentence when so many more of a recipe's answers are loops than of the dense
# model's.
LOOP, DIFFERENT, MORE = 0.5, 0.2, 0.1
FEWEST_TOKENS = 16


def loops(records: pd.DataFrame) -> list[str]:
    """Recipes whose answers run in circles, task by task: a loop is likely text, so its likelihood flatters them."""
    details = records["details"]
    read = records[[("distinct_1" in one or "unique_tokens" in one) and "dense_logprob" in one for one in details]]
    if read.empty:
        return []
    looping = read.assign(loop=[_loops(*one) for one in zip(read["details"], read["tokens"], strict=True)])
    found = []
    for task, own in looping.groupby("task"):
        share = own.groupby("recipe")["loop"].mean()
        dense = float(share.get("dense", 0.0))
        worse = {str(recipe): float(one) for recipe, one in share.items() if one > dense + MORE}
        if worse:
            told = ", ".join(f"{recipe} {one:.0%}" for recipe, one in worse.items())
            found.append(
                f"{task}: answers that repeat themselves: {told} (dense {dense:.0%}); a loop is likely text, so the "
                "likelihood of these answers says too little against them"
            )
    return found


def _loops(details: Mapping[str, Any], tokens: int) -> bool:
    few = tokens >= FEWEST_TOKENS and details.get("unique_tokens", tokens) <= DIFFERENT * tokens
    return bool(few or details.get("repetition", 0.0) >= LOOP)
