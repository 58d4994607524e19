"""Formatting of numbers and verdicts, the same in the terminal, on the page and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmkick.report.lookup import judged_loss
from llmkick.statistics import Comparison, PerplexityComparison

NOTHING = "–"
MINUS = "−"
GAIN = "+"  # before a number of a column of losses
GAIN_SIGN = "+ is a gain"  # for the header of such a column
TIMES_FROM = 10.0  # an increase of 1,000 % or more is easier to read as a factor
SCIENTIFIC_FROM = 1e6  # the perplexity of a broken model may have 20 digits, of which only the first say something


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The appearance of a verdict, which never depends on colour alone."""

    symbol: str
    style: str  # of rich
    meaning: str
    legend: str  # the same in a few words


VERDICTS: Mapping[str, Mark] = {
    "matching": Mark(
        symbol="✓",
        style="cyan",
        meaning="shown to keep all but the margin of the dense score",
        legend="shown to keep all but the margin",
    ),
    "not matching": Mark(
        symbol="✗",
        style="bold red",
        meaning="shown to have lost more than the margin",
        legend="shown to have lost more",
    ),
    "undecided": Mark(symbol="?", style="yellow", meaning="too few items to tell", legend="too few items to tell"),
    "no signal": Mark(
        symbol="∅",
        style="dim",
        meaning="the dense model is not shown to be above chance, so there is nothing to forget",
        legend="the dense model is at chance",
    ),
    "incomplete": Mark(
        symbol="…",
        style="magenta",
        meaning="items without a score could change the verdict, or which judgements are missing depends on the model",
        legend="missing scores could change it",
    ),
}


def mark(verdict: str) -> Mark:
    """The mark of a verdict; a verdict that this version does not know is shown by its name."""
    return VERDICTS.get(verdict, Mark(symbol="•", style="default", meaning=verdict, legend=verdict))


def percent(share: float | None, *, signed: bool = False) -> str:
    """0.314 → "31 %"; below 10 % with one decimal, so that 4.6 % is not mistaken for the margin of 5 %."""
    if share is None:
        return NOTHING
    points = _points(share)
    sign = "+" if signed and share > 0 and float(points) else ""
    return f"{sign}{points} %"


def percent_range(low: float, high: float) -> str:
    """(0.046, 0.31) → "4.6 to 31 %"; a single number if both ends have the same text."""
    return percent(high) if _points(low) == _points(high) else f"{_points(low)} to {percent(high)}"


def setting(share: float) -> str:
    """A share that a person set, with up to six digits: 0.05 → "5 %"."""
    return f"{100 * share:.6g} %"


def interval(bounds: Sequence[float] | None) -> str:
    """(0.22, 0.404) → "[22, 40]", in percent; empty if there is no interval."""
    return "" if bounds is None else f"[{_points(bounds[0])}, {_points(bounds[1])}]"


@dataclass(frozen=True, kw_only=True)
class Change:
    """A relative change and its interval, both as text; the text is empty if there is no interval."""

    value: str
    interval: str = ""

    def __str__(self) -> str:
        return f"{self.value} {self.interval}".strip()


def loss(comparison: Comparison) -> Change:
    """Relative loss with its interval: "31 % [22, 40]", a gain as "+16 % [+20, +12]"; empty without a signal."""
    if comparison.verdict == "no signal":
        return Change(value=NOTHING)
    judged = judged_loss(comparison)
    return relative_loss(judged.share, judged.interval)


def relative_loss(drop: float | None, bounds: Sequence[float] | None) -> Change:
    """A loss for a narrow column, whose header says GAIN_SIGN: "31 % [22, 40]", or "+16 % [+20, 3.1]" for a gain."""
    inside = "" if bounds is None else f"[{_loss_points(bounds[0])}, {_loss_points(bounds[1])}]"
    return Change(value=NOTHING if drop is None else f"{_loss_points(drop)} %", interval=inside)


def loss_number(drop: float | None) -> str:
    """The number of a loss alone, in percent: "31", "4.6", "+16" for a gain."""
    return NOTHING if drop is None else _loss_points(drop)


def loss_words(drop: float) -> str:
    """ "loss of 31 %" or "gain of 16 %", for a sentence."""
    return f"{'gain' if _is_gain(drop) else 'loss'} of {_loss_points(drop).removeprefix(GAIN)} %"


def loss_sentence(comparison: Comparison) -> str:
    """ "loss of 31 % [22, 40]" or "gain of 16 % [+20, +12]"; empty without a number."""
    judged = judged_loss(comparison)
    return "" if comparison.verdict == "no signal" else stated_loss(judged.share, judged.interval)


def stated_loss(drop: float | None, bounds: Sequence[float] | None) -> str:
    """A loss and its interval for a sentence: "loss of 31 % [22, 40]"; empty without a number."""
    return "" if drop is None else f"{loss_words(drop)} {relative_loss(drop, bounds).interval}".strip()


def loss_range(bounds: Sequence[float]) -> str:
    """The bounds of a loss in words: "a loss of 22 to 40 %", "from a gain of 20 % to a loss of 12 %"."""
    low, high = bounds
    if _is_gain(low) != _is_gain(high):
        return f"from a {loss_words(low)} to a {loss_words(high)}"
    if _is_gain(low):
        low, high = -high, -low
        return f"a gain of {percent_range(low, high)}"
    return f"a loss of {percent_range(low, high)}"


def interval_name(alpha: float) -> str:
    """What the bounds of a comparison are called, wherever they are shown: "95 % bounds"."""
    return f"{setting(1 - alpha)} bounds"


def interval_note(alpha: float) -> str:
    """How the bounds of a comparison and its verdict go together, in a few words."""
    return (
        f"The loss is above the lower bound and below the upper one, each with {setting(1 - alpha)} confidence. "
        "Matching means that the upper bound is below the margin, not matching that the lower one is above it. Where "
        "guessing scores, the loss is that of the part above chance."
    )


def increase(comparison: PerplexityComparison, *, signed: bool = True) -> Change:
    """Relative increase of perplexity with its interval: "+14 % [12, 17]", or "×24 [21, 27]"."""
    share, bounds = comparison.relative_increase, comparison.interval
    if share < TIMES_FROM:
        return Change(value=percent(share, signed=signed), interval=interval(bounds))
    factors = "" if bounds is None else f"[{1 + bounds[0]:.3g}, {1 + bounds[1]:.3g}]"
    return Change(value=f"×{1 + share:.3g}", interval=factors)


def factor(ratio: float) -> str:
    """A perplexity over that of the dense model: "×1.14", "×24"."""
    return f"×{ratio:.2f}" if ratio < TIMES_FROM else f"×{ratio:.3g}"


def difference(value: float | None, bounds: Sequence[float] | None) -> str:
    """A difference of scores with its interval: "−0.12 [−0.20, −0.04]"."""
    if value is None:
        return NOTHING
    inside = "" if bounds is None else f" [{_signed(bounds[0])}, {_signed(bounds[1])}]"
    return _signed(value) + inside


def score(value: float | None, metric: str = "") -> str:
    """A score with two decimals; a perplexity with three digits, of a million or more as "3.2e+21"."""
    if value is None:
        return NOTHING
    if metric != "perplexity" or value < 10:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else _whole(value, ",.0f")


def p_value(p: float | None) -> str:
    """Three decimals, "< 0.001" below that."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def size(count: float) -> str:
    """Bytes with a decimal unit prefix (powers of 1,000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def listed(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def counted(number: int, noun: str) -> str:
    """ "1 item", "12 items", "2 studies"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("dy") else f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def _is_gain(drop: float) -> bool:
    """Whether a loss, as it is shown, is below nothing."""
    return _points(drop).startswith(MINUS)


def _loss_points(drop: float) -> str:
    return _points(drop).replace(MINUS, GAIN)


def _points(share: float) -> str:
    value = 100 * share
    text = f"{abs(value):.1f}" if abs(value) < 9.95 else _whole(abs(value), ".0f")
    return MINUS + text if value < 0 and float(text) else text


def _whole(value: float, form: str) -> str:
    """A number in a form without decimals, from SCIENTIFIC_FROM on with three digits and an exponent."""
    return f"{value:{form}}" if value < SCIENTIFIC_FROM else f"{value:.3g}"


def _signed(value: float) -> str:
    text = f"{abs(value):.2f}" if abs(value) < SCIENTIFIC_FROM else f"{abs(value):.3g}"
    return text if not float(text) else f"{MINUS if value < 0 else '+'}{text}"
