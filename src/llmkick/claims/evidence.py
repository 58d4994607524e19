"""Evidence for and against a claim: p-values of its statements, and of all or some of them together.

Every statement is tested in both directions. A claim is supported if the hypothesis that it is false is rejected, and
contradicted if the hypothesis that it is true is rejected; each errs in at most alpha of draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scipy import special

from llmkick.statistics import Comparison, PerplexityComparison
from llmkick.statistics.mean import MeanTest

UNKNOWN = 1.0  # the p-value of what cannot be tested
NOT_ASKED = "not asked"  # the quantity of a part that the runs leave out


class NotAskedError(Exception):
    """A claim that the runs say nothing about; the message is the reason."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A quantity with its one-sided bounds, each at the level 1 − alpha; without them it decides nothing.

    df, seed_df: degrees of freedom of the variance over items and of that between seeds; seed_share: the part of the
    squared error that is between seeds. They say how much further a bound at a lower alpha lies.
    """

    value: float | None
    interval: tuple[float, float] | None
    alpha: float
    df: float = math.inf
    seed_df: float = math.inf
    seed_share: float = 0.0

    def half_width(self, side: int) -> float | None:
        """The distance to the lower (0) or upper (1) end; None if unknown.

        The interval need not be symmetric: each end stands for the error on its own side (Zou & Donner 2008).
        """
        if self.value is None or self.interval is None or not all(map(math.isfinite, self.interval)):
            return None
        return abs(self.value - self.interval[side])

    def variances(self, side: int) -> tuple[float, float] | None:
        """The squared standard errors of this side over items and between seeds; None if unknown."""
        width = self.half_width(side)
        if width is None:
            return None
        items, seeds = (1 - self.seed_share), self.seed_share
        in_units = items * special.stdtrit(self.df, self.alpha) ** 2
        in_units += seeds * special.stdtrit(self.seed_df, self.alpha) ** 2 if seeds else 0.0
        square = width**2 / float(in_units)
        return items * square, seeds * square

    def tail(self, distance: float, side: int) -> float:
        """One-sided p of a distance from the value: alpha at the bound of this side, by Student's t beyond it."""
        squares = self.variances(side)
        if squares is None:
            return UNKNOWN
        if sum(squares) == 0:
            return 0.0 if distance > 0 else UNKNOWN
        return MeanTest(
            mean=distance,
            variance=squares[0],
            df=self.df,
            df_above=self.df,
            seed_variance=squares[1],
            seed_df=self.seed_df,
        ).p_above


@dataclass(frozen=True, kw_only=True)
class Statement:
    """A statement about one model: its p-values, and the quantity that they are of."""

    text: str
    run: str
    quantity: str
    estimate: Estimate
    p_for: float  # of the hypothesis that it is false
    p_against: float  # of the hypothesis that it is true


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The p-values of a claim, the statements that it is made of, and those of them that `p_against` is about."""

    p_for: float
    p_against: float
    statements: tuple[Statement, ...]
    weakest: tuple[Statement, ...]


def evidence_of(statement: Statement) -> Evidence:
    """A single statement as evidence."""
    return Evidence(p_for=statement.p_for, p_against=statement.p_against, statements=(statement,), weakest=(statement,))


def every(parts: Sequence[Evidence]) -> Evidence:
    """That all parts hold.

    For it the largest p-value counts (intersection-union, no correction); against it the smallest, times the number of
    parts (the first step of Holm), because any one part that fails is enough.
    """
    weakest = min(parts, key=lambda part: part.p_against)
    return Evidence(
        p_for=max(part.p_for for part in parts),
        p_against=min(1.0, len(parts) * weakest.p_against),
        statements=tuple(statement for part in parts for statement in part.statements),
        weakest=weakest.weakest,
    )


def some(parts: Sequence[Evidence]) -> Evidence:
    """That at least one part holds: the mirror image of `every`."""
    return Evidence(
        p_for=min(1.0, len(parts) * min(part.p_for for part in parts)),
        p_against=max(part.p_against for part in parts),
        statements=tuple(statement for part in parts for statement in part.statements),
        weakest=tuple(statement for part in parts for statement in part.weakest),
    )


def unasked(text: str, run: str, alpha: float) -> Evidence:
    """A part of a claim that the runs leave out: without it the claim can be contradicted, but not supported."""
    nothing = Estimate(value=None, interval=None, alpha=alpha)
    return evidence_of(
        Statement(text=text, run=run, quantity=NOT_ASKED, estimate=nothing, p_for=UNKNOWN, p_against=UNKNOWN)
    )


def read_or_unasked(read: Callable[[], Sequence[Evidence]], text: str, run: str, alpha: float) -> list[Evidence]:
    """The parts that `read` returns, or a part that is not asked, with the reason, where it cannot read them."""
    try:
        return list(read())
    except NotAskedError as error:
        return [unasked(f"{text} ({error})", run, alpha)]


def every_read(parts: Sequence[Evidence], reason: str) -> Evidence:
    """That all parts hold. Raises NotAskedError, with what stands in the way of reading any, where none was read."""
    statements = [statement for part in parts for statement in part.statements]
    if all(statement.quantity == NOT_ASKED for statement in statements):
        raise NotAskedError(statements[0].text if statements else reason)
    return every(parts)


def loss_of(comparison: Comparison) -> Estimate:
    """The relative loss that the verdict of a comparison is about, with its bounds.

    The bounds of an incomplete comparison leave out the missing scores, which could change the verdict: they count for
    nothing.
    """
    interval = None if comparison.verdict == "incomplete" else comparison.interval
    # The bounds of bets that stopped early are no quantiles of t.
    df = comparison.clusters - 1 if comparison.stopping is None and comparison.clusters > 1 else math.inf
    return Estimate(
        value=comparison.relative_drop, interval=interval, alpha=comparison.alpha, df=df, **_of_seeds(comparison)
    )


def _of_seeds(comparison: Comparison | PerplexityComparison) -> dict[str, float]:
    """What an estimate knows of its calibration seeds; where the run does not say it, that all variance is theirs."""
    if len(comparison.seeds) < 2:
        return {}
    share = comparison.seed_share
    return {"seed_df": len(comparison.seeds) - 1, "seed_share": 1.0 if share is None else share}


def matches(comparison: Comparison, run: str, *, name: str = "") -> Evidence:
    """That a model matches on a task: the verdict, with its p-values."""
    shown, refuted = (comparison.verdict == verdict for verdict in ("matching", "not matching"))
    return evidence_of(
        Statement(
            text=f"{name or comparison.recipe} matches on {comparison.task}",
            run=run,
            quantity="relative loss",
            estimate=loss_of(comparison),
            p_for=_as_decided(comparison.p_matching, decided=shown, alpha=comparison.alpha),
            p_against=_as_decided(comparison.p_not_matching, decided=refuted, alpha=comparison.alpha),
        )
    )


def does_not_match(comparison: Comparison, run: str, *, name: str = "") -> Evidence:
    """That a model does not match on a task."""
    text = f"{name or comparison.recipe} does not match on {comparison.task}"
    return opposite(matches(comparison, run), text)


def _as_decided(p: float | None, *, decided: bool, alpha: float) -> float:
    """A p-value that agrees with the verdict, which knows more: equal weights, missing scores, early stopping."""
    if decided:
        return p if p is not None and p < alpha else 0.0
    return UNKNOWN if p is None else max(p, alpha)


def above(estimate: Estimate, bound: float, text: str, run: str, quantity: str) -> Evidence:
    """That a quantity is above a bound: the p-values at which its interval would touch the bound."""
    p_for = p_against = UNKNOWN
    if estimate.value is not None:
        distance = estimate.value - bound
        p_for, p_against = estimate.tail(distance, 0), estimate.tail(-distance, 1)
    return evidence_of(
        Statement(text=text, run=run, quantity=quantity, estimate=estimate, p_for=p_for, p_against=p_against)
    )


def below(estimate: Estimate, bound: float, text: str, run: str, quantity: str) -> Evidence:
    """That a quantity is below a bound."""
    return opposite(above(estimate, bound, text, run, quantity), text)


def difference_of(first: Estimate, second: Estimate) -> Estimate:
    """first − second with its interval, by the method of variance estimates recovery (Zou & Donner 2008).

    It is exact for independent estimates and cautious for two losses against the same dense scores, whose errors
    share a part.
    """
    alpha = first.alpha
    if first.value is None or second.value is None:
        return Estimate(value=None, interval=None, alpha=alpha)
    value, ends = first.value - second.value, []
    for side in (0, 1):
        width, other = first.half_width(side), second.half_width(1 - side)
        if width is None or other is None:
            return Estimate(value=value, interval=None, alpha=alpha)
        ends.append(value + (1 if side else -1) * math.hypot(width, other))
    return Estimate(value=value, interval=(ends[0], ends[1]), alpha=alpha, **_joint_freedom(first, second))


def _joint_freedom(first: Estimate, second: Estimate) -> dict[str, float]:
    """Degrees of freedom of a difference, by Satterthwaite, and the part of its variance that is between seeds."""
    parts = []  # squared errors (over items, between seeds) with their degrees of freedom, means of both sides
    for estimate in (first, second):
        sides = [estimate.variances(side) or (0.0, 0.0) for side in (0, 1)]
        means = [sum(squares) / 2 for squares in zip(*sides, strict=True)]
        parts.append(tuple(zip(means, (estimate.df, estimate.seed_df), strict=True)))
    (items, df), (seeds, seed_df) = (_satterthwaite(terms) for terms in zip(*parts, strict=True))
    share = seeds / (items + seeds) if items + seeds else 0.0
    return {"df": df, "seed_df": seed_df, "seed_share": share}


def _satterthwaite(terms: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The sum of squared errors, and its degrees of freedom."""
    total = sum(square for square, _ in terms)
    weight = sum(square**2 / df for square, df in terms)
    return total, total**2 / weight if weight else math.inf


def rise_of(comparison: PerplexityComparison) -> Estimate:
    """The relative rise of perplexity on the scale of logarithms, on which its interval is nearly symmetric.

    A fall of 100 % as the lower bound says that few windows bound nothing: then there is no interval.
    """
    bounds = comparison.interval
    ends = None if bounds is None or bounds[0] <= -1 else (math.log1p(bounds[0]), math.log1p(bounds[1]))
    return Estimate(
        value=math.log1p(comparison.relative_increase),
        interval=ends,
        alpha=comparison.alpha,
        df=comparison.n - 1 if comparison.n > 1 else math.inf,
        **_of_seeds(comparison),
    )


def opposite(evidence: Evidence, text: str) -> Evidence:
    """The opposite of a single statement, in words of its own."""
    statement = evidence.statements[0]
    return evidence_of(replace(statement, text=text, p_for=evidence.p_against, p_against=evidence.p_for))


def percent(share: float) -> str:
    """A share of a rule as text: 0.05 → "5 %"."""
    return f"{100 * share:g} %"
