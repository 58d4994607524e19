"""Runs whose truth is known: invented answers, from which the real comparisons are computed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from llmkick.claims.runs import ClaimRun
from llmkick.statistics import Comparison, compare, compare_perplexity
from llmkick.study.results.records import AnyComparison, TaskSummary
from llmkick.study.results.results import StudyResult
from llmkick.study.results.variants import VariantRow
from report.synthetic import facts

DENSE_SCORE = 0.6
CHANCE = {"multiple_choice:letter": 0.25, "multiple_choice:few": 0.25}
SETTING = {
    "context_qa:open": "synthesis",
    "summarization": "synthesis",
    "instruction": "instruction",
    "perplexity": "control",
}
DISCIPLINES = ("stem", "humanities", "social_sciences", "other")
LENGTHS = ("short", "medium", "long")

# The true relative loss of a recipe on a task (above chance), or for each part of the task.
Loss = float | Mapping[str, float]


def summary(task: str, /, **settings: Any) -> TaskSummary:
    """A task as results.json lists it; `settings` replaces what all tasks have in common."""
    common = {
        "name": task, "version": 1, "protocol": "strict", "source": "pocket", "data": "a" * 64, "limit": None,
        "seed": 0, "metric": "perplexity" if task == "perplexity" else "accuracy",
        "chance_level": CHANCE.get(task, 0.0), "setting": SETTING.get(task, "knowledge"), "prompting": "raw",
    }  # fmt: skip
    return TaskSummary.model_validate({**common, **settings})


def made_up_run(
    losses: Mapping[tuple[str, str], Loss],
    *,
    items: int = 1500,
    rises: Mapping[str, float] | None = None,
    measures: Mapping[str, float] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    dense: Mapping[str, float] | None = None,
    name: str = "run",
    model: str = "toy",
    parameters: int = 7_000_000_000,
    seed: int = 0,
    study: Mapping[str, Any] | None = None,
) -> ClaimRun:
    """A run with these true losses, by (recipe, task).

    rises: recipe → true rise of perplexity. measures: recipe → the share by which unique tokens fall and repetition
    rises. settings: task → what its summary says. dense: task → score of the dense model.
    """
    rng = np.random.default_rng(seed)
    frames, comparisons = [], []
    tasks = {task: summary(task, **(settings or {}).get(task, {})) for _, task in losses}
    for task, about in tasks.items():
        frame = _dense(task, items, (dense or {}).get(task, DENSE_SCORE))
        frames.append(frame)
        for recipe in (recipe for recipe, other in losses if other == task):
            fallen = (measures or {}).get(recipe, 0.0)
            frames.append(_compressed(frame, recipe, losses[recipe, task], about.chance_level, fallen, rng))
            comparisons.append(_comparison(frame, frames[-1], task, recipe, about.chance_level))
    for recipe, rise in (rises or {}).items():
        comparisons.append(_perplexity(recipe, rise, rng))
    records = pd.concat(frames, ignore_index=True)
    recipes = list(dict.fromkeys(comparison.recipe for comparison in comparisons))
    about_study = facts([recipe for recipe in recipes if "@" in recipe], list(tasks), (0,), "float")
    about_study["study"] |= {"recipes": [r for r in recipes if "@" in r], **(study or {})}
    about_study["model"] |= {
        "name": model, "parameters": parameters, "digest": hashlib.sha256(model.encode()).hexdigest(),
    }  # fmt: skip
    result = StudyResult(
        folder=Path(name),
        **about_study,
        tasks=(*tasks.values(), *((summary("perplexity", **(settings or {}).get("perplexity", {})),) if rises else ())),
        results=(),
        comparisons=tuple(comparisons),
        variants=tuple(map(variant, recipes)) if any("[" in recipe for recipe in recipes) else (),
        overall=(),
        compression=(),
    )
    return ClaimRun(name=name, result=result, records=lambda: records)


def variant(label: str) -> VariantRow:
    """`wanda@0.5 [sequences=8]` with its recipe and its axis."""
    recipe, _, count = label.removesuffix("]").partition(" [sequences=")
    return VariantRow(label=label, recipe=recipe, axes={"calibration.sequences": int(count)} if count else {})


def with_result(run: ClaimRun, **changes: Any) -> ClaimRun:
    """The same run, with other entries of results.json."""
    return ClaimRun(name=run.name, result=run.result.model_copy(update=changes), records=run.records)


def without_answers(run: ClaimRun) -> ClaimRun:
    """The same run after its journal was lost."""
    return ClaimRun(name=run.name, result=run.result, records=lambda: None)


def _dense(task: str, items: int, score: float) -> pd.DataFrame:
    """The dense model's records: exactly this score, in every part of the task alike; the same for equal tasks."""
    order = np.random.default_rng(int(hashlib.sha256(task.partition(":")[0].encode()).hexdigest()[:8], 16))
    right = (order.permutation(items) < round(score * items)).astype(float)
    details = [
        {
            "discipline": DISCIPLINES[i % 4],
            "bucket": LENGTHS[i % 3],
            "unique_tokens": 100.0 + i % 7,
            "repetition": 0.1 + 0.01 * (i % 5),
        }
        for i in range(items)
    ]
    return pd.DataFrame(
        {
            "recipe": "dense", "seed": None, "task": task, "item_id": [f"item-{i:05d}" for i in range(items)],
            "cluster": [f"item-{i:05d}" for i in range(items)], "score": right, "details": details,
        }
    )  # fmt: skip


def _compressed(
    dense: pd.DataFrame, recipe: str, loss: Loss, chance: float, fallen: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Of the right answers each is lost with the probability that makes the expected loss; a gain turns wrong ones."""
    frame = dense.copy()
    frame["recipe"] = recipe
    part = [
        loss if isinstance(loss, float | int) else loss.get(d["discipline"], loss.get(d["bucket"], 0.0))
        for d in dense["details"]
    ]
    wanted, right = np.asarray(part, dtype=float), dense["score"].to_numpy()
    share = right.mean()
    lost = np.clip(wanted * (share - chance) / share, 0.0, 1.0)
    gained = np.clip(-wanted * (share - chance) / (1 - share), 0.0, 1.0)
    luck = rng.random(len(frame))
    frame["score"] = np.where(right == 1.0, luck >= lost, luck < gained).astype(float)
    noise = rng.normal(0, 5, len(frame))
    frame["details"] = [
        {
            **details,
            "unique_tokens": details["unique_tokens"] * (1 - fallen) + extra,
            "repetition": details["repetition"] + fallen + 0.01 * extra,
        }
        for details, extra in zip(dense["details"], noise, strict=True)
    ]
    return frame


def _comparison(dense: pd.DataFrame, other: pd.DataFrame, task: str, recipe: str, chance: float) -> Comparison:
    scores = [dict(zip(frame["item_id"], frame["score"], strict=True)) for frame in (dense, other)]
    return compare(scores[0], scores[1], task=task, recipe=recipe, chance=chance, explain=False)


def _perplexity(recipe: str, rise: float, rng: np.random.Generator, windows: int = 60) -> AnyComparison:
    dense = 2.0 + 0.1 * rng.standard_normal(windows)
    other = dense + np.log1p(rise) + 0.01 * rng.standard_normal(windows)
    return compare_perplexity(list(dense), list(other), task="perplexity", recipe=recipe)
