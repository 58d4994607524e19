"""Generation by models that think: the thought is not the answer, and takes none of its room when thinking is on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from llmkick.models.engine import answers
from llmkick.models.language_model import GenerateRequest, Generation, Message, Unanswered
from llmkick.models.thoughts import Thinking
from llmkick.models.transformers_model import TransformersModel
from toy import toy_model

HELLO = (Message("user", "Q"),)
THINK, END_THINK = 284, 285
# Opens a thought unless it is told not to.
SWITCHED = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if enable_thinking is defined and not enable_thinking %}"
    "{% else %}<think>{% endif %}"
)
NO_SWITCH = "{% for m in messages %}{{ m.content }}{% endfor %}"


def chain_model(chain: Sequence[str | int], template: str, thinking: Thinking = "off", *, special: bool = False) -> Any:
    """A model that continues each token of the chain with the next one, and the last with the end of the text."""
    model = toy_model(num_hidden_layers=1, hidden_size=288, head_dim=72, num_key_value_heads=4)
    tokenizer = model.tokenizer
    tokenizer.add_tokens(["<think>", "</think>"], special_tokens=special)
    tokenizer.chat_template = template
    ids = [token if isinstance(token, int) else tokenizer.convert_tokens_to_ids(token) for token in chain]
    assert len(set(ids)) == len(ids), "each token has one successor"
    head = torch.zeros(288, 288)
    for token, successor in zip(ids, [*ids[1:], tokenizer.eos_token_id], strict=True):
        head[successor, token] = 1.0
    with torch.no_grad():
        for name, parameter in model.network.named_parameters():
            parameter.copy_(torch.ones_like(parameter) if "norm" in name else torch.zeros_like(parameter))
        model.network.get_input_embeddings().weight.copy_(torch.eye(288))
        model.network.get_output_embeddings().weight.copy_(head)
    return TransformersModel.wrap(model.network, tokenizer, model.info).with_thinking(thinking)


THOUGHT = ("L", "y", "o", "n", "Ċ", "?")
ANSWER = ("P", "a", "r", "i", "s")
# After "Q" it thinks by itself, in marks that may be special tokens.
BY_ITSELF = ("Q", THINK, *THOUGHT, END_THINK, *ANSWER)
# After the mark in the prompt it thinks, otherwise it answers.
WHEN_TOLD = (THINK, *THOUGHT, END_THINK, *ANSWER)


def ask(model: Any, limit: int = 40, stops: tuple[str, ...] = ()) -> Generation | Unanswered:
    answers: list[Generation | Unanswered] = model.generate([GenerateRequest(HELLO, stops, limit)])
    return answers[0]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("stops", [(), ("\n",)])
@pytest.mark.parametrize("thinking", ["off", "on"])
def test_a_thought_in_marks_is_not_the_answer(thinking: Thinking, stops: tuple[str, ...], special: bool):
    model = chain_model(BY_ITSELF, NO_SWITCH, thinking, special=special)
    answer = ask(model, stops=stops)
    assert answer == Generation(text="Paris", tokens=5, finish="end")
    assert isinstance(answer, Generation)
    assert (answer.has_thought, answer.unique_tokens) == (True, 5)


@pytest.mark.parametrize("stops", [(), ("\n",)])
def test_a_thought_that_does_not_end_is_no_answer(stops: tuple[str, ...]):
    model = chain_model(BY_ITSELF, NO_SWITCH)
    for limit in (1, 3, 8):
        assert ask(model, limit, stops) == Unanswered(
            reason=f"the limit of {limit} tokens ended the answer inside its thought; with thinking = \"on\" "
            "(--thinking on) it has room to think"
        )  # fmt: skip
    assert ask(model, 9, stops) == ask(model, 9)  # the mark that ends the thought is the last token


def test_a_thought_that_ends_without_an_answer_is_no_answer():
    model = chain_model(("Q", THINK, *THOUGHT, END_THINK), NO_SWITCH)
    assert ask(model) == Unanswered(reason="it has a thought and no answer")
    assert ask(chain_model(("Q", THINK, *THOUGHT), NO_SWITCH)) == Unanswered(reason="it ends inside its thought")


@pytest.mark.parametrize("template", [NO_SWITCH + "<think>", SWITCHED])
@pytest.mark.parametrize("stops", [(), ("\n",)])
def test_a_thought_that_the_template_opens_is_not_the_answer(template: str, stops: tuple[str, ...]):
    answer = ask(chain_model(WHEN_TOLD, template, "on"), stops=stops)
    assert answer == Generation(text="Paris", tokens=5, finish="end")


@pytest.mark.parametrize("limit", [1, 3, 5, 6])
@pytest.mark.parametrize(("chain", "template"), [(WHEN_TOLD, SWITCHED), (BY_ITSELF, NO_SWITCH)])
def test_a_thought_takes_nothing_of_the_answers_room_when_thinking_is_on(
    limit: int, chain: tuple[str | int, ...], template: str
):
    answer = ask(chain_model(chain, template, "on"), limit)
    assert answer == Generation(text="Paris"[:limit], tokens=min(limit, 5), finish="length" if limit <= 5 else "end")


def test_the_room_for_a_thought_is_limited(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(answers, "THOUGHT_TOKENS", 4)
    assert ask(chain_model(WHEN_TOLD, SWITCHED, "on"), 2) == Unanswered(
        reason="the limit of 6 tokens ended the answer inside its thought"
    )


@pytest.mark.parametrize("template", [SWITCHED, NO_SWITCH + "<think>\n"])
def test_a_model_is_told_not_to_think(template: str):
    model = chain_model(WHEN_TOLD, template)
    closed = "Q" if template == SWITCHED else "Q<think>\n\n</think>\n\n"
    assert model.render_chat(HELLO) == closed
    if template != SWITCHED:  # the prompt ends with a line break, after which this model is in its thought
        return
    assert isinstance(ask(chain_model(("Q", *ANSWER), template)), Generation)


def test_raw_text_has_nothing_to_do_with_thinking():
    model = chain_model(("Q", *ANSWER), SWITCHED, "on")
    assert model.generate([GenerateRequest("Q", (), 3)]) == [Generation(text="Par", tokens=3, finish="length")]


def test_answers_of_a_model_that_does_not_think_are_the_same_with_thinking_on():
    off, on = toy_model(chat=True), toy_model(chat=True).with_thinking("on")
    requests = [
        GenerateRequest((Message("user", text),), stops, 20) for text in ("the", "a w") for stops in ((), ("e",))
    ]
    assert off.generate(requests) == on.generate(requests)


def test_thinking_stays_with_compressed_copies():
    model = toy_model(chat=True).with_thinking("on")
    copy = model.with_network(toy_model(seed=1).network, digest="1" * 64)
    assert copy.engine.encoder.thinking == "on"
