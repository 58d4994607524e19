"""Generation against greedy decoding as one would write it down: one request, the whole text again for each token."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from llmkick.errors import ConfigError
from llmkick.models.engine import batch_budget as memory
from llmkick.models.engine import generation, kv_cache
from llmkick.models.engine.answers import first_stop
from llmkick.models.engine.network import end_tokens_of
from llmkick.models.engine.runner import Runner
from llmkick.models.language_model import GenerateRequest, Generation, Message, Prompt, Unanswered
from llmkick.models.transformers_model import TransformersModel
from speeds import others_slow
from toy import toy_model, toy_tokenizer

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("llama", "qwen2", "gemma", "opt", "gpt_neox", "gpt2", "mixtral")},
    "mistral-short-window": ("mistral", {"sliding_window": 12}),
    "mistral-window": ("mistral", {"sliding_window": 110}),
    "mistral-long-window": ("mistral", {"sliding_window": 250}),
    **{name: (name, {}) for name in ("mpt", "bloom", "gpt_neo", "mamba", "lfm2", "minimax", "openai-gpt")},
    "gpt_neo-window": ("gpt_neo", {"window_size": 128}),
    "gemma2-short-window": ("gemma2", {}),
    "gemma3-short-window": ("gemma3", {}),
    "gpt_oss-short-window": ("gpt_oss", {}),
    "deepseek_v3": ("deepseek_v3", {}),
}
PIECES = ("the", " and", "12", " w", "é", "\n", " (", ":", "x", "Q")


def model_of(case: str) -> TransformersModel:
    architecture, config = CASES[case]
    return toy_model(architecture, chat=True, **config)


@functools.cache
def known_path(_model: TransformersModel, _prompt: Prompt) -> list[int]:
    """The tokens of a path that were asked for so far."""
    return []


def greedy_path(model: TransformersModel, prompt: Prompt, length: int) -> list[int]:
    """The `length` tokens that come next, one whole forward for each."""
    tokens = known_path(model, prompt)
    with torch.no_grad():
        while len(tokens) < length:
            ids = torch.tensor([model.encode(prompt) + tokens])
            tokens.append(int(model.network(ids).logits[0, -1].argmax()))
    return tokens[:length]


def naive(model: TransformersModel, request: GenerateRequest) -> Generation:
    """The definition, spelled out."""
    path = greedy_path(model, request.prompt, request.max_new_tokens)
    text = ""
    for number, token in enumerate(path):
        if token in end_tokens_of(model.network, model.tokenizer):
            return Generation(text=text, tokens=number, finish="end")
        text = model.tokenizer.decode(path[: number + 1], skip_special_tokens=True)
        for end in range(len(text) + 1):
            ending = [stop for stop in request.stops if text[:end].endswith(stop) and text[:end].strip()]
            if ending:
                begin = end - max(map(len, ending))
                return Generation(text=text[:begin], tokens=number + 1, finish="stop")
    return Generation(text=text, tokens=len(path), finish="length")


def mixed_requests(model: TransformersModel, seed: int = 0) -> list[GenerateRequest]:
    """Shared and own prompts, short and long answers, stops that really occur, conversations."""
    generator = random.Random(seed)
    shots = "".join(generator.choices(PIECES, k=30))
    prompts: list[Any] = [shots + "".join(generator.choices(PIECES, k=generator.randint(1, 9))) for _ in range(5)]
    prompts += ["".join(generator.choices(PIECES, k=generator.randint(0, 9))) for _ in range(4)]
    prompts += [(Message("user", "the 12"),), (Message("user", "the 12"), Message("assistant", "Answer:"))]
    requests = [GenerateRequest(prompt, max_new_tokens=generator.choice((1, 5, 24))) for prompt in prompts]
    for prompt in prompts[::2]:
        text = naive(model, GenerateRequest(prompt, max_new_tokens=24)).text.strip() or "nothing"
        place = generator.randrange(len(text) // 2, len(text))
        requests.append(GenerateRequest(prompt, stops=("never", text[place : place + 2]), max_new_tokens=24))
    return generator.sample(requests, len(requests))


# Networks that are to the engine as another case is.
LIKE_OTHERS = ("qwen2", "gemma", "bloom", "gpt_neo", "mistral-long-window")


@pytest.mark.parametrize("case", others_slow(CASES, [case for case in CASES if case not in LIKE_OTHERS]))
def test_equals_greedy_decoding_one_at_a_time(case: str):
    model = model_of(case)
    requests = mixed_requests(model)
    # The last token of the longest answer becomes an end token too.
    last = max((greedy_path(model, one.prompt, one.max_new_tokens) for one in requests), key=len)[-1]
    model.network.generation_config.eos_token_id = [1, last]
    expected = [naive(model, request) for request in requests]
    assert model.generate(requests) == expected
    ways = {answer.finish for answer in expected}
    assert ways == {"stop", "end", "length"} or case == "openai-gpt"  # which says the same again and again


def test_a_window_longer_than_each_request_but_not_than_the_padded_batch():
    # Shared prefix | longest own prompt | longest answer: 40 + 40 + 40 columns for requests of 82.
    model = model_of("mistral-window")
    generator = random.Random(1)
    prefix = "".join(generator.choices("QxyzABC", k=39))
    requests = [
        GenerateRequest(prefix + "u", max_new_tokens=40),
        GenerateRequest(prefix + "".join(generator.choices("uvw", k=40)), max_new_tokens=1),
        GenerateRequest(prefix + "v", max_new_tokens=40),
    ]
    assert model.generate(requests) == [naive(model, request) for request in requests]


@pytest.mark.parametrize("case", ["llama", "gpt2", "mistral-short-window", "mixtral"])
def test_neither_order_nor_company_changes_an_answer(case: str):
    model = model_of(case)
    requests = mixed_requests(model, seed=2)
    together = model.generate(requests)
    order = random.Random(3).sample(range(len(requests)), len(requests))
    for part in (order[:4], order[4:]):
        assert model.generate([requests[index] for index in part]) == [together[index] for index in part]


@pytest.mark.parametrize(("budget", "rows"), [(1, 64), (150, 64), (8192, 3)])
def test_small_batches_give_the_same_answers(monkeypatch: pytest.MonkeyPatch, budget: int, rows: int):
    model = model_of("llama")
    requests = mixed_requests(model, seed=4)
    expected = [naive(model, request) for request in requests]
    monkeypatch.setattr(memory, "token_budget", lambda _network, _device, **_: budget)
    monkeypatch.setattr(generation, "MAX_ROWS", rows)
    assert model.generate(requests) == expected


def test_finished_rows_leave_the_batch(monkeypatch: pytest.MonkeyPatch):
    model = model_of("llama")
    requests = [GenerateRequest(f"the {number} and", max_new_tokens=number) for number in range(1, 13)]
    expected = [naive(model, request) for request in requests]
    run: list[int] = []
    forward = Runner.forward

    def spy(self: Runner, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        run.append(ids.shape[0])
        return forward(self, ids, **arguments)

    monkeypatch.setattr(Runner, "forward", spy)
    assert model.generate(requests) == expected
    assert len(run) == 12  # no step after the last answer is complete
    assert run[0] == 12
    assert run == sorted(run, reverse=True)
    alive = [12, *range(11, 0, -1)]
    assert all(rows <= math.ceil(needed / 0.75) for rows, needed in zip(run, alive, strict=True))


def test_decoding_allocates_once_for_all_tokens_to_come(monkeypatch: pytest.MonkeyPatch):
    model = toy_model(chat=True)
    prompts = ("the cat and the dog sing", "on the hill", "12", "a song of the sea")
    requests = [GenerateRequest(prompt, max_new_tokens=3 * kv_cache.GROWTH) for prompt in prompts]
    grown: list[tuple[int, int]] = []
    original = kv_cache._grown

    def counted(buffer: torch.Tensor, used: int, columns: int) -> torch.Tensor:
        grown.append((used, columns))
        return original(buffer, used, columns)

    monkeypatch.setattr(kv_cache, "_grown", counted)
    monkeypatch.setattr(generation, "end_tokens_of", lambda *_arguments: frozenset())
    answers = model.generate(requests)
    assert {answer.tokens for answer in answers if isinstance(answer, Generation)} == {3 * kv_cache.GROWTH}
    longest = max(len(model.encode(prompt)) for prompt in prompts)
    assert grown == [(longest, longest + 3 * kv_cache.GROWTH)] * 2 * 3  # keys and values of three layers
    monkeypatch.setattr(generation, "MOST_ROOM", 0)  # room as it is needed
    grown.clear()
    assert model.generate(requests) == answers
    assert len(grown) > 2 * 3


def test_waiting_requests_take_the_places_of_finished_ones(monkeypatch: pytest.MonkeyPatch):
    model = model_of("llama")
    monkeypatch.setattr(generation, "MAX_ROWS", 8)
    shots = "the and 12 " * 4
    requests = [GenerateRequest(f"{shots}{'Q' * (number % 5)}:", max_new_tokens=30) for number in range(4)]
    requests += [GenerateRequest(f"the {number} and", max_new_tokens=2 + number % 3) for number in range(40)]
    expected = [naive(model, request) for request in requests]
    run: list[tuple[int, int]] = []
    forward = Runner.forward

    def spy(self: Runner, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        run.append(tuple(ids.shape))
        return forward(self, ids, **arguments)

    monkeypatch.setattr(Runner, "forward", spy)
    assert model.generate(requests) == expected
    steps = [rows for rows, tokens in run if tokens == 1]
    assert max(steps) == 8
    # The long answers set the pace: without admission 40 short ones behind 4 long ones would take 29 + 5 × 4 steps.
    assert len(steps) <= 36
    # The long ones stay while others come and go, and what they need runs once.
    assert sum(rows * tokens for rows, tokens in run if tokens > 1) <= 2 * sum(
        len(model.tokenize(request.prompt)) for request in requests if isinstance(request.prompt, str)
    )


@pytest.mark.parametrize("case", ["mistral-short-window", "gemma2-short-window", "gemma3-short-window", "gpt_neo"])
def test_past_the_window_rows_are_decoded_together(monkeypatch: pytest.MonkeyPatch, case: str):
    model = model_of(case)
    requests = [GenerateRequest("the and 12 " * 4 + "Q" * number, max_new_tokens=20) for number in range(1, 7)]
    expected = [naive(model, request) for request in requests]
    run: list[int] = []
    forward = Runner.forward

    def spy(self: Runner, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        run.append(ids.shape[0])
        return forward(self, ids, **arguments)

    monkeypatch.setattr(Runner, "forward", spy)
    assert model.generate(requests) == expected
    assert max(run) == 6
    assert len(run) == 21  # the prefix, the prompts, 19 steps


LLAMA = toy_model(chat=True)


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("Paris\nQ: next", ("\n",), "Paris"),
        ("\nParis\nQ: next", ("\n",), "\nParis"),
        ("\n\nParis\n\nQ", ("\n\n",), "\n\nParis"),
        ("\n\n\nParis\n\nQ", ("\n\n",), "\n\n\nParis"),
        (" \n \n", ("\n", " "), None),
        ("", ("\n",), None),
        ("\n", ("\n",), None),
        ("one. two; three", (";", "."), "one"),
        ("\nQuestion: another", ("\nQuestion:",), ""),  # reaches beyond the whitespace: the answer is empty
        ("\n\nQ: another", ("\n\nQ:", "\n"), ""),
        (" A", ("A",), " "),
        ("never", (), None),
        ("a  b", ("  ",), "a"),
    ],
)
def test_a_stop_counts_only_beyond_the_leading_whitespace(text: str, stops: tuple[str, ...], expected: str | None):
    place = first_stop(text, stops)
    assert (None if place is None else text[:place]) == expected


def test_an_answer_that_begins_with_a_blank_line_is_not_empty():
    said = saying(LLAMA, "\n\nParis\nLondon")
    assert said.generate([GenerateRequest("Q", stops=("\n",))]) == [
        Generation(text="\n\nParis", tokens=7, finish="stop")
    ]
    assert said.generate([GenerateRequest("Q", stops=("\n\n",))]) == [
        Generation(text="\n\nParis\nLondon", tokens=11, finish="end")
    ]


def test_only_whitespace_goes_on_to_the_end():
    said = saying(LLAMA, "\n \n\n")
    assert said.generate([GenerateRequest("Q", stops=("\n",), max_new_tokens=2)]) == [
        Generation(text="\n ", tokens=2, finish="length")
    ]
    assert said.generate([GenerateRequest("Q", stops=("\n",))]) == [Generation(text="\n \n\n", tokens=3, finish="end")]


def test_a_stop_may_begin_inside_one_token_and_end_inside_another():
    said = saying(LLAMA, "on and the end")
    answer = said.generate([GenerateRequest("Q", stops=("nd t",))])[0]
    assert isinstance(answer, Generation)
    assert (answer.text, answer.finish) == ("on a", "stop")


def saying(model: TransformersModel, text: str) -> TransformersModel:
    """A model that answers any prompt "Q" with `text`: its logits point to the next token of it."""
    script = [*model.tokenize("Q"), *model.tokenizer(text, add_special_tokens=False)["input_ids"], 1]
    said = toy_model(chat=True)

    def point(_module: Any, _arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
        if "position_ids" not in keywords:  # a forward that measures the memory of a token
            return output
        logits = torch.zeros(*output.logits.shape)
        positions = keywords["position_ids"][:, -1]
        for row, position in enumerate(positions.tolist()):
            logits[row, -1, script[min(position + 1, len(script) - 1)]] = 1.0
        output.logits = logits
        return output

    said.network.register_forward_hook(point, with_kwargs=True)
    return said


def test_a_prompt_without_a_token_is_unanswered():
    without_start = TransformersModel.wrap(LLAMA.network, toy_tokenizer(start=False), LLAMA.info)
    answers = without_start.generate([GenerateRequest(""), GenerateRequest("the", max_new_tokens=2)])
    assert answers[0] == Unanswered(reason="the prompt is empty")
    assert isinstance(answers[1], Generation)
    # With a start token an empty prompt is the beginning of a document.
    request = GenerateRequest("", max_new_tokens=4)
    assert LLAMA.generate([request]) == [naive(LLAMA, request)]


def test_an_answer_fits_to_the_last_token_of_the_context():
    fits = GenerateRequest("x" * 251, max_new_tokens=4)  # and <s>: 252 + 4
    exceeds = GenerateRequest("x" * 252, max_new_tokens=4)
    answers = LLAMA.generate([fits, exceeds])
    assert answers[0] == naive(LLAMA, fits)
    assert answers[1] == Unanswered(reason="a prompt of 253 tokens leaves no room for 4 new tokens in a context of 256")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_costs_only_the_requests_that_meet_it(value: float):
    model = toy_model()
    poisoned = int(model.tokenize("~")[-1])
    healthy = [GenerateRequest("the and", max_new_tokens=6), GenerateRequest("on", max_new_tokens=9)]
    expected = [naive(model, request) for request in healthy]
    with torch.no_grad():
        model.network.get_input_embeddings().weight[poisoned] = value
    answers = model.generate([healthy[0], GenerateRequest("the ~", max_new_tokens=6), healthy[1]])
    assert answers == [expected[0], Unanswered(reason="the model's output is NaN or Inf"), expected[1]]


def test_nothing_asked_nothing_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Runner, "forward", lambda *_arguments, **_keywords: pytest.fail("a forward was run"))
    assert LLAMA.generate([]) == []


@pytest.mark.parametrize("arguments", [{"max_new_tokens": 0}, {"max_new_tokens": -3}, {"stops": ("\n", "")}])
def test_requests_that_make_no_sense_are_refused(arguments: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"stop string is empty|at least 1; got"):
        GenerateRequest("the", **arguments)


def test_identical_requests_get_identical_answers():
    requests: Sequence[GenerateRequest] = [GenerateRequest("the and the 12 (a) stones", max_new_tokens=8)] * 5
    answers = LLAMA.generate(requests)
    assert answers == [naive(LLAMA, requests[0])] * 5


@functools.cache
def to_the_end_of_the_context(architecture: str) -> tuple[list[GenerateRequest], list[Generation]]:
    """Requests to a network with a context of 64, and what it answers to each alone."""
    model = toy_model(architecture, max_position_embeddings=64)
    long = GenerateRequest("Q" * 51, max_new_tokens=12)
    requests = [long, *(GenerateRequest("x" * n, max_new_tokens=50) for n in range(3, 10))]
    assert len(model.encode(long.prompt)) == 64 - 12
    return requests, [naive(model, request) for request in requests]


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_a_row_that_has_ended_takes_no_place_beyond_the_context(
    architecture: str, fixed: bool, monkeypatch: pytest.MonkeyPatch
):
    """It stays in the batch while others go on, and a network with learned positions has none behind its context."""
    model = toy_model(architecture, max_position_embeddings=64)
    monkeypatch.setattr(generation, "SETTLED_STEPS", 1)
    monkeypatch.setattr(generation, "can_fix_steps", lambda *_: fixed)
    requests, expected = to_the_end_of_the_context(architecture)
    assert [answer.tokens for answer in expected] == [12, *[50] * 7]
    assert model.generate(requests) == expected
