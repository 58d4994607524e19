"""A study file → a checked Study: every default, every kind of mistake with file, line and key, a stable hash."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.compression.recipe import NM, Wanda
from llmkick.compression.registry import METHODS
from llmkick.errors import ConfigError
from llmkick.models.precision import DTYPES
from llmkick.study.spec.sections import TaskSpec, task_specs
from llmkick.study.spec.source_lines import line_of
from llmkick.study.spec.study import Study, load_study, make_study
from llmkick.tasks.registry import task_names

SMALLEST = 'model = "toy"\nrecipes = ["wanda@0.5"]\ntasks = ["factoid_qa"]\n'

FULL = """\
# A comment with recipes = ["nothing"] in it
name = "full"
model = "toy"
dtype = "bfloat16"
device = "cpu"
prompting = "raw"
recipes = [
    "wanda@0.50",  # written in its shortest form
    # "wanda@0.6" is not run
    "gptq@4b-g128",
]
seeds = [3, 1]
propagate = false
margin = 0.1
alpha = 0.01

[calibration]
source = "c4"
sequences = 4
length = 16

[[tasks]]
name = "multiple_choice"
limit = 12
seed = 9
shots = 2

[[tasks]]
name = "perplexity"
window = 32
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "my-study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as refused:
        load_study(path)
    message = str(refused.value)
    assert message.startswith(str(path)), "the file is not named"
    return message.removeprefix(str(path))


# What a file means


def test_every_default(tmp_path: Path):
    study = load_study(write(tmp_path, SMALLEST))
    assert study.model_dump(mode="json") == {
        "name": "my-study",
        "model": "toy",
        "dtype": "auto",
        "device": "auto",
        "prompting": "auto",
        "recipes": ["wanda@0.5"],
        "others": [],
        "tasks": [
            {
                "name": "factoid_qa",
                "source": "pocket",
                "protocol": "strict",
                "limit": None,
                "seed": 0,
                "shots": None,
                "window": None,
                "unit": None,
                "evidence_tokens": None,
                "words": None,
                "bucket_words": None,
                "per_bucket": None,
                "answer_line": None,
                "max_new_tokens": None,
                "split": None,
                "revision": None,
                "sha256": None,
                "id": None,
            }
        ],
        "seeds": [0],
        "calibration": {"source": "auto", "sequences": 32, "length": 512},
        "recovery": {
            "steps": 60,
            "learning_rate": 0.001,
            "objective": "distillation",
            "batch": 2,
            "tokens": None,
            "minutes": None,
        },
        "propagate": True,
        "allow_partial": False,
        "thinking": "off",
        "server": {"timeout": 120.0, "concurrency": 8, "attempts": 5},
        "judge": None,
        "margin": 0.05,
        "alpha": 0.05,
        "stop": "never",
        "correction": "none",
    }


def test_every_key(tmp_path: Path):
    study = load_study(write(tmp_path, FULL))
    assert study.model_dump(mode="json", exclude_none=True) == {
        "name": "full",
        "model": "toy",
        "dtype": "bfloat16",
        "device": "cpu",
        "prompting": "raw",
        "recipes": ["wanda@0.5", "gptq@4b-g128"],
        "others": [],
        "tasks": [
            {"name": "multiple_choice", "source": "pocket", "protocol": "strict", "limit": 12, "seed": 9, "shots": 2},
            {"name": "perplexity", "source": "pocket", "protocol": "strict", "seed": 0, "window": 32},
        ],
        "seeds": [3, 1],
        "calibration": {"source": "c4", "sequences": 4, "length": 16},
        "recovery": {"steps": 60, "learning_rate": 0.001, "objective": "distillation", "batch": 2},
        "propagate": False,
        "allow_partial": False,
        "thinking": "off",
        "server": {"timeout": 120.0, "concurrency": 8, "attempts": 5},
        "margin": 0.1,
        "alpha": 0.01,
        "stop": "never",
        "correction": "none",
    }
    first, second = (spec.make() for spec in study.tasks)
    assert (first.name, first.key["limit"], first.key["seed"], first.key["shots"]) == (
        "multiple_choice:letter",
        12,
        9,
        2,
    )
    assert (second.name, second.key["window"]) == ("perplexity", 32)


def test_dense_may_be_listed_and_recipes_become_objects():
    study = make_study({"model": "toy", "recipes": ["dense", "wanda@2:4"], "tasks": ["factoid_qa"]})
    assert study.recipes == ("wanda@2:4",)
    assert study.parsed_recipes() == [Wanda(pattern=NM(kept=2, group=4))]


def test_a_study_cannot_be_changed():
    study = make_study({"model": "toy", "recipes": ["wanda@0.5"], "tasks": ["factoid_qa"]})
    with pytest.raises(ValueError, match="frozen"):
        study.margin = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("text", [SMALLEST, FULL], ids=["smallest", "full"])
def test_what_is_written_reads_back_as_the_same_study(tmp_path: Path, text: str):
    study = load_study(write(tmp_path, text))
    again = load_study(write(tmp_path, study.to_toml()))
    assert again == study
    assert again.hash() == study.hash()
    assert tomllib.loads(study.to_toml())["margin"] == study.margin


# Mistakes, each with file, line and key


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "limits = 3\n" + SMALLEST,
            ", line 1: limits: unknown key; choose from: name, model, dtype, device, prompting,",
        ),
        (
            SMALLEST + "[calibration]\nsize = 4",
            ", line 5: calibration.size: unknown key; choose from: source, sequences",
        ),
        (SMALLEST + "calibration.size = 4", ", line 4: calibration.size: unknown key; choose from: source, sequences,"),
        (
            FULL.replace("window = 32", "windows = 32"),
            ", line 30: tasks.1.windows: unknown key; choose from: name, source, protocol, limit, seed, shots, window",
        ),
    ],
)
def test_unknown_keys(tmp_path: Path, text: str, expected: str):
    assert refusal(tmp_path, text).startswith(expected)


WRONG_TYPES = [
    ("model", "3", 3),
    ("recipes", '"wanda@0.5"', 7),
    ("seeds", "1", 12),
    ("propagate", '"no"', 13),
    ("propagate", "1", 13),
    ("margin", '"0.1"', 14),
    ("alpha", "true", 15),
    ("calibration.source", "1", 18),
    ("calibration.sequences", "4.0", 19),
    ("calibration.length", '"16"', 20),
    ("tasks.0.name", "1", 23),
    ("tasks.0.limit", '"12"', 24),
    ("tasks.0.limit", "true", 24),
    ("tasks.0.seed", "1.5", 25),
    ("tasks.0.shots", '["2"]', 26),
    ("tasks.1.window", '"all"', 30),
]
OUT_OF_RANGE = [
    ("dtype", '"float8"', 4),
    ("prompting", '"loud"', 6),
    ("seeds", "[-1]", 12),
    ("seeds", "[4294967296]", 12),
    ("seeds", "[]", 12),
    ("margin", "0", 14),
    ("margin", "1", 14),
    ("margin", "-0.1", 14),
    ("margin", "nan", 14),
    ("alpha", "0.5", 15),
    ("alpha", "0.0", 15),
    ("calibration.sequences", "0", 19),
    ("calibration.length", "1", 20),
    ("tasks.0.limit", "0", 24),
    ("tasks.0.limit", "-3", 24),
    ("tasks.0.shots", "6", 26),
    ("tasks.0.shots", "-1", 26),
    ("tasks.1.window", "1", 30),
]


@pytest.mark.parametrize(("key", "value", "line"), [*WRONG_TYPES, *OUT_OF_RANGE])
def test_wrong_types_and_values_out_of_range(tmp_path: Path, key: str, value: str, line: int):
    lines = FULL.splitlines()
    name = key.rpartition(".")[2]
    if name == "recipes":
        lines[6:11] = [f"{name} = {value}", *[""] * 4]
    else:
        assert lines[line - 1].startswith(f"{name} = ")
        lines[line - 1] = f"{name} = {value}"
    message = refusal(tmp_path, "\n".join(lines))
    where = f", line {line}: {key}"
    assert message.startswith((f"{where}: ", f"{where}.0: "))
    assert "\n" not in message, "one mistake, one line"


def test_choices_are_named(tmp_path: Path):
    message = refusal(tmp_path, SMALLEST + 'dtype = "float8"')
    assert message == f", line 4: dtype: unknown dtype 'float8'; choose from: auto, {', '.join(DTYPES)}"
    message = refusal(tmp_path, SMALLEST + 'prompting = "loud"')
    assert message == ", line 4: prompting: unknown prompting 'loud'; choose from: auto, chat, raw"


@pytest.mark.parametrize("missing", ["model", "tasks"])
def test_missing_keys(tmp_path: Path, missing: str):
    text = "\n".join(line for line in SMALLEST.splitlines() if not line.startswith(missing))
    assert refusal(tmp_path, text) == f": {missing}: is missing"


def test_a_task_without_a_name(tmp_path: Path):
    assert refusal(tmp_path, FULL.replace('name = "perplexity"\n', "")) == ", line 28: tasks.1.name: is missing"


def test_every_mistake_is_told_at_once(tmp_path: Path):
    text = FULL.replace("margin = 0.1", "margin = 2").replace('device = "cpu"', "device = 7")
    first, second = refusal(tmp_path, text).splitlines()
    assert first.startswith(", line 5: device: ")
    assert ", line 14: margin: " in second


@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("wanda@1.5", "sparsity 1.5 is not the share of zeros, between 0 and 1"),
        ("wanda@0", "sparsity 0.0 is not the share"),
        ("wanda@1", "sparsity 1.0 is not the share"),
        ("wanda@-0.5", "sparsity -0.5 is not the share"),
        ("rtn@5b", "'5b' is not a grid of rtn; choose from: 2b, 3b, 4b, 8b"),
        ("wanda@3:2", "pattern 3:2 does not keep N of every M"),
        ("wanda@2:2", "pattern 2:2 does not keep N of every M"),
        ("wunda@0.5", f"unknown method 'wunda'; choose from: {', '.join(METHODS)}"),
        ("gptq@4b-x", "unknown option 'x' of gptq; choose from: "),
        ("wanda", "wanda needs a level"),
    ],
)
def test_recipes_that_cannot_be(tmp_path: Path, recipe: str, reason: str):
    message = refusal(tmp_path, FULL.replace("gptq@4b-g128", recipe))
    # The line of the recipe itself, not that of the list.
    assert message.startswith(f", line 10: recipes.1: recipe {recipe!r}: ")
    assert reason in message


@pytest.mark.parametrize(
    ("task", "key", "reason"),
    [
        ('name = "mmlu"', "name", f"unknown task 'mmlu'; choose from: {', '.join(task_names())}"),
        ('name = "context_qa:ajar"', "name", "unknown task 'context_qa:ajar'"),
        ('source = "freebase"', "source", "unknown source 'freebase' for factoid_qa: neither pocket, hub nor a folder"),
        ('protocol = "loose"', "protocol", "unknown protocol 'loose' for factoid_qa; choose from: strict"),
        ("shots = 3", "shots", "unknown option 'shots' of factoid_qa; choose from: answer_line, split, revision"),
        ("limit = 0", "limit", "limit of factoid_qa must be a whole number of at least 1; got 0"),
    ],
)
def test_tasks_that_cannot_be(tmp_path: Path, task: str, key: str, reason: str):
    # A first task that has the same keys: the line must be that of the second.
    rest = '[[tasks]]\nname = "perplexity"\nlimit = 4\n\n[[tasks]]\n' + (
        "" if key == "name" else 'name = "factoid_qa"\n'
    )
    text = 'model = "toy"\nrecipes = ["wanda@0.5"]\n' + rest + task
    line = text.count("\n") + 1
    assert refusal(tmp_path, text).startswith(f", line {line}: tasks.1.{key}: {reason}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FULL.replace("gptq@4b-g128", "wanda@0.5"), ", line 10: recipes.1: wanda@0.5 is listed twice"),
        (
            SMALLEST.replace('["wanda@0.5"]', '["wanda@0.5", "wanda@.5"]'),
            ", line 2: recipes.1: wanda@0.5 is listed twice",
        ),
        (FULL.replace("[3, 1]", "[3, 1, 3]"), ", line 12: seeds.2: 3 is listed twice"),
        (
            FULL.replace('"perplexity"\nwindow = 32', '"multiple_choice:letter"'),
            ", line 28: tasks.1: multiple_choice:letter is listed twice; give each an `id` of its own",
        ),
        (
            SMALLEST.replace('["factoid_qa"]', '["factoid_qa", "factoid_qa"]'),
            ", line 3: tasks.1: factoid_qa is listed twice; give each an `id` of its own",
        ),
    ],
)
def test_repeats(tmp_path: Path, text: str, expected: str):
    assert refusal(tmp_path, text) == expected


def test_inline_tables_and_lists_are_located_too(tmp_path: Path):
    text = (
        'model = "toy"\nrecipes = ["wanda@0.5"]\ntasks = [\n  "factoid_qa",\n  {name = "perplexity"},\n  "mmlu",\n]\n'
    )
    assert refusal(tmp_path, text).startswith(", line 6: tasks.2.name: unknown task 'mmlu'")
    text = SMALLEST + "calibration = {sequences = 0}"
    assert refusal(tmp_path, text).startswith(", line 4: calibration.sequences: ")


@pytest.mark.parametrize("recipes", ["[]", '["dense"]'])
def test_a_study_needs_something_to_compare(tmp_path: Path, recipes: str):
    message = refusal(tmp_path, SMALLEST.replace('["wanda@0.5"]', recipes))
    assert message.startswith(", line 2: recipes: a study needs at least one recipe besides dense, or another model")


def test_a_study_needs_a_task(tmp_path: Path):
    message = refusal(tmp_path, SMALLEST.replace('["factoid_qa"]', "[]"))
    assert message == ", line 3: tasks: a study needs at least one task; see `kick tasks`"


def test_files_that_are_no_toml(tmp_path: Path):
    path = write(tmp_path, SMALLEST + "margin = \n")
    with pytest.raises(ConfigError, match=r"my-study.toml is not valid TOML: .*line 4"):
        load_study(path)
    path.write_bytes(b'model = "\xff"')
    with pytest.raises(ConfigError, match=r"cannot read the study file .*my-study.toml: .*utf-8"):
        load_study(path)
    with pytest.raises(ConfigError, match=r"cannot read the study file .*none.toml: "):
        load_study(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot read the study file"):
        load_study(tmp_path)


def test_arguments_are_refused_like_files():
    with pytest.raises(ConfigError, match=r"^study: recipes.0: recipe 'wanda@1.5': sparsity 1.5 is not"):
        make_study({"model": "toy", "recipes": ["wanda@1.5"], "tasks": ["factoid_qa"]})
    with pytest.raises(ConfigError, match=r"^study: margin: "):
        make_study({"model": "toy", "recipes": ["wanda@0.5"], "tasks": ["factoid_qa"], "margin": 2.0})


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*Study.model_fields, "nonsense"]),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=6), inner, max_size=2)
            ),
            max_leaves=4,
        ),
    )
)
def test_whatever_is_given_is_a_study_or_a_config_error(values: dict[str, Any]):
    """Never a traceback of another kind."""
    base = {"model": "toy", "recipes": ["wanda@0.5"], "tasks": ["factoid_qa"]}
    with contextlib.suppress(ConfigError):
        study = make_study({**base, **values})
        assert make_study(tomllib.loads(study.to_toml())) == study


def test_line_of():
    assert line_of(FULL, ("margin",)) == 14
    assert line_of(FULL, ("calibration", "length")) == 20
    assert line_of(FULL, ("calibration",)) == 17
    assert line_of(FULL, ("tasks", 0, "name")) == 23
    assert line_of(FULL, ("tasks", 1, "name")) == 29
    assert line_of(FULL, ("tasks", 1, "limit")) == 28, "a key that is not there: its table"
    assert line_of(FULL, ("nothing",)) is None
    assert line_of("", ("model",)) is None
    assert line_of('"model" = 3\n[ "calibration" ]\n  \'length\' = 4', ("calibration", "length")) == 3
    assert line_of('"model" = 3', ("model",)) == 1


# The hash


def values_of(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def test_the_hash_does_not_depend_on_name_comments_or_the_order_of_keys(tmp_path: Path):
    values = values_of(FULL)
    study = make_study(values)
    assert make_study(dict(reversed(values.items()))).hash() == study.hash()
    assert make_study({**values, "name": "another"}).hash() == study.hash()
    assert make_study({**values, "recipes": ["wanda@0.50", "gptq@4b-g128"]}).hash() == study.hash()
    assert load_study(write(tmp_path, FULL.replace("# A comment", "# Another"))).hash() == study.hash()
    # If this value must change, every folder begun with an earlier version will be refused: say so.
    assert study.hash() == "4042c465e9aa9d2290f3c8c2d2e523bcb6810b51f1e939b2fe03debe977a5325"


def test_defaults_written_out_are_the_same_study():
    study = make_study(values_of(SMALLEST))
    written = make_study(study.model_dump(mode="json", exclude_none=True))
    assert written.hash() == study.hash()


CHANGES = {
    "model": "other",
    "dtype": "float32",
    "device": "auto",
    "prompting": "chat",
    "recipes": ["gptq@4b-g128", "wanda@0.5"],
    "others": ["elsewhere"],
    "tasks": ["factoid_qa"],
    "seeds": [1, 3],
    "calibration": {"source": "c4", "sequences": 4, "length": 17},
    "propagate": True,
    "margin": 0.2,
    "alpha": 0.02,
    "correction": "holm",
    "thinking": "on",
}


def test_everything_else_changes_the_hash():
    # `recovery` is in the hash only where a recipe is trained: tests/study/test_recovery.py.
    assert {*CHANGES, "name", "judge", "server", "stop", "allow_partial", "recovery"} == set(Study.model_fields)
    base = values_of(FULL)
    hashes = {make_study({**base, key: value}).hash() for key, value in CHANGES.items()}
    assert len(hashes | {make_study(base).hash()}) == len(CHANGES) + 1
    assert make_study({**base, "allow_partial": True}).hash() == make_study(base).hash()  # it changes no weight
    one_seed = {**base, "seeds": [1]}
    assert make_study({**one_seed, "stop": "decided"}).hash() != make_study(one_seed).hash()


def test_stopping_needs_one_calibration_seed():
    values = {**values_of(SMALLEST), "stop": "decided", "seeds": [0, 1]}
    with pytest.raises(ConfigError, match=r"study: stop: 'decided' and 2 calibration seeds do not go together"):
        make_study(values)
    assert make_study({**values, "recipes": ["rtn@4b"]}).stop == "decided"  # runs once, whatever the seeds


@pytest.mark.parametrize(("key", "choices"), [("stop", "never, decided"), ("correction", "none, holm, fixed sequence")])
def test_ways_to_judge_that_do_not_exist(key: str, choices: str):
    with pytest.raises(ConfigError, match=f"{key}: unknown {key} 'sometimes'; choose from: {choices}"):
        make_study({**values_of(SMALLEST), key: "sometimes"})


@pytest.mark.parametrize(
    ("key", "value"), [("limit", 13), ("seed", 8), ("shots", 3), ("name", "multiple_choice:cloze"), ("limit", None)]
)
def test_so_does_every_key_of_a_task(key: str, value: Any):
    base, changed = values_of(FULL), values_of(FULL)
    changed["tasks"][0][key] = value
    if value is None:
        del changed["tasks"][0][key]
    assert make_study(base).hash() != make_study(changed).hash()


# Tasks from the options of a command


def test_options_make_the_specs_of_a_study():
    specs = task_specs(["factoid_qa", "multiple_choice:cloze"], limit=12)
    assert specs == (TaskSpec(name="factoid_qa", limit=12), TaskSpec(name="multiple_choice:cloze", limit=12))
    assert [spec.make().name for spec in specs] == ["factoid_qa", "multiple_choice:cloze"]
    written = [{"name": spec.name, "limit": 12} for spec in specs]
    common = {"model": "toy", "recipes": ["wanda@0.5"]}
    assert make_study({**common, "tasks": specs}).hash() == make_study({**common, "tasks": written}).hash()


def test_an_unknown_protocol_is_refused_with_the_choices():
    with pytest.raises(ConfigError, match="unknown protocol 'loose'; choose from: strict, paper"):
        task_specs(["factoid_qa"], protocol="loose")
