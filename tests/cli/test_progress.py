"""What is seen while a study runs."""

from __future__ import annotations

import io
import json
import threading
import time
from dataclasses import replace

import pytest
from rich.console import Console

from llmkick.cli import progress
from llmkick.cli.progress import JsonProgress, Pace, TerminalProgress, verdict_line
from llmkick.study.advice import Advice
from llmkick.study.announcement import Announcement, announce
from llmkick.study.expected_work import ExpectedWork
from llmkick.study.forecast import Forecast
from llmkick.study.parts import Part
from plain import as_json
from report.synthetic import perplexity_comparison, task_comparison

LOST = task_comparison(verdict="not matching", compressed=0.09, relative_drop=0.84, interval=(0.7, 0.95))
CONTROL = perplexity_comparison(outcome="beyond margin", compressed=99.8, relative_increase=1.38, interval=(1.02, 1.81))


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_the_pace_counts_what_this_session_did(clock):
    pace = Pace()
    pace.cells(0, 10)
    for done in range(1, 5):  # complete from an earlier session: no work, no time
        pace.cells(done, 10)
    assert pace.seconds_left is None
    pace.stage("dense on factoid_qa", 100)
    pace.advance(40)  # journalled before
    clock[0] += 20
    pace.advance(80)
    assert pace.rate == pytest.approx(2.0)
    assert pace.share == pytest.approx(0.8)
    assert pace.seconds_left == pytest.approx(20 / 0.8 * (10 - 4 - 0.8))
    pace.advance(100)
    pace.cells(5, 10)
    assert (pace.worked, pace.share) == (1, 0.0)
    assert pace.seconds_left == pytest.approx(20 * 5)


def test_verdicts_are_told_in_words_and_signs():
    assert verdict_line(LOST).plain == "✗ wanda@0.5 on factoid_qa: not matching, 0.09, loss of 84 % [70, 95]"
    assert verdict_line(CONTROL).plain == "· wanda@0.5 on perplexity: 99.8, +138 % [102, 181], beyond margin"
    silent = replace(LOST, verdict="no signal", interval=None)
    assert verdict_line(silent).plain == "∅ wanda@0.5 on factoid_qa: no signal, 0.09"


def test_a_terminal_sees_bars_items_a_second_time_left_and_verdicts(clock):
    text = io.StringIO()
    with TerminalProgress(Console(file=text, force_terminal=True, width=140, color_system=None)) as watcher:
        watcher.cells(0, 4)
        watcher.stage("dense on factoid_qa", 100)
        clock[0] += 10
        watcher.advance(50)
        watcher._bars.refresh()
        watcher.verdict(LOST)
    shown = text.getvalue()
    for part in ("whole study", "0/4", "50/100", "5/s", "0:10 gone, 1:10 left", "✗ wanda@0.5 on factoid_qa"):
        assert part in shown, part


def test_elsewhere_there_are_plain_lines(clock):
    text = io.StringIO()
    with TerminalProgress(Console(file=text, width=140)) as watcher:
        watcher.cells(0, 4)
        watcher.stage("dense on factoid_qa", 100)
        clock[0] += 31
        watcher.advance(62)
        watcher.advance(63)
        watcher.verdict(LOST)
    assert text.getvalue().splitlines() == [
        "[0/4 cells] dense on factoid_qa",
        "[0/4 cells] dense on factoid_qa, 62 of 100, 2/s, 2:49 left",
        "✗ wanda@0.5 on factoid_qa: not matching, 0.09, loss of 84 % [70, 95]",
    ]


def test_quiet_says_nothing_about_verdicts():
    text = io.StringIO()
    with TerminalProgress(Console(file=text), quiet=True) as watcher:
        watcher.stage("x", 1)
        watcher.verdict(LOST)
    assert text.getvalue() == ""


def test_json_is_one_event_a_line(clock):
    stream = io.StringIO()
    events = JsonProgress(stream)
    events.cells(0, 2)
    events.stage("dense on factoid_qa", 10)
    for done in range(1, 11):
        events.advance(done)
        clock[0] += 0.3
    events.cells(1, 2)
    events.verdict(LOST)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["event"] for line in lines][:2] == ["cells", "stage"]
    done = [line["done"] for line in lines if line["event"] == "progress"]
    assert done[-1] == 10
    assert len(done) < 6
    assert lines[-1] == {"event": "verdict", "comparison": as_json(LOST)}
    assert lines[-2]["seconds_left"] == pytest.approx(3.0)


def planned(seconds: float) -> tuple[Forecast, Announcement]:
    part = Part(key="dense on factoid_qa", pool=("ask", "factoid_qa", "dense"), steps=100, cost=seconds / 100)
    work = ExpectedWork(parts=[part], items=100, tokens=12_000)
    forecast = Forecast(work.parts)
    return forecast, announce(work, forecast, advice=[Advice(setting="limit", value="50", reason="of 100")])


def test_the_plan_says_what_the_work_takes_and_for_long_work_what_is_shorter():
    text = io.StringIO()
    with TerminalProgress(Console(file=text, width=140)) as watcher:
        watcher.plan(*planned(45))
        watcher.plan(*planned(600))
    assert text.getvalue().splitlines() == [
        "to do: 100 items in 1 cell, 12,000 tokens: about 45 seconds",
        "to do: 100 items in 1 cell, 12,000 tokens: about 10 minutes",
        "shorter: limit = 50 (of 100)",
    ]


def test_the_forecast_takes_the_place_of_the_mean_cell(clock):
    forecast, announcement = planned(600)
    text, stream = io.StringIO(), io.StringIO()
    views = [TerminalProgress(Console(file=text, width=140)), JsonProgress(stream)]
    for view in views:
        view.plan(forecast, announcement)
        view.cells(0, 1)
        view.stage("dense on factoid_qa", 100)
    forecast.begin("dense on factoid_qa")
    clock[0] += 30
    forecast.work("dense on factoid_qa", 10, 30.0)
    for view in views:
        view.advance(10)
    left = forecast.seconds_left
    assert 270 <= left <= 400
    assert text.getvalue().splitlines()[-1].endswith(f", {int(left // 60)}:{round(left % 60):02} left")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert events[0]["event"] == "plan"
    assert events[0]["seconds"] == pytest.approx(600)
    assert events[-1]["seconds_left"] == pytest.approx(left)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_line_comes_while_a_step_takes_long_and_none_after_the_end(monkeypatch, as_json: bool):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.15)
    stream = io.StringIO()
    view = JsonProgress(stream) if as_json else TerminalProgress(Console(file=stream, width=140))
    with view:
        view.stage("compressing wanda@0.5", 30)
        deadline = time.monotonic() + 60
        while len(stream.getvalue().splitlines()) < 4:
            assert time.monotonic() < deadline, "no line came"
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert all("compressing wanda@0.5" in line for line in lines)
    time.sleep(0.4)  # several lines would have come
    assert stream.getvalue().splitlines() == lines


def test_a_view_that_fails_ends_its_thread(monkeypatch):
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.1)
    view = TerminalProgress(Console(file=io.StringIO()))

    def fail() -> None:
        with view:
            view.stage("dense on factoid_qa", 10)
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert "progress" not in {thread.name for thread in threading.enumerate()}
