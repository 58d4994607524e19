"""The commands that show what runs found: report, diff, export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from commands import Kick
from llmkick.report import tracking
from report.synthetic import build_run


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_run(tmp_path_factory.mktemp("runs") / "first", recipes=["wanda@0.25", "rtn@8b"], items=16).folder


def test_diff_shows_pairs_and_what_is_not_paired(kick: Kick, first: Path, tmp_path: Path):
    second = shutil.copytree(first, tmp_path / "second")
    content = json.loads((second / "results.json").read_text())
    content["tasks"][0]["data"] = "b" * 64
    (second / "results.json").write_text(json.dumps(content))
    code, out, _ = kick("diff", first, second)
    assert code == 0
    assert out.count("identical") == 3 * 3
    assert "not paired: factoid_qa: different questions" in " ".join(out.split())
    code, out, _ = kick("diff", first, second, "--json")
    found = json.loads(out)
    assert len(found["differences"]) == 9
    assert found["refusals"][0]["what"] == "factoid_qa"


def test_diff_of_what_cannot_be_paired_is_an_error_with_the_reasons(kick: Kick, first: Path, tmp_path: Path):
    other = build_run(tmp_path / "other", recipes=["rtn@8b"], tasks=("context_qa:closed",), items=8).folder
    code, _, err = kick("diff", first, other)
    assert code == 1
    assert "context_qa:closed: only one of the studies has it" in " ".join(err.split())


@pytest.mark.parametrize("command", ["diff", "report"])
def test_a_folder_given_twice_or_without_a_run(kick: Kick, first: Path, tmp_path: Path, command: str):
    assert kick(command, first, first)[0] == 2
    code, _, err = kick(command, first, tmp_path)
    assert code == 1
    assert "not a run's folder" in " ".join(err.split())


def test_report_of_several_runs_is_one_page(kick: Kick, first: Path, tmp_path: Path):
    second = shutil.copytree(first, tmp_path / "second")
    page = tmp_path / "pages" / "both.html"
    code, out, _ = kick("report", first, second, "--out", page)
    assert code == 0
    assert page.is_file()
    assert str(page) in out
    assert json.loads(kick("report", first, second, "-o", page, "--json")[1]) == {"report": str(page)}
    assert kick("report", first, "--out", page)[0] == 2


def test_report_of_one_run_as_json_and_of_an_unfinished_one(kick: Kick, first: Path, tmp_path: Path):
    run = shutil.copytree(first, tmp_path / "run")
    whole = json.loads((run / "results.json").read_text())
    (run / "results.json").unlink()
    code, out, _ = kick("report", run, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["comparisons"] == whole["comparisons"]
    assert "the run is not finished" in found["missing"][0]
    code, out, _ = kick("report", run)
    assert code == 0
    assert "note: the run is not finished" in out


FILES = ("csv", "markdown", "latex", "parquet", "card")


def test_exports(kick: Kick, first: Path, tmp_path: Path):
    code, out, _ = kick("export", first, "--to", "markdown")
    assert code == 0
    assert out.startswith("| recipe | factoid_qa |")
    table = tmp_path / "new" / "table.tex"
    assert kick("export", first, "--to", "latex", "-o", table)[0] == 0
    assert r"\toprule" in table.read_text()
    code, out, _ = kick("export", first, "--to", "parquet", "-o", tmp_path / "all.parquet")
    assert (code, out.split(":")[0]) == (0, f"{16 * 4 * 3} records")
    assert kick("export", first, "--to", "csv", "-o", tmp_path / "csv")[0] == 0
    assert (tmp_path / "csv" / "tables" / "comparisons.csv").is_file()


@pytest.mark.parametrize(("given", "project"), [([], "llmkick"), (["--project", "mine"], "mine")])
def test_a_tracker_gets_the_project(
    kick: Kick, first: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], project: str
):
    def log(_result: object, **options: object) -> str:
        return f"in {options}"

    monkeypatch.setattr(tracking, "log_to_wandb", log)
    said = kick("export", first, "--to", "wandb", *given).out
    assert said.strip() == f"wandb: run in {{'uri': None, 'project': '{project}'}}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "excel"], "excel"),
        ([], "--to"),
        (["--to", "mlflow", "-o", "x"], "--out is for files"),
        (["--to", "latex", "--uri", "x"], "--uri is for mlflow and wandb"),
        *((["--to", to, "--project", "x"], "--project is for mlflow and wandb") for to in FILES),
    ],
)
def test_exports_that_make_no_sense(kick: Kick, first: Path, arguments: list[str], message: str):
    code, _, err = kick("export", first, *arguments)
    assert code == 2
    assert message in err
