"""The validator of our own data sets: enough of everything, nothing twice, no answer given away."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from functools import cache
from importlib import resources
from typing import Any

import pytest

from llmkick.tasks.metrics import contains_alias, normalise

NAMES = ("factoid_qa", "multiple_choice", "context_qa", "summarization", "instruction")
# Proper names and formulas are written as they are; everything else is plain.
LETTERS_BEYOND_ASCII = set("°₂") | {c for c in map(chr, range(0xC0, 0x180)) if c.isalpha()}


def raw(name: str) -> bytes:
    return resources.files("llmkick.tasks.pocket").joinpath(f"{name}.jsonl").read_bytes()


@cache
def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw(name).decode("utf-8").split("\n") if line]


def choices(split: str) -> list[dict[str, Any]]:
    return [row for row in rows("multiple_choice") if row["split"] == split]


def passage_questions() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(row, question) for row in rows("context_qa") for question in row["questions"]]


def gold(row: dict[str, Any]) -> str:
    return row["choices"][row["answer"]]


def repeated(values: list[Any]) -> list[Any]:
    return sorted(value for value, count in Counter(values).items() if count > 1)


# Form


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_plain_utf8_json_lines(name: str):
    data = raw(name)
    text = data.decode("utf-8")
    assert not data.startswith(b"\xef\xbb\xbf")
    assert text.endswith("}\n")
    assert "\r" not in text
    assert "\n\n" not in text
    shown = json.dumps(rows(name), ensure_ascii=False)
    assert "\ufffd" not in shown
    assert unicodedata.is_normalized("NFC", shown)
    strange = {character for character in shown if ord(character) > 126 or ord(character) < 32}
    assert strange <= LETTERS_BEYOND_ASCII, "typographic quotes, dashes or control characters"


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_empty_or_padded(name: str):
    def check(value: Any, where: str) -> None:
        if isinstance(value, str):
            assert value, where
            assert value == value.strip(), where
            assert "  " not in value or name == "instruction", where
        elif isinstance(value, list):
            assert value, where
            for one in value:
                check(one, where)
        elif isinstance(value, dict):
            for key, one in value.items():
                check(one, f"{where}.{key}")

    for row in rows(name):
        check(row, row["id"])


def test_ids_are_unique_over_everything():
    ids = [row["id"] for name in NAMES for row in rows(name)]
    ids += [question["id"] for _, question in passage_questions()]
    assert repeated(ids) == []


def test_no_question_is_asked_twice():
    asked = [*rows("factoid_qa"), *choices("test"), *(question for _, question in passage_questions())]
    assert repeated([normalise(row["question"]) for row in asked]) == []
    assert repeated([normalise(row["question"]) for row in rows("multiple_choice")]) == []
    assert repeated([normalise(turn) for row in rows("instruction") for turn in row["turns"]]) == []


@pytest.mark.parametrize("name", ["factoid_qa", "multiple_choice"])
def test_questions_are_questions(name: str):
    assert [row["id"] for row in rows(name) if not re.search(r"[?:.]$", row["question"])] == []
    assert [row["id"] for row in rows(name) if len(row["question"]) > 160] == []


# factoid_qa


def test_factoid_qa_has_enough_questions_in_enough_domains():
    domains = Counter(row["domain"] for row in rows("factoid_qa"))
    assert sum(domains.values()) >= 400
    assert len(domains) >= 10
    assert max(domains.values()) <= 2 * min(domains.values())


def test_factoid_answers_have_something_to_match_and_no_double():
    for row in rows("factoid_qa"):
        assert row["answers"], row["id"]
        assert all(normalise(alias) for alias in row["answers"]), row["id"]
        assert len(set(row["answers"])) == len(row["answers"]), row["id"]


def test_no_factoid_question_contains_its_answer():
    assert [row["id"] for row in rows("factoid_qa") if contains_alias(row["question"], row["answers"])] == []


# multiple_choice


def test_multiple_choice_has_enough_subjects_in_four_disciplines():
    tests, dev = (Counter(row["subject"] for row in choices(split)) for split in ("test", "dev"))
    assert sum(tests.values()) >= 320
    assert len(tests) >= 16
    assert {row["discipline"] for row in rows("multiple_choice")} == {
        "stem",
        "humanities",
        "social_sciences",
        "other",
    }
    assert dev == dict.fromkeys(tests, 5)
    assert {row["split"] for row in rows("multiple_choice")} == {"test", "dev"}
    of_subject = {(row["subject"], row["discipline"]) for row in rows("multiple_choice")}
    assert len(of_subject) == len(tests), "a subject in two disciplines"


def test_four_distinct_choices():
    for row in rows("multiple_choice"):
        assert len(row["choices"]) == 4, row["id"]
        assert len({normalise(choice) for choice in row["choices"]}) == 4, row["id"]
        assert row["answer"] in range(4), row["id"]


def test_letters_are_balanced():
    letters = Counter(row["answer"] for row in choices("test"))
    share = [letters[letter] / len(choices("test")) for letter in range(4)]
    assert min(share) > 0.22
    assert max(share) < 0.28
    # A model that always says one letter must not do well in any subject either.
    for subject in {row["subject"] for row in choices("test")}:
        own = Counter(row["answer"] for row in choices("test") if row["subject"] == subject)
        assert max(own.values()) <= 0.5 * sum(own.values()), subject


def test_worked_examples_show_more_than_one_letter():
    for subject in {row["subject"] for row in choices("dev")}:
        assert len({row["answer"] for row in choices("dev") if row["subject"] == subject}) >= 3, subject


def test_the_length_of_an_option_does_not_give_it_away():
    def always(pick: Any) -> float:
        """Expected accuracy of one who takes the longest (shortest) option, ties by lot."""
        hits = 0.0
        for row in choices("test"):
            lengths = [len(choice) for choice in row["choices"]]
            best = [index for index, length in enumerate(lengths) if length == pick(lengths)]
            hits += (row["answer"] in best) / len(best)
        return hits / len(choices("test"))

    assert always(max) < 0.35
    assert always(min) < 0.35


def test_no_multiple_choice_question_contains_its_answer():
    # Word for word, since normalising drops the article that "Vitamin A" ends with.
    given = [
        row["id"]
        for row in rows("multiple_choice")
        if re.search(rf"(?<!\w){re.escape(gold(row).lower())}(?!\w)", row["question"].lower())
    ]
    assert given == []


# context_qa


def test_context_qa_has_enough_questions_over_enough_passages():
    assert len(rows("context_qa")) >= 64
    assert len(passage_questions()) >= 160
    assert {len(row["questions"]) for row in rows("context_qa")} <= {3, 4, 5}
    assert len({row["topic"] for row in rows("context_qa")}) >= 8
    assert repeated([row["title"] for row in rows("context_qa")]) == []
    assert repeated([row["text"] for row in rows("context_qa")]) == []


def test_every_answer_is_in_its_passage_as_whole_words():
    missing = [
        question["id"] for row, question in passage_questions() if not contains_alias(row["text"], question["answers"])
    ]
    assert missing == []


def test_no_question_about_a_passage_contains_its_answer():
    given = [q["id"] for _, q in passage_questions() if contains_alias(q["question"], q["answers"])]
    assert given == []


def test_answers_about_passages_have_something_to_match():
    for _, question in passage_questions():
        assert question["answers"], question["id"]
        assert all(normalise(alias) for alias in question["answers"]), question["id"]


def test_questions_belong_to_their_passage():
    assert all(question["id"].startswith(f"{row['id']}-q") for row, question in passage_questions())


# summarization and instruction: their texts serve perplexity already


def test_summarization_has_stories_of_three_lengths():
    lengths: dict[str, list[int]] = {}
    for row in rows("summarization"):
        lengths.setdefault(row["bucket"], []).append(len(row["story"].split()))
        assert len(row["summary"].split()) < len(row["story"].split()), row["id"]
    assert {bucket: len(words) for bucket, words in lengths.items()} == {"short": 8, "medium": 8, "long": 8}
    for bucket, (low, high) in {"short": (90, 160), "medium": (250, 360), "long": (600, 800)}.items():
        assert all(low <= words <= high for words in lengths[bucket]), bucket


def test_no_summary_is_copied_from_its_story():
    for row in rows("summarization"):
        story = normalise(row["story"])
        copied = [s for s in row["summary"].split(". ") if len(s.split()) > 6 and normalise(s) in story]
        assert copied == [], row["id"]
    assert repeated([row["story"] for row in rows("summarization")]) == []


def test_instruction_has_two_turns_in_eight_categories():
    categories = Counter(row["category"] for row in rows("instruction"))
    assert sum(categories.values()) >= 40
    assert len(categories) == 8
    assert {len(row["turns"]) for row in rows("instruction")} == {2}
    for row in rows("instruction"):
        needs_reference = row["category"] in ("reasoning", "math", "coding", "extraction")
        assert (row["reference"] is not None) == needs_reference, row["id"]
