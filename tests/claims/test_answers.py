"""Claims that are read from the answers themselves: what they need of them, and what is said where they lack it."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from claims.made_up import made_up_run, with_result
from llmkick.claims.answers import answers_to, measure_rises, parts_of
from llmkick.claims.evidence import NotAskedError, Statement
from llmkick.claims.gains import gains_more_than_margin
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
    assert measure_rises(run, RECIPE, INSTRUCTIONS, kept, sign=1, text="rises")


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


def test_a_part_without_a_change_has_an_error() -> None:
    """Twelve equal answers are not a proof of no loss."""
    few = changed(
        made_up_run({(RECIPE, SUMMARIES): {"short": 0.0, "medium": 0.3, "long": 0.6}}, items=900),
        lambda records: records[[
            details["bucket"] != "short" or int(item[-5:]) < 36
            for item, details in zip(records["item_id"], records["details"], strict=True)
        ]],
    )  # fmt: skip
    short = parts_of(cell_of(few), "bucket")["short"]
    assert (short.n, short.gained, short.lost) == (12, 0, 0)
    assert short.interval is not None
    assert short.interval[0] < -0.2
    assert short.interval[1] > 0.2


def with_repetition(records: pd.DataFrame, recipe: str, value: float | None, share: int) -> pd.DataFrame:
    """The records with another repetition in every `share`th answer of a model."""
    details = [
        {**details, "repetition": value} if of == recipe and int(item[-5:]) % share == 0 else details
        for of, item, details in zip(records["recipe"], records["item_id"], records["details"], strict=True)
    ]
    return records.assign(details=details)


def test_answers_without_a_measure_count_at_its_worst() -> None:
    """An answer of three words has no repetition: what it would be, is between none and all."""
    run = made_up_run({(RECIPE, INSTRUCTIONS): 0.2}, items=300, measures={RECIPE: 0.1})

    def rises(value: float | None, recipe: str = RECIPE, share: int = 3) -> Statement:
        of_run = changed(run, lambda records: with_repetition(records, recipe, value, share))
        (evidence,) = measure_rises(of_run, RECIPE, INSTRUCTIONS, "repetition", sign=1, text="repeats")
        return evidence.statements[0]

    lacking = rises(None)
    assert lacking.text == "repeats (100 of 300 answers have no repetition)"
    assert lacking.p_for == pytest.approx(rises(0.0).p_for)
    assert lacking.p_against == pytest.approx(rises(1.0).p_against)
    assert lacking.estimate.value == pytest.approx(0.1, abs=0.01)  # of the answers that have it
    of_dense = rises(None, "dense")
    assert of_dense.p_for == pytest.approx(rises(1.0, "dense").p_for)
    assert of_dense.p_against == pytest.approx(rises(0.0, "dense").p_against)
    assert rises(None, share=50).p_for < 0.001


def test_a_measure_without_ends_stays_open_where_it_is_missing() -> None:
    run = made_up_run({(RECIPE, INSTRUCTIONS): 0.2}, measures={RECIPE: 0.5})

    def change(records: pd.DataFrame) -> pd.DataFrame:
        first = (records["recipe"] == RECIPE) & (records["item_id"] == "item-00003")
        records.loc[first, "details"] = [{**d, "unique_tokens": None} for d in records.loc[first, "details"]]
        return records

    (whole,) = measure_rises(run, RECIPE, INSTRUCTIONS, "unique_tokens", sign=-1, text="fewer")
    (lacking,) = measure_rises(changed(run, change), RECIPE, INSTRUCTIONS, "unique_tokens", sign=-1, text="fewer")
    assert whole.p_for < 0.001
    assert (lacking.p_for, lacking.p_against) == (1.0, 1.0)


def test_a_missing_score_counts_as_the_worst_for_each_direction() -> None:
    run = made_up_run({(RECIPE, CHOICE): 0.5, (RECIPE, FEW): 0.4}, items=400)

    def statement(task: str, value: float | None) -> Statement:
        def change(records: pd.DataFrame) -> pd.DataFrame:
            some = (records["recipe"] == RECIPE) & (records["task"] == task) & (records["item_id"] < "item-00040")
            return records.assign(score=records["score"].mask(some, value))

        of_run = changed(run, change)
        tasks = {task.name: task for task in run.result.tasks}
        before, after = (answers_to(of_run, RECIPE, name) for name in (CHOICE, FEW))
        dense = answers_to(of_run, "dense", CHOICE)[0]
        gained = gains_more_than_margin(before, after, dense, task=tasks[CHOICE], run=of_run, text="gains")
        return gained.statements[0]

    for task, worst in ((CHOICE, 1.0), (FEW, 0.0)):
        lacking = statement(task, None)
        assert lacking.text == "gains (40 of 400 questions have no score)"
        assert lacking.p_for == pytest.approx(statement(task, worst).p_for)
        assert lacking.p_against == pytest.approx(statement(task, 1 - worst).p_against)


@pytest.mark.parametrize("bound", [0, 1])
def test_the_bounds_of_a_gain_are_where_its_test_turns(bound: int) -> None:
    run = made_up_run({(RECIPE, CHOICE): 0.5, (RECIPE, FEW): 0.2}, items=200)
    tasks = {task.name: task for task in run.result.tasks}
    before, after = (answers_to(run, RECIPE, task) for task in (CHOICE, FEW))
    dense = answers_to(run, "dense", CHOICE)[0]
    read = gains_more_than_margin(before, after, dense, task=tasks[CHOICE], run=run, text="gains")
    interval = read.statements[0].estimate.interval
    assert interval is not None
    margin = run.result.study.model_copy(update={"margin": interval[bound]})
    at_bound = with_result(run, study=margin)
    again = gains_more_than_margin(before, after, dense, task=tasks[CHOICE], run=at_bound, text="gains")
    assert (again.p_against if bound else again.p_for) == pytest.approx(0.05, abs=1e-4)
