"""The order in which cells are filled, by one worker or by many, some of which fail."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from llmkick.compression.recipe import Dense
from llmkick.compression.registry import parse_recipe
from llmkick.study.cells import Cell, Variant
from llmkick.study.running.schedule import ATTEMPTS, Schedule
from llmkick.tasks.registry import get_task

TASKS = [get_task("factoid_qa"), get_task("multiple_choice:cloze"), get_task("perplexity")]
DENSE = Variant(recipe=Dense())
WANDA = Variant(recipe=parse_recipe("wanda@0.5"), seed=0)
RTN = Variant(recipe=parse_recipe("rtn@4b"))


def cells_of(*variants: Variant) -> list[Cell]:
    return [
        Cell(variant=variant, task=task, run_key=f"{variant}/{task.name}") for variant in variants for task in TASKS
    ]


def schedule_of(*variants: Variant, **options: Any) -> Schedule:
    cells = cells_of(*variants)
    return Schedule(cells=cells, pending=cells, **options)


def key(cell: Cell | None) -> str:
    assert cell is not None
    return cell.run_key


def test_one_worker_goes_through_the_cells_in_order():
    schedule = schedule_of(DENSE, WANDA, RTN)
    seen, loaded = [], None
    while (cell := schedule.take("me", loaded)) is not None:
        seen.append(cell.run_key)
        loaded = cell.variant
        schedule.done("me")
    assert seen == [cell.run_key for cell in schedule.cells]
    assert (schedule.left, schedule.failures) == (0, [])


def test_only_what_is_pending_is_handed_out():
    cells = cells_of(DENSE, WANDA)
    schedule = Schedule(cells=cells, pending=cells[4:5])
    assert key(schedule.take("me", None)) == cells[4].run_key
    schedule.done("me")
    assert schedule.take("me", None) is None


def test_the_dense_cell_of_a_task_comes_before_its_others():
    schedule = schedule_of(DENSE, WANDA)
    first, second, third = (schedule.take(name, None) for name in "abc")
    assert [key(cell) for cell in (first, second, third)] == [cell.run_key for cell in schedule.cells[:3]]
    taken: list[Cell | None] = []
    waiting = threading.Thread(target=lambda: taken.append(schedule.take("d", None)))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()  # nothing can be begun before a dense cell is done
    schedule.done("b")
    waiting.join(60)
    assert key(taken[0]) == "wanda@0.5 (seed 0)/multiple_choice:cloze"


def test_a_worker_stays_with_its_model_and_others_begin_another():
    schedule = schedule_of(WANDA, RTN)
    assert key(schedule.take("a", None)) == "wanda@0.5 (seed 0)/factoid_qa"
    assert key(schedule.take("b", None)) == "rtn@4b/factoid_qa"
    schedule.done("a")
    assert key(schedule.take("a", WANDA)) == "wanda@0.5 (seed 0)/multiple_choice:cloze"


@pytest.mark.parametrize(("shared", "made", "helps"), [(True, True, True), (True, False, False), (False, True, False)])
def test_others_help_only_with_models_that_are_made_and_shared(*, shared: bool, made: bool, helps: bool):
    schedule = schedule_of(WANDA, shared=shared)
    schedule.take("a", None)
    if made:
        schedule.made(WANDA)
    taken: list[Cell | None] = []
    helper = threading.Thread(target=lambda: taken.append(schedule.take("b", None)))
    helper.start()
    helper.join(60 if helps else 0.05)
    assert (not helper.is_alive()) is helps
    schedule.stop()
    helper.join(60)
    assert (taken != [None]) is helps


def gets_a_cell(schedule: Schedule, worker: str, loaded: Variant | None = None, *, seconds: float = 0.1) -> bool:
    """Whether a worker gets a cell within `seconds`; it waits otherwise, until the schedule is stopped."""
    taken: list[Cell | None] = []
    helper = threading.Thread(target=lambda: taken.append(schedule.take(worker, loaded)))
    helper.start()
    helper.join(seconds)
    got = not helper.is_alive()
    schedule.stop()
    helper.join(60)
    return got


def test_a_variant_stays_with_the_worker_that_has_started_it_where_models_are_not_shared():
    schedule = schedule_of(WANDA, RTN, shared=False)
    assert key(schedule.take("a", None)) == "wanda@0.5 (seed 0)/factoid_qa"
    schedule.made(WANDA)
    schedule.done("a")  # between two of its cells, the variant is nobody's at work
    assert key(schedule.take("b", None)) == "rtn@4b/factoid_qa"
    schedule.done("b")
    assert key(schedule.take("b", RTN)) == "rtn@4b/multiple_choice:cloze"
    schedule.done("b")
    assert key(schedule.take("b", RTN)) == "rtn@4b/perplexity"
    schedule.done("b")
    assert not gets_a_cell(schedule, "b", RTN)


def test_what_comes_back_is_for_the_worker_that_has_started_the_variant():
    """The records of a variant were dropped while its worker was at another one."""

    def at_another_one() -> Schedule:
        schedule = schedule_of(WANDA, RTN, shared=False)
        for _ in range(3):
            schedule.take("a", WANDA)
            schedule.done("a")
        assert key(schedule.take("a", WANDA)) == "rtn@4b/factoid_qa"
        schedule.reopen(schedule.cells[:1])
        return schedule

    assert not gets_a_cell(at_another_one(), "b")
    schedule, seen = at_another_one(), []
    for _ in range(3):
        schedule.done("a")
        seen.append(key(schedule.take("a", RTN)))
    assert seen == ["rtn@4b/multiple_choice:cloze", "rtn@4b/perplexity", "wanda@0.5 (seed 0)/factoid_qa"]


@pytest.mark.parametrize(("final", "is_free"), [(False, True), (True, False)])
def test_the_variants_of_a_lost_worker_are_free_and_those_of_one_that_lives_are_not(*, final: bool, is_free: bool):
    schedule = schedule_of(WANDA, shared=False)
    schedule.take("a", None)
    schedule.done("a")
    schedule.take("a", WANDA)
    schedule.failed("a", "lost or refused", final=final)
    assert gets_a_cell(schedule, "b", seconds=60 if is_free else 0.1) is is_free


def test_a_cell_is_tried_three_times_then_reported_and_the_rest_goes_on():
    schedule = schedule_of(WANDA)
    for attempt in range(1, ATTEMPTS + 1):
        assert key(schedule.take("a", None)) == "wanda@0.5 (seed 0)/factoid_qa", attempt
        schedule.failed("a", f"lost {attempt}", final=False)
    assert [str(failure) for failure in schedule.failures] == [
        "wanda@0.5 (seed 0) on factoid_qa was given up after 3 attempts: lost 3"
    ]
    assert schedule.failures[0].as_row() == {
        "recipe": "wanda@0.5",
        "seed": 0,
        "task": "factoid_qa",
        "attempts": 3,
        "reason": "lost 3",
    }
    assert schedule.left == 2
    assert key(schedule.take("a", None)) == "wanda@0.5 (seed 0)/multiple_choice:cloze"


def test_what_would_fail_again_is_not_tried_again():
    schedule = schedule_of(WANDA)
    schedule.take("a", None)
    schedule.give_up_variant(WANDA, "no such layer")
    schedule.failed("a", "no such layer", final=True)
    assert [(f.attempts, f.reason) for f in schedule.failures] == [(1, "no such layer")] + [(0, "no such layer")] * 2
    assert schedule.take("a", None) is None


def joined(*variants: Variant, workers: str = "ab", **options: Any) -> Schedule:
    """A schedule with workers on machines of their own."""
    schedule = schedule_of(*variants, **options)
    for name in workers:
        schedule.join(name, f"machine {name}")
    return schedule


def test_what_one_machine_refuses_another_tries():
    schedule = joined(WANDA)
    schedule.take("a", None)
    schedule.refused("a", "no peft", whole_variant=False)
    assert key(schedule.take("a", None)) == "wanda@0.5 (seed 0)/multiple_choice:cloze"
    schedule.done("a")
    schedule.made(WANDA)
    assert key(schedule.take("b", None)) == "wanda@0.5 (seed 0)/factoid_qa"
    assert schedule.failures == []
    schedule.refused("b", "no peft here either", whole_variant=False)
    assert [(f.attempts, f.reason) for f in schedule.failures] == [(2, "no peft here either")]


def test_a_refused_variant_is_refused_as_a_whole():
    schedule = joined(WANDA, RTN)
    schedule.take("a", None)
    schedule.refused("a", "full", whole_variant=True)
    assert key(schedule.take("a", None)) == "rtn@4b/factoid_qa"
    schedule.take("b", None)
    schedule.refused("b", "full", whole_variant=True)
    assert [(f.cell.variant, f.attempts) for f in schedule.failures] == [(WANDA, 2), (WANDA, 0), (WANDA, 0)]


@pytest.mark.parametrize("workers", ["a", ""])
def test_without_another_machine_a_refusal_is_final(workers: str):
    schedule = joined(WANDA, workers=workers)
    schedule.take("a", None)
    schedule.refused("a", "full", whole_variant=True)
    assert len(schedule.failures) == 3
    assert schedule.take("a", None) is None


def test_workers_of_one_machine_are_one_machine():
    schedule = schedule_of(WANDA)
    schedule.join("a", "one")
    schedule.join("b", "b")  # it is still to start
    schedule.take("a", None)
    schedule.refused("a", "full", whole_variant=True)
    assert schedule.failures == []
    assert schedule.has_other_machines("a")
    schedule.join("b", "one")
    assert not schedule.has_other_machines("a")
    assert len(schedule.failures) == 3


def test_when_the_last_other_machine_leaves_what_was_refused_is_given_up():
    schedule = joined(WANDA, RTN)
    schedule.take("a", None)
    schedule.refused("a", "full", whole_variant=True)
    schedule.leave("b")
    assert {failure.cell.variant for failure in schedule.failures} == {WANDA}


def test_the_refusals_of_a_machine_at_fault_count_no_more():
    schedule = joined(WANDA, workers="abc")
    schedule.take("a", None)
    schedule.refused("a", "full", whole_variant=True)
    schedule.leave("a", is_at_fault=True)
    schedule.take("b", None)
    schedule.refused("b", "odd", whole_variant=True)
    assert schedule.failures == []
    assert key(schedule.take("c", None)) == "wanda@0.5 (seed 0)/factoid_qa"


def test_a_dense_cell_that_two_machines_refuse_takes_its_task_with_it():
    schedule = joined(DENSE, RTN)
    for name in "ab":
        assert key(schedule.take(name, None)) == "dense/factoid_qa"
        schedule.refused(name, "odd", whole_variant=False)
    assert [f.cell.run_key for f in schedule.failures] == ["dense/factoid_qa", "rtn@4b/factoid_qa"]


def test_what_a_lost_worker_had_is_tried_elsewhere_first_then_anywhere():
    schedule = joined(WANDA)
    schedule.take("a", None)
    schedule.failed("a", "lost", final=False)
    assert key(schedule.take("a", None)) == "wanda@0.5 (seed 0)/multiple_choice:cloze"
    schedule.done("a")
    schedule.made(WANDA)
    assert key(schedule.take("b", None)) == "wanda@0.5 (seed 0)/factoid_qa"
    schedule.failed("b", "lost", final=False)
    assert key(schedule.take("a", WANDA)) == "wanda@0.5 (seed 0)/factoid_qa"


def test_a_worker_with_other_weights_leaves_the_variant_to_the_one_that_has_it():
    schedule = joined(WANDA, shared=True)
    schedule.take("a", None)
    schedule.made(WANDA)
    assert key(schedule.take("b", None)) == "wanda@0.5 (seed 0)/multiple_choice:cloze"
    schedule.left_to_another("b")
    schedule.done("a")
    assert key(schedule.take("a", WANDA)) == "wanda@0.5 (seed 0)/multiple_choice:cloze"
    assert not gets_a_cell(schedule, "b")
    assert schedule.failures == []


def test_without_its_dense_cell_nothing_of_a_task_is_asked():
    schedule = schedule_of(DENSE, WANDA, RTN)
    schedule.take("a", None)
    schedule.failed("a", "lost", final=True)
    assert [f.cell.run_key for f in schedule.failures] == [
        "dense/factoid_qa",
        "wanda@0.5 (seed 0)/factoid_qa",
        "rtn@4b/factoid_qa",
    ]
    assert schedule.left == 6


def test_dropped_cells_are_filled_again_in_their_place():
    schedule = schedule_of(WANDA, RTN)
    for _ in range(2):
        schedule.take("a", WANDA)
        schedule.done("a")
    schedule.take("a", WANDA)
    assert schedule.is_alone("a")
    schedule.reopen(schedule.cells[:3])  # the third is at work, and is not doubled
    schedule.done("a")
    seen = []
    while (cell := schedule.take("a", WANDA)) is not None:
        seen.append(cell.run_key)
        schedule.done("a")
    assert seen == [cell.run_key for cell in (*schedule.cells[:2], *schedule.cells[3:])]


def test_a_worker_is_not_alone_while_another_has_a_cell_of_its_variant():
    schedule = schedule_of(WANDA)
    schedule.made(WANDA)
    schedule.take("a", None)
    schedule.take("b", None)
    assert not schedule.is_alone("a")
    schedule.done("b")
    assert schedule.is_alone("a")


@pytest.mark.parametrize("seed", range(5))
def test_many_workers_that_fail_at_random_settle_every_cell_once(seed: int):
    variants = [DENSE, RTN, *(Variant(recipe=parse_recipe("wanda@0.5"), seed=seed) for seed in range(6))]
    schedule = schedule_of(*variants)
    done: list[str] = []

    def work(name: str) -> None:
        generator, loaded = random.Random(f"{seed} {name}"), None
        while (cell := schedule.take(name, loaded)) is not None:
            loaded = cell.variant
            schedule.made(cell.variant)
            if generator.random() < 0.3:
                schedule.failed(name, "lost", final=False)
            else:
                done.append(cell.run_key)
                schedule.done(name)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(work, name) for name in "abcd"]:
            future.result(timeout=30)
    settled = [*done, *(failure.cell.run_key for failure in schedule.failures)]
    assert sorted(settled) == sorted(cell.run_key for cell in schedule.cells)
    assert all(f.attempts in (0, ATTEMPTS) for f in schedule.failures)


def test_failures_are_in_the_order_of_the_cells_whoever_fails_first():
    schedule = schedule_of(RTN)
    cells = [schedule.take(name, None if name == "a" else RTN) for name in "abc"]
    assert [key(cell) for cell in cells] == [cell.run_key for cell in schedule.cells]
    for name in "cab":
        schedule.failed(name, f"{name} refused", final=True)
    assert [failure.cell.run_key for failure in schedule.failures] == [cell.run_key for cell in schedule.cells]
    assert [failure.reason for failure in schedule.failures] == ["a refused", "b refused", "c refused"]
