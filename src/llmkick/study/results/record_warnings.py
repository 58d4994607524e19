"""What the records themselves say that a reader of their averages could not see."""

from __future__ import annotations

from typing import Any

import pandas as pd


def warnings_of(records: pd.DataFrame) -> list[str]:
    """Unscored items, options whose tokens merge with the prompt, choices without log-probabilities, cut prompts."""
    found = []
    unscored = records[records["score"].isna()]
    if len(unscored):
        found.append(f"{len(unscored)} of {len(records)} records are unscored; results.json counts the reasons")
    moved = sum(bool(details.get("boundary_moved")) for details in records["details"])
    if moved:
        found.append(f"{moved} records have options whose tokens merge with the prompt's last token")
    return [*found, *_how_chosen(records), *_cut_otherwise(records)]


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
    found = []
    for (label, task), rows in frame[frame["recipe"] != "dense"].groupby(["recipe", "task"], sort=False):
        pairs = rows.set_index(["task", "item_id"])["cut"]
        known = dense.reindex(pairs.index)
        count = int(((pairs != known) & known.notna()).sum())
        if count:
            found.append(
                f"{label} on {task}: {count} items were asked with other worked examples or evidence than the dense "
                "model's, to fit its context"
            )
    return found


def _cut(details: dict[str, Any]) -> str:
    return f"{details.get('shots')} {bool(details.get('evidence_cut'))}"
