from dataclasses import replace

import pytest

from llmkick.report import formatting
from llmkick.statistics.verdict import Verdict
from report.synthetic import perplexity_comparison, task_comparison


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
    assert formatting.percent(share) == text


def test_a_signed_percent_has_a_sign_only_if_it_is_not_zero():
    assert formatting.percent(0.14, signed=True) == "+14 %"
    assert formatting.percent(0.0001, signed=True) == "0.0 %"
    assert formatting.percent(-0.14, signed=True) == "−14 %"


def test_loss_and_increase_carry_their_intervals():
    loss = task_comparison(relative_drop=0.31, interval=(0.22, 0.402), verdict="not matching")
    assert str(formatting.loss(loss)) == "31 % [22, 40]"
    assert str(formatting.loss(replace(loss, interval=None))) == "31 %"
    assert str(formatting.loss(replace(loss, verdict="no signal"))) == "–"
    rise = perplexity_comparison(relative_increase=0.14, interval=(0.118, -0.01))
    assert str(formatting.increase(rise)) == "+14 % [12, −1.0]"
    steep = perplexity_comparison(relative_increase=23.0, interval=(20.0, 25.04))
    assert str(formatting.increase(steep)) == "×24 [21, 26]"
    assert str(formatting.increase(rise, signed=False)) == "14 % [12, −1.0]"
    assert formatting.percent_range(0.046, 0.31) == "4.6 to 31 %"
    assert formatting.percent_range(0.2, 0.2001) == "20 %"


@pytest.mark.parametrize(
    ("drop", "bounds", "column", "words", "inside"),
    [
        (0.31, (0.22, 0.402), "31 % [22, 40]", "loss of 31 %", "a loss of 22 to 40 %"),
        (-0.16, (-0.2, -0.12), "+16 % [+20, +12]", "gain of 16 %", "a gain of 12 to 20 %"),
        (-0.04, (-0.1, 0.02), "+4.0 % [+10, 2.0]", "gain of 4.0 %", "from a gain of 10 % to a loss of 2.0 %"),
        (0.0, (0.0, 0.0), "0.0 % [0.0, 0.0]", "loss of 0.0 %", "a loss of 0.0 %"),
        (-0.0001, (-0.0002, 0.03), "0.0 % [0.0, 3.0]", "loss of 0.0 %", "a loss of 0.0 to 3.0 %"),
    ],
)
def test_a_negative_loss_is_a_gain(drop, bounds, column, words, inside):
    assert str(formatting.relative_loss(drop, bounds)) == column
    assert formatting.loss_words(drop) == words
    assert formatting.loss_range(bounds) == inside
    assert formatting.loss_number(drop) == column.split()[0]
    assert formatting.MINUS not in column
    comparison = task_comparison(relative_drop=drop, interval=bounds, verdict="undecided")
    assert formatting.loss_sentence(comparison) == f"{words} [{column.split(' [')[1]}"
    assert formatting.loss_sentence(replace(comparison, verdict="no signal")) == ""
    assert formatting.loss_sentence(replace(comparison, relative_drop=None)) == ""


def test_scores_and_perplexities():
    assert formatting.score(0.415) == "0.41"
    assert formatting.score(None) == "–"
    assert [formatting.score(x, "perplexity") for x in (5.123, 29.0, 453.2, 12345.6)] == [
        "5.12",
        "29.0",
        "453",
        "12,346",
    ]


@pytest.mark.parametrize(
    ("value", "perplexity", "difference", "percent"),
    [
        (999_999.0, "999,999", "+999999.00", "1e+08 %"),
        (1_000_000.0, "1e+06", "+1e+06", "1e+08 %"),
        (3.2e21, "3.2e+21", "+3.2e+21", "3.2e+23 %"),
        (1234.0, "1,234", "+1234.00", "123400 %"),
    ],
)
def test_a_number_of_many_digits_has_an_exponent(value, perplexity, difference, percent):
    assert formatting.score(value, "perplexity") == perplexity
    assert formatting.difference(value, None) == difference
    assert formatting.difference(-value, None) == difference.replace("+", "−", 1)
    assert formatting.percent(value) == percent
    # As the factor beside it, which has an exponent from a thousand on.
    assert formatting.factor(value).removeprefix("×") == f"{value:.3g}"


def test_sizes_times_and_p_values():
    assert [formatting.size(x) for x in (999, 1000, 212_336_640, 5e15)] == ["999 B", "1 kB", "212 MB", "5e+03 TB"]
    assert [formatting.duration(x) for x in (3.51, 150, 9000)] == ["3.5 s", "2.5 min", "2.5 h"]
    assert [formatting.p_value(p) for p in (0.0001, 0.04, None)] == ["< 0.001", "0.040", "–"]


def test_plurals_and_lists():
    assert [formatting.counted(n, "item") for n in (0, 1, 1200)] == ["0 items", "1 item", "1,200 items"]
    assert formatting.counted(2, "loss") == "2 losses"
    assert formatting.listed(["a"]) == "a"
    assert formatting.listed(["a", "b", "c"]) == "a, b and c"
    assert formatting.setting(0.05) == "5 %"
    assert formatting.setting(1 - 0.05) == "95 %"


def test_every_verdict_has_a_mark_of_its_own():
    assert set(formatting.VERDICTS) == set(Verdict.__args__)
    assert len({mark.symbol for mark in formatting.VERDICTS.values()}) == len(formatting.VERDICTS)
    assert formatting.mark("of a later version").symbol == "•"
