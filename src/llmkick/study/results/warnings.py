"""Warnings about the records that the scores alone do not show."""

from __future__ import annotations

import pandas as pd

from llmkick.study.results.records import Details
from llmkick.study.spec.study import Study

# An answer is a loop if the share of repeated 4-grams is at least LOOP, or if the share of distinct tokens is at most
# DIFFERENT (a line of dots has no words). A recipe gets a warning if its share of loops exceeds the dense model's share
# by more than MORE.
LOOP, DIFFERENT, MORE = 0.5, 0.2, 0.1
FEWEST_TOKENS = 16


def uncalibrated(study: Study) -> list[str]:
    """Return a warning about each recipe without calibration in a study whose calibration has axes."""
    levels = study.recipe_levels()
    axes = dict.fromkeys(axis for level in levels for axis in level.axes)
    methods = dict.fromkeys(level.recipe.method for level in levels if axes and not level.axes)
    return [f"{method} has no calibration: run once, not for each level of {', '.join(axes)}" for method in methods]


def warnings_of(records: pd.DataFrame) -> list[str]:
    """Return warnings about unscored items, merged tokens, kinds of choices, changed answers, and cut prompts."""
    warnings = []
    unscored = records[records["score"].isna()]
    if len(unscored):
        warnings.append(f"{len(unscored)} of {len(records)} records are unscored; results.json counts the reasons")
    moved = sum(bool(details.get("boundary_moved")) for details in records["details"])
    if moved:
        warnings.append(f"{moved} records have options whose tokens merge with the prompt's last token")
    return [*warnings, *_how_chosen(records), *_changed_answers(records), *_cut_otherwise(records)]


def _changed_answers(records: pd.DataFrame) -> list[str]:
    """Return warnings about answers without their thoughts, and answers of servers with broken characters."""
    warnings = []
    for (label, task), rows in records.groupby(["recipe", "task"], sort=False):
        thoughts = sum(bool(details.get("thought_removed")) for details in rows["details"])
        broken = sum(bool(details.get("replaced_characters")) for details in rows["details"])
        if thoughts:
            warnings.append(f"{label} on {task}: {thoughts} answers were scored without the thoughts before them")
        if broken:
            warnings.append(f"{label} on {task}: {broken} answers came with broken characters, which are replaced")
    return warnings


def _how_chosen(records: pd.DataFrame) -> list[str]:
    """Return warnings about servers whose options were chosen by top tokens or by the generated letter."""
    ways = records["details"].map(lambda details: details.get("chosen_by"))
    chosen = records.assign(chosen_by=ways)[ways.notna()]
    return [
        f"{label} on {task}: {len(rows)} options were chosen by {way}, "
        + ("not by log-probability" if way == "generated letter" else "among the likeliest that the server gives")
        for (label, task, way), rows in chosen.groupby(["recipe", "task", "chosen_by"], sort=False)
    ]


def _cut_otherwise(records: pd.DataFrame) -> list[str]:
    """Return warnings about models whose prompts differ from the dense model's prompts.

    A model with another context length or tokenizer may get fewer worked examples or less evidence.
    """
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
    """Return warnings, by task, about recipes with repetitive answers.

    Repetitive text has a high likelihood, so the likelihood of these answers understates the loss.
    """
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
