"""The real data sets in their official layouts, where copies are at hand."""

from __future__ import annotations

import gzip
import json
import re
import string
from collections import Counter
from typing import Any

import pytest

from llmkick.tasks.data.published import CNN_DAILYMAIL, MT_BENCH, VICUNA_80
from llmkick.tasks.data.readers.cnn_dailymail import read_stories
from llmkick.tasks.data.readers.dialogues import read_dialogues
from llmkick.tasks.data.readers.mmlu import DISCIPLINES
from llmkick.tasks.data.sources import Origin
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.metrics import contains_alias, normalise
from llmkick.tasks.registry import get_task
from llmkick.tasks.task import Task
from published import REAL
from scripted import ScriptedModel

pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason=f"no copies of the real data sets at {REAL}")


def real(name: str, folder: str, **options: Any) -> Task:
    return get_task(name, source=str(REAL / folder), **options)


@pytest.mark.parametrize(
    ("name", "folder", "count", "clusters"),
    [
        ("factoid_qa", "freebaseqa", 3995, 70),
        ("factoid_qa:popqa", "popqa", 2200, 16),
        ("multiple_choice:letter", "mmlu", 1531, 57),
        ("multiple_choice:cloze", "mmlu", 1531, 57),
        ("context_qa:open", "triviaqa", 500, 497),
        ("context_qa:closed", "triviaqa", 500, 497),
    ],
)
def test_every_row_is_an_item(name: str, folder: str, count: int, clusters: int):
    items = real(name, folder).items()
    assert len(items) == len({item.id for item in items}) == count
    assert len({item.cluster for item in items}) == clusters
    for seed in range(2):
        sample = real(name, folder, limit=60, seed=seed).items()
        assert len(sample) == 60
        assert sample != items[:60]


def test_mmlu_words_that_look_like_nothing_are_kept():
    task = real("multiple_choice", "mmlu")
    choices = [choice for item in task.items() for choice in item.choices]
    assert choices.count("None") >= 2
    assert Counter(item.details["discipline"] for item in task.items()).keys() == set(DISCIPLINES.values())
    assert "split val" in task.notes


def test_popqa_spreads_over_five_powers_of_ten():
    popularity = sorted(item.details["popularity"] for item in real("factoid_qa:popqa", "popqa").items())
    assert popularity[0] < 10
    assert popularity[-1] > 100_000


def official(text: str) -> str:
    """TriviaQA's own evaluation, as its authors describe it."""
    punctuation = set(string.punctuation) | set("‘’´`")
    words = "".join(" " if c in punctuation else c for c in text.lower().replace("_", " "))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", words).split())


def test_our_normalisation_is_the_official_one_but_for_numbers_and_other_scripts_punctuation():
    with gzip.open(REAL / "triviaqa/nocontext-dev.jsonl.gz", "rt", encoding="utf-8") as stream:
        aliases = [alias for line in stream for alias in json.loads(line)["answer"]["aliases"]]
    differing = [alias for alias in aliases if normalise(alias) != official(alias)]
    assert len(aliases) > 100_000
    assert len(differing) < 0.01 * len(aliases)
    plain = re.compile(r"[\x00-\x7f‘’´`]*")
    assert [a for a in differing if plain.fullmatch(a) and not re.search(r"\d[.,]\d", a)] == []


def test_a_reader_answers_open_books_only():
    task = real("context_qa:open", "triviaqa", limit=60)
    items = {item.question: item for item in task.items()}

    def reads(request: Any) -> str:
        passage, _, question = str(request.prompt).rpartition("Question: ")
        found = [a for a in items[question.removesuffix("\nAnswer:")].references if contains_alias(passage, [a])]
        return found[0] if found else "unknown"

    model = ScriptedModel(generation=reads, max_tokens=100_000)
    records = evaluate(model, task)
    assert [record.score for record in records] == [float(r.details["answer_in_evidence"]) for r in records]
    assert 30 <= sum(record.score or 0 for record in records) < 60
    assert sum(record.score or 0 for record in evaluate(model, real("context_qa:closed", "triviaqa", limit=60))) == 0


def test_running_text_stories_and_dialogues():
    model = ScriptedModel(max_tokens=2048)
    assert {len(item.tokens) for item in real("perplexity", "wikitext2", protocol="paper").items(model)} == {2048}
    assert len(real("perplexity:c4", "c4").items(model)) > 1000
    stories = read_stories(Origin(task="s", dataset=CNN_DAILYMAIL, source=str(REAL / "cnn_dailymail"))).items
    assert len(stories) == 500
    assert not any(story.references[0] in story.context for story in stories)
    for dataset, turns, references in ((MT_BENCH, 2, 30), (VICUNA_80, 1, 10)):
        dialogues = read_dialogues(Origin(task="d", dataset=dataset, source=str(REAL / "mt_bench")))
        assert [len(one.turns) for one in dialogues] == [turns] * 80
        assert sum(bool(one.references) for one in dialogues) >= references
