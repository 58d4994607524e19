"""The claims of the paper: the rule of each in words, and its outcome on the results of one run or of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from llmkick.claims import axes, knowledge, sizes, texts
from llmkick.claims.evidence import NOT_ASKED, Evidence, NotAskedError, Statement, every
from llmkick.claims.runs import ClaimRun, ModelRuns, models_of
from llmkick.paper.numbers import PaperClaim, paper_claims
from llmkick.study.results.claim_records import ClaimOutcome, ClaimRow, ClaimStatement


@dataclass(frozen=True, kw_only=True)
class _Test:
    """The rule of a claim in words, and the function that applies it to one model, or to all at once."""

    rule: str
    of_model: Callable[[ModelRuns], Evidence] | None = None
    of_all: Callable[[Sequence[ModelRuns]], Evidence] | None = None


_ALL = (
    " All statements must be shown (intersection-union, no correction); one refuted statement contradicts the claim, "
    "with its p-value times the number of statements (Holm)."
)
_TESTS: dict[int, _Test] = {
    1: _Test(
        of_model=knowledge.facts_go_first,
        rule="For every pruning method: the verdict on factoid QA is matching at the largest sparsity below 25 % and "
        "not matching at the largest from 25 to 35 %, where the interval of the rise of perplexity lies below 10 %."
        + _ALL,
    ),
    2: _Test(
        of_model=knowledge.n_m_keeps_nothing,
        rule="Every N:M pattern that keeps half of the weights or less is not matching on every knowledge task with a "
        "signal, and the interval of its loss on factoid QA lies above 50 %." + _ALL,
    ),
    3: _Test(
        of_model=knowledge.rounding_keeps_more,
        rule="Every rounding to 8 bits (from 10 billion parameters on: 4 bits) matches on multiple choice and loses "
        "less there than every pruning to 50 %; every rounding to 8 bits is not matching on factoid QA." + _ALL,
    ),
    4: _Test(
        of_model=texts.fluent_but_empty,
        rule="For every pruning method: instruction following (judged, if a judge was asked) matches at the largest "
        "sparsity up to 25 % and does not at the largest beyond, where answers have fewer unique tokens and more "
        "repeated 4-grams than the dense model's, item by item." + _ALL,
    ),
    5: _Test(
        of_all=sizes.sparse_is_no_better,
        rule="Every pruned model whose parameters other than zero are as many as those of a smaller dense model "
        "(within 5 %) is at most the margin better than it on multiple choice, item by item." + _ALL,
    ),
    6: _Test(
        of_model=knowledge.open_book_lasts,
        rule="For every pruning method, at the largest sparsity from 30 to 40 % (from 10 billion parameters on: 40 to "
        "50 %): open book matches and loses less than closed book; every N:M pattern that keeps half or less is not "
        "matching with open book." + _ALL,
    ),
    7: _Test(
        of_model=texts.summaries_hold_up,
        rule="Summaries (judged, if a judge was asked) match for every pruning method at the largest sparsity from 25 "
        "to 35 %; at the largest from 30 to 50 % long stories lose more than short ones; some rounding gains (its "
        "smallest p-value times the number of roundings); every 2:4 is not matching." + _ALL,
    ),
    8: _Test(
        of_model=knowledge.humanities_lose_more,
        rule="For every pruning method, at the largest sparsity from 30 to 50 %, humanities and social sciences each "
        "lose a larger share of their score in multiple choice than STEM." + _ALL,
    ),
    9: _Test(
        of_model=knowledge.magnitude_is_as_good,
        rule="At every sparsity below 25 %, on every knowledge task with a signal, the loss of magnitude pruning is at "
        "most the margin larger than that of Wanda and of SparseGPT." + _ALL,
    ),
    10: _Test(
        of_model=axes.sparsegpt_needs_samples,
        rule="On multiple choice, from the fewest to the most calibration samples, the loss of SparseGPT falls by more "
        "than the margin at every sparsity, and that of Wanda by at most the margin." + _ALL,
    ),
    11: _Test(
        of_model=axes.examples_help_sparse,
        rule="From the fewest to the most worked examples, every pruning method at its largest sparsity from 30 to "
        "60 % gains more than the margin on multiple choice, and the dense model at most the margin, item by item; "
        "gains are shares of the dense score above chance without examples." + _ALL,
    ),
}


def assess(runs: Sequence[ClaimRun]) -> list[ClaimRow]:
    """The outcome of every claim on the results of the runs, for all their models together.

    Several models are read like several methods: a claim is supported if it holds for every model that the runs ask
    about it. Raises DataError for runs that must not be read together.
    """
    models = models_of(runs)
    return [_assessed(claim, _TESTS[claim.id], models) for claim in paper_claims().values()]


def _assessed(claim: PaperClaim, test: _Test, models: Sequence[ModelRuns]) -> ClaimRow:
    try:
        evidence = _evidence(test, models)
    except NotAskedError as error:
        return _row(claim, test.rule, None, "not asked", str(error))
    outcome = _outcome(evidence, models[0].alpha)
    return _row(claim, test.rule, evidence, outcome, _reason(evidence, outcome, models[0].alpha))


def _evidence(test: _Test, models: Sequence[ModelRuns]) -> Evidence:
    if test.of_all is not None:
        return test.of_all(models)
    assert test.of_model is not None
    parts, reasons = [], []
    for model in models:
        try:
            parts.append(test.of_model(model))
        except NotAskedError as error:
            reasons.append(str(error))
    if not parts:
        raise NotAskedError("; ".join(dict.fromkeys(reasons)))
    return every(parts)


def _outcome(evidence: Evidence, alpha: float) -> ClaimOutcome:
    supported, contradicted = evidence.p_for < alpha, evidence.p_against < alpha
    if supported == contradicted:
        return "undecided"
    return "supported" if supported else "contradicted"


def _reason(evidence: Evidence, outcome: ClaimOutcome, alpha: float) -> str:
    """The statement that decides, or what is open."""
    statements = evidence.statements
    if outcome == "supported":
        return f"shown: {_counted(len(statements))}"
    if outcome == "contradicted":
        return f"refuted: {'; '.join(statement.text for statement in evidence.weakest)}"
    missing = [statement.text for statement in statements if statement.quantity == NOT_ASKED]
    opened = [s.text for s in statements if s.quantity != NOT_ASKED and _state(s, alpha) != "shown"]
    parts = [f"not asked: {'; '.join(missing)}"] if missing else []
    parts += [f"open: {len(opened)} of {_counted(len(statements) - len(missing))}, first {opened[0]}"] if opened else []
    # Statements of which one is enough are corrected for their number.
    return "; ".join(parts) or f"every statement is shown, but together only at p = {evidence.p_for:.2g}"


def _counted(number: int) -> str:
    return f"{number} statement{'' if number == 1 else 's'}"


def _state(statement: Statement, alpha: float) -> Literal["shown", "refuted", "open"]:
    if statement.p_for < alpha:
        return "shown"
    return "refuted" if statement.p_against < alpha else "open"


def _row(claim: PaperClaim, rule: str, evidence: Evidence | None, outcome: ClaimOutcome, reason: str) -> ClaimRow:
    return ClaimRow(
        id=claim.id,
        title=claim.title,
        claim=claim.text,
        outcome=outcome,
        reason=reason,
        p_for=evidence.p_for if evidence else None,
        p_against=evidence.p_against if evidence else None,
        rule=rule,
        statements=tuple(map(_record, evidence.statements)) if evidence else (),
        paper=claim.numbers,
    )


def _record(statement: Statement) -> ClaimStatement:
    low, high = statement.estimate.interval or (None, None)
    return ClaimStatement(
        statement=statement.text,
        run=statement.run,
        quantity=statement.quantity,
        value=statement.estimate.value,
        low=low,
        high=high,
        p_for=statement.p_for,
        p_against=statement.p_against,
        outcome=_state(statement, statement.estimate.alpha),
    )
