"""What the records say that a reader of the scores alone could not see."""

from __future__ import annotations

import pandas as pd

from llmkick.study.results.records import Details

# An answer is a loop when so many of its 4-grams stood in it before, or when so few of its tokens are different (a line
# of dots has no words). It is worth a sentence when so many more of a recipe's answers are loops than of the dense
# model's.
LOOP, DIFFERENT, MORE = 0.5, 0.2, 0.1
FEWEST_TOKENS = 16


def warnings_of(records: pd.DataFrame) -> list[str]:
    """Unscored items, options whose tokens merge with the prompt, choices without log-probabilities, cut prompts."""
    warnings = []
    unscored = records[records["score"].isna()]
    if len(unscored):
        warnings.append(f"{len(unscored)} of {len(records)} records are unscored; results.json counts the reasons")
    moved = sum(bool(details.get("boundary_moved")) for details in records["details"])
    if moved:
        warnings.append(f"{moved} records have options whose tokens merge with the prompt's last token")
    return [*warnings, *_how_chosen(records), *_cut_otherwise(records)]


def _how_chosen(records: pd.DataFrame) -> list[str]:
    """Servers choose by what they show: the likeliest first tokens, or no more than the letter they write."""
    ways = records["details"].map(lambda details: details.get("chosen_by"))
    chosen = records.assign(chosen_by=ways)[ways.notna()]
    return [
        f"{label} on {task}: {len(rows)} options were chosen by {way}, "
        + ("not by log-probability" if way == "generated letter" else "among the likeliest that the server gives")
        for (label, task, way), rows in chosen.groupby(["recipe", "task", "chosen_by"], sort=False)
    ]


def _cut_otherwise(records: pd.DataFrame) -> list[str]:
    """Models of other contexts or tokens may get fewer worked examples, or less evidence, than the dense one."""
    frame = records.assign(cut=records["details"].map(_cut))
    dense = frame[frame["recipe"] == "dense"].set_index(["task", "item_id"])["cut"]
    warnings = []
    for (label, task), rows in frame[frame["recipe"] != "dense"].groupby(["recipe", "task"], sort=False):
        pairs = rows.set_index(["task", "item_id"])["cut"]
        of_dense = dense.reindex(pairs.index)
        count = int(((pairs != of_dense) & of_dense.notna()).sum())
        if count:
            warnings.append(
                f"{label} on {task}: {count} items were asked with other worked examples or evidence than the dense "
                "model's, to fit its context"
            )
    return warnings


def _cut(details: Details) -> str:
    return f"{details.get('shots')} {bool(details.get('evidence_cut'))}"


def loops(records: pd.DataFrame) -> list[str]:
    """Recipes whose answers run in circles, task by task: a loop is likely text, so its likelihood flatters them."""
    details = records["details"]
    generated = records[[("distinct_1" in of or "unique_tokens" in of) and "dense_logprob" in of for of in details]]
    if generated.empty:
        return []
    loop = [_loops(of, tokens) for of, tokens in zip(generated["details"], generated["tokens"], strict=True)]
    warnings = []
    for task, of_task in generated.assign(loop=loop).groupby("task"):
        shares = of_task.groupby("recipe")["loop"].mean()
        dense = float(shares.get("dense", 0.0))
        worse = {str(recipe): float(share) for recipe, share in shares.items() if share > dense + MORE}
        if worse:
            told = ", ".join(f"{recipe} {share:.0%}" for recipe, share in worse.items())
            warnings.append(
                f"{task}: answers that repeat themselves: {told} (dense {dense:.0%}); a loop is likely text, so the "
                "likelihood of these answers says too little against them"
            )
    return warnings


def _loops(details: Details, tokens: int) -> bool:
    few = tokens >= FEWEST_TOKENS and details.get("unique_tokens", tokens) <= DIFFERENT * tokens
    return bool(few or details.get("repetition", 0.0) >= LOOP)
