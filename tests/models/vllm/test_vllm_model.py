"""Answers of vLLM are the engine's on the same network: tried with a stub, since the package needs a GPU."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import vllm_stub
from llmkick.errors import ConfigError, ModelError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.references import locate
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    Message,
    ScoreRequest,
    Unanswered,
)
from llmkick.models.server.open_model import open_model
from llmkick.models.server.settings import ServerSettings
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.vllm.model import VllmModel, load_vllm
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.registry import get_task
from toy import save_toy

CONVERSATION = (Message("user", "say the word"),)
SCORES = [
    *(ScoreRequest("the cat and the", option) for option in (" dog", " hat", " and the other one", "\n\nand")),
    *(ScoreRequest(CONVERSATION, option) for option in ("A", " B")),
    ScoreRequest("", "no prompt at all"),
    ScoreRequest("", tuple(range(40, 90))),
    ScoreRequest("a prompt", ""),
    ScoreRequest("long " * 900, "x"),
    ScoreRequest("", (5, 100000)),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sys.modules, "vllm", vllm_stub.installed())
    save_toy(tmp_path / "model", "llama", chat=True, max_position_embeddings=1024)
    return tmp_path / "model"


def both(folder: Path) -> tuple[VllmModel, TransformersModel]:
    model = open_model(f"vllm:{folder}", dtype="float32", device="auto")
    assert isinstance(model, VllmModel)
    return model, load_model(str(folder), dtype="float32", device="cpu")


def test_scores_are_those_of_the_engine(folder: Path):
    model, dense = both(folder)
    for request, found, expected in zip(SCORES, model.logprobs(SCORES), dense.logprobs(SCORES), strict=True):
        assert type(found) is type(expected), request
        if isinstance(found, ContinuationScore) and isinstance(expected, ContinuationScore):
            assert found.logprob == pytest.approx(expected.logprob, abs=1e-3)
            assert found.tokens == expected.tokens
            assert found.is_greedy == expected.is_greedy
            assert found.boundary_moved == expected.boundary_moved
            assert found.method == "log-probability"
    assert [type(score) for score in model.logprobs(SCORES)].count(Unanswered) == 3


def test_generations_are_those_of_the_engine(folder: Path):
    model, dense = both(folder)
    plain = [GenerateRequest(f"the cat {number} and", max_new_tokens=12) for number in range(6)]
    texts = [answer.text for answer in dense.generate(plain) if isinstance(answer, Generation)]
    # Stop strings that occur: at once, in the middle, at the end, and one that does not.
    stops = [*sorted({part for text in texts for part in (text[:1], text[4:6], text[-2:]) if part}), "never there"]
    requests = [
        GenerateRequest(request.prompt, stops=(stop,), max_new_tokens=12) for request in plain for stop in stops[:8]
    ]
    requests += [*plain, GenerateRequest(CONVERSATION, stops=("\n", "e"), max_new_tokens=5)]
    requests += [GenerateRequest("", max_new_tokens=3) if not dense.tokenize("") else plain[0]]
    requests += [GenerateRequest("x " * 600, max_new_tokens=200)]
    found, expected = model.generate(requests), dense.generate(requests)
    assert found[:-1] == expected[:-1]
    assert all("leaves no room for 200 new tokens" in answers[-1].reason for answers in (found, expected))  # type: ignore[union-attr]
    kinds = {answer.finish for answer in expected if isinstance(answer, Generation)}
    assert {"stop", "length"} <= kinds
    assert [a.unique_tokens for a in found if isinstance(a, Generation)] == [
        a.unique_tokens for a in expected if isinstance(a, Generation)
    ]


def test_an_end_token_ends_an_answer(folder: Path):
    model, dense = both(folder)
    request = GenerateRequest("the cat and", max_new_tokens=12)
    (whole,) = dense.generate([request])
    assert isinstance(whole, Generation)
    prompt = torch.tensor([dense.encode(request.prompt)])
    token = int(dense.network(prompt).logits[0, -1].argmax())
    object.__setattr__(model, "end_tokens", frozenset({token}))
    (ended,) = model.generate([request])
    assert ended == Generation(text="", tokens=0, finish="end")


def test_a_stop_string_before_the_answer_does_not_end_it(folder: Path):
    """vLLM stops at it, so the prompt is asked again without stop strings, and the answer is cut here."""
    model, _ = both(folder)
    text = "\n\nword\nmore"
    ids = model.encoder.tokenize_alone(text)

    def scripted(prompt: list[int], parameters: Any) -> Any:
        tokens: list[int] = []
        completion = None
        while completion is None:
            tokens.append(ids[len(tokens)])
            completion = model.runner._end(tokens, parameters, room=len(ids))
        return vllm_stub.RequestOutput(prompt_token_ids=prompt, prompt_logprobs=None, outputs=[completion])

    model.runner._answer = scripted
    (answer,) = model.generate([GenerateRequest("say", stops=("\n",), max_new_tokens=30)])
    assert answer == Generation(text="\n\nword", tokens=answer.tokens, finish="stop")  # type: ignore[union-attr]
    assert [parameters.stop for parameters in model.runner.asked] == [["\n"], None]


@pytest.mark.parametrize("task", ["multiple_choice:cloze", "factoid_qa", "perplexity"])
def test_records_are_those_of_the_engine(folder: Path, task: str):
    model, dense = both(folder)
    selected = get_task(task, limit=4)
    found, expected = evaluate(model, selected), evaluate(dense, selected)
    assert [record.item_id for record in found] == [record.item_id for record in expected]
    for ours, record in zip(found, expected, strict=True):
        assert ours.score == (None if record.score is None else pytest.approx(record.score, abs=1e-3))
        assert type(ours) is type(record)


def test_how_it_is_started(folder: Path, monkeypatch: pytest.MonkeyPatch):
    model, dense = both(folder)
    runner = model.runner
    assert runner.enable_prefix_caching
    assert not runner.trust_remote_code
    assert runner.max_model_len == dense.max_tokens
    assert model.max_tokens == dense.max_tokens - 1
    assert runner.gpu_memory_utilization == 0.9
    assert model.info.name == "vllm:model"
    assert model.info.digest != dense.info.digest
    assert model.info.parameters == dense.info.parameters
    assert "run by vLLM 0.stub" in model.notes[0]
    monkeypatch.setenv("LLMKICK_VLLM_MEMORY", "0.3")
    assert both(folder)[0].runner.gpu_memory_utilization == 0.3
    monkeypatch.setenv("LLMKICK_VLLM_MEMORY", "30%")
    with pytest.raises(ConfigError, match="LLMKICK_VLLM_MEMORY is '30%'"):
        open_model(f"vllm:{folder}")


def test_thinking_is_part_of_the_digest_where_it_changes_prompts(folder: Path):
    model, _ = both(folder)
    on = open_model(f"vllm:{folder}", dtype="float32", server=ServerSettings(thinking="on"))
    assert (on.info.digest != model.info.digest) == (on.encoder.thinking_in_prompts is not None)  # type: ignore[attr-defined]


def test_a_model_that_vllm_cannot_run_is_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(**_options: Any) -> None:
        raise ValueError("Model architectures ['X'] are not supported\nfor now")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", refuse)
    with pytest.raises(ModelError, match=r"vLLM cannot run .*: Model architectures \['X'\] are not supported for now$"):
        open_model(f"vllm:{folder}")
    with pytest.raises(ConfigError, match="vLLM chooses its device itself, not 'cuda:1'"):
        load_vllm(str(folder), device="cuda:1")


def test_without_the_package_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(ModelError, match=r"^vllm:PATH needs the package vllm: pip install 'llmkick\[vllm\]'"):
        open_model(f"vllm:{tmp_path}")


def test_what_needs_weights_refuses_it(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"run by vLLM, which only answers .* give 'owner/name'"):
        locate("vllm:owner/name")
