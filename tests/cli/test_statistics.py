"""`kick power`, `kick frontier`, and what `kick run` says about its statistics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from commands import Kick
from llmkick import cli
from llmkick.statistics import detectable_loss, items_for_power, items_needed, simulated_power, verdict_power
from toy import save_toy


@pytest.fixture(scope="module", autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMKICK_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(cli.out, "_width", 200)
        for simulation in (simulated_power, items_for_power, detectable_loss):
            patch.setitem(simulation.__kwdefaults__, "draws", 250)  # enough for the tolerances below
        yield


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "toy"
    save_toy(folder, max_position_embeddings=256)
    return folder


def test_power_tells_the_items_needed(kick: Kick):
    code, out, err = kick("power", "--accuracy", 0.45)
    assert (code, err) == (0, "")
    assert 1_100 <= number_in(out, "items to call") <= 1_400
    code, out, _ = kick("power", "-a", 0.45, "--loss", 0.15, "--discordance", 0.2, "--power", 0.9)
    assert number_in(out, "items to call") == pytest.approx(
        items_needed(0.45, loss=0.15, discordance=0.2, power=0.9), rel=0.1
    )
    assert "“not matching” in 90% of runs" in out


def number_in(out: str, row: str) -> int:
    (line,) = [line for line in out.splitlines() if row in line]
    return int(line.split("│")[2].strip(" %").replace(",", ""))


def test_power_tells_what_items_can_do(kick: Kick, tmp_path: Path):
    code, out, _ = kick("power", "-a", 0.575, "-n", 120, "--plot", tmp_path / "power.svg")
    assert code == 0
    alone = number_in(out, "chance that 120 items")
    assert alone == pytest.approx(100 * verdict_power(120, 0.575), abs=5)
    assert (tmp_path / "power.svg").read_text(encoding="utf-8").startswith("<svg")
    assert "not even a loss of everything" in kick("power", "-a", 0.3, "-n", 2)[1]


def test_power_knows_the_design(kick: Kick, monkeypatch: pytest.MonkeyPatch):
    for simulation in (simulated_power, items_for_power, detectable_loss):
        monkeypatch.setitem(simulation.__kwdefaults__, "draws", 120)
    clustered = kick("power", "-a", 0.6, "-n", 120, "--cluster-size", 10)[1]
    alone = kick("power", "-a", 0.6, "-n", 120)[1]
    assert number_in(clustered, "chance that 120 items") < number_in(alone, "chance that 120 items") - 5
    assert (
        number_in(kick("power", "-a", 0.5, "--chance-level", 0.25)[1], "items to call")
        > 4 * number_in(kick("power", "-a", 0.5)[1], "items to call") * 0.8
    )
    assert kick("power", "-a", 0.5, "-n", 60, "--graded", "--seeds", 2)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-a", "1.2"], "accuracy 1.2 must be above chance 0.0 and at most 1"),
        (["-a", "nan"], "accuracy nan must be above chance"),
        (["-a", "0.5", "-n", "0"], "must be whole numbers of at least 1"),
        (["-a", "0.5", "--margin", "1"], "margin 1.0 must lie between 0 and 1"),
        (["-a", "0.5", "--loss", "0.05"], "a loss of exactly the margin (0.05) is never decided"),
        (["-a", "0.5", "--cluster-size", "0"], "must be whole numbers of at least 1"),
        (["-a", "0.2", "--chance-level", "0.25"], "accuracy 0.2 must be above chance 0.25"),
        (["-a", "0.5", "--seeds", "3", "--plot", "power.svg"], "leave out --seeds and --graded"),
        (["-a", "0.5", "--graded", "--plot", "power.svg"], "leave out --seeds and --graded"),
        (["-a", "0.75", "-n", "120", "--power", "0.04"], "power 0.04 must be above alpha, 0.05"),
        (["-a", "0.75", "-n", "120", "--power", "0.05", "--plot", "power.svg"], "power 0.05 must be above alpha"),
        (["-a", "0.5", "--plot", "power.png"], "should end in one of: .svg, .html, .json"),
    ],
)
def test_power_refuses(kick: Kick, arguments: list[str], message: str):
    code, out, err = kick("power", *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


def test_frontier_from_end_to_end(kick: Kick, toy: Path, tmp_path: Path):
    arguments = [
        "frontier", toy, "-m", "magnitude@0.2,0.6", "-t", "multiple_choice:cloze", "--limit", 20,
        "-o", tmp_path / "far", "--dtype", "float32", "--sequences", 2, "--length", 32,
    ]  # fmt: skip
    code, out, err = kick(*arguments)
    assert code == 0
    assert "warning: too few items" in " ".join(err.split())
    assert re.search(r"multiple_choice:cloze\s+\S", out)
    assert "perplexity ≤ +5 %" in out
    found = json.loads((tmp_path / "far" / "frontier.json").read_text(encoding="utf-8"))
    assert [row["task"] for row in found["frontiers"]] == ["multiple_choice:cloze", "perplexity", "perplexity"]
    assert (tmp_path / "far" / "figures" / "frontier.svg").exists()
    again = kick(*arguments, "--quiet")
    assert (again[0], again[2]) == (0, "")
    assert again[1] == out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "wander"], "unknown method 'wander'"),
        (["-m", "wanda@bits"], "wanda has no levels of kind 'bits'"),
        (["-m", "wanda@0.1"], "give two levels or more"),
        (["-m", "wanda", "--margin", "0"], "margin: Input should be greater than 0"),
        (["-m", "wanda", "--seed", "1", "--seed", "1"], "distinct calibration seeds"),
        (["-m", "wanda", "--limit", "0"], "must be a whole number of at least 1; got 0"),
    ],
)
def test_frontier_refuses_before_any_work(kick: Kick, toy: Path, tmp_path: Path, arguments: list[str], message: str):
    code, out, err = kick("frontier", toy, "-t", "factoid_qa", "-o", tmp_path / "new", *arguments)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert not (tmp_path / "new").exists()


def test_a_plan_says_what_will_not_be_decided(kick: Kick, toy: Path):
    arguments = ["-m", toy, "-r", "rtn@8b", "-t", "factoid_qa", "--limit", 1, "--stop", "decided", "--dtype", "float32"]
    code, out, _ = kick("run", "--plan", *arguments)
    assert code == 0
    said = " ".join(out.split())
    assert "warning: this study cannot decide anything: factoid_qa" in said
    assert "at most: it stops when decided" in said
