"""Claims that are read from the answers themselves: what they need of them, and what is said where they lack it."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from claims.made_up import made_up_run
from llmkick.claims.answers import answers_to, gains_more_than_margin, measure_rises, parts_of
from llmkick.claims.evidence import NotAskedError
from llmkick.claims.runs import Cell, ClaimRun, models_of

CHOICE, FEW, SUMMARIES, INSTRUCTIONS = "multiple_choice:letter", "multiple_choice:few", "summarization", "instruction"
RECIPE = "wanda@0.5"


def changed(run: ClaimRun, change: Callable[[pd.DataFrame], pd.DataFrame]) -> ClaimRun:
    """The same run with other records."""
    records = run.records()
    assert records is not None
    return ClaimRun(name=run.name, result=run.result, records=lambda: change(records.copy()))


def cell_of(run: ClaimRun) -> Cell:
    (cell,) = models_of([run])[0].cells(lambda _: True)
    return cell


def without_detail(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(records: pd.DataFrame) -> pd.DataFrame:
        kept = [{key: value for key, value in details.items() if key != name} for details in records["details"]]
        return records.assign(details=kept)

    return change


def with_seeds(records: pd.DataFrame, recipe: str, task: str, seeds: int) -> pd.DataFrame:
    """The records of one cell once for each seed."""
    is_cell = (records["recipe"] == recipe) & (records["task"] == task)
    copies = [records[is_cell].assign(seed=seed) for seed in range(seeds)]
    return pd.concat([records[~is_cell], *copies], ignore_index=True)


def test_answers_that_do_not_say_their_part() -> None:
    run = changed(made_up_run({(RECIPE, SUMMARIES): 0.2}), without_detail("bucket"))
    with pytest.raises(NotAskedError, match="the answers to summarization in run do not say their bucket"):
        parts_of(cell_of(run), "bucket")


def test_parts_have_the_losses_of_their_items() -> None:
    """Against the losses computed by hand; a part of one item is none."""
    run = made_up_run({(RECIPE, SUMMARIES): {"short": 0.1, "medium": 0.3, "long": 0.6}}, items=900)

    def alone(records: pd.DataFrame) -> pd.DataFrame:
        first = records["item_id"] == "item-00000"
        records.loc[first, "details"] = [{**details, "bucket": "alone"} for details in records.loc[first, "details"]]
        return records

    parts = parts_of(cell_of(changed(run, alone)), "bucket")
    assert set(parts) == {"short", "medium", "long"}
    records = run.records()
    assert records is not None
    table = records[records["item_id"] != "item-00000"]
    bucket = [details["bucket"] for details in table["details"]]
    means = table.groupby([table["recipe"], bucket])["score"].mean()
    for length, comparison in parts.items():
        expected = 1 - means[RECIPE, length] / means["dense", length]
        assert comparison.relative_drop == pytest.approx(expected)


@pytest.mark.parametrize("gone", ["unique_tokens", "repetition"])
def test_a_measure_that_no_answer_has(gone: str) -> None:
    """As of answers that were imported: the other measure is still read."""
    run = changed(made_up_run({(RECIPE, INSTRUCTIONS): 0.2}), without_detail(gone))
    kept = {"unique_tokens": "repetition", "repetition": "unique_tokens"}[gone]
    with pytest.raises(NotAskedError, match=f"the answers to instruction in run have no {gone}"):
        measure_rises(run, RECIPE, INSTRUCTIONS, gone, sign=1, text="rises")
    assert measure_rises(run, RECIPE, INSTRUCTIONS, kept, sign=1, text="rises").statements


def gain(run: ClaimRun) -> float:
    tasks = {task.name: task for task in run.result.tasks}
    before, after = (answers_to(run, RECIPE, task) for task in (CHOICE, FEW))
    evidence = gains_more_than_margin(
        before, after, answers_to(run, "dense", CHOICE)[0], task=tasks[CHOICE], run=run, text="gains"
    )
    value = evidence.statements[0].estimate.value
    assert value is not None
    return value


def test_a_gain_is_a_share_of_what_the_dense_model_has_above_chance() -> None:
    run = made_up_run({(RECIPE, CHOICE): 0.5, (RECIPE, FEW): 0.2})
    records = run.records()
    assert records is not None
    means = records.groupby(["recipe", "task"])["score"].mean()
    expected = (means[RECIPE, FEW] - means[RECIPE, CHOICE]) / (means["dense", CHOICE] - 0.25)
    assert gain(run) == pytest.approx(expected)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_gain_needs_the_same_seeds_under_both_prompts(before: int, after: int) -> None:
    run = made_up_run({(RECIPE, CHOICE): 0.5, (RECIPE, FEW): 0.2})
    seeded = changed(run, lambda records: with_seeds(with_seeds(records, RECIPE, CHOICE, before), RECIPE, FEW, after))
    with pytest.raises(NotAskedError, match="run has not the same seeds under both prompts"):
        gain(seeded)
    both = changed(run, lambda records: with_seeds(with_seeds(records, RECIPE, CHOICE, 2), RECIPE, FEW, 2))
    assert gain(both) == pytest.approx(gain(run))


def test_a_gain_needs_the_same_items_under_both_prompts() -> None:
    run = made_up_run({(RECIPE, CHOICE): 0.5, (RECIPE, FEW): 0.2})
    fewer = changed(run, lambda records: records[(records["task"] == CHOICE) | (records["item_id"] != "item-00007")])
    with pytest.raises(NotAskedError, match="run has not the same items under both prompts"):
        gain(fewer)
