"""What came back in results.json: pairs of recipes, parts of tasks, and what is not measured."""

from __future__ import annotations

from typing import Any

import pandas as pd

from llmkick.statistics import what_came_back
from llmkick.study.results.records import TaskSummary
from llmkick.study.results.returned import RecoveredModel, recovered_models, returned, unpaired

FACTOID = TaskSummary(
    name="factoid_qa:popqa", metric="accuracy", setting="knowledge", chance_level=0.0, groups="strata"
)
STORIES = TaskSummary(name="context_qa:open", metric="accuracy", setting="synthesis", chance_level=0.0)
TEXT = TaskSummary(name="perplexity", metric="perplexity", setting="control", chance_level=0.0)
LORA = RecoveredModel(label="wanda@0.5+lora", base="wanda@0.5", recovery="lora")


def rows(
    task: str,
    recipe: str,
    scores: list[float | None],
    *,
    seed: int | None = None,
    details: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Records of one cell as the journal gives them."""
    return [
        {
            "recipe": recipe, "seed": seed, "task": task, "item_id": f"item-{i}", "cluster": f"cluster-{i // 2}",
            "score": score, "details": (details or [{}] * len(scores))[i],
        }
        for i, score in enumerate(scores)
    ]  # fmt: skip


def test_a_recovered_model_has_the_base_of_its_level():
    labels = [
        "wanda@0.5 [sequences=8]", "wanda@0.5 [sequences=32]", "wanda@0.5+lora [sequences=8]", "magnitude@0.5",
        "magnitude@0.5+lora [sequences=32]", "rtn@4b+eora-r8", "a model", "sparse@2of4", "sparse@2of4+lora",
    ]  # fmt: skip
    models, warnings = recovered_models(labels)
    assert [(model.label, model.base, model.recovery) for model in models] == [
        ("wanda@0.5+lora [sequences=8]", "wanda@0.5 [sequences=8]", "lora"),
        ("magnitude@0.5+lora [sequences=32]", "magnitude@0.5", "lora"),
        ("sparse@2of4+lora", "sparse@2of4", "lora"),  # made elsewhere
    ]
    (warning,) = warnings
    assert "rtn@4b is not in the study" in warning


def test_each_task_is_measured_on_the_whole_and_on_its_parts():
    views = [{"popularity": number} for number in (5, 50, 5_000, 7_000, 20, 9_999)]
    frame = pd.DataFrame(
        rows("factoid_qa:popqa", "dense", [1, 1, 1, 1, 0, 1], details=views)
        + rows("factoid_qa:popqa", "wanda@0.5", [0, 1, 0, 0, 0, 1], seed=0)
        + rows("factoid_qa:popqa", "wanda@0.5+lora", [1, 1, 0, 1, 0, 0], seed=0)
        + rows("perplexity", "dense", [2.0, 2.0])
        + rows("perplexity", "wanda@0.5", [3.0, 3.0], seed=0)
        + rows("perplexity", "wanda@0.5+lora", [2.5, 2.5], seed=0)
    )
    found = returned(frame, [FACTOID, TEXT], [LORA], alpha=0.05)
    shown = [(row.task, row.detail, row.group, row.n, row.lost, row.returned.value) for row in found]
    assert shown == [
        ("factoid_qa:popqa", "", "", 6, 3.0, 2 / 3),
        ("factoid_qa:popqa", "popularity", "0 to 99", 3, 1.0, 1.0),
        ("factoid_qa:popqa", "popularity", "1,000 to 9,999", 3, 2.0, 0.5),
        ("factoid_qa:popqa", "topic", "cluster-0", 2, 1.0, 1.0),
        ("factoid_qa:popqa", "topic", "cluster-1", 2, 2.0, 0.5),
        ("factoid_qa:popqa", "topic", "cluster-2", 2, 0.0, None),
    ]
    whole = found[0]
    assert (whole.recipe, whole.base, whole.recovery) == ("wanda@0.5+lora", "wanda@0.5", "lora")


def test_the_groups_of_a_task_are_those_that_it_declares():
    dense, base, lora = [1.0] * 12, [0.0] * 12, [1.0, 1.0, 0.0, 0.0] * 3
    frame = pd.DataFrame(
        rows("context_qa:open", "dense", dense)
        + rows("context_qa:open", "wanda@0.5", base, seed=0)
        + rows("context_qa:open", "wanda@0.5+lora", lora, seed=0)
    )
    (row,) = returned(frame, [STORIES], [LORA], alpha=0.05)
    named = {f"item-{i}": f"cluster-{i // 2}" for i in range(12)}
    scores = [dict(zip(named, column, strict=True)) for column in (dense, base, lora)]
    drawn = what_came_back(scores[0], {0: scores[1]}, {0: scores[2]}, clusters=named)
    alone = what_came_back(scores[0], {0: scores[1]}, {0: scores[2]})
    assert row.returned == drawn.returned
    assert row.returned != alone.returned
    assert row.clusters == 6


def test_the_control_is_the_base_of_the_next_seed():
    frame = pd.DataFrame(
        rows("factoid_qa:popqa", "dense", [1, 1, 1])
        + rows("factoid_qa:popqa", "wanda@0.5", [0, 0, 1], seed=0)
        + rows("factoid_qa:popqa", "wanda@0.5", [1, 0, 0], seed=1)
        + rows("factoid_qa:popqa", "wanda@0.5+lora", [1, 1, 1], seed=0)
        + rows("factoid_qa:popqa", "wanda@0.5+lora", [1, 1, 0], seed=1)
    )
    row = returned(frame, [FACTOID], [LORA], alpha=0.05)[0]
    assert (row.seeds, row.lost, row.returned.value) == ((0, 1), 2.0, 3 / 4)
    assert (row.control.value, row.difference.value) == (2 / 4, 1 / 4)


def test_cells_that_were_not_asked_are_not_compared():
    dense = rows("factoid_qa:popqa", "dense", [1, 1, 1])
    base = rows("factoid_qa:popqa", "wanda@0.5", [0, 0, 1], seed=0)
    assert returned(pd.DataFrame(dense + base), [FACTOID], [LORA], alpha=0.05) == []
    other_items = rows("factoid_qa:popqa", "wanda@0.5+lora", [1, 1], seed=0)
    assert returned(pd.DataFrame(dense + base + other_items), [FACTOID], [LORA], alpha=0.05) == []


def test_without_a_common_seed_nothing_is_compared():
    """The cells of the others were given up."""
    frame = pd.DataFrame(
        rows("factoid_qa:popqa", "dense", [1, 1, 1])
        + rows("factoid_qa:popqa", "wanda@0.5", [0, 0, 1], seed=0)
        + rows("factoid_qa:popqa", "wanda@0.5+lora", [1, 1, 1], seed=1)
    )
    assert returned(frame, [FACTOID], [LORA], alpha=0.05) == []
    more = pd.DataFrame(rows("factoid_qa:popqa", "wanda@0.5", [0, 1, 1], seed=1))
    row = returned(pd.concat([frame, more]), [FACTOID], [LORA], alpha=0.05)[0]
    assert (row.seeds, row.lost, row.control.value) == ((1,), 1.0, 0.0)


def test_a_model_recovered_elsewhere_has_no_base_among_those_of_seeds_and_that_is_said():
    dense = rows("factoid_qa:popqa", "dense", [1, 1, 1])
    lora = rows("factoid_qa:popqa", "wanda@0.5+lora", [1, 1, 1])
    seeds = [row for seed in (1, 0) for row in rows("factoid_qa:popqa", "wanda@0.5", [0, 0, 1], seed=seed)]
    frame = pd.DataFrame(dense + lora + seeds)
    assert returned(frame, [FACTOID], [LORA], alpha=0.05) == []
    (warning,) = unpaired(frame, [LORA])
    assert "wanda@0.5+lora: it was recovered elsewhere" in warning
    assert "the weights of wanda@0.5 depend on the calibration seed (here 0, 1)" in warning
    # A base without seeds, made here or elsewhere, and one whose cells were given up.
    for base in (rows("factoid_qa:popqa", "wanda@0.5", [0, 0, 1]), []):
        assert unpaired(pd.DataFrame(dense + lora + base), [LORA]) == []
    assert unpaired(pd.DataFrame(dense + seeds + [{**row, "seed": 0} for row in lora]), [LORA]) == []


def test_more_shots_are_a_recovery_of_the_base():
    few, more, other = (
        TaskSummary(name=f"mc [shots={n}]", metric="accuracy", setting="knowledge", chance_level=0.0, axes={"shots": n})
        for n in (5, 0, 2)
    )
    frame = pd.DataFrame(
        rows("mc [shots=0]", "dense", [1, 1, 1, 1])
        + rows("mc [shots=0]", "wanda@0.5", [0, 0, 0, 1], seed=0)
        + rows("mc [shots=0]", "wanda@0.5", [0, 0, 1, 1], seed=1)
        + rows("mc [shots=5]", "dense", [0, 0, 0, 0])
        + rows("mc [shots=5]", "wanda@0.5", [1, 0, 0, 0], seed=0)
        + rows("mc [shots=5]", "wanda@0.5", [1, 1, 1, 1], seed=1)
    )
    row = returned(frame, [few, more, other], [LORA], alpha=0.05)[0]
    assert (row.recipe, row.base, row.recovery, row.task) == (
        "wanda@0.5+shots-5",
        "wanda@0.5",
        "shots-5",
        "mc [shots=0]",
    )
    assert (row.lost, row.returned.value, row.newly_lost.value) == (2.5, 3 / 5, 1 / 3)
    assert (row.control.value, len(returned(frame, [few, more, other], [LORA], alpha=0.05))) == (1 / 5, 1)
    assert returned(frame, [few, more, other], [], alpha=0.05) == [], "only in a study of recoveries"
