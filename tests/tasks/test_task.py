"""Tasks by name, the sample that a limit takes, and asking a model batch by batch."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.errors import ConfigError, DataError
from llmkick.models.language_model import GenerateRequest, Unanswered
from llmkick.paper import SETTINGS
from llmkick.tasks.data import sources
from llmkick.tasks.data.sources import read_pocket, stratified_sample
from llmkick.tasks.evaluate import BATCH_ITEMS, evaluate, evaluate_in_batches
from llmkick.tasks.registry import get_task, has_pocket_data, task_names
from llmkick.tasks.task import Item, Record, content_hash, summary_value
from scripted import ScriptedModel

POCKET = [name for name in task_names() if has_pocket_data(name) and name != "perplexity"]


# By name


def test_every_name_makes_a_task_that_describes_itself():
    assert task_names() == [
        "factoid_qa",
        "factoid_qa:popqa",
        "multiple_choice:letter",
        "multiple_choice:cloze",
        "context_qa:closed",
        "context_qa:open",
        "summarization",
        "instruction",
        "instruction:vicuna",
        "perplexity",
        "perplexity:c4",
    ]
    for name in task_names():
        task = get_task(name, source="pocket" if has_pocket_data(name) else "hub")
        assert task.name == name
        assert task.setting in SETTINGS
        assert task.metric in ("accuracy", "perplexity", "ROUGE-L", "likelihood")
        assert task.version >= 1
    assert get_task("multiple_choice:letter").chance_level == 0.25


@pytest.mark.parametrize(("base", "default"), [("multiple_choice", "letter"), ("context_qa", "closed")])
def test_a_name_without_variant_means_the_first(base: str, default: str):
    assert get_task(base).name == f"{base}:{default}"


@pytest.mark.parametrize(
    "name", ["", "mmlu", "factoid_qa:", "factoid_qa:open", "context_qa:ajar", "context_qa:", "Factoid_QA", ":open"]
)
def test_an_unknown_name_is_refused_with_the_choices(name: str):
    with pytest.raises(ConfigError) as refused:
        get_task(name)
    assert str(refused.value) == f"unknown task {name!r}; choose from: {', '.join(task_names())}"


@pytest.mark.parametrize("limit", [0, -1, 2.5, 3.0, "3", True, math.nan])
@pytest.mark.parametrize("name", ["factoid_qa", "perplexity"])
def test_a_limit_is_a_whole_number_of_at_least_one(name: str, limit: object):
    with pytest.raises(ConfigError, match=f"limit of {name} must be a whole number of at least 1; got"):
        get_task(name, limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [1.5, "1", None, True])
def test_a_seed_is_a_whole_number(seed: object):
    with pytest.raises(ConfigError, match="seed of factoid_qa must be a whole number; got"):
        get_task("factoid_qa", seed=seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", task_names())
def test_unknown_protocols_and_sources_are_refused_with_the_choices(name: str):
    with pytest.raises(ConfigError, match=r"unknown protocol 'loose' for .*; choose from: strict, paper"):
        get_task(name, protocol="loose")
    with pytest.raises(ConfigError, match=rf"unknown source 'nowhere' for {name}.*pocket"):
        get_task(name, source="nowhere")


@pytest.mark.parametrize(
    ("name", "options", "choices"),
    [
        ("factoid_qa", {"shots": 3}, "answer_line, split, revision, sha256"),
        ("factoid_qa", {"window": 512}, "answer_line, split, revision, sha256"),
        (
            "multiple_choice:cloze",
            {"variant": "letter"},
            "shots, split, revision, sha256",
        ),  # never silently another variant
        ("multiple_choice", {"window": 512}, "shots, split, revision, sha256"),
        ("perplexity", {"shots": 0}, "window, unit, split, revision, sha256"),
        ("context_qa", {"key": 1}, "evidence_tokens, split, revision, sha256"),
    ],
)
def test_an_unknown_option_is_refused_with_the_choices(name: str, options: dict[str, object], choices: str):
    with pytest.raises(ConfigError) as refused:
        get_task(name, **options)
    assert str(refused.value) == f"unknown option {next(iter(options))!r} of {name}; choose from: {choices}"


# What a score depends on


@pytest.mark.parametrize("name", POCKET)
def test_a_key_is_plain_json_and_the_same_every_time(name: str):
    first, second = get_task(name, limit=7, seed=3).key, get_task(name, limit=7, seed=3).key
    assert first == second
    assert json.loads(json.dumps(first)) == first
    assert first["name"] == name


@pytest.mark.parametrize("changed", [{"limit": 8}, {"seed": 4}, {"shots": 2}])
def test_whatever_changes_a_score_changes_the_key(changed: dict[str, int]):
    base = {"limit": 7, "seed": 3, "shots": 5}
    assert get_task("multiple_choice:letter", **base).key != get_task("multiple_choice:letter", **base | changed).key


def test_another_data_set_has_another_key(monkeypatch: pytest.MonkeyPatch):
    before = get_task("factoid_qa").key["data"]
    rows = read_pocket("factoid_qa.jsonl", ())
    rows[17]["answers"][0] += "s"
    monkeypatch.setattr("llmkick.tasks.suite.factoid_qa.read_pocket", lambda *_: rows)
    assert get_task("factoid_qa").key["data"] != before


def test_the_content_hash_covers_every_field_and_the_order():
    item = Item(id="1", cluster="c", question="q", context="x", references=("r",), choices=("a", "b"), answer=0)
    changes = {
        "id": "2", "cluster": "d", "question": "Q", "context": "", "references": ("r", "s"), "choices": ("b", "a"),
        "answer": 1, "tokens": (1,), "details": {"popularity": 1}, "follows": "0",
    }  # fmt: skip
    assert set(changes) == set(vars(item))
    hashes = {content_hash([replace(item, **{name: value})]) for name, value in changes.items()}
    assert len(hashes | {content_hash([item])}) == len(changes) + 1
    other = replace(item, id="2")
    assert content_hash([item, other]) != content_hash([other, item])


# The sample


def items_of(sizes: list[int]) -> list[Item]:
    return [
        Item(id=f"{cluster}-{number}", cluster=f"cluster-{cluster}", question="")
        for cluster, size in enumerate(sizes)
        for number in range(size)
    ]


@settings(deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.data(), st.integers(0, 10_000))
def test_a_sample_keeps_its_size_order_and_the_share_of_each_cluster(sizes: list[int], data: st.DataObject, seed: int):
    items = items_of(sizes)
    limit = data.draw(st.integers(1, len(items) + 2))
    sample = stratified_sample(items, limit, seed)
    assert len(sample) == len({item.id for item in sample}) == min(limit, len(items))
    assert sample == [item for item in items if item in sample]
    assert sample == stratified_sample(items, limit, seed)
    counts = Counter(item.cluster for item in sample)
    for cluster, size in enumerate(sizes):
        share = size * len(sample) / len(items)
        assert abs(counts[f"cluster-{cluster}"] - share) <= 1


def test_every_item_is_as_likely_to_be_drawn():
    items = items_of([5, 10, 15])
    drawn = Counter(item.id for seed in range(2000) for item in stratified_sample(items, 6, seed))
    # Each item is in a fifth of the samples: 400 ± 18 of 2000. Never the first items.
    assert len(drawn) == len(items)
    assert all(abs(count - 400) < 5 * 18 for count in drawn.values())


def test_any_two_items_may_be_drawn_together():
    drawn = {tuple(item.id for item in stratified_sample(items_of([4]), 2, seed)) for seed in range(200)}
    assert len(drawn) == 6


@pytest.mark.parametrize("name", POCKET)
def test_a_limit_takes_neither_the_first_items_nor_the_same_for_every_seed(name: str):
    everything = [item.id for item in get_task(name).items()]
    # A question of two turns is two items, and there are no more than 24 stories.
    limit, count = {"summarization": (12, 12), "instruction": (12, 24)}.get(name, (24, 24))
    samples = [[item.id for item in get_task(name, limit=limit, seed=seed).items()] for seed in range(4)]
    assert len({tuple(sample) for sample in samples}) == 4
    assert all(len(sample) == count for sample in samples)
    assert all(sample != everything[:count] for sample in samples)
    assert [item.id for item in get_task(name, limit=10_000).items()] == everything


def test_a_study_of_one_item_an_domain_asks_every_domain():
    clusters = {item.cluster for item in get_task("factoid_qa").items()}
    sampled = [item.cluster for item in get_task("factoid_qa", limit=len(clusters)).items()]
    assert sorted(sampled) == sorted(clusters)


@pytest.mark.parametrize("limit", [None, 1, 50])
def test_closed_and_open_book_ask_the_same_questions(limit: int | None):
    closed, opened = (get_task(f"context_qa:{variant}", limit=limit, seed=5) for variant in ("closed", "open"))
    assert closed.items() == opened.items()


# Pocket files


def test_a_damaged_pocket_file_is_named_with_line_and_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources.resources, "files", lambda _: tmp_path)
    file = tmp_path / "x.jsonl"
    file.write_text('{"id": "1", "question": "?", "answers": []}\n{"id": "2"}\n', encoding="utf-8")
    assert len(read_pocket("x.jsonl", ("id",))) == 2
    with pytest.raises(DataError, match=r"^x.jsonl, line 2: no field question, answers$"):
        read_pocket("x.jsonl", ("id", "question", "answers"))
    file.write_text('{"id": "1"}\n{"id": \n', encoding="utf-8")
    with pytest.raises(DataError, match=r"^x.jsonl, line 2: not JSON"):
        read_pocket("x.jsonl", ("id",))


# Asking a model


def right_answers(request: GenerateRequest) -> str:
    return f"  Answer to {str(request.prompt)[-60:]}  \nmore"


def test_one_record_an_item_in_the_order_of_the_task():
    task = get_task("factoid_qa", limit=BATCH_ITEMS + 3)
    model = ScriptedModel(generation=right_answers)
    records = evaluate(model, task)
    assert [record.item_id for record in records] == [item.id for item in task.items()]
    assert [record.cluster for record in records] == [item.cluster for item in task.items()]
    assert [len(call) for call in model.calls] == [BATCH_ITEMS, 3]
    json.dumps([asdict(record) for record in records], allow_nan=False)


def test_each_answer_goes_to_its_own_item():
    task = get_task("factoid_qa", limit=BATCH_ITEMS + 3)
    answers = {item.question: item.references[0] for item in task.items()}
    spoiled = task.items()[40].question

    def answer(request: GenerateRequest) -> str:
        question = next(q for q in answers if f"Question: {q}\n" in str(request.prompt))
        return "something else" if question == spoiled else answers[question]

    wrong = [record.item_id for record in evaluate(ScriptedModel(generation=answer), task) if record.score != 1]
    assert wrong == [task.items()[40].id]


def test_batches_depend_on_the_task_alone_whatever_is_done():
    task = get_task("factoid_qa", limit=3 * BATCH_ITEMS - 5)
    ids = [item.id for item in task.items()]
    whole = ScriptedModel(generation=right_answers)
    list(evaluate_in_batches(whole, task))
    assert [len(call) for call in whole.calls] == [64, 64, 59]

    def asked_when_done(done: set[str]) -> list[int]:
        model = ScriptedModel(generation=right_answers)
        records = list(evaluate_in_batches(model, task, done=done))
        assert [len(batch) for batch in records] == [len(call) for call in model.calls]
        return [whole.calls.index(call) for call in model.calls]

    assert asked_when_done(set()) == [0, 1, 2]
    assert asked_when_done(set(ids[:64])) == [1, 2]
    assert asked_when_done(set(ids[64:128])) == [0, 2]
    # A batch with a single gap is asked whole again: its company is part of how it was asked.
    assert asked_when_done(set(ids) - {ids[70]}) == [1]
    assert asked_when_done(set(ids)) == []
    assert asked_when_done({"some other item"}) == [0, 1, 2]


def test_each_batch_is_given_out_before_the_next_is_asked():
    task = get_task("factoid_qa", limit=2 * BATCH_ITEMS)
    model = ScriptedModel(generation=right_answers)
    batches = evaluate_in_batches(model, task)
    next(batches)
    assert len(model.calls) == 1


def test_what_was_not_answered_is_unscored_and_says_why():
    task = get_task("factoid_qa", limit=10)
    refused = task.items()[4].question

    def answer(request: GenerateRequest) -> str | Unanswered:
        return Unanswered(reason="too long") if refused in str(request.prompt) else "no idea"

    records = evaluate(ScriptedModel(generation=answer), task)
    unscored = records[4]
    assert (unscored.score, unscored.unscored_reason, unscored.response) == (None, "too long", "")
    assert all(record.score == 0 and record.unscored_reason is None for record in records if record is not unscored)
    assert summary_value("accuracy", records) == 0


# The mean


def record(score: float | None, tokens: int = 0) -> Record:
    return Record(item_id="", cluster="", response="", score=score, tokens=tokens)


def test_the_mean_is_over_what_was_scored():
    assert summary_value("accuracy", [record(1), record(0), record(None), record(1)]) == pytest.approx(2 / 3)
    assert summary_value("accuracy", [record(0)]) == 0


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
def test_a_mean_of_nothing_is_undefined_not_zero(metric: str):
    assert summary_value(metric, []) is None
    assert summary_value(metric, [record(None), record(None)]) is None


def test_perplexity_weighs_windows_by_their_tokens():
    value = summary_value("perplexity", [record(1.0, 10), record(4.0, 30), record(None)])
    assert value == pytest.approx(math.exp((10 * 1 + 30 * 4) / 40))


def test_a_perplexity_beyond_a_double_is_undefined_not_a_crash():
    assert summary_value("perplexity", [record(800.0, 10)]) is None
