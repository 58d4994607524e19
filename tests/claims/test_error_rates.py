"""How often a claim's outcome is wrong where the truth lies on the border of its rule: at most alpha, 5 %."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from claims.made_up import made_up_run, summary, with_result
from llmkick.claims import axes, knowledge, texts
from llmkick.claims.evidence import Evidence
from llmkick.claims.gains import gains_more_than_margin
from llmkick.claims.runs import ClaimRun, ModelRuns
from llmkick.statistics import Comparison, PerplexityComparison, compare, compare_perplexity
from llmkick.study.levels import level_of_text

DRAWS, ERROR, ALPHA, MARGIN = 300, 0.03, 0.05, 0.05
# So many draws of an error rate of 5 % show more than this in one of a thousand tests.
MOST = float(stats.binom.ppf(0.999, DRAWS, ALPHA)) / DRAWS
Z = float(stats.norm.ppf(1 - ALPHA))
FACTS, CHOICE, OPEN, CLOSED = "factoid_qa", "multiple_choice:letter", "context_qa:open", "context_qa:closed"

# Comparisons of which the draws replace what matters.
TASK = replace(compare([1.0, 1.0, 0.0], [1.0, 0.0, 0.0], margin=MARGIN, alpha=ALPHA, explain=False), clusters=10**6)
TEXT = replace(compare_perplexity([2.0, 2.1], [2.2, 2.1], margin=MARGIN, alpha=ALPHA), n=10**6)

# (recipe, task) → true relative loss; for perplexity the true rise, on the scale of logarithms.
Truth = Mapping[tuple[str, str], float]


def drawn(truth: Truth, rng: np.random.Generator, *, shared: float) -> list[Comparison | PerplexityComparison]:
    """One draw of every comparison: errors of the same size, of which a part is shared, as by the same dense scores."""
    common = rng.standard_normal()
    drawn_comparisons: list[Comparison | PerplexityComparison] = []
    for (recipe, task), loss in truth.items():
        value = loss + ERROR * (np.sqrt(shared) * common + np.sqrt(1 - shared) * rng.standard_normal())
        low, high = value - Z * ERROR, value + Z * ERROR
        if task == "perplexity":
            rise, *bounds = np.expm1([value, low, high])
            drawn_comparisons.append(
                replace(TEXT, recipe=recipe, task=task, relative_increase=rise, interval=(bounds[0], bounds[1]))
            )
            continue
        p = float(stats.norm.cdf((value - MARGIN) / ERROR))
        verdict = "matching" if p < ALPHA else "not matching" if 1 - p < ALPHA else "undecided"
        comparison = replace(TASK, recipe=recipe, task=task, relative_drop=value, interval=(low, high))
        drawn_comparisons.append(replace(comparison, verdict=verdict, p_matching=p, p_not_matching=1 - p))
    return drawn_comparisons


def error_rates(test: Callable[[ModelRuns], Evidence], truth: Truth, *, shared: float) -> tuple[float, float]:
    """How often the claim is called supported, and contradicted."""
    rng = np.random.default_rng(1)
    run = made_up_run({(FACTS, FACTS): 0.0}, items=2)
    tasks = tuple(summary(task, chance_level=0.0) for task in dict.fromkeys(task for _, task in truth))
    levels = tuple(level_of_text(recipe) for recipe in dict.fromkeys(recipe for recipe, _ in truth))
    run = with_result(run, tasks=tasks, recipes=levels)
    outcomes = []
    for _ in range(DRAWS):
        run_of_draw = with_result(run, comparisons=tuple(drawn(truth, rng, shared=shared)))
        evidence = test(model(run_of_draw))
        outcomes.append((evidence.p_for < ALPHA, evidence.p_against < ALPHA))
    supported, contradicted = np.mean(outcomes, axis=0)
    return float(supported), float(contradicted)


def model(run: ClaimRun) -> ModelRuns:
    return ModelRuns(name="toy", parameters=7_000_000_000, runs=(run,))


PRUNED = ("magnitude", "wanda", "sparsegpt")
# Every statement on its border: then "supported" and "contradicted" are both wrong.
ON_THE_BORDER: dict[str, tuple[Callable[[ModelRuns], Evidence], Truth]] = {
    "1": (
        knowledge.facts_go_first,
        {
            **{(f"{method}@{level}", FACTS): MARGIN for method in PRUNED for level in ("0.2", "0.3")},
            **{(f"{method}@0.3", "perplexity"): float(np.log(1.1)) for method in PRUNED},
        },
    ),
    "2": (knowledge.n_m_keeps_nothing, {("wanda@2:4", FACTS): 0.5, ("wanda@2:4", CLOSED): MARGIN}),
    "3": (
        knowledge.rounding_keeps_more,
        {("gptq@8b", CHOICE): MARGIN, ("gptq@8b", FACTS): MARGIN, ("wanda@0.5", CHOICE): MARGIN},
    ),
    "6": (
        knowledge.open_book_lasts,
        {("wanda@0.4", OPEN): MARGIN, ("wanda@0.4", CLOSED): MARGIN, ("wanda@2:4", OPEN): MARGIN},
    ),
    "9": (
        knowledge.magnitude_is_as_good,
        {(f"{method}@0.2", FACTS): 0.1 if method == "magnitude" else 0.05 for method in PRUNED},
    ),
}  # fmt: skip
# One statement on its border and the others far on the right side: then "supported" is wrong as often as it can be.
ONE_ON_THE_BORDER: dict[str, tuple[Callable[[ModelRuns], Evidence], Truth]] = {
    "1": (
        knowledge.facts_go_first,
        {("wanda@0.2", FACTS): -0.3, ("wanda@0.3", FACTS): MARGIN, ("wanda@0.3", "perplexity"): -0.3},
    ),
    "2": (knowledge.n_m_keeps_nothing, {("wanda@2:4", FACTS): 0.9, ("wanda@2:4", CLOSED): MARGIN}),
    "3": (
        knowledge.rounding_keeps_more,
        {("gptq@8b", CHOICE): -0.3, ("gptq@8b", FACTS): 0.6, ("wanda@0.5", CHOICE): -0.3},
    ),
    "9": (
        knowledge.magnitude_is_as_good,
        {("magnitude@0.2", FACTS): 0.1, ("wanda@0.2", FACTS): 0.05, ("sparsegpt@0.2", FACTS): 0.6},
    ),
}  # fmt: skip


@pytest.mark.parametrize("shared", [0.0, 0.5])
@pytest.mark.parametrize("claim", ON_THE_BORDER)
def test_neither_outcome_errs_often_on_the_border(claim: str, shared: float) -> None:
    test, truth = ON_THE_BORDER[claim]
    supported, contradicted = error_rates(test, truth, shared=shared)
    assert supported <= MOST
    assert contradicted <= MOST


@pytest.mark.parametrize("shared", [0.0, 0.5])
@pytest.mark.parametrize("claim", ONE_ON_THE_BORDER)
def test_support_does_not_err_often_where_one_statement_is_on_the_border(claim: str, shared: float) -> None:
    test, truth = ONE_ON_THE_BORDER[claim]
    supported, _ = error_rates(test, truth, shared=shared)
    assert supported <= MOST


def test_the_rates_are_those_of_a_test_that_uses_its_level() -> None:
    """A single statement with independent errors errs in about 5 % of draws: the bounds above are not empty."""
    test, truth = ONE_ON_THE_BORDER["9"]
    supported, _ = error_rates(test, truth, shared=0.0)
    assert supported > 0.02


def test_no_rounding_that_gains_is_found_among_many() -> None:
    """Holm: of eight roundings that lose nothing, one looks like a gain in a third of draws."""

    def gains(runs: ModelRuns) -> Evidence:
        return texts.some_rounding_gains(runs.cells(texts.is_summary))

    truth = {(f"rtn@{bits}b-g{group}", "summarization"): 0.0 for bits in (2, 3, 4, 8) for group in (64, 128)}
    supported, _ = error_rates(gains, truth, shared=0.0)
    assert supported <= MOST


@pytest.mark.parametrize("share", [0.3, 0.9])
@pytest.mark.parametrize("seeds", [2, 3])
def test_many_statements_of_few_seeds_do_not_contradict(seeds: int, share: float) -> None:
    """Ten patterns that lose exactly half: a bound at a tenth of alpha lies far out where seeds make the error."""
    rng = np.random.default_rng(4)
    recipes = [
        f"wanda@{kept}:{of}" for kept, of in ((1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (6, 12), (7, 14), (8, 16))
    ]
    run = with_result(made_up_run({(FACTS, FACTS): 0.0}, items=2), recipes=tuple(map(level_of_text, recipes)))
    contradicted = 0
    for _ in range(DRAWS):
        comparisons = []
        for recipe in recipes:
            value = 0.5 + ERROR * rng.standard_normal()
            between = ERROR**2 * share * rng.chisquare(seeds - 1) / (seeds - 1)
            over_items = ERROR**2 * (1 - share)
            width = float(np.sqrt(Z**2 * over_items + stats.t.ppf(1 - ALPHA, seeds - 1) ** 2 * between))
            comparisons.append(replace(
                TASK, recipe=recipe, task=FACTS, relative_drop=value, interval=(value - width, value + width),
                verdict="not matching", p_matching=1.0, p_not_matching=0.0,
                seeds=tuple(range(seeds)), seed_share=between / (between + over_items),
            ))  # fmt: skip
        evidence = knowledge.n_m_keeps_nothing(model(with_result(run, comparisons=tuple(comparisons))))
        contradicted += evidence.p_against < ALPHA
    assert contradicted / DRAWS <= MOST


@pytest.mark.parametrize(("sparsegpt", "wanda"), [(MARGIN, 0.0), (0.6, MARGIN)])
def test_samples_on_the_border(sparsegpt: float, wanda: float) -> None:
    """`few` samples cost a method this much more than many."""
    rng = np.random.default_rng(2)
    run = with_result(made_up_run({(FACTS, FACTS): 0.0}, items=2), tasks=(summary(CHOICE, chance_level=0.0),))
    levels = tuple(level_of_text(f"{method}@0.5") for method in ("sparsegpt", "wanda"))
    supported = 0
    for _ in range(DRAWS):
        runs = []
        for count, losses in ((1, (0.1 + sparsegpt, 0.1 + wanda)), (128, (0.1, 0.1))):
            truth = dict(zip((("sparsegpt@0.5", CHOICE), ("wanda@0.5", CHOICE)), losses, strict=True))
            settings = run.result.study.model_copy(update={"calibration": {"sequences": count}})
            result = {"study": settings, "recipes": levels, "comparisons": tuple(drawn(truth, rng, shared=0.0))}
            runs.append(replace(with_result(run, **result), name=f"samples-{count}"))
        evidence = axes.sparsegpt_needs_samples(ModelRuns(name="toy", parameters=1, runs=tuple(runs)))
        supported += evidence.p_for < ALPHA
    assert supported / DRAWS <= MOST


@pytest.mark.parametrize(("items", "lost_share"), [(100, 0.0), (300, 0.0), (300, 0.1)])
def test_worked_examples_on_the_border(items: int, lost_share: float) -> None:
    """A gain of exactly the margin, question by question; few answers change where none gets worse."""
    rng = np.random.default_rng(3)
    run = made_up_run({(CHOICE, CHOICE): 0.0}, items=2)
    task = summary(CHOICE, groups="strata")
    right = np.arange(items) < 0.6 * items
    dense = pd.DataFrame({"score": right.astype(float), "cluster": "subject"})
    gain = MARGIN * (0.6 - 0.25)
    outcomes = []
    for _ in range(DRAWS):
        before = rng.random(items) < 0.4
        lost, gained = rng.random(items) < lost_share, rng.random(items) < (gain + lost_share * 0.4) / 0.6
        after = np.where(before, ~lost, gained)
        frames = [pd.DataFrame({"score": answers.astype(float)}) for answers in (before, after)]
        evidence = gains_more_than_margin(frames[:1], frames[1:], dense, task=task, run=run, text="")
        outcomes.append((evidence.p_for < ALPHA, evidence.p_against < ALPHA))
    supported, contradicted = np.mean(outcomes, axis=0)
    assert supported <= MOST
    assert contradicted <= MOST
