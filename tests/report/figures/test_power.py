"""The power figure: the numbers are those of the formulas, and it becomes a file."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from llmkick.errors import ConfigError
from llmkick.report.figures.power import power_chart, power_frame, write_chart
from llmkick.statistics import smallest_detectable_loss, verdict_power


def test_every_point_is_the_formulas():
    frame = power_frame((0.45,), loss=0.0, discordance=0.2, margin=0.05, alpha=0.05)
    for row in frame.iloc[::20].itertuples():
        assert row.power == verdict_power(row.items, 0.45, discordance=0.2)
        assert row.detectable == pytest.approx(smallest_detectable_loss(row.items, 0.45, discordance=0.2))


def test_the_accuracy_asked_about_stands_out():
    text = json.dumps(power_chart(0.52, loss=0.12).to_dict(), ensure_ascii=False)
    assert "a true loss of 12% is called “not matching”" in text
    rows = [row for rows in power_chart(0.52).to_dict()["datasets"].values() for row in rows if row.get("asked")]
    assert {row["accuracy"] for row in rows} == {"0.52"}


@pytest.mark.parametrize(("name", "beginning"), [("p.svg", "<svg"), ("p.html", "<!DOCTYPE html>"), ("p.json", "{")])
def test_files(tmp_path: Path, name: str, beginning: str):
    written = write_chart(power_chart(0.75), tmp_path / name)
    assert written.read_text(encoding="utf-8").lstrip().startswith(beginning)


def test_another_ending(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"should end in one of: \.svg, \.html, \.json"):
        write_chart(power_chart(0.75), tmp_path / "p.png")


def test_the_curves_are_of_the_design_asked_about():
    design = {"chance": 0.25, "design_effect": 1.45, "power": 0.9}
    frame = power_frame((0.75,), loss=0.0, discordance=0.1, margin=0.05, alpha=0.05, **design)
    for row in frame.iloc[::20].itertuples():
        assert row.power == verdict_power(row.items, 0.75, chance=0.25, design_effect=1.45)
        wanted = smallest_detectable_loss(row.items, 0.75, **design)
        assert row.detectable == pytest.approx(wanted) or (pd.isna(row.detectable) and wanted is None)
    spec = power_chart(0.75, **design).to_dict()
    assert "(90% power)" in json.dumps(spec)
    accuracies = {row["accuracy"] for rows in spec["datasets"].values() for row in rows if "accuracy" in row}
    assert accuracies == {"0.45", "0.6", "0.75", "0.9"}  # 0.3 is hardly above guessing
