from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from llmkick.errors import ConfigError, DataError
from llmkick.models.language_model import Generation, Message, Unanswered
from llmkick.tasks.evaluate import Reference, evaluate, evaluate_in_batches
from llmkick.tasks.registry import get_task
from llmkick.tasks.suite.summarization import INSTRUCTION, Summarization, to_whole_sentences
from published import REAL, lines, put
from scripted import ScriptedModel, says, scored


def article(number: int, words: int, **changes: Any) -> dict[str, Any]:
    return {"id": f"story-{number}", "article": f"Story {number}. " + "It went on. " * (words // 3),
            "highlights": f"Highlight {number}.", **changes}  # fmt: skip


def folder_of(path: Path, rows: list[dict[str, Any]]) -> str:
    put(path / "validation.jsonl", lines(rows))
    return str(path)


# Asking


def test_the_story_is_asked_for_and_the_summary_never_shown():
    task = get_task("summarization")
    for item in task.items():
        for prompting in ("chat", "raw"):
            (request,) = task.requests(item, prompting)
            text = request.prompt if isinstance(request.prompt, str) else request.prompt[-1].content
            assert item.context in text
            assert item.references[0] not in text


def test_prompts():
    task = Summarization(words=60, max_new_tokens=96)
    item = task.items()[0]
    asked = f"{INSTRUCTION.format(words=60)}\n\n{item.context}"
    (chat,), (raw,) = task.requests(item, "chat"), task.requests(item, "raw")
    assert chat.prompt == (Message("user", asked),)
    assert (raw.prompt, raw.stops, raw.max_new_tokens) == (f"{asked}\n\nSummary:", ("\n\n",), 96)
    (paper,) = Summarization(protocol="paper").requests(item, "raw")
    assert paper.prompt == (
        "Summarize the given story in less than 150 words while preserving high coherence, consistency, fluency, "
        f"and relevance.\n\n{item.context}"
    )
    assert paper.stops == ()


# Scoring


def test_a_summary_is_held_against_the_reference_and_what_it_was_made_of():
    model = ScriptedModel(
        generation=lambda request: says(f" {reference} "), logprob=lambda request: scored(-6.0, tokens=3)
    )
    task = get_task("summarization", limit=3)
    reference = task.items()[0].references[0]
    first, *others = evaluate(model, task)
    assert first.score == 1
    assert first.response == reference
    assert first.details["rouge1"] == first.details["rouge2"] == first.details["rougeL"] == 1
    assert first.details["dense_logprob"] == -2.0
    assert first.details["length_kept"] is True
    assert first.details["copied_share"] < 0.5
    assert first.details["bucket"] in ("short", "medium", "long")
    # Alone it is its own reference.
    assert first.details["dense_rougeL"] == 1
    assert all(0 < record.score < 0.5 for record in others if record.score is not None)


def test_empty_summaries_score_zero_and_failures_are_unscored():
    task = get_task("summarization", limit=3)
    item = task.items()[0]
    empty = task.score(item, [says(" \n")])
    assert (empty.score, empty.details["length_kept"]) == (0.0, False)
    failed = task.score(item, [Unanswered(reason="no room")])
    assert (failed.score, failed.unscored_reason) == (None, "no room")
    cut = task.score(item, [Generation(text="A word", tokens=2, finish="length"), Unanswered(reason="NaN")])
    assert cut.truncated
    assert "dense_logprob" not in cut.details


def test_the_dense_model_reads_the_compressed_models_words():
    compressed = ScriptedModel(generation=lambda request: "a b c")
    dense = ScriptedModel(logprob=lambda request: scored(-4.0, tokens=2))
    task = get_task("summarization", limit=2)
    ids = [item.id for item in task.items()]
    reference = Reference(model=dense, answers={ids[0]: "a b c d"})
    (records,) = evaluate_in_batches(compressed, task, reference=reference)
    assert [record.details["dense_logprob"] for record in records] == [-2.0, -2.0]
    assert [request.continuation for request in dense.calls[0]] == ["a b c", "a b c"]
    assert [request.prompt for request in dense.calls[0]] == [request.prompt for request in compressed.calls[0]]
    assert records[0].details["dense_rouge1"] == pytest.approx(2 * 0.75 / 1.75, abs=1e-6)
    assert "dense_rouge1" not in records[1].details  # the dense model has no answer to it


def test_chance_is_what_another_storys_reference_scores(tmp_path: Path):
    rows = [article(n, 9, highlights=text) for n, text in enumerate(("a b c", "a b d", "x y z"))]
    task = Summarization(source=folder_of(tmp_path, rows))
    assert task.chance_level == pytest.approx((2 / 3 + 0 + 0) / 3, abs=1e-4)
    assert Summarization(source=folder_of(tmp_path / "one", rows[:1])).chance_level == 0
    pocket = get_task("summarization")
    assert 0.05 < pocket.chance_level < 0.15
    # A sample is held against the same level.
    assert get_task("summarization", limit=3).chance_level == pocket.chance_level


# Lengths


def test_pocket_stories_are_marked_and_sampled_by_length():
    assert Counter(item.details["bucket"] for item in get_task("summarization").items()) == {
        "short": 8, "medium": 8, "long": 8,
    }  # fmt: skip
    sampled = get_task("summarization", limit=6, seed=3).items()
    assert Counter(item.details["bucket"] for item in sampled) == {"short": 2, "medium": 2, "long": 2}
    assert all(item.cluster == item.id for item in sampled)


def test_quantiles_part_a_data_set_in_thirds(tmp_path: Path):
    task = Summarization(source=folder_of(tmp_path, [article(n, 30 * n) for n in range(1, 31)]))
    buckets = [item.details["bucket"] for item in task.items()]
    assert buckets == ["short"] * 10 + ["medium"] * 10 + ["long"] * 10
    # Of the whole data set: a sample does not move them.
    for item in Summarization(source=str(tmp_path), limit=5).items():
        assert item.details["bucket"] == buckets[int(item.id.removeprefix("story-")) - 1]


def test_fixed_lengths(tmp_path: Path):
    source = folder_of(tmp_path, [article(1, 30), article(2, 60), article(3, 90)])
    task = get_task("summarization", source=source, bucket_words=[32, 62])
    assert [item.details["bucket"] for item in task.items()] == ["short", "medium", "long"]
    assert task.key["bucket_words"] == [32, 62]
    assert get_task("summarization", source=source, bucket_words=[1000, 2000]).notes == ("no story is medium or long",)


def test_stories_once_each_and_without_their_highlights(tmp_path: Path):
    rows = [
        article(1, 30),
        article(2, 30, article="Told\nonce."),
        article(3, 30, article="Told once."),
        article(4, 30, article="The story.\n\n@highlight\n\nThe highlight"),
        article(5, 30, article="@highlight\n\nNothing else"),
    ]
    task = Summarization(source=folder_of(tmp_path, rows))
    assert [item.id for item in task.items()] == ["story-1", "story-2", "story-4"]
    assert task.items()[2].context == "The story."
    assert task.notes[:3] == (
        "1 stories left out: they are in the data before, word for word",
        "1 stories left out: they hold nothing but highlights",
        "2 stories had their highlights inside; they were taken out",
    )


# Stories too long for the model


def test_a_long_story_is_cut_at_a_sentence_and_says_so():
    task = Summarization(limit=3, words=60, max_new_tokens=40)
    model = ScriptedModel(max_tokens=900)  # characters
    whole = {item.id: item.context for item in task.items()}
    for item in task.items(model):
        (request,) = task.requests(item, "raw")
        assert len(request.prompt) + 40 <= 900 or item.details.get("story_cut") is None
        if item.context != whole[item.id]:
            assert whole[item.id].startswith(item.context)
            assert item.context[-1] in '.!?"”'
            assert item.details["story_cut"] is True
            assert item.details["story_tokens"] == len(item.context)
    assert any(item.details.get("story_cut") for item in task.items(model))
    record = task.score(task.items(model)[-1], [says("Words.")])
    assert record.details["story_cut"] is True


def test_a_story_without_any_room_is_left_to_the_model_to_refuse():
    task = Summarization(limit=1, max_new_tokens=40)
    assert task.items(ScriptedModel(max_tokens=60)) == task.items()


def test_cutting_back_to_sentences():
    assert to_whole_sentences('He said "go." And th') == 'He said "go."'
    assert to_whole_sentences("It cost 3.50 in all") == "It cost 3.50 in all"
    assert to_whole_sentences("One. Two! Thr") == "One. Two!"


def test_as_many_stories_of_each_length(tmp_path: Path):
    """A proportional sample of one short, two medium and nine long stories would hold hardly a short one."""
    lengths = (20, 50, 60, *range(100, 109))
    stories = [article(number, words) for number, words in enumerate(lengths)]
    task = Summarization(source=folder_of(tmp_path, stories), bucket_words=(30, 70), per_bucket=1)
    items = task.items()
    assert Counter(item.details["bucket"] for item in items) == {"short": 1, "medium": 1, "long": 1}
    assert items == task.items()
    assert task.key["per_bucket"] == 1
    assert "per_bucket" not in Summarization(source=str(tmp_path)).key
    with pytest.raises(DataError, match=r"per_bucket asks for 2 short stories; .* has 1"):
        Summarization(source=str(tmp_path), bucket_words=(30, 70), per_bucket=2).items()


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"words": 0}, "words of summarization must be a whole number of at least 1; got 0"),
        ({"max_new_tokens": True}, "max_new_tokens of summarization must be"),
        ({"protocol": "paper", "words": 60}, "words of summarization are 150 in protocol paper; got 60"),
        ({"per_bucket": 0}, "per_bucket of summarization must be a whole number of at least 1; got 0"),
        ({"per_bucket": 2, "limit": 6}, "limit of summarization and per_bucket do not go together"),
        ({"bucket_words": [5]}, "bucket_words of summarization are two rising whole numbers"),
        ({"bucket_words": [9, 5]}, "bucket_words of summarization are two rising whole numbers"),
        ({"source": "no-such-folder"}, "unknown source 'no-such-folder' for summarization"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        get_task("summarization", **options)


def test_a_repeated_id(tmp_path: Path):
    with pytest.raises(DataError, match="'story-1' is the id of"):
        Summarization(source=folder_of(tmp_path, [article(1, 9), article(1, 12)])).items()


@pytest.mark.skipif(not (REAL / "cnn_dailymail").is_dir(), reason="the real CNN/DailyMail is not at hand")
def test_the_real_data_set():
    task = Summarization(source=str(REAL / "cnn_dailymail"))
    items = task.items()
    with gzip.open(REAL / "cnn_dailymail" / "validation.jsonl.gz") as stream:
        rows = [json.loads(line) for line in stream]
    assert len(items) + sum(int(note.split()[0]) for note in task.notes if "left out" in note) == len(rows) == 500
    sizes = Counter(item.details["bucket"] for item in items)
    assert max(sizes.values()) - min(sizes.values()) <= 6  # stories of the same length stay together
    longest = {bucket: max(len(i.context.split()) for i in items if i.details["bucket"] == bucket) for bucket in sizes}
    shortest = {bucket: min(len(i.context.split()) for i in items if i.details["bucket"] == bucket) for bucket in sizes}
    assert longest["short"] < shortest["medium"] <= longest["medium"] < shortest["long"]
    assert all(item.references[0] not in item.context for item in items)
    assert math.isfinite(task.score(items[0], [says(items[0].references[0])]).score or math.nan)
