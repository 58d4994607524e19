"""The record types of the claims in results.json: what a study says about each claim of the paper."""

from __future__ import annotations

from typing import Literal

from llmkick.study.results.records import OpenRecord

ClaimOutcome = Literal["supported", "contradicted", "undecided", "not asked"]


class ClaimStatement(OpenRecord):
    """A statement that a claim is made of, and the numbers that speak for or against it.

    `value` is the quantity, `low` and `high` are its one-sided bounds at the study's level; None where undefined.
    `p_for` is the p-value of the hypothesis that the statement is false, `p_against` of the hypothesis that it is true.
    """

    statement: str
    run: str
    quantity: str
    value: float | None
    low: float | None
    high: float | None
    p_for: float
    p_against: float
    outcome: Literal["shown", "refuted", "open"]


class ClaimRow(OpenRecord):
    """A claim of the paper: its outcome, why, the rule in words, our numbers, and the paper's."""

    id: int
    title: str
    claim: str
    outcome: ClaimOutcome
    reason: str
    p_for: float | None
    p_against: float | None
    rule: str
    statements: tuple[ClaimStatement, ...]
    paper: tuple[str, ...]
