"""Axes in a study file: lists of calibration values and of shots, tasks with ids, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmkick.errors import ConfigError
from llmkick.study.cells import variants_of
from llmkick.study.spec.axes import CalibrationSetting
from llmkick.study.spec.study import load_study, make_study

BASE = {"model": "toy", "recipes": ["magnitude@0.5", "wanda@0.5", "wanda@0.5+rtn@4b"], "tasks": ["factoid_qa"]}
SMALL = 'model = "toy"\nrecipes = ["wanda@0.5"]\n'


def study_of(**changes: Any) -> Any:
    return make_study({**BASE, **changes})


def test_every_count_is_a_model_and_methods_without_calibration_run_once():
    study = study_of(calibration={"sequences": [1, 8], "length": 16}, seeds=[3, 4])
    assert study.labels() == [
        "magnitude@0.5",
        "wanda@0.5 [sequences=1]",
        "wanda@0.5 [sequences=8]",
        "wanda@0.5+rtn@4b [sequences=1]",
        "wanda@0.5+rtn@4b [sequences=8]",
    ]
    variants = [
        (v.label, v.seed, None if v.calibration is None else v.calibration.sequences) for v in variants_of(study)
    ]
    assert variants[:6] == [
        ("dense", None, None),
        ("magnitude@0.5", None, None),
        ("wanda@0.5 [sequences=1]", 3, 1),
        ("wanda@0.5 [sequences=1]", 4, 1),
        ("wanda@0.5 [sequences=8]", 3, 8),
        ("wanda@0.5 [sequences=8]", 4, 8),
    ]
    assert len(variants) == 1 + 1 + 2 * 2 * 2


def test_several_axes_are_multiplied_in_the_order_of_the_file():
    calibration = {"source": ["self", "/a/text.txt"], "sequences": [8, 2], "length": [16, 32]}
    levels = study_of(recipes=["wanda@0.5"], calibration=calibration).recipe_levels()
    assert len(levels) == 8
    assert levels[0].label == "wanda@0.5 [source=self, sequences=8, length=16]"
    assert levels[-1].label == "wanda@0.5 [source=text.txt, sequences=2, length=32]"
    assert levels[-1].calibration == CalibrationSetting(source="/a/text.txt", sequences=2, length=32)
    assert levels[-1].axes == {
        "calibration.source": "/a/text.txt",
        "calibration.sequences": 2,
        "calibration.length": 32,
    }


def test_files_of_one_name_are_told_apart():
    levels = study_of(recipes=["wanda@0.5"], calibration={"source": ["/a/t.txt", "/b/t.txt"]}).recipe_levels()
    assert [level.label for level in levels] == ["wanda@0.5 [source=/a/t.txt]", "wanda@0.5 [source=/b/t.txt]"]


def test_a_list_of_one_value_is_that_value():
    listed = study_of(calibration={"sequences": [4]}, tasks=[{"name": "multiple_choice", "shots": [2]}])
    plain = study_of(calibration={"sequences": 4}, tasks=[{"name": "multiple_choice", "shots": 2}])
    assert listed == plain
    assert listed.hash() == plain.hash()


def test_every_number_of_shots_is_a_task():
    tasks = [{"name": "multiple_choice", "shots": [0, 5], "limit": 3}, {"name": "multiple_choice", "id": "mine"}]
    study = study_of(tasks=tasks)
    made = [spec.make() for spec in study.task_specs()]
    assert [(task.name, task.key["shots"]) for task in made] == [
        ("multiple_choice:letter [shots=0]", 0),
        ("multiple_choice:letter [shots=5]", 5),
        ("mine", 5),
    ]
    assert [level.axes for level in study.task_levels()] == [{"shots": 0}, {"shots": 5}, {}]


def test_axes_change_the_hash_and_read_back(tmp_path: Path):
    study = study_of(
        calibration={"sequences": [1, 8]}, tasks=[{"name": "multiple_choice", "id": "mmlu", "shots": [0, 2]}]
    )
    path = tmp_path / "s.toml"
    path.write_text(study.to_toml(), encoding="utf-8")
    assert load_study(path) == study
    without_id = study_of(calibration={"sequences": [1, 8]}, tasks=[{"name": "multiple_choice", "shots": [0, 2]}])
    fewer = study_of(
        calibration={"sequences": [1, 4]}, tasks=[{"name": "multiple_choice", "id": "mmlu", "shots": [0, 2]}]
    )
    assert len({study.hash(), without_id.hash(), fewer.hash()}) == 3


CALIBRATION = SMALL + 'tasks = ["factoid_qa"]\n[calibration]\n'
TASK = SMALL + "[[tasks]]\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CALIBRATION + "sequences = []", "line 5: calibration.sequences: an empty list; give a value"),
        (CALIBRATION + "sequences = [8, 1, 8]", "line 5: calibration.sequences.2: 8 is listed twice"),
        (CALIBRATION + "sequences = [8, 0]", "line 5: calibration.sequences.1: Input should be greater"),
        (CALIBRATION + 'sequences = [8, "1"]', "line 5: calibration.sequences.1: Input should be a valid integer"),
        (CALIBRATION + "length = [16, 1]", "line 5: calibration.length.1: Input should be greater than or equal to 2"),
        (CALIBRATION + 'source = ["c4", "c4"]', "line 5: calibration.source.1: c4 is listed twice"),
        (CALIBRATION + 'source = ["c4", 1]', "line 5: calibration.source.1: Input should be a valid string"),
        (TASK + 'name = "multiple_choice"\nshots = []', "line 5: tasks.0.shots: an empty list"),
        (TASK + 'name = "multiple_choice"\nshots = [0, 2, 0]', "line 5: tasks.0.shots.2: 0 is listed twice"),
        (TASK + 'name = "multiple_choice"\nshots = [0, 7]', "line 5: tasks.0.shots: shots of multiple_choice:letter "
         "must be a whole number from 0 to 5; got 7"),
        (TASK + 'name = "factoid_qa"\nshots = [0, 2]', "line 5: tasks.0.shots: unknown option 'shots' of factoid_qa"),
        (TASK + 'name = "factoid_qa"\nid = "a [b]"', "line 5: tasks.0.id: 'a [b]' is not a name for a task"),
        (TASK + 'name = "factoid_qa"\nid = ""', "line 5: tasks.0.id: '' is not a name for a task"),
        (TASK + 'name = "factoid_qa"\n[[tasks]]\nname = "perplexity"\nid = "factoid_qa"',
         "tasks.1: factoid_qa is listed twice"),
        (TASK + 'name = "factoid_qa"\nid = "a"\n[[tasks]]\nname = "perplexity"\nid = "a"',
         "tasks.1: a is listed twice"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, text: str, expected: str):
    path = tmp_path / "s.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_study(path)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value), "one mistake, one line"
