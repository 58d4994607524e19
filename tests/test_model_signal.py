"""A model that knows nothing cannot forget: the built-in dense model must be far above zero on the pocket suite."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from llmkick.models.checkpoints.loading import load_model
from llmkick.models.transformers_model import TransformersModel
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.registry import get_task
from llmkick.tasks.task import summary_value

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]
LIMIT = 40
# Passages are long; the model is more than two standard errors of 30 items above what is asked.
LIMIT_OF_PASSAGES = 30

Accuracy = Callable[[str], float]


@pytest.fixture(scope="module")
def accuracy() -> Accuracy:
    model: TransformersModel = load_model("smollm2-135m-instruct")

    @cache
    def of(name: str) -> float:
        limit = LIMIT_OF_PASSAGES if name.startswith("context_qa") else LIMIT
        records = evaluate(model, get_task(name, limit=limit))
        assert len(records) == limit
        assert all(record.score is not None for record in records), "an item is unscored"
        value = summary_value("accuracy", records)
        assert value is not None
        return value

    return of


def test_the_model_knows_facts(accuracy: Accuracy):
    assert accuracy("factoid_qa") >= 0.5


def test_the_model_finds_the_right_option(accuracy: Accuracy):
    assert accuracy("multiple_choice:cloze") >= 0.45


@pytest.mark.slow
def test_the_model_reads_and_reading_helps(accuracy: Accuracy):
    closed, opened = accuracy("context_qa:closed"), accuracy("context_qa:open")
    assert opened >= 0.5
    assert opened - closed >= 0.2
