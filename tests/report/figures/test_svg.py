import json

import pytest

from llmkick.report.figures import svg
from llmkick.report.figures.figure import VEGA_LITE
from llmkick.report.figures.svg import drawn_aside

CHART = {"data": {"values": [{"a": "é <b>"}]}, "mark": "text", "encoding": {"text": {"field": "a"}}}


def test_charts_come_back_in_their_order():
    specs = [json.dumps({**CHART, "data": {"values": [{"a": text}]}}) for text in ("one é", "two <b>")]
    with drawn_aside(specs, VEGA_LITE) as finish:
        one, two = finish()
    assert "one é" in one
    assert "two &lt;b&gt;" in two


def test_without_the_other_process_they_are_drawn_by_this_one(monkeypatch, tmp_path):
    failing = tmp_path / "failing.py"
    failing.write_text("raise SystemExit(3)", encoding="utf-8")
    monkeypatch.setattr(svg, "__file__", str(failing))
    with drawn_aside([json.dumps(CHART)], VEGA_LITE) as finish:
        assert "é &lt;b&gt;" in finish()[0]


def test_what_is_wrong_with_a_chart_is_said():
    with (
        drawn_aside([json.dumps({"mark": "nonsense"})], VEGA_LITE) as finish,
        pytest.raises(ValueError, match="conversion failed"),
    ):
        finish()
