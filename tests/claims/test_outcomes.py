"""Every claim on runs whose truth is known: supported, contradicted, undecided, not asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from claims.made_up import Loss, made_up_run, with_result, without_answers
from llmkick.claims import assess as assessment
from llmkick.claims.assess import assess
from llmkick.claims.runs import ClaimRun
from llmkick.paper.numbers import paper_claims
from llmkick.statistics import Comparison, PerplexityComparison, Stopping
from llmkick.study.results.claim_records import ClaimRow

FACTS, CHOICE, OPEN, CLOSED = "factoid_qa", "multiple_choice:letter", "context_qa:open", "context_qa:closed"
METHODS = ("magnitude", "wanda", "sparsegpt")
FEW = 40  # items that decide nothing near a border


def outcome(claim: int, *runs: ClaimRun) -> ClaimRow:
    """The outcome of one claim; the others take ten times as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assessment, "paper_claims", lambda: {claim: paper_claims()[claim]})
        (row,) = assess(runs)
    assert row.id == claim
    return row


# The same questions with worked examples; with them a task can have a version of its own, as multiple_choice:cloze has.
BY_SHOTS = {CHOICE: {"shots": 0, "version": 1}, "multiple_choice:few": {"shots": 5, "version": 2, "task": CHOICE}}


def every_method(level: str, task: str, loss: Loss) -> dict[tuple[str, str], Loss]:
    return {(f"{method}@{level}", task): loss for method in METHODS}


def facts_run(mild: float = 0.0, failing: float = 0.15, rise: float = 0.04, **options: Any) -> ClaimRun:
    rises = {f"{method}@0.3": rise for method in METHODS}
    losses = {**every_method("0.2", FACTS, mild), **every_method("0.3", FACTS, failing)}
    return made_up_run(losses, rises=rises, **options)


def n_m_run(loss: float = 0.8, open_loss: float = 0.3, **options: Any) -> ClaimRun:
    losses = {("wanda@2:4", FACTS): loss, ("magnitude@4:8", FACTS): loss, ("wanda@2:4", CHOICE): open_loss}
    return made_up_run(losses, **options)


def rounding_run(choice: float = 0.0, facts: float = 0.09, pruned: float = 0.3, **options: Any) -> ClaimRun:
    bits = options.pop("bits", "8b")
    losses = {
        (f"gptq@{bits}", CHOICE): choice, (f"rtn@{bits}", CHOICE): choice, ("gptq@8b", FACTS): facts,
        ("wanda@0.5", CHOICE): pruned,
    }  # fmt: skip
    return made_up_run(losses, **options)


def instruction_run(mild: float = 0.0, severe: float = 0.3, fallen: float = 0.1, **options: Any) -> ClaimRun:
    losses = {**every_method("0.2", "instruction", mild), **every_method("0.5", "instruction", severe)}
    return made_up_run(losses, measures={f"{method}@0.5": fallen for method in METHODS}, **options)


def book_run(
    opened: float = 0.0, closed: float = 0.4, n_m: float = 0.3, level: str = "0.4", **options: Any
) -> ClaimRun:
    losses = {
        **every_method(level, OPEN, opened), **every_method(level, CLOSED, closed), ("wanda@2:4", OPEN): n_m,
    }  # fmt: skip
    return made_up_run(losses, **options)


def summary_run(
    mild: float = 0.0, short: float = 0.05, long: float = 0.4, rounded: float = -0.1, n_m: float = 0.5, **options: Any
) -> ClaimRun:
    lengths = {"short": short, "medium": (short + long) / 2, "long": long}
    losses = {
        **every_method("0.3", "summarization", mild), **every_method("0.5", "summarization", lengths),
        ("gptq@4b", "summarization"): 0.02, ("rtn@8b", "summarization"): rounded,
        ("wanda@2:4", "summarization"): n_m,
    }  # fmt: skip
    return made_up_run(losses, **options)


def discipline_run(stem: float = 0.05, others: float = 0.5, **options: Any) -> ClaimRun:
    by_name = {"stem": stem, "humanities": others, "social_sciences": others, "other": 0.2}
    return made_up_run(every_method("0.5", CHOICE, by_name), **options)


def disciplines_by_shots() -> ClaimRun:
    """With five examples STEM loses most, without any the others do."""
    by_shots = {
        CHOICE: {"stem": 0.05, "humanities": 0.5, "social_sciences": 0.5, "other": 0.2},
        "multiple_choice:few": {"stem": 0.6, "humanities": 0.1, "social_sciences": 0.1, "other": 0.2},
    }
    losses = {key: value for task, parts in by_shots.items() for key, value in every_method("0.5", task, parts).items()}
    settings = BY_SHOTS
    return made_up_run(losses, settings=settings, items=6000)


def magnitude_run(magnitude: float = 0.02, others: float = 0.02, **options: Any) -> ClaimRun:
    losses = {
        (f"{method}@{level}", FACTS): magnitude if method == "magnitude" else others
        for method in METHODS
        for level in ("0.1", "0.2")
    }
    return made_up_run(losses, **options)


def sample_runs(few: Mapping[str, float], many: float = 0.1, **options: Any) -> list[ClaimRun]:
    return [
        made_up_run(
            {(f"{method}@0.5", CHOICE): loss.get(method, many) for method in ("sparsegpt", "wanda")},
            name=f"samples-{count}", seed=count,
            study={"calibration": {"source": "c4", "sequences": count, "length": 128}}, **options,
        )
        for count, loss in ((1, few), (128, {}))
    ]  # fmt: skip


def samples_axis() -> ClaimRun:
    """Both counts in one run, whose recipes are labelled with them."""
    losses = {
        (f"{method}@0.5 [sequences={count}]", CHOICE): 0.4 if (method, count) == ("sparsegpt", 1) else 0.1
        for method in ("sparsegpt", "wanda")
        for count in (1, 128)
    }
    return made_up_run(losses, study={"calibration": {"source": "c4", "sequences": [1, 128], "length": 128}})


def samples_at_128(loss: float, source: str = "c4") -> ClaimRun:
    losses = {(f"{method}@0.5", CHOICE): loss for method in ("sparsegpt", "wanda")}
    return made_up_run(losses, name="first", study={"calibration": {"source": source, "sequences": 128, "length": 128}})


def shots_run(dense_gain: float = 0.0, sparse_gain: float = 0.3, **options: Any) -> ClaimRun:
    """The dense model's score rises by a share of what it has above chance; the sparse model loses so much less."""
    before = 0.6
    losses = {("wanda@0.5", CHOICE): 0.5, ("wanda@0.5", "multiple_choice:few"): 0.5 - sparse_gain}
    return made_up_run(
        losses,
        settings=BY_SHOTS,
        dense={CHOICE: before, "multiple_choice:few": before + dense_gain * (before - 0.25)},
        **options,
    )


def sizes_runs(sparse: float = 0.6, small: float = 0.6, **options: Any) -> list[ClaimRun]:
    """A large model pruned to the size of the small one, and the small one in a run of its own; scores."""
    large = made_up_run(
        {("wanda@0.4616", CHOICE): (0.7 - sparse) / 0.45}, dense={CHOICE: 0.7}, model="large", name="large",
        parameters=13_000_000_000, **options,
    )  # fmt: skip
    dense = made_up_run({("wanda@0.5", CHOICE): 0.5}, dense={CHOICE: small}, model="small", name="small", **options)
    return [large, dense]


def small_run(losses: Mapping[tuple[str, str], Loss]) -> ClaimRun:
    return made_up_run(losses, model="small", name="small2")


def without(run: ClaimRun, *recipes: str) -> ClaimRun:
    """A run that did not ask some recipes."""
    return with_result(run, comparisons=tuple(c for c in run.result.comparisons if c.recipe not in recipes))


def without_bounds(run: ClaimRun) -> ClaimRun:
    """A run in which too few windows of text say nothing about how far perplexity rose."""
    changed = (
        replace(c, interval=(-1.0, 5.0)) if isinstance(c, PerplexityComparison) else c for c in run.result.comparisons
    )
    return with_result(run, comparisons=tuple(changed))


def incomplete(run: ClaimRun) -> ClaimRun:
    """A run whose missing scores could change every verdict."""
    changed = (replace(c, verdict="incomplete", p_matching=None, p_not_matching=None) for c in run.result.comparisons)
    return with_result(run, comparisons=tuple(changed))


def stopped_early(run: ClaimRun) -> ClaimRun:
    stopping = Stopping(
        outcome="not matching", stopped=True, items=50, of=6000, unscored=0, unit="item", decided_after=1,
        p_matching=1.0, p_not_matching=0.01,
    )  # fmt: skip
    return with_result(run, comparisons=tuple(replace(c, stopping=stopping) for c in run.result.comparisons))


TRUTHS: list[tuple[int, str, Callable[[], Sequence[ClaimRun]]]] = [
    (1, "supported", lambda: [facts_run()]),
    (1, "contradicted", lambda: [facts_run(failing=0.0)]),  # matches beyond 25 %
    (1, "contradicted", lambda: [facts_run(mild=0.2, failing=0.3)]),  # fails before
    (1, "contradicted", lambda: [facts_run(rise=0.3)]),  # perplexity shows it too
    (1, "undecided", lambda: [facts_run(mild=0.04, failing=0.06, items=200)]),
    (1, "not asked", lambda: [made_up_run(every_method("0.3", FACTS, 0.2))]),  # no perplexity
    (1, "undecided", lambda: [without(facts_run(), "sparsegpt@0.2")]),  # no level below 25 % of one method
    (1, "contradicted", lambda: [without(facts_run(failing=0.0), "sparsegpt@0.2", "wanda@0.2")]),
    (1, "not asked", lambda: [facts_run(settings={"perplexity": {"metric": "bits_per_byte"}})]),
    (1, "undecided", lambda: [without_bounds(facts_run())]),  # too few windows
    (2, "undecided", lambda: [incomplete(n_m_run())]),
    (2, "supported", lambda: [n_m_run()]),
    (2, "contradicted", lambda: [n_m_run(open_loss=0.0)]),
    (2, "contradicted", lambda: [n_m_run(loss=0.3)]),  # not matching, but far from half
    (2, "undecided", lambda: [n_m_run(loss=0.5)]),
    (2, "undecided", lambda: [made_up_run({("wanda@2:4", CHOICE): 0.5})]),  # factoid QA was not asked
    (2, "not asked", lambda: [made_up_run({("wanda@15:16", FACTS): 0.0})]),
    (3, "supported", lambda: [rounding_run()]),
    (3, "contradicted", lambda: [rounding_run(facts=0.0)]),
    (3, "contradicted", lambda: [rounding_run(choice=0.3, pruned=0.05)]),
    (3, "undecided", lambda: [rounding_run(items=FEW)]),
    (3, "supported", lambda: [rounding_run(bits="4b", parameters=13_000_000_000)]),
    (3, "not asked", lambda: [made_up_run({("gptq@4b", CHOICE): 0.0, ("gptq@8b", FACTS): 0.1})]),
    (4, "supported", lambda: [instruction_run()]),
    (4, "contradicted", lambda: [instruction_run(severe=0.0)]),
    (4, "contradicted", lambda: [instruction_run(fallen=-0.1)]),
    (4, "undecided", lambda: [instruction_run(items=FEW)]),
    (4, "undecided", lambda: [without_answers(instruction_run())]),
    (4, "contradicted", lambda: [without_answers(instruction_run(severe=0.0))]),  # the verdicts are there
    (5, "supported", lambda: sizes_runs(sparse=0.5)),
    (5, "contradicted", lambda: sizes_runs(sparse=0.68, small=0.5)),
    (5, "undecided", lambda: sizes_runs(sparse=0.62, small=0.6, items=FEW)),
    (5, "not asked", lambda: sizes_runs()[:1]),
    (5, "supported", lambda: [*sizes_runs(sparse=0.5), small_run({("wanda@0.5", FACTS): 0.5})]),  # asked something else
    (6, "supported", lambda: [book_run()]),
    (6, "contradicted", lambda: [book_run(opened=0.3)]),
    (6, "contradicted", lambda: [book_run(n_m=0.0)]),
    (6, "undecided", lambda: [book_run(items=FEW)]),
    (6, "supported", lambda: [book_run(level="0.5", parameters=13_000_000_000)]),
    (6, "not asked", lambda: [book_run(level="0.6")]),
    (7, "supported", lambda: [summary_run()]),
    (7, "contradicted", lambda: [summary_run(mild=0.3)]),
    (7, "contradicted", lambda: [summary_run(short=0.4, long=0.0)]),
    (7, "contradicted", lambda: [summary_run(rounded=0.1)]),
    (7, "contradicted", lambda: [stopped_early(summary_run(mild=0.3))]),
    (7, "undecided", lambda: [without_answers(summary_run())]),
    (7, "undecided", lambda: [summary_run(items=FEW)]),
    (7, "undecided", lambda: [made_up_run(every_method("0.3", "summarization", 0.0))]),  # nothing but the first part
    (7, "not asked", lambda: [made_up_run(every_method("0.7", "summarization", 0.4))]),
    (8, "supported", lambda: [discipline_run(items=6000)]),
    (8, "contradicted", lambda: [discipline_run(stem=0.6, others=0.1, items=6000)]),
    (8, "undecided", lambda: [discipline_run(items=200, stem=0.3, others=0.3)]),
    (8, "supported", lambda: [disciplines_by_shots()]),  # the prompts with the fewest examples count
    (8, "not asked", lambda: [made_up_run(every_method("0.2", CHOICE, 0.1))]),
    (9, "supported", lambda: [magnitude_run()]),
    (9, "contradicted", lambda: [magnitude_run(magnitude=0.3)]),
    (9, "undecided", lambda: [magnitude_run(items=FEW)]),
    (9, "undecided", lambda: [without(magnitude_run(), "sparsegpt@0.1", "sparsegpt@0.2")]),
    (9, "not asked", lambda: [made_up_run({("magnitude@0.2", FACTS): 0.0, ("wanda@0.3", FACTS): 0.0})]),
    (10, "supported", lambda: sample_runs({"sparsegpt": 0.4})),
    (10, "contradicted", lambda: sample_runs({"sparsegpt": 0.4, "wanda": 0.4})),
    (10, "contradicted", lambda: sample_runs({}, items=6000)),
    (10, "undecided", lambda: sample_runs({"sparsegpt": 0.4}, items=FEW)),
    (10, "not asked", lambda: sample_runs({"sparsegpt": 0.4})[:1]),
    (10, "supported", lambda: [samples_axis()]),
    (10, "supported", lambda: [stopped_early(samples_at_128(0.5)), samples_axis()]),  # complete cells count
    (10, "not asked", lambda: [samples_at_128(0.5, source="pocket"), *sample_runs({"sparsegpt": 0.4})[:1]]),
    (11, "supported", lambda: [shots_run()]),
    (11, "contradicted", lambda: [shots_run(sparse_gain=0.0)]),
    (11, "contradicted", lambda: [shots_run(dense_gain=0.3)]),
    (11, "undecided", lambda: [shots_run(items=FEW)]),
    (11, "not asked", lambda: [made_up_run({("wanda@0.5", CHOICE): 0.2}, settings={CHOICE: {"shots": 0}})]),
]  # fmt: skip


@pytest.mark.parametrize(("claim", "expected", "runs"), TRUTHS, ids=lambda value: "" if callable(value) else str(value))
def test_outcome(claim: int, expected: str, runs: Callable[[], Sequence[ClaimRun]]) -> None:
    row = outcome(claim, *runs())
    assert row.outcome == expected, row.reason
    assert bool(row.statements) == (expected != "not asked")
    assert row.reason
    assert row.paper


@pytest.mark.slow
@pytest.mark.parametrize(("claim", "expected", "runs"), TRUTHS, ids=lambda value: "" if callable(value) else str(value))
def test_every_claim_is_read_on_runs_that_are_about_one(
    claim: int, expected: str, runs: Callable[[], Sequence[ClaimRun]]
) -> None:
    outcomes = {row.id: row.outcome for row in assess(runs())}
    assert list(outcomes) == list(paper_claims())
    assert outcomes[claim] == expected


@pytest.mark.parametrize(
    ("run", "refuted"),
    [
        (lambda: summary_run(mild=0.3), {"magnitude@0.3 matches on summarization"}),
        (
            lambda: summary_run(short=0.4, long=0.0),
            {"magnitude@0.5 costs long stories more than short ones on summarization"},
        ),
        # One rounding that gains would be enough: all of them decide.
        (lambda: summary_run(rounded=0.1), {"gptq@4b gains on summarization", "rtn@8b gains on summarization"}),
    ],
    ids=["matches", "lengths", "gains"],
)
def test_what_contradicts_is_named(run: Callable[[], ClaimRun], refuted: set[str]) -> None:
    row = outcome(7, run())
    said = row.reason.removeprefix("refuted: ").split("; ")
    methods = {text.replace(method, "magnitude") for text in said for method in METHODS if method in text}
    assert (methods or set(said)) == refuted
    assert row.p_against is not None
    assert row.p_against >= max(line.p_against for line in row.statements if line.statement in said)


def test_scores_that_a_judge_will_replace_are_not_read() -> None:
    """As in an unfinished run: the judge is asked when all answers are there."""
    unjudged = summary_run(study={"judge": {"model": "openai:judge"}}, name="later")
    row = outcome(7, unjudged)
    assert (row.outcome, row.reason) == ("not asked", "the judge of later has not been asked yet")
    assert outcome(7, unjudged, summary_run(seed=1)).outcome == "supported"


def test_the_most_samples_count_where_a_run_varies_them() -> None:
    """Claim 2 is about recipes as they are meant, not about those with one window of calibration."""
    losses = {("wanda@2:4 [sequences=1]", FACTS): 0.0, ("wanda@2:4 [sequences=128]", FACTS): 0.8}
    row = outcome(2, made_up_run(losses))
    assert row.outcome == "supported"
    assert {line.statement for line in row.statements if "match" in line.statement} == {
        "wanda@2:4 [sequences=128] does not match on factoid_qa"
    }


def test_what_stopped_early_is_not_read_item_by_item() -> None:
    """The parts of a task are compared on items that every model was asked, whatever its verdict."""
    stopped = stopped_early(discipline_run(items=6000))
    row = outcome(8, stopped)
    assert row.outcome == "not asked"
    assert 'stop = "never"' in row.reason
    parts = {"stem": 0.0, "humanities": 0.6, "social_sciences": 0.6}
    full = made_up_run(every_method("0.5", "multiple_choice:few", parts), items=6000, name="full")
    assert outcome(8, stopped, full).outcome == "supported"


@pytest.mark.parametrize(("claim", "run"), [(4, instruction_run), (8, discipline_run), (11, shots_run)])
@pytest.mark.parametrize("recipe", ["dense", "wanda@0.5"])
def test_cells_that_were_given_up_are_named(claim: int, run: Callable[[], ClaimRun], recipe: str) -> None:
    """A run concludes without the records of cells that it gave up."""
    whole = run()
    records = whole.records()
    assert records is not None
    left = records[records["recipe"] != recipe]
    row = outcome(claim, ClaimRun(name="run", result=whole.result, records=lambda: left))
    # Without the dense model's answers nothing is read of them; verdicts and the other recipes' answers count.
    rest = claim == 4 or (claim == 8 and recipe != "dense") or (claim == 11 and recipe != "dense")
    assert row.outcome == ("undecided" if rest else "not asked")
    assert f"no complete answers of {recipe} to" in row.reason


@pytest.mark.parametrize(("claim", "run"), [(4, instruction_run), (8, discipline_run), (11, shots_run)])
def test_cells_that_were_asked_in_part_are_no_answers(claim: int, run: Callable[[], ClaimRun]) -> None:
    """As in an unfinished run: what was asked of a recipe so far is another test than that of all items."""
    whole = run()
    records = whole.records()
    assert records is not None
    sparse = records.index[records["recipe"] == "wanda@0.5"]
    left = records.drop(sparse[len(sparse) // 3 :])
    row = outcome(claim, ClaimRun(name="run", result=whole.result, records=lambda: left))
    assert row.outcome == "undecided"
    assert "run holds no complete answers of wanda@0.5" in row.reason


@pytest.mark.parametrize("claim", [4, 7])
def test_a_verdict_that_stopped_early_counts_beside_complete_cells(claim: int) -> None:
    """What is read item by item comes from the others; whether the stopped cell matches is known all the same."""
    whole = {4: instruction_run, 7: summary_run}[claim]()
    assert outcome(claim, whole).outcome == "supported"
    level, task, loss = {4: ("0.5", "instruction", 0.0), 7: ("0.3", "summarization", 0.3)}[claim]
    losses = {("ria@0.2", task): 0.0, (f"ria@{level}", task): loss}
    stopped = stopped_early(made_up_run(losses, name="stopped"))
    row = outcome(claim, whole, stopped)
    assert row.outcome == "contradicted"
    assert f"ria@{level}" in row.reason


def test_perplexity_is_that_of_the_same_weights() -> None:
    """Of two runs with other calibration text, whatever their order."""
    text = {"source": "c4", "length": 128}
    few = facts_run(failing=0.3, rise=0.5, name="few", study={"calibration": {**text, "sequences": 1}})
    many = facts_run(failing=0.3, rise=0.02, name="many", study={"calibration": {**text, "sequences": 128}})
    rows = [outcome(1, *runs) for runs in ((few, many), (many, few))]
    assert [row.outcome for row in rows] == ["supported", "supported"]
    # A run of facts alone, with many windows: the perplexity of few windows is of another model.
    facts = with_result(many, comparisons=tuple(c for c in many.result.comparisons if isinstance(c, Comparison)))
    assert outcome(1, facts).outcome == "not asked"
    left = outcome(1, few, facts)
    assert "raises perplexity" not in " ".join(line.statement for line in left.statements if "wanda" in line.statement)


def test_closed_book_is_that_of_the_same_weights() -> None:
    text = {"source": "c4", "length": 128}
    opened, closed = (
        without_task(book_run(name=name, study={"calibration": {**text, "sequences": count}}), gone)
        for name, gone, count in (("open", CLOSED, 128), ("closed", OPEN, 1))
    )
    row = outcome(6, opened, closed)  # magnitude pruning is not calibrated
    lacking = {line.statement for line in row.statements if line.quantity == "not asked"}
    assert lacking == {"wanda: closed book", "sparsegpt: closed book"}
    assert outcome(6, opened).outcome == "not asked"
    same = without_task(book_run(name="same", study={"calibration": {**text, "sequences": 128}}), OPEN)
    assert outcome(6, closed, opened, same).outcome == "supported"


def without_task(run: ClaimRun, task: str) -> ClaimRun:
    left = tuple(c for c in run.result.comparisons if c.task != task)
    return with_result(run, comparisons=left, tasks=tuple(t for t in run.result.tasks if t.name != task))
