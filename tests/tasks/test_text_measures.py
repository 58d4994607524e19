from __future__ import annotations

import pytest
from rouge_score.rouge_scorer import RougeScorer

from llmkick.tasks.text_measures import copied_share, distinct_share, repetition, rouge, words_of


def test_words():
    assert words_of("Don't stop, 3-year-old CATS! naïve") == ["don't", "stop", "3", "year", "old", "cats", "naïve"]


def test_rouge_by_hand():
    found = rouge("the cat sat", "the cat sat down")
    assert found["rouge1"] == pytest.approx(2 * 1 * 0.75 / 1.75, abs=1e-6)
    assert found["rouge2"] == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3), abs=1e-6)
    # Longest common subsequence "the sat": order counts, distance does not.
    assert rouge("the dog sat", "the cat sat down")["rougeL"] == pytest.approx(
        2 * (2 / 3) * 0.5 / (2 / 3 + 0.5), abs=1e-6
    )
    oracle = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True).score("runs of cats", "the cat is running")
    assert rouge("the cat is running", "runs of cats") == {
        name: pytest.approx(one.fmeasure, abs=1e-6) for name, one in oracle.items()
    }
    assert set(rouge("", "the cat").values()) == set(rouge("the cat", "").values()) == {0.0}


def test_copying():
    story = "The cat sat on the mat. It was warm."
    assert copied_share("the cat sat on the mat", story) == 1
    assert copied_share("A cat sat on it: THE MAT, it was", story) == pytest.approx(3 / 7)
    assert copied_share("the cat", story) is None


def test_a_loop_repeats_itself():
    loop = "I am here. " * 20
    assert repetition(loop) == pytest.approx(1 - 3 / 57)
    assert repetition("one two three four five") == 0
    assert repetition("one two three") is None
    assert distinct_share("a b a b", 2) == pytest.approx(2 / 3)
    assert distinct_share("a", 2) is None
