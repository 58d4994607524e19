"""What is read from a network: positions that begin behind the one of padding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llmkick.models.engine.network import first_position_of, max_tokens_of
from llmkick.models.language_model import ContinuationScore, GenerateRequest, Generation, ScoreRequest, Unanswered
from llmkick.models.transformers_model import TransformersModel
from toy import toy_model, toy_tokenizer

PADDING = 5
BEHIND_PADDING = (
    "roberta", "camembert", "xlm-roberta", "xlm-roberta-xl", "xmod", "data2vec-text", "roberta-prelayernorm"
)  # fmt: skip


def decoder(kind: str, *, positions: int = 64) -> TransformersModel:
    """A small network of an encoder's family that reads from left to right."""
    config = CONFIG_MAPPING[kind](
        vocab_size=288, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
        max_position_embeddings=positions, type_vocab_size=1, is_decoder=True, pad_token_id=PADDING, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    if kind == "xmod":
        config.languages, config.default_language = ["en_XX"], "en_XX"
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return TransformersModel.wrap(network, toy_tokenizer(), toy_model().info)


def plain_logprobs(model: TransformersModel, ids: list[int]) -> Any:
    """(tokens, vocabulary) log-probabilities of the network, which counts the positions itself."""
    with torch.no_grad():
        return torch.log_softmax(model.network(torch.tensor([ids])).logits[0].double(), dim=-1)


def plain_score(model: TransformersModel, request: ScoreRequest) -> float:
    prompt, whole = model.encode(request.prompt), model.encode(request.prompt, str(request.continuation))
    logprobs = plain_logprobs(model, whole)
    return sum(float(logprobs[place - 1, whole[place]]) for place in range(len(prompt), len(whole)))


@pytest.mark.parametrize("kind", BEHIND_PADDING)
def test_scores_and_answers_are_those_of_a_network_that_counts_itself(kind: str):
    model = decoder(kind)
    prompts = ["the and " * 3 + end for end in ("x", "Q1", "and")] + ["Q" * 20, "x"]
    requests = [ScoreRequest(prompt, text) for prompt in prompts for text in ("A", " 12 the x")]
    found = model.logprobs(requests)
    for request, score in zip(requests, found, strict=True):
        assert isinstance(score, ContinuationScore), score
        assert score.logprob == pytest.approx(plain_score(model, request), abs=1e-4), request
    answers = model.generate([GenerateRequest(prompt, max_new_tokens=9) for prompt in prompts])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = model.encode(prompt)
        for _ in range(9):
            ids.append(int(plain_logprobs(model, ids)[-1].argmax()))
        assert isinstance(answer, Generation)
        assert model.tokenizer.decode(ids[-9:], skip_special_tokens=True).startswith(answer.text)


@pytest.mark.parametrize("kind", BEHIND_PADDING)
def test_positions_up_to_that_of_padding_are_no_room(kind: str):
    model = decoder(kind)
    assert first_position_of(model.network) == PADDING + 1
    assert model.max_tokens == 64 - PADDING - 1
    prompt = "Q" * (model.max_tokens - 2)  # and the start token
    assert len(model.encode(prompt, "x")) == model.max_tokens
    request = ScoreRequest(prompt, "x")
    score, beyond = model.logprobs([request, ScoreRequest(prompt, "xx")])
    assert isinstance(score, ContinuationScore)
    assert score.logprob == pytest.approx(plain_score(model, request), abs=1e-4)
    assert isinstance(beyond, Unanswered)
    with pytest.raises((IndexError, RuntimeError)):
        plain_score(model, ScoreRequest(prompt, "xx"))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "opt", "gpt_neox", "bloom"])
def test_other_networks_begin_at_0(architecture: str):
    network = toy_model(architecture).network
    assert first_position_of(network) == 0
    assert max_tokens_of(network) == 256


def test_bert_counts_from_0():
    model = decoder("bert")
    assert (first_position_of(model.network), model.max_tokens) == (0, 64)
