import pytest

from llmkick.report import wording
from llmkick.statistics.verdict import Verdict


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.314, "31 %"),
        (0.0461, "4.6 %"),
        (0.0996, "10 %"),
        (-0.04, "−4.0 %"),
        (0.0, "0.0 %"),
        (-0.0001, "0.0 %"),
        (1, "100 %"),
        (23.5, "2350 %"),
        (None, "–"),
    ],
)
def test_percent(share, text):
    assert wording.percent(share) == text


def test_a_signed_percent_has_a_sign_only_if_it_is_not_zero():
    assert wording.percent(0.14, signed=True) == "+14 %"
    assert wording.percent(0.0001, signed=True) == "0.0 %"
    assert wording.percent(-0.14, signed=True) == "−14 %"


def test_loss_and_increase_carry_their_intervals():
    loss = {"relative_drop": 0.31, "interval": [0.22, 0.402], "verdict": "not matching"}
    assert wording.loss(loss) == "31 % [22, 40]"
    assert wording.loss({**loss, "interval": None}) == "31 %"
    assert wording.loss({**loss, "verdict": "no signal"}) == "–"
    rise = {"relative_increase": 0.14, "interval": [0.118, -0.01]}
    assert wording.increase(rise) == "+14 % [12, −1.0]"
    assert wording.increase({"relative_increase": 23.0, "interval": [20.0, 25.04]}) == "×24 [21, 26]"


def test_scores_and_perplexities():
    assert wording.score(0.415) == "0.41"
    assert wording.score(None) == "–"
    assert [wording.score(x, "perplexity") for x in (5.123, 29.0, 453.2, 12345.6)] == ["5.12", "29.0", "453", "12,346"]


def test_sizes_times_and_p_values():
    assert [wording.size(x) for x in (999, 1000, 212_336_640, 5e15)] == ["999 B", "1 kB", "212 MB", "5e+03 TB"]
    assert [wording.duration(x) for x in (3.51, 150, 9000)] == ["3.5 s", "2.5 min", "2.5 h"]
    assert [wording.p_value(p) for p in (0.0001, 0.04, None)] == ["< 0.001", "0.040", "–"]


def test_plurals_and_lists():
    assert [wording.counted(n, "item") for n in (0, 1, 1200)] == ["0 items", "1 item", "1,200 items"]
    assert wording.counted(2, "loss") == "2 losses"
    assert wording.listed(["a"]) == "a"
    assert wording.listed(["a", "b", "c"]) == "a, b and c"
    assert wording.setting(0.05) == "5 %"
    assert wording.setting(1 - 0.05) == "95 %"


def test_every_verdict_has_a_mark_of_its_own():
    assert set(wording.VERDICTS) == set(Verdict.__args__)
    assert len({mark.symbol for mark in wording.VERDICTS.values()}) == len(wording.VERDICTS)
    assert wording.mark("of a later version").symbol == "•"
