"""`kick gate` and the GitHub Action: the same gate, and exit codes that nothing else has."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from commands import Kick
from gating import served
from llmkick import cli
from llmkick.gate import run as run_module
from processes import run_commands, run_kick
from toy import save_toy

ROOT = Path(__file__).resolve().parents[2]
SOURCE = str(ROOT / "src")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("PYTHONPATH", SOURCE)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    save_toy(tmp_path / "toy", max_position_embeddings=512, chat=True)
    tasks = '[{name = "multiple_choice:letter", limit = 4, shots = 0}]'
    (tmp_path / "gate.toml").write_text(
        f'model = "./toy"\nreference = "./toy"\ndtype = "float32"\ndevice = "cpu"\ntasks = {tasks}\n'
    )
    return tmp_path


def write_policy(folder: Path, model: str, reference: str, lines: str = "") -> None:
    text = f'model = "built={model}"\nreference = "{reference}"\ntasks = ["factoid_qa"]\nserver.attempts = 1\n{lines}'
    (folder / "gate.toml").write_text(text)


def test_a_loss_is_exit_code_1_with_every_file(kick: Kick, tmp_path: Path):
    with served() as (dense, _), served(0.3) as (server, _):
        write_policy(tmp_path, "nowhere", dense.reference())
        model = f"built={server.reference()}"
        outcome = kick("gate", "-q", "--model", model, "--out", "run", "--junit", "a/gate.xml", "--summary", "gate.md")
    assert (outcome.code, outcome.err) == (1, "")
    assert "built against m: loses" in outcome.out
    assert "factoid_qa: loses – shown to lose more than 5 %: loss" in outcome.out
    (suite,) = ElementTree.parse(tmp_path / "a" / "gate.xml").getroot()
    assert suite.get("failures") == "1"
    assert "❌ built is shown to lose" in (tmp_path / "gate.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "run" / "gate.json").read_text())["exit_code"] == 1
    # The folder is that of a study.
    assert kick("report", "run").code == 0
    card = kick("export", "run", "--to", "card")
    assert card.code == 0
    assert "verdict: not matching" in card.out


def test_json_is_the_result_and_nothing_else(kick: Kick, toy: Path):
    outcome = kick("gate", "--json", "-q")
    content = json.loads(outcome.out)
    assert (outcome.code, content["outcome"], content["tasks"][0]["asked"]) == (0, "matches", 4)
    (folder,) = (toy / "runs").iterdir()
    assert folder.name.startswith("gate-gate-")


def test_the_summary_of_a_github_step_is_added_to(kick: Kick, toy: Path, monkeypatch: pytest.MonkeyPatch):
    target = toy / "step.md"
    target.write_text("earlier\n")
    kick("gate", "-q", "--summary", target)
    assert not target.read_text().startswith("earlier")
    target.write_text("earlier\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(target))
    kick("gate", "-q", "--summary", target)
    assert target.read_text().startswith("earlier\n## ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.toml"], "error: cannot read the policy nowhere.toml"),
        (["--model", "./nowhere"], "cannot get './nowhere' from the hub"),
        (["--reference", "./nowhere"], "cannot get './nowhere' from the hub"),
        (["--items", "0"], "budget.items: Input should be greater than or equal to 1"),
        (["--items", "many"], "Invalid value for '--items'"),
        (["--minuets", "3"], "No such option: --minuets"),
        (["--junit", "."], ". is a folder; give the name of a file"),
        (["--out", "gate.toml"], "cannot write to gate.toml"),
        (["--store-reference", "toy"], "toy is a folder"),
        (["--store-reference", "answers.txt"], "answers.txt must end in .jsonl"),
        (["--store-reference", "a.jsonl", "--json"], "--store-reference takes no --json: it asks only the reference"),
        (
            ["--store-reference", "a.jsonl", "--junit", "a.xml"],
            "--store-reference takes no --junit: it asks only the reference",
        ),
        (
            ["--store-reference", "a.jsonl", "--summary", "a.md"],
            "--store-reference takes no --summary: it asks only the reference",
        ),
        (
            ["--store-reference", "a.jsonl", "--out", "run"],
            "--store-reference takes no --out: it asks only the reference",
        ),
        (
            ["--store-reference", "a.jsonl", "--model", "toy"],
            "--store-reference takes no --model: it asks only the reference",
        ),
        (
            ["--store-reference", "a.jsonl", "--minutes", "3", "--json"],
            "--store-reference takes no --minutes, --json: it asks only the reference",
        ),
    ],
)
def test_what_cannot_run_is_exit_code_3(kick: Kick, toy: Path, arguments: list[str], said: str):
    outcome = kick("gate", "-q", *arguments)
    assert outcome.code == 3
    assert said in outcome.said
    assert not (toy / "a.jsonl").exists()


def test_an_error_that_nobody_expected_is_no_verdict(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(run_module, "run_cells", broken)
    monkeypatch.setattr(sys, "argv", ["kick", "gate", "-q", "--summary", "gate.md"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3
    assert "in broken" in capsys.readouterr().err
    assert "RuntimeError&#58; CUDA error" in (toy / "gate.md").read_text()


def test_an_error_while_a_reference_is_stored_is_no_verdict_either(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr(run_module, "store_reference", broken)
    monkeypatch.setattr(sys, "argv", ["kick", "gate", "-q", "--store-reference", "answers.jsonl"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 3
    assert "in broken" in capsys.readouterr().err


# A gate of which only the printing is real: its verdict is that a model loses.
GATE_THAT_RAN = """
import sys
from pathlib import Path
from llmkick.cli import gate, main
from llmkick.gate.result import GateResult

gate._run = lambda *_, **__: GateResult(
    name="n", outcome="loses", exit_code=1, candidate="c", reference="r", folder=Path("run"), warnings=("w",)
)
main()
"""
MODULE = ("-m", "llmkick", "gate")


@pytest.mark.parametrize(
    ("program", "options", "out", "err", "code"),
    [
        (MODULE, ["nope.toml", "--json"], "full", "", 3),
        (MODULE, ["nope.toml", "--json"], "left", "", 3),
        (MODULE, ["nope.toml"], "", "full", 3),
        (MODULE, ["--bogus"], "", "left", 3),
        (("-c", GATE_THAT_RAN, "gate"), ["--json"], "full", "", 3),
        (("-c", GATE_THAT_RAN, "gate"), ["--json"], "left", "", 1),
        (("-c", GATE_THAT_RAN, "gate"), [], "left", "", 1),
    ],
)
def test_output_that_cannot_be_written_is_no_verdict(
    tmp_path: Path, program: tuple[str, ...], options: list[str], out: str, err: str, code: int
):
    """Where the reader of a pipe has left, the code is that of the verdict, which is in the files."""

    def opened(kind: str) -> int:
        if kind == "left":
            reader, writer = os.pipe()
            os.close(reader)
            return writer
        return os.open({"full": "/dev/full", "": os.devnull}[kind], os.O_WRONLY)

    if "full" in (out, err) and not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    streams = [opened(out), opened(err)]
    try:
        command = [sys.executable, *program, *options]
        assert subprocess.run(command, stdout=streams[0], stderr=streams[1], timeout=60, check=False).returncode == code
    finally:
        for stream in streams:
            os.close(stream)


@pytest.mark.parametrize(("command", "code"), [("gate", 3), ("run", 1)])
def test_a_command_line_that_cannot_be_imported_is_no_verdict(command: str, code: int):
    program = "import sys; sys.modules['typer'] = None; from llmkick.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, command, "--json"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert "import of typer halted" in done.stderr


@pytest.mark.parametrize("rank", ["0", "1", "one"])
def test_a_gate_that_torchrun_started_is_no_verdict(kick: Kick, monkeypatch: pytest.MonkeyPatch, rank: str):
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, value)
    assert kick("gate", "gate.toml").code == 3
    assert kick("tasks").code == 2


@pytest.mark.parametrize("option", ["--model", "--reference"])
@pytest.mark.parametrize("address", ["https://me:SECRET@host/v1", "https://host/v1?api_key=SECRET"])
def test_a_key_in_an_address_is_refused_and_shown_nowhere(kick: Kick, toy: Path, option: str, address: str):
    outcome = kick("gate", "-q", "--json", "--summary", "gate.md", "--junit", "gate.xml", option, f"openai:{address}#m")
    assert outcome.code == 3
    assert "must hold no key" in json.loads(outcome.out)["error"]
    written = "".join((toy / name).read_text(encoding="utf-8") for name in ("gate.md", "gate.xml"))
    assert "SECRET" not in outcome.out + outcome.err + written


def test_the_reference_is_stored_in_a_file_and_takes_its_place(kick: Kick, toy: Path):
    stored = kick("gate", "-q", "--store-reference", "answers.jsonl")
    assert (stored.code, stored.out.strip()) == (0, "16 new answers: answers.jsonl")
    again = kick("gate", "-q", "--store-reference", "answers.jsonl")
    assert again.out.startswith("0 new answers")
    assert kick("gate", "-q", "--reference", "answers.jsonl").code == 0


# The GitHub Action


def action() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    return content


def step(name: str) -> dict[str, Any]:
    steps: list[dict[str, Any]] = action()["runs"]["steps"]
    return next(some for some in steps if some["name"] == name)


# Hands its arguments over, each ended by a zero byte, and waits for the exit code. Opening a pipe waits for both ends.
KICK = """#!/bin/sh
printf '%s\\0' "$@" > asked
read -r code < code
cat said/0.out
cat said/0.err >&2
exit "$code"
"""


def run_step(name: str, folder: Path, **variables: str) -> tuple[int, str]:
    """The exit code and the errors of a step's script, run as GitHub does, with a `kick` of these sources."""
    (folder / "bin").mkdir(exist_ok=True)
    kick = folder / "bin" / "kick"
    kick.write_text(KICK)
    kick.chmod(0o755)
    script = folder / "step.sh"
    script.write_text(step(name)["run"])
    inputs = {key: value["default"] for key, value in action()["inputs"].items()}
    names = {"POLICY": "policy", "MODEL": "model", "REFERENCE": "reference", "ARGUMENTS": "arguments"}
    environment = {**os.environ, **{name: inputs[key] for name, key in names.items()}, **variables}
    environment |= {"PATH": f"{folder / 'bin'}:{environment['PATH']}", "RUNNER_TEMP": str(folder)}
    environment |= {"GITHUB_OUTPUT": str(folder / "output"), "GITHUB_STEP_SUMMARY": str(folder / "step.md")}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
    for pipe in ("asked", "code"):
        os.mkfifo(folder / pipe)
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        if name == "Gate":
            arguments = (folder / "asked").read_text(encoding="utf-8").split("\0")[:-1]
            (done,) = run_commands(run_kick, folder / "said", [environment], *arguments)
            (folder / "code").write_text(f"{done.code}\n")
        errors = process.communicate(timeout=200)[1]
    return process.returncode, errors


def outputs(folder: Path) -> dict[str, str]:
    lines = (folder / "output").read_text().splitlines()
    return {key: value for key, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize(
    ("variables", "code", "outcome"),
    [
        ({"MODEL": "./toy", "ARGUMENTS": "--items 3 --refresh-reference"}, "0", "matches"),
        ({"MODEL": "$(touch injected); ./nowhere", "POLICY": "./gate.toml"}, "3", "unmeasured"),
    ],
)
def test_the_action_hands_on_what_the_gate_says(toy: Path, variables: dict[str, str], code: str, outcome: str):
    done, errors = run_step("Gate", toy, **variables)
    assert done == 0, errors
    given = outputs(toy)
    assert (given["exit-code"], given["outcome"]) == (code, outcome)
    assert set(given) == set(action()["outputs"])
    assert json.loads((Path(given["folder"]) / "gate.json").read_text())["exit_code"] == int(code)
    assert ElementTree.parse(Path(given["folder"]) / "gate.xml").getroot().tag == "testsuites"
    assert (toy / "step.md").read_text(encoding="utf-8").startswith("## ")
    assert not (toy / "injected").exists()


@pytest.mark.parametrize(
    ("code", "undecided", "expected"),
    [("0", "fail", 0), ("1", "pass", 1), ("2", "fail", 2), ("2", "pass", 0), ("3", "pass", 3)],
)
def test_the_action_fails_the_job_as_its_inputs_say(tmp_path: Path, code: str, undecided: str, expected: int):
    assert run_step("Decide", tmp_path, CODE=code, UNDECIDED=undecided)[0] == expected


def test_the_action_refuses_a_mistyped_input(tmp_path: Path):
    assert run_step("Decide", tmp_path, CODE="2", UNDECIDED="warn")[0] == 3


def test_inputs_never_become_part_of_a_script():
    for some in action()["runs"]["steps"]:
        assert "${{" not in some.get("run", ""), some["name"]
        assert some.get("shell", "bash") == "bash"


def test_the_example_workflow_uses_inputs_and_outputs_that_exist():
    workflow = yaml.safe_load((ROOT / "examples" / "gate" / "workflow.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["gate"]["steps"]
    (used,) = [some for some in steps if "llmkick" in some.get("uses", "")]
    assert set(used["with"]) <= set(action()["inputs"])
    assert "steps.gate.outputs.outcome" in steps[-1]["env"]["OUTCOME"]
