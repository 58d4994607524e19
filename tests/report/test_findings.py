import re

import pytest

from llmkick.report.findings import find
from llmkick.report.numbers import missing_judgements
from report.synthetic import build_run, task_comparison


def verdicts(result):
    return {(entry.recipe, entry.task): entry for entry in result.comparisons if entry.kind == "task"}


@pytest.mark.parametrize("which", ["plain", "result"])
def test_every_claim_is_a_verdict(which, request):
    result = request.getfixturevalue(which)
    known = verdicts(result)
    claims = [claim for finding in find(result) for claim in finding.claims]
    assert claims
    for claim in claims:
        assert known[claim.recipe, claim.task].verdict == claim.verdict


def test_what_is_said_to_be_lost_or_kept_is_claimed(plain):
    """A sentence names no task as lost or kept without a verdict behind it."""
    said = set()
    for finding in find(plain):
        lost = {claim.task for claim in finding.claims if claim.verdict == "not matching"}
        kept = {claim.task for claim in finding.claims if claim.verdict == "matching"}
        for _, task in re.findall(r"loses [^;]*?(of) ([a-z_]+(?::[a-z]+)?)", finding.text):
            assert task in lost
            said.add("lost")
        if " keeps " in finding.text:
            assert kept
            said.add("kept")
    assert said == {"lost", "kept"}


def test_perplexity_is_called_silent_only_where_the_intervals_are_apart(plain):
    finding = next(finding for finding in find(plain) if finding.topic == "perplexity")
    entry = verdicts(plain)[finding.claims[0].recipe, finding.claims[0].task]
    control = next(e for e in plain.comparisons if e.kind == "perplexity" and e.recipe == entry.recipe)
    assert control.interval[1] < entry.interval[0]
    assert ("would not have told" in finding.text) == (control.outcome == "within margin")


def test_only_and_up_to_are_earned(plain):
    known = verdicts(plain)
    for finding in find(plain):
        if finding.topic != "method":
            continue
        losing = [claim for claim in finding.claims if claim.verdict == "not matching"]
        if "rises by only" in finding.text:
            entry = known[losing[0].recipe, losing[0].task]
            control = next(e for e in plain.comparisons if e.kind == "perplexity" and e.recipe == entry.recipe)
            assert control.interval[1] < entry.interval[0]
        if "up to" in finding.text:
            assert len({claim.recipe for claim in finding.claims if claim.verdict == "matching"}) > 1


def entry(recipe, verdict, *, task="factoid_qa", drop=0.0, interval=(-0.1, 0.1)):
    return task_comparison(task=task, recipe=recipe, relative_drop=drop, interval=interval, verdict=verdict)


def with_comparisons(result, entries):
    changes = {
        "comparisons": entries,
        "study": result.study.model_copy(update={"recipes": tuple(one.recipe for one in entries)}),
        "overall": [{"recipe": one.recipe, "verdict": one.verdict} for one in entries],
        "recipes": (),
    }
    return type(result)(**{**vars(result), **changes})


def texts(result):
    return {finding.topic: finding.text for finding in find(result)}


def test_a_gap_in_the_levels_ends_what_is_kept(plain):
    some = [entry("wanda@0.1", "matching"), entry("wanda@0.2", "undecided"), entry("wanda@0.3", "matching")]
    assert texts(with_comparisons(plain, some))["method"] == "wanda keeps factoid_qa at 0.1."
    first_open = [entry("wanda@0.1", "undecided"), entry("wanda@0.2", "matching")]
    assert "method" not in texts(with_comparisons(plain, first_open))
    all_kept = [entry("wanda@0.2", "matching"), entry("wanda@0.1", "matching")]
    assert texts(with_comparisons(plain, all_kept))["method"] == (
        "wanda keeps factoid_qa up to 0.2, the strongest level tried."
    )


def test_a_loss_whose_interval_holds_zero_is_told_by_its_margin(plain):
    some = [entry("wanda@0.5", "not matching", drop=1.0, interval=(-0.17, 1.0))]
    assert texts(with_comparisons(plain, some))["method"] == (
        "wanda at 0.5 loses more than 5 % of factoid_qa (estimate: loss of 100 % [+17, 100])."
    )
    without = [entry("wanda@0.5", "not matching", drop=0.4, interval=None)]
    assert "more than 5 %" in texts(with_comparisons(plain, without))["method"]


def test_nothing_decided_is_said_to_be_nothing_decided(plain):
    found = texts(with_comparisons(plain, [entry("wanda@0.1", "undecided"), entry("rtn@8b", "undecided")]))
    assert found["overall"] == "Of 2 recipes: none shown to match the dense model; 2 undecided."
    assert found["undecided"].startswith("2 of 2 verdicts are undecided: too few items to tell (the paper's rule")
    assert "20 % or more" in found["undecided"]
    assert set(found) == {"overall", "undecided"}


def test_what_is_not_known_yet_counts(plain):
    """Of an unfinished run, the recipes and the tasks that were not asked are no part of any “all”."""
    half = [
        entry("wanda@0.1", "matching"),
        entry("wanda@0.1", "matching", task="multiple_choice:letter"),
        entry("wanda@0.2", "not matching", drop=0.4, interval=(0.3, 0.5)),
    ]
    shown = with_comparisons(plain, half)
    study = shown.study.model_copy(update={"recipes": ("wanda@0.1", "wanda@0.2", "rtn@8b", "rtn@4b")})
    overall = [{"recipe": "wanda@0.2", "verdict": "not matching"}]
    found = texts(type(shown)(**{**vars(shown), "study": study, "overall": overall}))
    assert found["overall"] == (
        "Of 4 recipes: none shown to match the dense model on every task that carries a signal; 1 shown to have lost "
        "more than 5 % on at least one task; 3 not known yet."
    )
    assert found["method"].startswith("wanda keeps factoid_qa and multiple_choice:letter at 0.1")
    half.append(entry("wanda@0.1", "matching", task="context_qa:open"))
    assert texts(with_comparisons(plain, half))["method"].startswith("wanda keeps every task that carries a signal at")


def test_no_signal_and_incomplete_are_told(plain):
    some = [entry("wanda@0.1", "no signal"), entry("wanda@0.2", "incomplete", task="context_qa:open")]
    found = texts(with_comparisons(plain, some))
    assert found["no signal"].startswith("factoid_qa tells nothing here")
    assert "context_qa:open could change" in found["incomplete"]
    assert "method" not in found


def test_verdicts_without_judgements_are_told_apart_from_other_gaps(plain):
    some = [
        entry("wanda@0.1", "incomplete", task="instruction:judge"),
        entry("wanda@0.2", "incomplete", task="context_qa:open"),
    ]
    row = {
        "task": "instruction:judge", "recipe": "wanda@0.1", "seed": None, "items": 80, "missing": 20, "share": 0.25,
        "dense_missing": 2, "dense_share": 0.025, "p": 1e-5, "adjusted_p": 2e-5, "differs": True,
    }  # fmt: skip
    judge = {"judgements": 140, "unanswered": 0, "prompt_tokens": 9, "completion_tokens": 9, "missing": [row]}
    result = with_comparisons(plain, some)
    judged = type(result)(**{**vars(result), "judge": judge})
    sentences = {finding.text: finding.claims for finding in find(judged) if finding.topic == "incomplete"}
    assert list(sentences) == [
        "1 verdict on context_qa:open could change with the items that have no score; see their reasons below.",
        "1 verdict on instruction:judge is incomplete: the judgements that are missing depend on the model; "
        "see “Missing judgements” below.",
    ]
    assert [claim.recipe for claims in sentences.values() for claim in claims] == ["wanda@0.2", "wanda@0.1"]
    (shown,) = missing_judgements(judged)
    assert (shown["missing"], shown["dense"], shown["differs"]) == ("20 (25 %)", "2 (2.5 %)", "yes: incomplete")
    # The same verdicts without a judge: the first kind of gap.
    assert texts(result)["incomplete"].startswith("2 verdicts on instruction:judge and context_qa:open could change")


def test_without_comparisons_nothing_is_claimed(plain, folder):
    assert [finding.claims for finding in find(with_comparisons(plain, []))] == [()]
    only_perplexity = build_run(folder, tasks=("perplexity",), items=8)
    (finding,) = find(only_perplexity)
    assert "Only perplexity" in finding.text


def test_findings_name_what_the_control_measures(plain):
    tasks = tuple(
        task.model_copy(update={"metric": "bits_per_byte"}) if task.is_control else task for task in plain.tasks
    )
    said = " ".join(finding.text for finding in find(plain.model_copy(update={"tasks": tasks})))
    assert "its per byte" in said
    assert "erplexity" not in said
    assert "erplexity" in " ".join(finding.text for finding in find(plain))
