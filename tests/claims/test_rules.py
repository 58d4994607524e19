"""What each rule reads of a run that asked everything: which recipes, on which tasks, and where its bounds are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from claims.made_up import made_up_run, with_result
from llmkick.claims import axes, knowledge, texts
from llmkick.claims.evidence import NOT_ASKED, Evidence, NotAskedError
from llmkick.claims.runs import ClaimRun, ModelRuns, models_of
from llmkick.errors import DataError
from llmkick.study.results.records import ComparedModel

FACTS, CHOICE, OPEN, CLOSED = "factoid_qa", "multiple_choice:letter", "context_qa:open", "context_qa:closed"
SUMMARIES, INSTRUCTIONS = "summarization", "instruction"
METHODS = ("magnitude", "wanda", "sparsegpt")
SPARSITIES = (0.1, 0.2, 0.24, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)
HALVES = ("wanda@1:4", "wanda@2:4", "magnitude@4:8")  # patterns that keep half of the weights or less
ROUNDED = ("rtn@8b", "gptq@8b", "rtn@4b", "gptq@4b", "rtn@3b")
SEVEN, THIRTEEN = 7_000_000_000, 13_000_000_000
LOSS, ALPHA = 0.2, 0.025


def everything(*tasks: str, parameters: int = SEVEN, items: int = 400, **options: Any) -> ModelRuns:
    """Every method at every level on these tasks, three patterns, one that keeps more than half, and roundings."""
    pruned = [f"{method}@{sparsity}" for method in METHODS for sparsity in SPARSITIES]
    recipes = [*pruned, *HALVES, "wanda@3:4", *ROUNDED]
    losses = {(recipe, task): LOSS for task in tasks for recipe in recipes}
    rises = dict.fromkeys(recipes, 0.05)
    (model,) = models_of([made_up_run(losses, items=items, rises=rises, parameters=parameters, **options)])
    return model


def read(evidence: Evidence) -> list[str]:
    return sorted(statement.text for statement in evidence.statements)


def by_method(*lines: str) -> list[str]:
    return sorted(line.format(method=method) for method in METHODS for line in lines)


def test_facts() -> None:
    """Claim 1 takes the last level before 25 % and the last from 25 to 35 %."""
    assert read(knowledge.facts_go_first(everything(FACTS))) == by_method(
        f"{{method}}@0.24 matches on {FACTS}",
        f"{{method}}@0.35 does not match on {FACTS}",
        "{method}@0.35 raises perplexity by less than 10 %",
    )


def test_facts_of_a_method_without_a_level_in_the_range() -> None:
    """It says nothing, and the others are read; a lack is named only where a level lies in the range."""
    losses = {("wanda@0.2", FACTS): 0.0, ("wanda@0.3", FACTS): 0.2, ("magnitude@0.2", FACTS): 0.0}
    losses |= {("magnitude@0.36", FACTS): 0.2, ("sparsegpt@0.25", FACTS): 0.2}
    (model,) = models_of([made_up_run(losses, rises={"wanda@0.3": 0.05})])
    assert read(knowledge.facts_go_first(model)) == sorted(
        [
            f"wanda@0.2 matches on {FACTS}", f"wanda@0.3 does not match on {FACTS}",
            "wanda@0.3 raises perplexity by less than 10 %", f"sparsegpt@0.25 does not match on {FACTS}",
            "sparsegpt: a level below 25 %", "sparsegpt: perplexity",
        ]
    )  # fmt: skip


def test_patterns() -> None:
    """Claim 2 takes patterns that keep half or less, on every task that asks for knowledge."""
    expected = [f"{recipe} does not match on {task}" for recipe in HALVES for task in (FACTS, CHOICE, CLOSED)]
    expected += [f"{recipe} loses at least 50 % of {FACTS}" for recipe in HALVES]
    evidence = knowledge.n_m_keeps_nothing(everything(FACTS, CHOICE, OPEN, CLOSED))
    assert read(evidence) == sorted(expected)


@pytest.mark.parametrize(("parameters", "bits"), [(SEVEN, 8), (THIRTEEN, 4)])
def test_rounding(parameters: int, bits: int) -> None:
    """Claim 3 is about 8 bits of a small and 4 bits of a large model, beside half of the weights; 8 bits lose facts."""
    rounded = [f"rtn@{bits}b", f"gptq@{bits}b"]
    expected = [f"{recipe} matches on {CHOICE}" for recipe in rounded]
    expected += [f"{recipe} does not match on {FACTS}" for recipe in ("rtn@8b", "gptq@8b")]
    expected += [f"{recipe} loses less than {method}@0.5 on {CHOICE}" for recipe in rounded for method in METHODS]
    evidence = knowledge.rounding_keeps_more(everything(FACTS, CHOICE, parameters=parameters))
    assert read(evidence) == sorted(expected)


def test_rounding_without_pruning_beside_it() -> None:
    (model,) = models_of([made_up_run({("rtn@8b", CHOICE): 0.0, ("rtn@8b", FACTS): 0.1})])
    assert read(knowledge.rounding_keeps_more(model)) == [
        "rounding loses less than 50 % sparsity on multiple choice",
        f"rtn@8b does not match on {FACTS}",
        f"rtn@8b matches on {CHOICE}",
    ]


def test_instructions() -> None:
    """Claim 4 takes the last level up to 25 % and the last beyond."""
    assert read(texts.fluent_but_empty(everything(INSTRUCTIONS))) == by_method(
        f"{{method}}@0.25 matches on {INSTRUCTIONS}",
        f"{{method}}@0.7 does not match on {INSTRUCTIONS}",
        f"{{method}}@0.7 answers with fewer unique tokens on {INSTRUCTIONS}",
        f"{{method}}@0.7 repeats itself more on {INSTRUCTIONS}",
    )


def test_measures_of_answers_are_those_of_the_records() -> None:
    """Of 103 unique tokens a tenth is gone, and the share of repetition is a tenth higher."""
    losses = {(recipe, INSTRUCTIONS): LOSS for recipe in ("wanda@0.2", "wanda@0.5")}
    (model,) = models_of([made_up_run(losses, measures={"wanda@0.5": 0.1})])
    values = {line.quantity: line.estimate.value for line in texts.fluent_but_empty(model).statements}
    assert values["change of unique tokens"] == pytest.approx(-10.3, abs=0.5)
    assert values["change of repetition"] == pytest.approx(0.1, abs=0.005)


@pytest.mark.parametrize("levels", [(0.1, 0.25), (0.26, 0.5)])
def test_instructions_on_one_side_say_nothing(levels: tuple[float, ...]) -> None:
    (model,) = models_of([made_up_run({(f"wanda@{level}", INSTRUCTIONS): 0.1 for level in levels})])
    with pytest.raises(NotAskedError, match=r"at up to 25 % sparsity and beyond"):
        texts.fluent_but_empty(model)


@pytest.mark.parametrize(("parameters", "level"), [(SEVEN, 0.4), (THIRTEEN, 0.5)])
def test_passages(parameters: int, level: float) -> None:
    """Claim 6 goes up to 40 % of a small and 50 % of a large model."""
    expected = by_method(
        f"{{method}}@{level} matches on {OPEN}", f"{{method}}@{level} loses less on {OPEN} than on {CLOSED}"
    )
    expected += [f"{recipe} does not match on {OPEN}" for recipe in HALVES]
    evidence = knowledge.open_book_lasts(everything(OPEN, CLOSED, parameters=parameters))
    assert read(evidence) == sorted(expected)


def test_runs_with_and_without_thoughts_are_not_read_together() -> None:
    plain, thinking, older = (
        made_up_run({("wanda@0.3", FACTS): 0.1}, name=name, study=settings)
        for name, settings in (("plain", {"thinking": "off"}), ("thinking", {"thinking": "on"}), ("older", {}))
    )
    with pytest.raises(DataError, match=r"plain and thinking cannot .* with thinking = 'off', the other"):
        models_of([plain, thinking])
    assert models_of([plain, older])


def test_passages_without_a_pattern() -> None:
    losses = {("wanda@0.4", OPEN): 0.0, ("wanda@0.4", CLOSED): 0.3, ("magnitude@0.4", OPEN): 0.0}
    (model,) = models_of([made_up_run(losses)])
    assert read(knowledge.open_book_lasts(model)) == [
        "N:M patterns do not match with the passage",
        "magnitude: closed book",
        f"magnitude@0.4 matches on {OPEN}",
        f"wanda@0.4 loses less on {OPEN} than on {CLOSED}",
        f"wanda@0.4 matches on {OPEN}",
    ]


def test_summaries() -> None:
    """Claim 7 takes the last level from 25 to 35 %, for the lengths that from 30 to 50 %, and every rounding."""
    expected = by_method(
        f"{{method}}@0.35 matches on {SUMMARIES}",
        f"{{method}}@0.5 costs long stories more than short ones on {SUMMARIES}",
    )
    expected += [f"{recipe} gains on {SUMMARIES}" for recipe in ROUNDED]
    expected += [f"wanda@2:4 does not match on {SUMMARIES}"]
    assert read(texts.summaries_hold_up(everything(SUMMARIES))) == sorted(expected)


def test_summaries_of_one_level() -> None:
    """What is lacking is named."""
    (model,) = models_of([made_up_run({("wanda@0.25", SUMMARIES): 0.0})])
    assert read(texts.summaries_hold_up(model)) == [
        "2:4 does not match on summaries",
        "long stories lose more than short ones",
        "rounding gains on summaries",
        f"wanda@0.25 matches on {SUMMARIES}",
    ]


@pytest.mark.parametrize("length", ["short", "long"])
def test_lengths_are_compared_where_there_are_two(length: str) -> None:
    """As in a file of stories that are all about as long."""
    whole = made_up_run({("wanda@0.3", SUMMARIES): 0.1}, items=900)
    records = whole.records()
    assert records is not None
    left = records[[details["bucket"] != length for details in records["details"]]]
    (model,) = models_of([replace(whole, records=lambda: left)])
    assert "long stories lose more than short ones" in read(texts.summaries_hold_up(model))


def test_disciplines() -> None:
    """Claim 8 takes the last level from 30 to 50 %."""
    expected = by_method(
        f"{{method}}@0.5 costs humanities a larger share of {CHOICE} than STEM",
        f"{{method}}@0.5 costs social sciences a larger share of {CHOICE} than STEM",
    )
    assert read(knowledge.humanities_lose_more(everything(CHOICE))) == expected


@pytest.mark.parametrize("discipline", ["stem", "humanities"])
def test_disciplines_that_were_not_asked(discipline: str) -> None:
    """Without STEM there is nothing to compare with; without one of the others, the other is read."""
    whole = made_up_run({("wanda@0.5", CHOICE): LOSS})
    records = whole.records()
    assert records is not None
    left = records[[details["discipline"] != discipline for details in records["details"]]]
    (model,) = models_of([replace(whole, records=lambda: left)])
    if discipline == "stem":
        with pytest.raises(NotAskedError, match="with a signal in the disciplines"):
            knowledge.humanities_lose_more(model)
    else:
        expected = f"wanda@0.5 costs social sciences a larger share of {CHOICE} than STEM"
        assert read(knowledge.humanities_lose_more(model)) == [expected]


def test_magnitude() -> None:
    """Claim 9 takes every level below 25 % and every knowledge task."""
    expected = [
        f"magnitude@{level} loses at most 5 % of the dense score more than {method}@{level} on {task}"
        for level in (0.1, 0.2, 0.24)
        for method in ("wanda", "sparsegpt")
        for task in (FACTS, CHOICE, CLOSED)
    ]
    assert read(knowledge.magnitude_is_as_good(everything(FACTS, CHOICE, OPEN, CLOSED))) == sorted(expected)


def samples(*recipes: str, task: str = CHOICE) -> ModelRuns:
    """Each recipe with 1 and with 128 windows of calibration text."""
    losses = {(f"{recipe} [sequences={count}]", task): LOSS for recipe in recipes for count in (1, 128)}
    study = {"calibration": {"source": "c4", "sequences": [1, 128], "length": 128}}
    (model,) = models_of([made_up_run(losses, study=study)])
    return model


def test_samples() -> None:
    """Claim 10 takes every sparsity of the two methods."""
    model = samples("sparsegpt@0.5", "wanda@0.5", "wanda@0.7", "wanda@2:4", "gptq@4b", "sparsegpt@2:4")
    assert read(axes.sparsegpt_needs_samples(model)) == [
        f"sparsegpt@0.5 [sequences=128] gains more than 5 % on {CHOICE} from 1 to 128 samples",
        f"wanda@0.5 [sequences=128] gains at most 5 % on {CHOICE} from 1 to 128 samples",
        f"wanda@0.7 [sequences=128] gains at most 5 % on {CHOICE} from 1 to 128 samples",
    ]


def test_of_two_complete_runs_the_first_counts() -> None:
    runs = [
        made_up_run({("wanda@0.5", CHOICE): LOSS}, study={"calibration": {"sequences": count}}, name=name)
        for count, name in ((128, "first"), (1, "few"), (128, "again"))
    ]
    (model,) = models_of(runs)
    read_of = {line.run for line in axes.sparsegpt_needs_samples(model).statements if line.quantity != NOT_ASKED}
    assert read_of == {"first"}


@pytest.mark.parametrize(("method", "other"), [("wanda", "sparsegpt"), ("sparsegpt", "wanda")])
def test_samples_of_one_method(method: str, other: str) -> None:
    texts_read = read(axes.sparsegpt_needs_samples(samples(f"{method}@0.5")))
    assert len(texts_read) == 2
    assert f"{other} with two counts" in texts_read


def shots(*recipes: str, of_facts: str = "") -> ModelRuns:
    """Recipes without and with five worked examples of multiple choice, and one of questions for facts."""
    choices = {CHOICE: {"shots": 0}, "multiple_choice:few": {"shots": 5, "task": CHOICE}}
    facts = {FACTS: {"shots": 0}, "factoid_qa:few": {"shots": 5, "task": FACTS}} if of_facts else {}
    losses = {(recipe, task): LOSS for task in choices for recipe in recipes}
    losses |= {(of_facts, task): LOSS for task in facts}
    (model,) = models_of([made_up_run(losses, settings={**choices, **facts})])
    return model


def test_worked_examples() -> None:
    """Claim 11 takes the last level from 30 to 60 % of every method, and the dense model beside it."""
    recipes = [f"{method}@{sparsity}" for method in METHODS for sparsity in SPARSITIES]
    evidence = axes.examples_help_sparse(shots(*recipes, of_facts="ria@0.5"))
    examples = f"from 0 to 5 worked examples on {CHOICE}"
    expected = by_method(f"{{method}}@0.6 gains more than 5 % {examples}")
    assert read(evidence) == sorted([*expected, f"dense: gains at most 5 % {examples}"])


@pytest.mark.parametrize("level", ["0.29", "0.61", "2:4"])
def test_worked_examples_outside_the_range_say_nothing(level: str) -> None:
    with pytest.raises(NotAskedError, match="at 30 to 60 % sparsity"):
        axes.examples_help_sparse(shots(f"wanda@{level}"))


@pytest.mark.parametrize(("rise", "shown"), [(0.094, True), (0.106, False)])
def test_perplexity_may_rise_by_a_tenth(rise: float, shown: bool) -> None:
    losses = {("wanda@0.2", FACTS): 0.0, ("wanda@0.3", FACTS): 0.3}
    (model,) = models_of([made_up_run(losses, rises={"wanda@0.3": rise})])
    evidence = knowledge.facts_go_first(model)
    assert (evidence.p_for < ALPHA, evidence.p_against < ALPHA) == (shown, not shown)


@pytest.mark.parametrize(("loss", "shown"), [(0.54, True), (0.46, False)])
def test_half_of_the_facts_is_the_bound(loss: float, shown: bool) -> None:
    (model,) = models_of([made_up_run({("wanda@2:4", FACTS): loss}, items=6000)])
    evidence = knowledge.n_m_keeps_nothing(model)
    assert (evidence.p_for < ALPHA, evidence.p_against < ALPHA) == (shown, not shown)


@pytest.mark.parametrize(
    ("precision", "bits"),
    [("Q4_K_M", 4), ("Q8_0", 8), ("int8", 8), ("gptq 4b", 4), ("8b", 8), ("float", None), ("Q40", None), ("", None)],
)
def test_the_bits_of_a_model_that_was_rounded_elsewhere(precision: str, bits: int | None) -> None:
    run = elsewhere(precision, dense="float")
    (cell,) = models_of([run])[0].cells(lambda task: task.name == CHOICE)
    assert knowledge.bits_of(cell) == bits


def test_a_model_rounded_as_its_dense_model_is_no_rounding() -> None:
    """Both come from the same kind of file; what was done to it between is not rounding."""
    (cell,) = models_of([elsewhere("Q4_K_M", dense="Q4_K_M")])[0].cells(lambda task: task.name == CHOICE)
    assert knowledge.bits_of(cell) is None


def elsewhere(precision: str, *, dense: str) -> ClaimRun:
    """A dense model of one precision beside an external one of another."""
    run = made_up_run({("mine", CHOICE): 0.1})
    model = ComparedModel.model_validate(
        {
            "label": "mine", "reference": "./mine", "architecture": "llama", "dtype": "bfloat16", "digest": "d",
            "source_precision": precision, "parameters": SEVEN, "stored_bytes": None, "zeros": None,
        }
    )  # fmt: skip
    about = run.result.model.model_copy(update={"source_precision": dense})
    return with_result(run, models=(model,), model=about)
