"""Text from outside becomes text that every file can hold."""

from __future__ import annotations

import json

import pytest

from llmkick.models.clean_text import clean_text, clean_value


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Paris 🙂\n\té", "Paris 🙂\n\té"),
        ("Paris \ud83d", "Paris \ufffd"),
        ("\ude42 Paris", "\ufffd Paris"),
        ("\ud83d\ude42 \ude42\ud83d", "🙂 \ufffd\ufffd"),
        ("\ud83d 🙂", "\ufffd 🙂"),
        ("a\x00b", "a\ufffdb"),
    ],
)
def test_what_no_file_can_hold_is_replaced(text: str, cleaned: str):
    assert clean_text(text) == cleaned
    assert clean_text(cleaned) is cleaned
    cleaned.encode()


def test_a_value_is_cleaned_in_every_corner_and_left_alone_where_it_is_clean():
    value = json.loads(r'{"a\ud83d": ["x", {"b": "\u0000"}, 1, null, true], "c": 0.5}')
    assert clean_value(value) == {"a\ufffd": ["x", {"b": "\ufffd"}, 1, None, True], "c": 0.5}
    clean = {"a": ["x", {"b": "y"}, 1, None]}
    assert clean_value(clean) is clean
