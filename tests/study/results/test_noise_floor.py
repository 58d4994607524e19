"""The noise floor: what two batch sizes make of the same questions."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from llmkick.errors import DataError
from llmkick.models.language_model import ContinuationScore, ScoreRequest, Unanswered
from llmkick.study.results.noise_floor import compare_runs, noise_floor
from scripted import scored
from toy import toy_model


def questions(count: int, options: Sequence[str] = "ABCD") -> list[ScoreRequest]:
    generator = random.Random(0)
    prompts = ["the and 12 " * 5 + "".join(generator.choices("QxyzABC ", k=30)) for _ in range(count)]
    return [ScoreRequest(prompt, option) for prompt in prompts for option in options]


def test_float32_has_no_noise_worth_the_name():
    floor = noise_floor(toy_model(), questions(40))
    assert (floor.questions, floor.flipped, floor.share) == (40, 0, 0.0)
    assert floor.largest_shift < 1e-4


def test_half_precision_has_noise_and_it_is_seen():
    # Options of several tokens: letters are answered to the last bit as alone here.
    floor = noise_floor(toy_model(dtype=torch.bfloat16, hidden_size=64), questions(40, ("the and", "QQ x 12", "on")))
    assert floor.questions == 40
    assert 1e-4 < floor.mean_shift < floor.largest_shift


def test_flips_and_shifts_are_counted():
    def run(*values: float) -> list[ContinuationScore]:
        return [scored(value) for value in values]

    floor = compare_runs([(0, 1), (2, 3), (4, 5)], run(-1, -2, -3, -4, -5, -6), run(-1, -2, -4.5, -4, -5, -6.25))
    assert (floor.questions, floor.flipped) == (3, 1)
    assert floor.share == pytest.approx(1 / 3)
    assert floor.largest_shift == 1.5
    assert floor.mean_shift == pytest.approx(1.75 / 6)


def test_questions_without_a_choice_are_left_out():
    missing = Unanswered(reason="too long")
    floor = compare_runs([(0, 1), (2, 3)], [scored(-1), missing, scored(-1), scored(-2)], [scored(-1)] * 4)
    assert floor.questions == 1
    with pytest.raises(DataError, match="no question with at least two scored options"):
        compare_runs([(0, 1)], [scored(-1), missing], [scored(-1)] * 2)
    with pytest.raises(DataError, match="nothing whose choice could change"):
        noise_floor(toy_model(), [ScoreRequest("the", "A"), ScoreRequest("and", "A")])
