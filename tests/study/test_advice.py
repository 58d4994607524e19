"""What makes a run shorter, in words that the reader can type where they are shown."""

from __future__ import annotations

from typing import Any

import pytest

from llmkick.cli.advice import OPTIONS, words_of
from llmkick.study.advice import Advice, advice_for
from llmkick.study.announcement import announce
from llmkick.study.expected_work import ExpectedWork
from llmkick.study.forecast import Forecast
from llmkick.study.parts import Part
from llmkick.study.spec.study import Study, make_study


def study_of(**changes: Any) -> Study:
    values = {"name": "s", "model": "toy", "recipes": ["wanda@0.5"], "tasks": [{"name": "factoid_qa"}]}
    return make_study({**values, **changes})


def advised(study: Study, **seconds: float) -> dict[str, str]:
    """Setting → value, for a study that takes so many seconds to ask, compress and calibrate; asking 400 items."""
    pools = {"ask": ("ask", "factoid_qa", "dense"), "compress": ("compress",), "calibrate": ("calibrate", "auto")}
    parts = [Part(key=kind, pool=pools[kind], steps=400, cost=spent / 400) for kind, spent in seconds.items()]
    found = advice_for(study, ExpectedWork(parts=parts, items=400, tokens=1), calibrated=True)
    return {one.setting: one.value for one in found}


def test_what_takes_the_time_is_what_the_advice_is_about():
    assert advised(study_of(), ask=900, compress=50, calibrate=50) == {"limit": "100", "stop": '"decided"'}
    assert advised(study_of(), ask=50, compress=50, calibrate=900) == {"source": '"pocket"'}
    three = study_of(recipes=["wanda@0.3", "wanda@0.5", "gptq@4b"], seeds=[3, 4])
    assert advised(three, ask=50, compress=900, calibrate=50) == {
        "sequences": "16", "seeds": "[3]", "propagate": "false",
    }  # fmt: skip


def test_levels_that_are_compared_are_not_advised_away():
    study = study_of(calibration={"source": ["self", "pocket"], "sequences": [8, 64]}, stop="decided")
    assert advised(study, compress=500, calibrate=500) == {}


def test_solved_questions_are_left_out_only_where_there_are_any():
    letters = study_of(tasks=[{"name": "multiple_choice:letter"}], stop="decided")
    parts = [Part(key="ask", pool=("ask", "multiple_choice:letter", "dense"), steps=50, cost=1.0)]
    work = ExpectedWork(parts=parts, items=50, tokens=1)
    assert [one.setting for one in advice_for(letters, work, calibrated=False)] == ["shots"]
    without = study_of(tasks=[{"name": "multiple_choice:letter", "shots": 0}], stop="decided")
    assert advice_for(without, work, calibrated=False) == []


ADVICE = [
    Advice(setting="limit", value="100", reason="factoid_qa has 400 items"),
    Advice(setting="tasks", value="factoid_qa", reason="90% of the asking"),
    Advice(setting="stop", value='"decided"', reason="asks until the verdict is known"),
    Advice(setting="shots", value="0", reason="no solved questions"),
    Advice(setting="sequences", value="16", reason="now 32"),
    Advice(setting="source", value='"pocket"', reason="sampling"),
    Advice(setting="seeds", value="[3]", reason="now 2 seeds"),
    Advice(setting="propagate", value="false", reason="one pass"),
]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("run", ["--limit 100", "without factoid_qa", "--stop decided", "--sequences 16", "--calibration pocket",
                 "--seed 3"]),
        ("frontier", ["--limit 100", "without factoid_qa", "--sequences 16", "--calibration pocket", "--seed 3"]),
        ("eval", ["--limit 100", "without factoid_qa"]),
        ("compare", ["--limit 100", "without factoid_qa"]),
        ("gate", ["--items 100"]),
        ("compress", ["--sequences 16", "--calibration pocket"]),
        ("recover", ["--sequences 16", "--calibration pocket"]),
    ],
)  # fmt: skip
def test_a_command_names_its_own_options(command: str, expected: list[str]):
    shown = [text for text in map(words_of(command), ADVICE) if text]
    assert [text.partition(" (")[0] for text in shown] == expected


def test_the_options_exist():
    """A command that has lost an option must not advise it."""
    import typer

    from llmkick.cli import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for command, options in OPTIONS.items():
        known = {name for parameter in commands[command].params for name in parameter.opts}
        assert set(options.values()) <= known, command


def test_a_study_file_is_advised_in_its_own_words():
    work = ExpectedWork(parts=[Part(key="a", pool=("ask", "t", "dense"), steps=1, cost=999.0)], items=1, tokens=1)
    lines = announce(work, Forecast(work.parts), advice=ADVICE).lines()
    assert lines[1] == (
        "shorter: limit = 100 (factoid_qa has 400 items); without factoid_qa (90% of the asking); "
        'stop = "decided" (asks until the verdict is known); shots = 0 (no solved questions); sequences = 16 (now 32); '
        'source = "pocket" (sampling); seeds = [3] (now 2 seeds); propagate = false (one pass)'
    )
    assert len(announce(work, Forecast(work.parts), advice=ADVICE).lines(lambda _: None)) == 1
