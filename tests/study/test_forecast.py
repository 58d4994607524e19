"""The seconds that a forecast states, on timelines of real runs and on made ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from llmkick.study.part_ratios import Part
from timelines import FOLDER, Stated, Timeline, load, stated, worst_factor

RECORDED = sorted(path.stem for path in FOLDER.glob("*.json"))
# The factors of which a forecast is right: after the first cell, and after a tenth of the work.
AFTER_FIRST_CELL, AFTER_A_TENTH = 1.5, 1.2
# The last share of a run, where a second more or less is a large factor of little.
END = 0.9


def ask(task: str, variant: str, *, items: int = 100, cost: float = 1.0, **options: Any) -> Part:
    kind = "dense" if variant == "dense" else "compared"
    return Part(key=f"{variant} on {task}", pool=("ask", task, kind), steps=items, cost=cost, **options)


def compression(variant: str, *, cost: float = 1.0, blocks: int = 30) -> Part:
    return Part(key=f"model {variant}", pool=("compress", variant.partition("@")[0]), steps=blocks, cost=cost)


def study(tasks: Mapping[str, float], recipes: Sequence[str], *, compress: float = 1.0, **options: Any) -> list[Part]:
    """The parts of a study: tasks with the expected seconds of an item, in the order of a run."""
    parts = [ask(task, "dense", cost=cost, **options) for task, cost in tasks.items()]
    for recipe in recipes:
        parts.append(compression(recipe, cost=compress))
        parts += [ask(task, recipe, cost=cost, **options) for task, cost in tasks.items()]
    return parts


def worked(parts: Sequence[Part], seconds: Mapping[str, float], *, batch: int = 20, overhead: float = 0.0) -> Timeline:
    """A run in order, where a step of a part takes the seconds of its key, its task or method, or as expected.

    The first batch of every dense cell comes first. `overhead` are the seconds after each part that no part counts.
    """
    now, events, done = 0.0, list[tuple[float, str, list[Any]]](), dict[str, float]()

    def pace(part: Part) -> float:
        return seconds.get(part.key, seconds.get(part.pool[1], part.cost))

    def steps(part: Part, until: float) -> None:
        nonlocal now
        events.append((now, "begin", [part.key]))
        while done.get(part.key, 0) < until:
            some = min(batch, until - done.get(part.key, 0))
            now += some * pace(part)
            events.append((now, "work", [part.key, some, some * pace(part)]))
            done[part.key] = done.get(part.key, 0) + some

    for part in parts:
        if part.pool[-1] == "dense":
            steps(part, batch)
    for part in parts:
        steps(part, part.steps)
        events.append((now, "end", [part.key]))
        now += overhead
    return Timeline(list(parts), events, now)


def after_first_cell(answers: Sequence[Stated]) -> list[Stated]:
    return [answer for answer in answers if answer.first_cell_done and answer.share < END]


def after_a_tenth(answers: Sequence[Stated]) -> list[Stated]:
    return [answer for answer in after_first_cell(answers) if answer.share >= 0.1]


def check(timeline: Timeline) -> None:
    answers = stated(timeline)
    assert after_a_tenth(answers)
    assert worst_factor(after_first_cell(answers)) <= AFTER_FIRST_CELL
    assert worst_factor(after_a_tenth(answers)) <= AFTER_A_TENTH


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_runs_are_forecast(name: str):
    check(load(FOLDER / f"{name}.json"))


RECIPES = ["wanda@0.5", "wanda@0.25", "gptq@4b", "gptq@3b"]
TASKS = {"factoid_qa": 1.0, "multiple_choice": 2.0, "perplexity": 0.5}


def test_a_run_as_expected_is_forecast_to_the_second():
    timeline = worked(study(TASKS, RECIPES), {})
    for answer in stated(timeline):
        assert answer.left == pytest.approx(answer.truth, rel=0.3)
    ticks = [answer for answer in stated(timeline)[::2] if answer.share < 1]
    assert [answer.left for answer in ticks] == [pytest.approx(answer.truth, rel=0.01, abs=1) for answer in ticks]


@pytest.mark.parametrize("speed", [0.2, 5.0])
def test_a_machine_of_another_speed_shows_in_the_first_cell(speed: float):
    parts = study(TASKS, RECIPES, compress=0.5)
    seconds = {part.key: speed * part.cost for part in parts}
    check(worked(parts, seconds))


@pytest.mark.parametrize("factor", [0.02, 50.0])
def test_a_task_that_takes_fifty_times_as_long_as_expected(factor: float):
    check(worked(study(TASKS, RECIPES), {"multiple_choice": factor * TASKS["multiple_choice"]}))


def test_a_slow_compression_first():
    # Thirty times slower than the passes of its calibration text tell; the methods after it are as expected.
    parts = study(TASKS, ["sparsegpt@0.5", *RECIPES], compress=0.2)
    check(worked(parts, {"sparsegpt": 6.0}))
