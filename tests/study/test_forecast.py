"""The seconds that a forecast states, on timelines of real runs and on made ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llmkick.study.forecast import Forecast
from llmkick.study.part_ratios import Ratios
from llmkick.study.parts import Part
from timelines import FOLDER, Stated, Timeline, load, stated, worst_factor

RECORDED = sorted(path.stem for path in FOLDER.glob("*.json"))
# The factors of which a forecast is right: after the first cell, and after a tenth of the work.
AFTER_FIRST_CELL, AFTER_A_TENTH = 1.5, 1.2
# The share of a run after which a second more or less is a large factor of little.
END = 0.8


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


def worked(parts: Sequence[Part], seconds: Mapping[str, float], *, batch: int = 20) -> Timeline:
    """A run in order, where a step of a part takes the seconds of its key, its task or method, or as expected.

    The first batch of every dense cell comes first.
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


@pytest.mark.parametrize("name", sorted(set(RECORDED) - {"toy-resumed"}))
def test_recorded_runs_are_forecast(name: str):
    """Among them five recipes with early stopping, by which no number of the forecast was chosen."""
    check(load(FOLDER / f"{name}.json"))


def test_the_recorded_quickstart_is_forecast_from_its_first_line_on():
    """By the clock, and until little is left."""
    answers = stated(load(FOLDER / "quickstart-decided.json"))
    assert worst_factor([answer for answer in answers if answer.share < 0.95]) <= AFTER_A_TENTH


def test_a_recorded_run_that_was_resumed_is_forecast():
    # The earlier session was slower: its speeds are what is expected, and are corrected by those of this session.
    answers = stated(load(FOLDER / "toy-resumed.json"))
    assert worst_factor([answers[0], *after_first_cell(answers)]) <= AFTER_FIRST_CELL


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


def test_a_compression_that_is_under_way_is_forecast_at_its_own_speed():
    parts = study(TASKS, ["wanda@0.5", "wanda@0.25", "wanda@2:4"], compress=2.0)
    timeline = worked(parts, {"wanda": 20.0})
    answers = stated(timeline)
    first_block = next(at for at, name, (key, *_) in timeline.events if name == "work" and key == "model wanda@0.5")
    assert worst_factor([answer for answer in answers if first_block <= answer.at and answer.share < END]) <= 1.2


def test_a_resumed_run_is_forecast_at_once():
    parts = study(TASKS, RECIPES, compress=0.5)
    forecast = Forecast(parts)
    whole = forecast.seconds_left
    assert whole is not None
    for part in parts[: len(parts) // 2]:
        forecast.skip(part.key, part.steps)
        forecast.end(part.key)
    left = sum(part.steps * part.cost for part in parts[len(parts) // 2 :])
    assert forecast.seconds_left == pytest.approx(left)


def test_without_a_speed_there_is_no_forecast_until_the_first_answers():
    now = [0.0]
    forecast = Forecast([ask("factoid_qa", "dense", items=10)], is_rated=False, clock=lambda: now[0])
    assert forecast.seconds_left is None
    forecast.begin("dense on factoid_qa")
    assert forecast.seconds_left is None
    now[0] = 4.0
    forecast.work("dense on factoid_qa", 2, 4.0)
    assert forecast.seconds_left == pytest.approx(16, rel=0.1)


def test_the_seconds_left_fall_while_a_long_batch_runs_but_not_to_nothing():
    now = [0.0]
    forecast = Forecast([ask("factoid_qa", "dense", items=10, cost=10.0)], clock=lambda: now[0])
    forecast.begin("dense on factoid_qa")
    left = []
    for now[0] in (0.0, 30.0, 60.0, 100.0, 300.0):
        left.append(forecast.seconds_left)
    assert left[:2] == [pytest.approx(100), pytest.approx(70)]
    assert left == sorted(left, reverse=True)
    assert left[-1] > 0


def test_several_workers_share_the_work():
    now = [0.0]
    parts = [ask("factoid_qa", f"rtn@{bits}b", items=100) for bits in (2, 3, 4, 8)]
    forecast = Forecast(parts, workers=2, clock=lambda: now[0])
    assert forecast.seconds_left == pytest.approx(200)
    for part in parts[:2]:
        forecast.begin(part.key)
    now[0] = 50.0
    for part in parts[:2]:
        forecast.work(part.key, 50, 50.0)
    assert forecast.seconds_left == pytest.approx(150, rel=0.05)


def test_models_of_unknown_size_have_a_speed_of_their_own():
    tasks = {"factoid_qa": 1.0, "perplexity": 1.0}
    parts = [ask(task, "dense", cost=cost) for task, cost in tasks.items()]
    parts += [ask(task, "large", cost=cost, model="large") for task, cost in tasks.items()]
    parts += [ask(task, "small", cost=cost, model="small") for task, cost in tasks.items()]
    forecast = Forecast(parts, clock=lambda: 0.0)
    for part in parts[:2]:
        forecast.work(part.key, part.steps, part.steps * part.cost)
        forecast.end(part.key)
    forecast.work("large on factoid_qa", 100, 1000.0)
    forecast.end("large on factoid_qa")
    # Ten times as slow as the dense model on one task, and so expected on the other; the small model is not.
    left = sum(part.steps * part.cost * (10 if part.model == "large" else 1) for part in parts[3:])
    ratio = _wall_left(forecast, parts)
    assert ratio == pytest.approx(left, rel=0.1)


def _wall_left(forecast: Forecast, parts: Sequence[Part]) -> float:
    """The seconds left of a forecast whose clock stands still, without what no part counts."""
    states = list(forecast._states.values())
    ratios = Ratios(states, is_rated=True)
    return sum(map(ratios.seconds_left, states))


def test_the_small_batches_of_early_looks_take_longer():
    """They take 3 seconds more in all: half of them done is half of that, and later items go at their own speed."""
    part = replace(ask("facts", "dense", items=320, cost=0.05), start=3.0, start_steps=64.0)
    now = [0.0]
    forecast = Forecast([part], clock=lambda: now[0])
    assert forecast.seconds_left == pytest.approx(320 * 0.05 + 3)
    forecast.begin(part.key)
    now[0] = 32 * 0.05 + 1.5
    forecast.work(part.key, 32, now[0])
    assert forecast.seconds_left == pytest.approx(288 * 0.05 + 1.5)
    now[0] += 32 * 0.05 + 1.5
    forecast.work(part.key, 32, 32 * 0.05 + 1.5)
    assert forecast.seconds_left == pytest.approx(256 * 0.05)
    resumed = Forecast([part], clock=lambda: 0.0)
    resumed.skip(part.key, 64)
    assert resumed.seconds_left == pytest.approx(256 * 0.05)
    ended = Forecast([part], clock=lambda: 0.0)
    ended.end(part.key)
    assert ended.seconds_left == 0


def test_the_start_of_a_compression_is_not_the_speed_of_its_blocks():
    """The first block takes a second more than expected, whatever the reason; blocks of 20 seconds show their speed."""
    part = replace(compression("magnitude@0.2", cost=0.05), start=0.1)
    now = [0.0]
    forecast = Forecast([part], clock=lambda: now[0])
    assert forecast.seconds_left == pytest.approx(30 * 0.05 + 0.1)
    forecast.begin(part.key)
    for took, left in ((1.0, 29 * 0.05), (0.05, 28 * 0.05), (0.05, 27 * 0.05)):
        now[0] += took
        forecast.work(part.key, 1, took)
        assert forecast.seconds_left == pytest.approx(left, abs=0.7)
    # One second more or less is nothing beside blocks of 20 seconds.
    left_of_slow = []
    for start in (0.1, 0.0):
        slow = Forecast([replace(part, start=start)], clock=lambda: now[0])
        slow.begin(part.key)
        now[0] += 20.0
        slow.work(part.key, 1, 20.0)
        left_of_slow.append(slow.seconds_left)
    assert left_of_slow[0] == pytest.approx(left_of_slow[1], rel=0.1)
