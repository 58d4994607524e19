"""The command line: help, exit codes, what goes where, and the main job from end to end on a toy model."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import llmkick
import llmkick.models.precision as precision
from commands import CONTROL, Kick
from llmkick import cli
from llmkick.cli import _goes_on, options
from llmkick.cli.progress import QUIET_SECONDS, TerminalProgress
from llmkick.compression.recoveries import RECOVERY_EXAMPLES
from llmkick.compression.registry import METHODS
from llmkick.compression.storage.source_files import REPORT_FILE
from llmkick.compression.walk.calibration import calibrate
from llmkick.compression.walk.compress import compress
from llmkick.errors import ConfigError, DataError
from llmkick.files import cache_folder, temporary_folder
from llmkick.models.checkpoints.builtin import BUILTIN_MODELS
from llmkick.models.checkpoints.loading import load_model
from llmkick.study.journal.journal import Journal
from llmkick.study.results.results import read_results
from llmkick.study.run import make_executor
from llmkick.study.spec import choices as choices_of_study
from llmkick.study.spec.study import Study, load_study, make_study
from llmkick.tasks.prompting import PromptingChoice
from llmkick.tasks.registry import task_names
from llmkick.tasks.task import TaskProtocol
from plain import as_json
from stopped import run_until
from toy import save_toy

COMMANDS = [command.name or command.callback.__name__ for command in cli.app.registered_commands if command.callback]


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name in ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        patch.setattr(cli.out, "_width", 200)  # tables in one piece
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, max_position_embeddings=512)
    return folder


SMALL = ("--dtype", "float32", "--sequences", 4, "--length", 32)


# Help and lists

DTYPES = "'auto' 'float32' 'bfloat16' 'float16'"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(kick: Kick, command: str):
    code, out, err = kick(command, "--help")
    assert (code, err) == (0, "")
    assert re.search(rf"Examples?:\s+kick {command}", out)
    assert all(line == line.rstrip() or len(line) <= 200 for line in out.splitlines())


def test_help_lists_every_command(kick: Kick):
    code, out, err = kick("--help")
    assert (code, err) == (0, "")
    for command in COMMANDS:
        assert re.search(rf"^\W*{command}\s+[A-Z]", out, re.MULTILINE), command


def test_the_version_is_told(kick: Kick):
    assert kick("--version") == (0, f"kick {llmkick.__version__}\n", "")


def test_options_stand_in_panels(kick: Kick):
    out = kick("run", "--help").out
    panels = [out.index(f" {panel} ─") for panel in ("Study", "Calibration", "Where it runs", "Output")]
    assert panels == sorted(panels)
    for option, panel in (("--recipe", 0), ("--sequences", 1), ("--executor", 2), ("--quiet", 3)):
        assert panels[panel] < out.index(option, panels[0]) < [*panels, len(out)][panel + 1], option


@pytest.mark.parametrize(
    ("choices", "key"),
    [
        (options.Dtype, "dtype"),
        (TaskProtocol, "protocol"),
        (PromptingChoice, "prompting"),
        (choices_of_study.Stop, "stop"),
        (choices_of_study.Correction, "correction"),
    ],
)
def test_choices_are_what_a_study_accepts(choices: object, key: str):
    def study(value: str) -> Study:
        task = {"name": "factoid_qa", **({"protocol": value} if key == "protocol" else {})}
        return make_study(
            {"model": "m", "recipes": ["wanda@0.5"], "tasks": [task], **({} if len(task) > 1 else {key: value})}
        )

    for value in typing.get_args(choices):
        assert study(value)
    with pytest.raises(ConfigError) as caught:
        study("nonsense")
    assert all(value in str(caught.value) for value in typing.get_args(choices)), caught.value


def test_executors_are_those_that_can_be_made():
    with pytest.raises(
        ConfigError, match="choose from: " + ", ".join(typing.get_args(choices_of_study.ExecutorName)) + "$"
    ):
        make_executor("nonsense")


def test_without_a_command_there_is_help_and_an_exit_code(kick: Kick):
    code, out, err = kick()
    assert code == 2
    assert "Usage:" in out + err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kick-it"], "No such command 'kick-it'"),
        (["run", "--colour"], "No such option: --colour"),
        (["compress"], "Missing argument"),
        (["compress", "toy", "wanda@0.5"], "Missing option '--out'"),
        (["eval", "toy"], "Missing option '--task'"),
        (["eval", "toy", "-t", "factoid_qa", "--limit", "many"], "Invalid value for '--limit'"),
        (["run", "--limit", "1.5"], "Invalid value for '--limit'"),
        (["run", "--seed", "x"], "Invalid value for '--seed'"),
        (["run", "--margin", "x"], "Invalid value for '--margin'"),
        (["run", "--sequences", "x"], "Invalid value for '--sequences'"),
        (["run", "--executor", "slurm"], "'--executor': 'slurm' is not one of 'local' 'ray'"),
        (["run", "--dtype", "float8"], f"'--dtype': 'float8' is not one of {DTYPES}"),
        (["run", "--protocol", "loose"], "'--protocol': 'loose' is not one of 'strict' 'paper'"),
        (
            ["recover", "toy", "wanda@2:4", "-o", "new", "--by", "nothing"],
            "'--by': 'nothing' is not one of 'eora' 'reconstruct' 'lora' 'shots'",
        ),
        (["run", "--stop", "soon"], "'--stop': 'soon' is not one of 'never' 'decided'"),
        (["run", "--correction", "sidak"], "'--correction': 'sidak' is not one of 'none' 'holm' 'fixed sequence'"),
        (["compress", "toy", "rtn@4b", "--dtype", "int4"], f"'--dtype': 'int4' is not one of {DTYPES}"),
        (["eval", "toy", "--dtype", "int4"], f"'--dtype': 'int4' is not one of {DTYPES}"),
        (["eval", "toy", "--prompting", "loud"], "'--prompting': 'loud' is not one of 'auto' 'chat' 'raw'"),
        (["export", "run", "--to", "excel"], "'--to': 'excel' is not one of 'markdown' 'latex' 'csv' 'parquet'"),
        (["report"], "Missing argument"),
        (["doctor", "a"], "unexpected extra argument"),
    ],
)
def test_usage_errors(kick: Kick, arguments: list[str], message: str):
    outcome = kick(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    said = re.sub(r"[^\w' .:-]+", " ", outcome.said)
    assert message.lower() in " ".join(said.split()).lower()
    assert "value error" not in outcome.said.lower()  # that is how pydantic begins the messages of others


def test_models_methods_and_tasks_are_listed(kick: Kick):
    code, out, _ = kick("models")
    assert code == 0
    for name, model in BUILTIN_MODELS.items():
        assert name in out
        assert f"{model.package}=={model.version}" in out
    code, out, _ = kick("methods")
    assert code == 0
    for name, method in METHODS.items():
        assert name in out
        assert all(example in out for example in method.examples)
    code, out, _ = kick("tasks")
    assert code == 0
    for name in task_names():
        base, colon, variant = name.partition(":")
        assert re.search(rf"^ {base}\s.*(accuracy|perplexity|ROUGE-L|likelihood)", out, re.MULTILINE), name
        assert f"{colon}{variant}" in out.split() or not variant


@pytest.mark.parametrize("command", ["tasks", "methods", "models"])
def test_lists_fit_80_columns_and_keep_names_in_one_piece(command: str, kick: Kick, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cli.out, "_width", 80)
    code, out, err = kick(command)
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    names = {
        "tasks": [name.partition(":")[0] for name in task_names()],
        "methods": [
            *(example for method in METHODS.values() for example in method.examples),
            *(example for examples in RECOVERY_EXAMPLES.values() for example in examples),
        ],
        "models": [*BUILTIN_MODELS, "owner/name[@revision]", "openai:URL#name"],
    }
    assert set(names[command]) <= set(out.split())


def test_lists_are_json_for_programs(kick: Kick):
    tasks = json.loads(kick("tasks", "--json").out)
    assert [task["task"] for task in tasks] == list(task_names())
    letters = next(task for task in tasks if task["task"] == "multiple_choice:letter")
    assert (letters["metric"], letters["chance"]) == ("accuracy", 0.25)
    methods = json.loads(kick("methods", "--json").out)
    examples = {method["method"]: tuple(method["examples"]) for method in methods}
    assert examples == {name: method.examples for name, method in METHODS.items()} | dict(RECOVERY_EXAMPLES)
    assert {method["method"] for method in methods if method.get("is_recovery")} == set(RECOVERY_EXAMPLES)
    models = json.loads(kick("models", "--json").out)
    assert [model["name"] for model in models["built_in"]] == list(BUILTIN_MODELS)
    assert "eval, compare" in {form["commands"] for form in models["references"]}


def test_doctor_says_what_is_slow_and_why(kick: Kick, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    facts = tmp_path / "cpuinfo"
    facts.write_text("model name : Old Processor\nflags : sse avx2\n")
    monkeypatch.setattr(precision, "CPU_FACTS", facts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = kick("doctor")
    assert "slow: models run in float32, at about half the speed of bfloat16: this processor has no" in outcome.out
    facts.write_text("model name : New Processor\nflags : sse avx2 avx512_bf16\n")
    monkeypatch.setattr(precision, "_measured_once", lambda _: True)
    assert "float32" not in kick("doctor").out
    monkeypatch.setattr(precision, "_measured_once", lambda _: False)
    assert "multiplies no faster" in kick("doctor").out


def test_doctor(kick: Kick, monkeypatch: pytest.MonkeyPatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000_000_000))
    code, out, err = kick("doctor")
    assert (code, err) == (0, "")
    assert out.rstrip().endswith("all well")
    assert torch.__version__ in out
    assert os.environ["LLMKICK_CACHE"] in out
    for name in BUILTIN_MODELS:
        assert re.search(rf"{name}\s.*fetched at first use", out)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000_000))
    outcome = kick("doctor")
    assert outcome.code == 1
    assert "less than 2 GB are free" in outcome.said
    assert "all well" not in outcome.out


def test_doctor_tries_to_write_the_cache(kick: Kick, monkeypatch: pytest.MonkeyPatch):
    def read_only(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    outcome = kick("doctor")
    assert outcome.code == 2
    assert "set LLMKICK_CACHE to another folder" in outcome.said
    assert "all well" not in outcome.out


def test_clearing_the_cache_leaves_what_is_being_written(kick: Kick):
    with temporary_folder(cache_folder("on-its-way")) as folder, ThreadPoolExecutor(1) as pool:
        (cache_folder("calibration") / "old.npy").write_bytes(b"old")
        outcome = pool.submit(kick, "cache", "--clear", "--all").result()
        assert outcome.code == 0
        assert f"in use, left: {folder}" in outcome.out
        assert folder.is_dir()
        assert list(cache_folder("calibration").iterdir()) == []


# Bad values


BAD_RUNS = [
    ([], "where should the results go? give --out DIR"),
    (["-o", "{new}"], "give a study file, or all of --model, --recipe and --task"),
    (["-m", "{toy}", "-r", "wanda@0.5", "-o", "{new}"], "give a study file, or all of --model, --recipe and --task"),
    (["{new}/none.toml", "-o", "{new}"], "cannot read the study file"),
    (["{study}", "-m", "{toy}", "-o", "{new}"], "give a study file or options, not both: write --model into"),
    (["{study}", "--limit", "3", "-o", "{new}"], "not both: write --limit into"),
    (["{study}", "--sequences", "32", "--dtype", "auto", "-o", "{new}"], "not both: write --sequences, --dtype into"),
    (["{study}", "--seed", "0", "--margin", "0.05", "-o", "{new}"], "not both: write --seed, --margin into"),
    (["{study}", "-o", "{study}"], "cannot write to"),
    (["{study}", "--address", "head:6379", "-o", "{new}"], "address 'head:6379' is of a Ray cluster: give executor"),
    (["{study}", "--workers", "2", "-o", "{new}"], "workers 2 is of a Ray cluster"),
    (["{study}", "--artifacts", "nowhere://x", "-o", "{new}"], "--artifacts nowhere://x cannot be written"),
    (["{study}", "--executor", "ray", "--workers", "0", "-o", "{new}"], "workers must be at least 1; got 0"),
]
BAD_OPTIONS = [
    (["--recipe", "wanda@1.5"], "recipes.1: recipe 'wanda@1.5': sparsity 1.5 is not the share of zeros"),
    (["--recipe", "rtn@5b"], "'5b' is not a grid of rtn; choose from: 2b, 3b, 4b, 8b"),
    (["--recipe", "wanda@3:2"], "pattern 3:2 does not keep N of every M"),
    (["--recipe", "magnitude@0.5"], "recipes.1: magnitude@0.5 is listed twice"),
    (["--recipe", "wanda@2:5"], "16 inputs, which is not a multiple of 5"),
    (["--task", "mmlu"], f"tasks.1.name: unknown task 'mmlu'; choose from: {', '.join(task_names())}"),
    (["--task", "factoid_qa"], "tasks.1: factoid_qa is listed twice"),
    (["--limit", "0"], "tasks.0.limit: limit of factoid_qa must be a whole number of at least 1; got 0"),
    (["--limit", "-1"], "got -1"),
    (["--seed", "1", "--seed", "1"], "seeds.1: 1 is listed twice"),
    (["--seed", "-1"], "seeds.0: Input should be greater than or equal to 0, got -1"),
    (["--sequences", "0"], "calibration.sequences: Input should be greater than or equal to 1, got 0"),
    (["--length", "1"], "calibration.length: Input should be greater than or equal to 2, got 1"),
    (["--length", "513"], "calibration length 513 exceeds the context of toy, 512 tokens"),
    (["--margin", "1"], "margin: Input should be less than 1, got 1.0"),
    (["--margin", "nan"], "margin: Input should be"),
    (["--device", "tpu"], "device 'tpu' is not available here"),
]
WORKING_RUN = ["-m", "{toy}", "-r", "magnitude@0.5", "-t", "factoid_qa", "-o", "{new}"]


@pytest.mark.parametrize(
    ("arguments", "message"), [*BAD_RUNS, *(([*WORKING_RUN, *options], message) for options, message in BAD_OPTIONS)]
)
def test_bad_values_of_run(kick: Kick, toy: Path, tmp_path: Path, arguments: list[str], message: str):
    study = tmp_path / "study.toml"
    study.write_text(f'model = "{toy}"\nrecipes = ["magnitude@0.5"]\ntasks = ["factoid_qa"]\n', encoding="utf-8")
    outcome = kick("run", *(text.format(toy=toy, new=tmp_path / "new", study=study) for text in arguments))
    assert (outcome.code, outcome.out) == (2, "")
    assert re.match(r"(\[0/0 cells\] loading .*? )?error: ", outcome.said)
    assert message in outcome.said
    assert not (tmp_path / "new" / "results.json").exists()


def test_a_mistake_in_a_study_file_is_located(kick: Kick, tmp_path: Path):
    study = tmp_path / "study.toml"
    study.write_text('model = "toy"\nrecipes = [\n  "wanda@0.5",\n  "rtn@5b",\n]\ntasks = ["factoid_qa"]\n')
    outcome = kick("run", study, "--out", tmp_path / "run")
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {study}, line 4: recipes.1: recipe 'rtn@5b': ")
    assert outcome.err.count("\n") == 1, "a message is not wrapped where nobody looks at it"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{toy}", "wanda@1.5", "-o", "{new}"], 2, "sparsity 1.5 is not the share of zeros"),
        (["{toy}", "wunda@0.5", "-o", "{new}"], 2, "unknown method 'wunda'; choose from: "),
        (["{toy}", "wanda@2:5", "-o", "{new}"], 2, "16 inputs, which is not a multiple of 5"),
        (["{toy}", "magnitude@0.5", "-o", "{taken}"], 2, "exists and is not empty; choose another folder"),
        (["{toy}", "magnitude@0.5", "-o", "{taken}/file"], 2, "exists and is not empty; choose another folder"),
        (["no-such-model", "magnitude@0.5", "-o", "{new}"], 1, "unknown model 'no-such-model': not a built-in"),
        (["{taken}", "magnitude@0.5", "-o", "{new}"], 1, "is not a Hugging Face model folder: it has no config.json"),
        (
            ["{toy}", "wanda@0.5", "--calibration", "{new}/text", "-o", "{new}"],
            2,
            "is neither self, pocket, auto, c4,",
        ),
        (["{toy}", "wanda@0.5", "--calibration", "{taken}", "-o", "{new}"], 1, "holds no .txt, .jsonl, .json or .gz"),
        (["{toy}", "wanda@0.5", "--sequences", "0", "-o", "{new}"], 2, "needs sequences >= 1 and length >= 2; got 0"),
        (
            ["{toy}", "wanda@0.5", "--length", "1", "-o", "{new}"],
            2,
            "needs sequences >= 1 and length >= 2; got 32 and 1",
        ),
        (["{toy}", "wanda@0.5", "--length", "513", "-o", "{new}"], 2, "length 513 exceeds the model's context of 512"),
        (["{toy}", "wanda@0.5", "--seed", "-1", "-o", "{new}"], 2, "seed must be a whole number from 0 to 4294967295"),
        (["{toy}", "wanda@0.5", "--seed", str(2**70), "-o", "{new}"], 2, "seed must be a whole number from 0 to"),
        (["{toy}", "magnitude@0.5", "--device", "moon", "-o", "{new}"], 2, "device 'moon' is not available here"),
    ],
)
def test_bad_values_of_compress(kick: Kick, toy: Path, tmp_path: Path, arguments: list[str], code: int, message: str):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("somebody's")
    paths = {"toy": toy, "new": tmp_path / "new", "taken": tmp_path / "taken"}
    outcome = kick("compress", *(text.format(**paths) for text in arguments))
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.said
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "file"]
    assert (tmp_path / "taken" / "file").read_text() == "somebody's"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-t", "mmlu"], 2, f"unknown task 'mmlu'; choose from: {', '.join(task_names())}"),
        (["-t", "factoid_qa", "-t", "context_qa:ajar"], 2, "unknown task 'context_qa:ajar'"),
        (["-t", "factoid_qa", "--limit", "0"], 2, "limit of factoid_qa must be a whole number of at least 1; got 0"),
        (["-t", "factoid_qa", "--prompting", "chat"], 2, 'toy has no chat template; use prompting = "raw"'),
        (["-t", "factoid_qa", "--device", "cuda:99"], 2, "device 'cuda:99' is not available here"),
        (["-t", "factoid_qa", "--records", "{tmp}"], 2, "is a folder; give the name of a file"),
        (["-t", "factoid_qa", "--records", "{toy}/config.json/x"], 2, "cannot write"),
    ],
)
def test_bad_values_of_eval(kick: Kick, toy: Path, tmp_path: Path, arguments: list[str], code: int, message: str):
    outcome = kick("eval", toy, *(text.format(toy=toy, tmp=tmp_path) for text in arguments))
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.said


def test_where_records_cannot_go_is_seen_before_the_work(kick: Kick, tmp_path: Path):
    # Before the model is even looked for.
    outcome = kick("eval", "no-such-model", "-t", "factoid_qa", "--records", tmp_path)
    assert "is a folder" in outcome.said
    outcome = kick("eval", "no-such-model", "-t", "factoid_qa", "--records", tmp_path / "new" / "records.jsonl")
    assert (outcome.code, "unknown model" in outcome.said) == (1, True)


def test_report_of_what_is_no_run(kick: Kick, tmp_path: Path):
    for folder in (tmp_path, tmp_path / "missing"):
        outcome = kick("report", folder)
        assert (outcome.code, outcome.out) == (1, "")
        assert str(folder) in outcome.said


def test_a_disk_that_is_full_is_no_traceback(kick: Kick, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    outcome = kick("eval", toy, "-t", "factoid_qa", "--limit", 1, "--records", tmp_path / "records.jsonl")
    assert outcome.code == 1
    assert "error: [Errno 28] No space left on device" in outcome.said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300, "~no-such-user/x"])
@pytest.mark.parametrize(
    "arguments",
    [
        *(("report",), ("claims",), ("diff", "."), ("export", "wandb"), ("gate",), ("run", "--plan")),
        *(("eval", "-t", "factoid_qa"), ("compare", "smollm2-135m-instruct", "-t", "factoid_qa", "--out", "run")),
        ("eval", "smollm2-135m-instruct", "-t", "factoid_qa", "--source"),
        ("eval", "smollm2-135m-instruct", "-t", "perplexity", "--source"),
        ("power", "-a", "0.7", "-n", "9", "--plot"),
    ],
    ids=" ".join,
)
def test_a_name_that_no_file_can_have_is_no_traceback(
    kick: Kick, arguments: tuple[str, ...], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    outcome = kick(*arguments, name)
    assert outcome.code in (1, 2, 3)
    assert "error" in outcome.said.lower()
    assert len(outcome.said.splitlines()) < 5 or "Usage" in outcome.said


def test_an_output_without_our_characters_still_works(toy: Path):
    command = [sys.executable, "-m", "llmkick.cli", "methods"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"wanda@2:4" in done.stdout


# compress


def logits(folder: Path | str) -> torch.Tensor:
    model = load_model(str(folder), dtype="float32")
    with torch.no_grad():
        return model.network(torch.tensor([model.tokenize("The capital of France is")])).logits


@pytest.mark.parametrize(
    ("recipe", "options"),
    [("wanda@2:4", ["--seed", 5]), ("rtn@4b-g8", []), ("wanda@0.5", ["--no-propagate"])],
)
def test_compress_writes_a_folder_that_loads_as_the_compressed_model(
    kick: Kick, toy: Path, tmp_path: Path, recipe: str, options: list[object]
):
    target = tmp_path / "new" / "compressed"
    code, out, err = kick("compress", toy, recipe, "--out", target, *SMALL, *options)
    assert code == 0
    assert "error" not in err
    model = load_model(str(toy), dtype="float32")
    windows = calibrate(model, sequences=4, length=32, seed=5 if options[:1] == ["--seed"] else 0)
    expected, report = compress(model, recipe, calibration=windows, propagate="--no-propagate" not in options)
    with torch.no_grad():
        wanted = expected.network(torch.tensor([model.tokenize("The capital of France is")])).logits
    assert torch.equal(logits(target), wanted)
    assert not torch.allclose(logits(toy), wanted)
    written = json.loads((target / REPORT_FILE).read_text(encoding="utf-8"))
    assert written["digest"] == report.digest
    assert (written["recipe"], written["propagate"]) == (recipe, report.propagate)
    assert out.startswith(f"{recipe}: {report.realised_sparsity:.1%} zeros in {len(report.layers)} layers, ")
    assert out.rstrip().endswith(str(target))
    assert [path.name for path in target.parent.iterdir()] == ["compressed"], "nothing temporary is left"


@pytest.mark.parametrize("how", ["--packed", "--compressed-tensors"])
def test_compress_writes_compact_folders_that_every_command_opens(kick: Kick, toy: Path, tmp_path: Path, how: str):
    if how == "--compressed-tensors":
        pytest.importorskip("compressed_tensors", reason="the compressed-tensors package is not installed")
    plain, compact = tmp_path / "plain", tmp_path / "compact"
    assert kick("compress", toy, "gptq@4b-g8", "-o", plain, *SMALL).code == 0
    assert kick("compress", toy, "gptq@4b-g8", "-o", compact, *SMALL, how).code == 0
    assert torch.allclose(logits(compact), logits(plain), atol=1e-4)
    sizes = [sum(file.stat().st_size for file in folder.glob("*.safetensors")) for folder in (plain, compact)]
    assert sizes[1] < sizes[0]
    code, out, _ = kick("eval", compact, "-t", "factoid_qa", "--limit", 3, "--dtype", "float32")
    assert code == 0
    assert "factoid_qa" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wanda@0.5", "--compressed-tensors"), "rounds nothing, and compressed-tensors stores integers"),
        (("rtn@4b", "--compressed-tensors", "--packed"), "are two ways to write a model; choose one"),
        (("dense",), "dense compresses nothing"),
    ],
)
def test_forms_that_do_not_suit_the_recipe(kick: Kick, toy: Path, tmp_path: Path, arguments: Any, message: str):
    outcome = kick("compress", toy, *arguments, "-o", tmp_path / "out", *SMALL)
    assert outcome.code == 2
    assert message in outcome.said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_killed_compression_goes_on_at_its_block(toy: Path, tmp_path: Path, kick: Kick):
    """A real SIGKILL once the first block is kept; no block is written twice."""
    environment = {**os.environ, "LLMKICK_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "llmkick.cli", "compress", str(toy), "gptq@3b-g8", "-o", str(tmp_path / "out")]
    options = ["--dtype", "float32", "--sequences", "48", "--length", "64"]
    process = subprocess.Popen([*command, *options], env=environment, stderr=subprocess.DEVNULL)
    first, state = "compressed/*/block-00000.safetensors", "compressed/*/compression.json"
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cache").glob(state)):  # written once the first block is whole
        assert process.poll() is None, "it had finished: nothing was tested"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (tmp_path / "out").exists()
    (kept,) = (tmp_path / "cache").glob(first)
    written = kept.stat().st_mtime_ns
    subprocess.run([*command, *options], env=environment, check=True, capture_output=True, timeout=200)
    assert kept.stat().st_mtime_ns == written
    whole = tmp_path / "whole"
    assert kick("compress", toy, "gptq@3b-g8", "-o", whole, *options).code == 0  # with another cache
    reports = [json.loads((folder / REPORT_FILE).read_text()) for folder in (tmp_path / "out", whole)]
    assert reports[0]["digest"] == reports[1]["digest"]
    assert reports[0]["layers"] == reports[1]["layers"]


def test_the_cache_is_listed_and_cleared(kick: Kick, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    assert kick("compress", toy, "wanda@2:4", "-o", tmp_path / "out", *SMALL).code == 0
    code, out, _ = kick("cache")
    assert code == 0
    assert "wanda@2:4" in out
    assert "calibration: " in out
    assert kick("cache", "--all").code == 2
    assert "wanda@2:4" not in kick("cache", "--clear").out
    assert list((tmp_path / "cache" / "calibration").iterdir())
    kick("cache", "--clear", "--all")
    assert not [path for path in (tmp_path / "cache" / "calibration").iterdir() if not path.name.startswith(".")]
    monkeypatch.setenv("LLMKICK_CACHE_LIMIT", "plenty")
    assert "LLMKICK_CACHE_LIMIT is 'plenty'" in kick("cache").said


def test_compress_into_an_empty_folder(kick: Kick, toy: Path, tmp_path: Path):
    assert kick("compress", toy, "magnitude@0.5", "-o", tmp_path, "-q", "--dtype", "float32").code == 0
    assert (tmp_path / "config.json").is_file()


# eval


def test_eval_prints_scores_and_writes_every_record(kick: Kick, toy: Path, tmp_path: Path):
    records = tmp_path / "new" / "records.jsonl"
    names = ["factoid_qa", "multiple_choice:cloze", "context_qa:open"]
    tasks = [argument for name in names for argument in ("--task", name)]
    code, out, _ = kick("eval", toy, *tasks, "--limit", 5, "--seed", 2, "--records", records, "--dtype", "float32")
    assert code == 0
    lines = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    assert [line["task"] for line in lines] == [name for name in names for _ in range(5)]
    assert len({line["item_id"] for line in lines}) == 15
    for name in names:
        own = [line for line in lines if line["task"] == name]
        scored = [line["score"] for line in own if line["score"] is not None]
        row = next(line for line in out.splitlines() if f" {name} " in line)
        cells = [cell.strip() for cell in re.split(r"[│┃|]", row)[1:-1]]
        value = f"{sum(scored) / len(scored):.4g}" if scored else "–"
        truncated = sum(line["truncated"] for line in own)
        assert cells == [name, "accuracy", value, str(len(scored)), str(5 - len(scored)), str(truncated)]


def test_eval_of_what_cannot_be_scored_says_so(kick: Kick, tmp_path: Path):
    save_toy(tmp_path / "short", max_position_embeddings=40)
    code, out, _ = kick("eval", tmp_path / "short", "-t", "context_qa:open", "--limit", 3)
    assert code == 0
    row = next(line for line in out.splitlines() if "context_qa:open" in line)
    assert re.search(r"–\W+0\W+3\W+0\W*$", row)


# What is seen while work goes on


def watch(console: Console, *, quiet: bool = False) -> None:
    with TerminalProgress(console, quiet=quiet) as watcher:
        watcher.cells(0, 8)
        for title in ("loading", "asking [bold]things[/bold]"):
            watcher.stage(title, 10)
            watcher.advance(5)
        watcher.cells(3, 8)


def test_a_terminal_gets_bars_with_an_eta():
    text = io.StringIO()
    watch(Console(file=text, force_terminal=True, width=120, color_system=None))
    assert "whole study" in text.getvalue()
    assert "3/8" in text.getvalue()
    assert "5/10" in text.getvalue()
    assert "left" in text.getvalue()


def test_other_outputs_get_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    text = io.StringIO()
    with TerminalProgress(Console(file=text, width=120)) as watcher:
        for step in range(10):
            watcher.cells(step, 10)
            watcher.stage(f"step [{step}]", 1)
            now[0] += QUIET_SECONDS / 4
    lines = [line.partition(",")[0] for line in text.getvalue().splitlines()]
    assert lines == [f"[{step}/10 cells] step [{step}]" for step in (0, 4, 8)]


def test_quiet_means_nothing():
    for terminal in (True, False):
        text = io.StringIO()
        watch(Console(file=text, force_terminal=terminal, width=120), quiet=True)
        assert text.getvalue() == ""


# The main job; last, because it needs everything


def count_records(folder: Path) -> int:
    try:
        with contextlib.closing(Journal(folder, read_only=True)) as journal:
            return len(journal.records())
    except DataError:
        return 0


def test_run_stops_politely_resumes_and_reports(kick: Kick, toy: Path, tmp_path: Path):
    """Ctrl-C in the middle, the same command again, and everything that a run's folder must hold."""
    folder = tmp_path / "runs" / "mine"
    arguments = [
        "run", "-m", toy, "-r", "magnitude@0.5", "-r", "wanda@2:4", "-t", "multiple_choice:cloze", "-t", "factoid_qa",
        "--limit", 12, "--seed", 4, "--seed", 7, *SMALL, "--margin", 0.1, "--out", folder,
    ]  # fmt: skip
    code, out, err = run_until(signal.SIGINT, tmp_path / "stopped", *arguments, records=0)
    before = count_records(folder)
    assert (code, out) == (130, "")
    assert err.splitlines()[-1] == "stopped; run the same command again to go on where it was"
    assert "Traceback" not in err
    assert not (folder / "results.json").exists()
    assert not CONTROL.search(err)

    code, out, err = kick(*arguments)
    assert code == 0, err
    result = read_results(folder)
    assert (result.study.name, result.study.seeds, result.study.margin) == ("mine", (4, 7), 0.1)
    assert [(row["recipe"], row["seed"], row["n"]) for row in result.results if row["task"] == "factoid_qa"] == [
        ("dense", None, 12),
        ("magnitude@0.5", None, 12),
        ("wanda@2:4", 4, 12),
        ("wanda@2:4", 7, 12),
    ]
    assert 0 < before < count_records(folder) == 2 * 4 * 12
    for word in ("toy", "dense", "magnitude@0.5", "wanda@2:4", "verdict"):
        assert word in out
    for note in result.warnings:
        assert f"note: {note}" in out
    assert out.rstrip().endswith(f"report: {folder / 'report.html'}")
    assert load_study(folder / "study.toml").hash() == result.study["hash"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "</html>" in page
    assert "wanda@2:4" in page
    assert {path.name for path in (folder / "tables").iterdir()} >= {"scores.csv", "comparisons.csv", "compression.csv"}
    assert list((folder / "figures").glob("*.svg"))

    # The report again, from the folder alone.
    (folder / "report.html").unlink()
    code, again, err = kick("report", folder)
    assert (code, err) == (0, "")
    assert (folder / "report.html").read_text(encoding="utf-8") == page
    assert again == "\n".join(line for line in out.splitlines() if not line.startswith("note: ")) + "\n"

    # A program is told the same, one event a line.
    code, out, err = kick(*arguments, "--json")
    assert (code, err) == (0, "")
    events = [json.loads(line) for line in out.splitlines()]
    told = {event["event"] for event in events} - {"warning"}
    assert told == {"stage", "cells", "finished"}  # nothing is left to ask
    assert events[-1]["comparisons"] == [as_json(comparison) for comparison in result.comparisons]
    assert events[-1]["report"] == str(folder / "report.html")

    # Another study does not get in.
    outcome = kick(*arguments, "--task", "perplexity")
    assert outcome.code == 2
    assert "the folder holds the results of another study" in outcome.said


# Published data, protocols and plans


@pytest.fixture
def mmlu(tmp_path: Path) -> Path:
    for split, rows in (("test", 6), ("dev", 5)):
        for subject in ("astronomy", "philosophy"):
            file = tmp_path / "mmlu" / split / f"{subject}_{split}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{subject} {n}?,None,b,c,d,{'ABCD'[n % 4]}\n" for n in range(rows)))
    return tmp_path / "mmlu"


def test_eval_by_group_of_another_number(kick: Kick, toy: Path):
    asked = ("eval", toy, "-t", "summarization", "--limit", "3")
    code, out, _ = kick(*asked, "--by", "bucket", "--of", "words")
    assert code == 0
    assert re.search(r"task\s+┃ bucket\s+┃ words", out)
    code, _, err = kick(*asked, "--of", "words")
    assert code == 2
    assert "--of says what to average by group; give --by too" in err


def test_eval_by_a_group_that_one_of_the_tasks_has(kick: Kick, toy: Path):
    """What was asked for hours is shown; the other task has a note."""
    tasks = ("-t", "factoid_qa", "-t", "summarization", "--limit", "3")
    code, out, _ = kick("eval", toy, *tasks, "--by", "bucket")
    assert code == 0
    assert "mean over groups (macro)" in out
    assert "note: factoid_qa: cannot group by 'bucket': choose from: cluster" in " ".join(out.split())


@pytest.mark.parametrize(
    ("line", "goes_on"),
    [
        (["run", "study.toml", "--out", "runs/a"], True),
        (["-q", "compare", "a", "b"], True),
        (["eval", "toy", "-t", "factoid_qa", "--records", "answers.jsonl"], False),
        (["gate", "gate.toml"], False),
        (["gate", "gate.toml", "-o", "runs/g"], True),
        (["report", "runs/a"], False),
    ],
)
def test_only_what_goes_on_is_promised_to(line: list[str], goes_on: bool):
    assert _goes_on(line) is goes_on


def test_eval_of_published_data_by_group(kick: Kick, toy: Path, mmlu: Path):
    code, out, _ = kick("eval", toy, "-t", "multiple_choice:cloze", "--source", mmlu, "--by", "discipline")
    assert code == 0
    assert re.search(r"humanities\s+│ [\d.]+\s+│ 6", out)
    assert re.search(r"mean over groups \(macro\)\s+│ [\d.]+\s+│ 12", out)
    assert "note: multiple_choice:cloze: 55 of the 57 subjects are not in the data" in out
    code, out, err = kick("eval", toy, "-t", "multiple_choice:cloze", "--source", mmlu, "--by", "colour")
    assert code == 2
    assert "cannot group by 'colour': choose from: cluster" in err
    assert "accuracy" not in out  # said after the first batch, before the other items are asked


def test_eval_in_the_papers_protocol(kick: Kick, toy: Path):
    code, out, _ = kick("eval", toy, "-t", "factoid_qa", "--protocol", "paper", "--limit", 3)
    assert code == 0
    assert re.search(r"factoid_qa\s+│ accuracy\s+│ [\d.]+\s+│ 3", out)


def test_a_plan_needs_no_folder_and_leaves_nothing(kick: Kick, toy: Path, mmlu: Path, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    options = ("-m", toy, "-r", "wanda@0.5", "-t", "multiple_choice", "--source", mmlu, "--protocol", "paper")
    code, out, _ = kick("run", *options, "--seed", 0, "--seed", 1, "--plan")
    assert code == 0
    assert re.search(r"multiple_choice:letter\s+│ 12\s+│ 12\s+│ [\d,]+", out)
    assert "3 models (the dense one, each recipe with each seed, each other model) × 1 tasks = 3 cells" in out
    assert "unknown" not in out
    plan = json.loads(kick("run", *options, "--plan", "--json")[1])
    assert (plan["cells"], plan["tasks"][0]["items"]) == (2, 12)
    assert sorted(tmp_path.rglob("*")) == before


def test_tables_show_names_with_brackets(kick: Kick, toy: Path, tmp_path: Path):
    """Brackets are no markup; worked examples make the prompts of a level longer."""
    study = tmp_path / "study.toml"
    tasks = '[[tasks]]\nname = "multiple_choice:cloze"\nlimit = 4\nshots = [0, 5]\n'
    study.write_text(f'model = "{toy}"\nrecipes = ["magnitude@0.5"]\n{tasks}')
    code, out, _ = kick("run", study, "--plan")
    assert code == 0
    rows = re.findall(r"multiple_choice:cloze \[shots=(\d)\]\s+│ 4\s+│ 16\s+│ ([\d,]+)", out)
    assert [level for level, _ in rows] == ["0", "5"]
    none, five = (int(tokens.replace(",", "")) for _, tokens in rows)
    assert five > 1.5 * none


def test_a_run_on_published_data_records_where_it_came_from(kick: Kick, toy: Path, mmlu: Path, tmp_path: Path):
    options = ("-m", toy, "-r", "magnitude@0.5", "-t", "multiple_choice", "--source", mmlu, "--protocol", "paper")
    code, _, err = kick("run", *options, "-o", tmp_path / "run", *SMALL)
    assert code == 0, err
    (task,) = json.loads((tmp_path / "run" / "results.json").read_text())["tasks"]
    assert (task["protocol"], task["prompting"]) == ("paper", "raw")
    assert task["origin"]["dataset"] == "MMLU"
    assert task["notes"] == ["55 of the 57 subjects are not in the data"]
