"""Judgements that are missing more often for one model: the verdict is incomplete, and says why."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd
import pytest

from llmkick.statistics import Comparison
from llmkick.study.results.comparisons import compare_all, overall_by_recipe
from llmkick.study.results.missing_judgements import missing_judgements, warnings_of_missing
from llmkick.study.results.multiplicity import families
from llmkick.study.results.records import TaskSummary

JUDGED = {
    "name": "instruction:judge",
    "metric": "judge score",
    "setting": "instruction",
    "chance_level": 0.0,
    "judge": "openai:https://host/v1#judge",
}
ITEMS = 200


def task(**changes: object) -> TaskSummary:
    return TaskSummary.model_validate({**JUDGED, **changes})


def cell(recipe: str, score: float, missing: Collection[int], *, seed: int | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "model": "toy",
            "recipe": recipe,
            "seed": seed,
            "task": JUDGED["name"],
            "item_id": [f"q{number}" for number in range(ITEMS)],
            "cluster": [f"q{number}" for number in range(ITEMS)],
            "score": [None if number in missing else score for number in range(ITEMS)],
            "tokens": 0,
            "details": [{} for _ in range(ITEMS)],
        }
    ).astype({"score": float, "seed": float})


def compared(*cells: pd.DataFrame, of: TaskSummary | None = None) -> dict[str, Comparison]:
    records = pd.concat(cells, ignore_index=True)
    recipes = [recipe for recipe in dict.fromkeys(records["recipe"]) if recipe != "dense"]
    comparisons = compare_all(records, [of or task()], recipes, margin=0.05, alpha=0.05)
    assert all(isinstance(comparison, Comparison) for comparison in comparisons)
    return {comparison.recipe: comparison for comparison in comparisons if isinstance(comparison, Comparison)}


DENSE = cell("dense", 0.5, ())
# Far below the margin: whatever the missing scores are, the verdict would be the same.
WORSE = cell("magnitude@0.5", 0.1, range(12))


def test_a_loss_that_nothing_missing_could_change_is_incomplete_all_the_same():
    worse = compared(DENSE, WORSE)["magnitude@0.5"]
    assert worse.verdict == "incomplete"
    assert worse.notes[-1] == (
        "12 of 200 judgements are missing, and 0 of the dense model's (p < 0.001): what is missing depends on the model"
    )
    assert not any("cannot change" in note for note in worse.notes)
    one = compared(cell("dense", 1.0, ()), cell("rtn@8b", 1.0, range(1)))["rtn@8b"]
    assert (one.verdict, one.unscored) == ("matching", 1)
    assert compared(DENSE, WORSE, of=task(judge=None))["magnitude@0.5"].verdict == "not matching"


def test_the_same_share_missing_leaves_the_verdict():
    missing = range(12)
    assert compared(cell("dense", 0.5, range(6, 18)), WORSE)["magnitude@0.5"].verdict == "not matching"
    assert compared(cell("dense", 0.5, missing), WORSE)["magnitude@0.5"].verdict == "not matching"
    # More missing for the dense model is as much a relation.
    fewer = compared(cell("dense", 0.5, range(12)), cell("magnitude@0.5", 0.1, ()))["magnitude@0.5"]
    assert fewer.verdict == "incomplete"


def test_a_task_without_a_signal_keeps_its_verdict():
    silent = compared(cell("dense", 0.0, ()), cell("magnitude@0.5", 0.0, range(12)))["magnitude@0.5"]
    assert silent.verdict == "no signal"


def test_rows_name_the_shares_and_are_adjusted_for_the_number_of_recipes():
    six = cell("a@1", 0.1, range(6))
    recipes = ["a@1", "b@1", "c@1"]
    records = pd.concat([DENSE, six, cell("b@1", 0.1, ()), cell("c@1", 0.1, range(20))], ignore_index=True)
    rows = {row.recipe: row for row in missing_judgements(records, [task()], recipes, alpha=0.05)}
    assert rows["a@1"].facts == {
        "task": "instruction:judge", "recipe": "a@1", "seed": None, "items": 200, "missing": 6, "share": 0.03,
        "dense_missing": 0, "dense_share": 0.0, "p": pytest.approx(2 / 64), "adjusted_p": pytest.approx(2 * 2 / 64),
        "differs": False,
    }  # fmt: skip
    assert (rows["b@1"].p, rows["b@1"].differs) == (1, False)
    assert rows["c@1"].differs
    assert rows["c@1"].adjusted_p == pytest.approx(3 * 2 / 2**20)
    told = warnings_of_missing(list(rows.values()))
    assert len(told) == 1
    assert told[0].startswith("c@1 on instruction:judge is incomplete: 20 of 200 judgements are missing, and 0 of the")
    # Alone, six are enough.
    alone = missing_judgements(pd.concat([DENSE, six]), [task()], ["a@1"], alpha=0.05)
    assert [row.differs for row in alone] == [True]
    assert missing_judgements(records, [task(judge=None)], recipes, alpha=0.05) == []


def test_one_seed_of_several_makes_the_cell_incomplete():
    seeds = [cell("wanda@0.5", 0.1, missing, seed=seed) for seed, missing in enumerate([(), range(15), ()])]
    comparison = compared(DENSE, *seeds)["wanda@0.5"]
    assert comparison.verdict == "incomplete"
    assert "15 of 200 judgements are missing with seed 1, and 0 of the dense model's" in comparison.notes[-1]


def test_what_follows_from_the_verdict_follows():
    verdicts = compared(DENSE, WORSE, cell("rtn@8b", 0.5, ()))
    overall = {row.recipe: row.verdict for row in overall_by_recipe(list(verdicts.values()))}
    assert overall == {"magnitude@0.5": "incomplete", "rtn@8b": "matching"}
    (family, _) = families(list(verdicts.values()), list(verdicts), correction="holm", alpha=0.05)
    assert [(row.recipe, row.p is None, row.matching) for row in family.recipes] == [
        ("magnitude@0.5", True, False),
        ("rtn@8b", False, True),
    ]
