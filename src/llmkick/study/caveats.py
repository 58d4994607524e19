"""What a score hides, found in the records beside it."""

from __future__ import annotations

import pandas as pd

# An answer is a loop when so many of its 4-grams stood in it before; and that is worth a word when so many more of a
# recipe's answers are loops than of the dense model's.
LOOP, MORE = 0.5, 0.1


def loops(records: pd.DataFrame) -> list[str]:
    """Recipes whose answers run in circles, task by task: a loop is likely text, so its likelihood flatters them."""
    details = records["details"]
    read = records[[("repetition" in one and "dense_logprob" in one) for one in details]]
    if read.empty:
        return []
    looping = read.assign(loop=[one["repetition"] >= LOOP for one in read["details"]])
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
