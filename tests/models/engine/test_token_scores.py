"""Scores of tokens against plain sums, and how often a batch waits for its device."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from llmkick.models.engine import generation, runner, scoring, token_scores
from llmkick.models.engine.encoding import EncodedRequest
from llmkick.models.engine.runner import Runner
from llmkick.models.engine.token_scores import TokenScores
from llmkick.models.language_model import ContinuationScore, GenerateRequest, ScoreRequest, Unanswered
from toy import toy_model
from waits import OnDevice, Waits


@contextmanager
def on_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """While this lasts, the tokens and the logits of forwards are on the device; yields the places that wait for it."""
    forward, pad, read = Runner.forward, runner.pad, runner.read
    waits = Waits()

    def noted(numbers: torch.Tensor) -> torch.Tensor:
        assert isinstance(numbers, OnDevice)
        waits.places.append("read")
        return read(numbers.as_subclass(torch.Tensor))

    def padded(*arguments: Any, **options: Any) -> Any:
        return tuple(tensor.as_subclass(OnDevice) for tensor in pad(*arguments, **options))

    def run(self: Runner, *arguments: Any, **options: Any) -> Any:
        return forward(self, *arguments, **options).as_subclass(OnDevice)

    monkeypatch.setattr(Runner, "forward", run)
    for module in (runner, scoring):
        monkeypatch.setattr(module, "pad", padded)
    for module in (generation, token_scores):
        monkeypatch.setattr(module, "read", noted)
    with waits:
        yield waits.places


def requests_of(kind: str) -> list[ScoreRequest]:
    draw = random.Random(5)
    shots = "the and 12 " * 9
    if kind == "letters":
        return [ScoreRequest(f"{shots}Q{number}", letter) for number in range(12) for letter in "ABCD"]
    if kind == "running text":
        return [ScoreRequest("", tuple(draw.randrange(4, 284) for _ in range(100))) for _ in range(6)]
    options = ("A", "xy", "xyz", "xyzw" * 9)
    return [ScoreRequest(f"{shots}Q{number}", option) for number in range(12) for option in options]


# What a call runs: the longest of the letters and the rest in a row; all questions with their options; all texts.
@pytest.mark.parametrize(("kind", "batches"), [("letters", 2), ("options", 1), ("running text", 1)])
def test_a_batch_waits_once_for_its_device(monkeypatch: pytest.MonkeyPatch, kind: str, batches: int):
    model, requests = toy_model(), requests_of(kind)
    expected = model.logprobs(requests)
    initialise = Runner.__init__

    def on_a_gpu(self: Runner, *arguments: Any, **options: Any) -> None:
        initialise(self, *arguments, **options)
        self.masks_padding_behind = False

    monkeypatch.setattr(Runner, "__init__", on_a_gpu)
    with on_a_device(monkeypatch) as waits:
        found = model.logprobs(requests)
    assert waits == ["read"] * batches
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, ContinuationScore)
        assert isinstance(other, ContinuationScore)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_a_decoding_step_waits_once_for_its_device(monkeypatch: pytest.MonkeyPatch, architecture: str):
    model = toy_model(architecture)
    monkeypatch.setattr(generation, "end_tokens_of", lambda *_: frozenset())
    request = GenerateRequest("the and 12", max_new_tokens=7)
    expected = model.generate([request])
    with on_a_device(monkeypatch) as waits:
        assert model.generate([request]) == expected
    assert waits == ["read"] * 7


def encoded(index: int, prompt: tuple[int, ...], continuation: tuple[int, ...]) -> EncodedRequest:
    return EncodedRequest(index=index, prompt=prompt, continuation=continuation, boundary_moved=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sum_of_a_request_is_that_of_its_tokens_alone(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch):
    """To the bit: records of a CPU do not depend on how many requests are read together."""
    draw = torch.Generator().manual_seed(0)
    for pieces in (512, 3):
        monkeypatch.setattr(token_scores, "LOGIT_ROWS", pieces)
        lengths = (2, 9, 3, 40)
        requests = [
            encoded(index, (5, 6), tuple(torch.randint(288, (length,), generator=draw).tolist()))
            for index, length in enumerate(lengths)
        ]
        logits = (4 * torch.randn(4, 39, 288, generator=draw)).to(dtype)
        first = torch.log_softmax(torch.randn(4, 288, generator=draw), dim=-1)
        together = TokenScores()
        together.add_first(first, list(enumerate(requests)))
        together.add_rest(logits, requests)
        for row, (request, found) in enumerate(zip(requests, together.scores().values(), strict=True)):
            rest = torch.log_softmax(logits[row, : len(request.continuation) - 1].float(), dim=-1)
            own = torch.cat([first[row][None], rest])
            target = torch.tensor(request.continuation)
            assert isinstance(found, ContinuationScore)
            assert found.logprob == float(own.gather(1, target[:, None])[:, 0].double().sum())
            assert found.is_greedy == bool((own.argmax(1) == target).all())
            assert found.tokens == len(request.continuation)


def test_running_text_is_summed_in_pieces_of_its_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_scores, "LOGIT_ROWS", 16)
    draw = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(2, 60, 288, generator=draw)
    texts = [tuple(torch.randint(288, (length,), generator=draw).tolist()) for length in (51, 61)]
    greedy = (7, *logits[1].argmax(-1).tolist())
    requests = [(0, encoded(0, (), texts[0])), (1, encoded(1, (), texts[1])), (1, encoded(2, (), greedy))]
    found = TokenScores()
    found.add_whole(logits, requests, first_column=0)
    for (row, request), score in zip(requests, found.scores().values(), strict=True):
        target = torch.tensor(request.continuation[1:])
        losses = torch.nn.functional.cross_entropy(logits[row, : len(target)], target, reduction="none").double()
        total = 0.0
        for piece in torch.split(losses, 16):
            total -= float(piece.sum())
        assert isinstance(score, ContinuationScore)
        assert score.logprob == total
        assert score.is_greedy == (request.index == 2)


def test_a_number_that_is_not_finite_costs_its_own_request_only():
    logprobs = torch.log_softmax(torch.randn(2, 288, generator=torch.Generator().manual_seed(0)), dim=-1)
    logprobs[0] = torch.nan
    found = TokenScores()
    found.add_first(logprobs, [(0, encoded(0, (5,), (7,))), (1, encoded(1, (5,), (7,)))])
    scores = found.scores()
    assert isinstance(scores[0], Unanswered)
    assert isinstance(scores[1], ContinuationScore)
    assert TokenScores().scores() == {}
