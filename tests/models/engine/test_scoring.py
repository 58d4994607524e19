"""Scoring against the obvious procedure: one request, one forward, no cache, no mask, no padding."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick import compress, parse_recipe
from llmkick.models.engine import batch_budget as memory
from llmkick.models.engine import encoding, scoring, token_scores
from llmkick.models.engine.runner import Runner
from llmkick.models.language_model import ContinuationScore, Message, ScoreRequest, Unanswered
from llmkick.models.transformers_model import TransformersModel
from speeds import others_slow
from toy import toy_model

# "window" is larger than every request below but smaller than a batch of them with its padding.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("llama", "qwen2", "gemma", "opt", "gpt_neox", "gpt2", "mixtral")},
    "mistral-short-window": ("mistral", {"sliding_window": 12}),
    "mistral-window": ("mistral", {"sliding_window": 128}),
    "mistral-long-window": ("mistral", {"sliding_window": 250}),
    **{name: (name, {}) for name in ("mpt", "bloom", "gpt_neo", "mamba", "lfm2", "minimax", "openai-gpt")},
    "gpt_neo-window": ("gpt_neo", {"window_size": 128}),
    "gemma2-short-window": ("gemma2", {}),
    "gemma3-short-window": ("gemma3", {}),
    "gemma3-window": ("gemma3", {"sliding_window": 128}),
    "gpt_oss-short-window": ("gpt_oss", {}),
    "deepseek_v3": ("deepseek_v3", {}),
    "dynamic-rope": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 3.0}, "max_position_embeddings": 90},
    ),
}
PIECES = ("the", " and", "12", " w", "é", "\n", "\n\n", " (", ":", " ", "x", "Q", " answer", "on")


def model_of(case: str, **arguments: Any) -> TransformersModel:
    architecture, config = CASES[case]
    return toy_model(architecture, **{"chat": True, **config, **arguments})


def naive(model: TransformersModel, request: ScoreRequest) -> ContinuationScore:
    """The definition, spelled out."""
    prompt, continuation, moved = tokens_of(model, request)
    ids = torch.tensor([prompt + continuation])
    with torch.no_grad():
        logprobs = torch.log_softmax(model.network(ids).logits[0].double(), dim=-1)
    first = max(1, len(prompt))
    places = range(first, ids.shape[1])
    return ContinuationScore(
        logprob=sum(float(logprobs[place - 1, ids[0, place]]) for place in places),
        tokens=len(places),
        is_greedy=all(int(logprobs[place - 1].argmax()) == int(ids[0, place]) for place in places),
        boundary_moved=moved,
    )


def tokens_of(model: TransformersModel, request: ScoreRequest) -> tuple[list[int], list[int], bool]:
    tokenizer = model.tokenizer
    if isinstance(request.prompt, str):
        text, special = request.prompt, True
    else:
        text, special = model.render_chat(request.prompt), False
    if not isinstance(request.continuation, str):
        prompt = tokenizer(text, add_special_tokens=special)["input_ids"] if text else []
        return prompt, list(request.continuation), False
    prompt = tokenizer(text, add_special_tokens=special)["input_ids"]
    together = tokenizer(text + request.continuation, add_special_tokens=special)["input_ids"]
    if together[: len(prompt)] == prompt:
        return prompt, together[len(prompt) :], False
    return prompt, tokenizer(request.continuation, add_special_tokens=False)["input_ids"], True


def assert_close(found: Sequence[ContinuationScore | Unanswered], expected: Sequence[ContinuationScore]) -> None:
    assert len(found) == len(expected)
    for index, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert isinstance(one, ContinuationScore), (index, one)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4), (index, one, other)
        assert (one.tokens, one.is_greedy, one.boundary_moved) == (
            other.tokens,
            other.is_greedy,
            other.boundary_moved,
        )


def text_of(generator: random.Random, pieces: int) -> str:
    return "".join(generator.choices(PIECES, k=pieces))


def mixed_requests(model: TransformersModel, seed: int = 0) -> list[ScoreRequest]:
    """Every path at once: shared and own prefixes, options, long and short, running text, conversations."""
    generator = random.Random(seed)
    shots = text_of(generator, 30)
    requests = []
    for _ in range(4):
        question = shots + "Q" + text_of(generator, generator.randint(1, 8))
        requests += [ScoreRequest(question, letter) for letter in ("A", "B", "C")]
        requests += [ScoreRequest(question, text_of(generator, n)) for n in (2, 5)]
    requests += [ScoreRequest(text_of(generator, n), text_of(generator, m)) for n, m in ((1, 3), (0, 4), (9, 1))]
    requests += [ScoreRequest("", text_of(generator, 6)), ScoreRequest("the and:", " 12")]
    for length in (2, 17, 60):
        requests.append(ScoreRequest("", tuple(generator.randrange(284) for _ in range(length))))
    requests.append(ScoreRequest("the and", tuple(generator.randrange(4, 284) for _ in range(5))))
    turns = (Message("system", "the " * 8), Message("user", text_of(generator, 4)))
    requests += [ScoreRequest(turns, "on"), ScoreRequest(turns, " and the 12")]
    requests.append(ScoreRequest((*turns, Message("assistant", "Answer:")), " the"))
    return generator.sample(requests, len(requests))


# Networks that are to the engine as another case is.
LIKE_OTHERS = ("qwen2", "gemma", "bloom", "gpt_neo", "mistral-long-window")
DIFFERENT = others_slow(CASES, [case for case in CASES if case not in LIKE_OTHERS])


@pytest.mark.parametrize("case", DIFFERENT)
def test_every_path_equals_one_forward_a_request(case: str):
    model = model_of(case)
    requests = mixed_requests(model)
    expected = [naive(model, request) for request in requests]
    assert_close(model.logprobs(requests), expected)
    assert {one.boundary_moved for one in expected} == {True, False}
    assert max(one.tokens for one in expected) > 5


RECIPES = ("wanda@0.5", "magnitude@2:4", "gptq@4b", "sparsegpt@0.5+rtn@3b-g8")


# Every recipe on one network, and every network with one recipe: the weights are other numbers, nothing else.
COMPRESSED = [(case, recipe) for case in ("llama", "mistral-short-window", "gpt2", "mixtral") for recipe in RECIPES]


@pytest.mark.parametrize(
    ("case", "recipe"), others_slow(COMPRESSED, [one for one in COMPRESSED if "llama" in one or RECIPES[0] in one])
)
def test_compressed_models_too(case: str, recipe: str):
    calibration = torch.randint(4, 284, (4, 32), generator=torch.Generator().manual_seed(0)).numpy()
    dense = model_of(case)
    model, _ = compress(dense, parse_recipe(recipe), calibration=calibration)
    requests = mixed_requests(model)
    expected = [naive(model, request) for request in requests]
    assert_close(model.logprobs(requests), expected)
    shifts = [naive(dense, request).logprob - one.logprob for request, one in zip(requests, expected, strict=True)]
    assert max(map(abs, shifts)) > 0.1


HALVES = [
    (case, dtype)
    for case in ("llama", "mistral-short-window", "gpt2", "mamba")
    for dtype in (torch.bfloat16, torch.float16)
]


@pytest.mark.parametrize(
    ("case", "dtype"), others_slow(HALVES, [one for one in HALVES if "llama" in one or torch.bfloat16 in one])
)
def test_half_precision_is_near_its_own_naive_forward(case: str, dtype: torch.dtype):
    model = model_of(case, dtype=dtype)
    requests = mixed_requests(model)
    shifts = [
        abs(found.logprob - naive(model, request).logprob) / found.tokens
        for request, found in zip(requests, model.logprobs(requests), strict=True)
        if isinstance(found, ContinuationScore)
    ]
    assert len(shifts) == len(requests)
    # 8 bits of mantissa over three blocks of logits around 5; float16 has three bits more.
    assert max(shifts) < (0.5 if dtype == torch.bfloat16 else 0.06)


@pytest.mark.parametrize("case", ["mistral-window", "gemma3-window", "gpt_neo-window"])
def test_a_window_longer_than_each_request_but_not_than_the_padded_batch(case: str):
    # Shared prefix | longest own prompt | longest continuation: 60 + 50 + 50 columns for requests of 111.
    model = model_of(case)
    generator = random.Random(1)
    prefix = "<s>" + "".join(generator.choices("QxyzABC", k=59))
    requests = [
        ScoreRequest(prefix + "u", "".join(generator.choices("QxyzABC", k=50))),
        ScoreRequest(prefix + "".join(generator.choices("uvw", k=50)), "A"),
        ScoreRequest(prefix + "v", "".join(generator.choices("QxyzABC", k=50))),
    ]
    for request in requests:
        prompt, continuation, _ = tokens_of(model, request)
        assert len(prompt) + len(continuation) < 128
    assert_close(model.logprobs(requests), [naive(model, request) for request in requests])


@pytest.mark.parametrize("case", DIFFERENT)
def test_neither_order_nor_company_changes_an_answer(case: str):
    model = model_of(case)
    requests = mixed_requests(model, seed=2)
    generator = random.Random(3)
    together = model.logprobs(requests)
    order = generator.sample(range(len(requests)), len(requests))
    cut = len(order) // 3
    for part in (order[:cut], order[cut:]):
        answers = model.logprobs([requests[index] for index in part])
        assert_close(answers, [together[index] for index in part])


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.text("the and:\n12 é(", max_size=12), st.text("the and:\n12 é(", min_size=1)),
        min_size=1,
        max_size=12,
    )
)
def test_any_list_of_requests_equals_one_at_a_time(drawn: list[tuple[int, str, str]]):
    shots = ("", "the and the 12 (a) stones and ", "the and the 12 (a) stones on another ")
    requests = [ScoreRequest(shots[shot] + prompt, continuation[:20]) for shot, prompt, continuation in drawn]
    assert_close(LLAMA.logprobs(requests), [naive(LLAMA, request) for request in requests])


LLAMA = toy_model(chat=True)


def test_a_merge_across_the_boundary_is_reported_and_scored_apart():
    merged, apart = LLAMA.logprobs([ScoreRequest("Answer:", " on"), ScoreRequest("Answer: ", "on")])
    assert isinstance(merged, ContinuationScore)
    assert isinstance(apart, ContinuationScore)
    assert merged.boundary_moved  # ":" and " " are one token together
    assert not apart.boundary_moved
    own = LLAMA.tokenizer(" on", add_special_tokens=False)["input_ids"]
    by_hand = naive(LLAMA, ScoreRequest("Answer:", tuple(own)))
    assert merged.logprob == pytest.approx(by_hand.logprob, abs=1e-4)
    assert merged.tokens == len(own)


@pytest.mark.parametrize("together", [1, 3, 7])
def test_tokenised_in_pieces(monkeypatch: pytest.MonkeyPatch, together: int):
    requests = mixed_requests(LLAMA, seed=5)
    expected = list(encoding.encode_requests(LLAMA.engine.encoder, requests))
    assert len(expected) == len(requests) > 10
    monkeypatch.setattr(encoding, "TOKENIZED_TOGETHER", together)
    assert list(encoding.encode_requests(LLAMA.engine.encoder, requests)) == expected


def test_prompt_and_options_run_once_each(monkeypatch: pytest.MonkeyPatch):
    shots = "the and 12 " * 9
    requests = [
        ScoreRequest(f"{shots}Question {number}", option)
        for number in range(5)
        for option in ("A", "B", "C", "long one", "longer one")
    ]
    run = forwarded_tokens(monkeypatch)
    LLAMA.logprobs(requests)
    shared = len(LLAMA.tokenize(f"{shots}Question "))
    questions = 5 * (len(LLAMA.tokenize(f"{shots}Question 1")) - shared)
    longer = sum(len(LLAMA.tokenize(option)) - 2 for option in ("long one", "longer one"))
    assert run[0] == (1, shared)
    assert run[1] == (5, questions // 5)
    assert sum(rows * tokens for rows, tokens in run) <= shared + questions + 2 * 5 * longer
    assert len(run) == 3


@pytest.mark.parametrize(
    "case", ["mistral-short-window", "gemma3-short-window", "gpt_neo-window", "gpt_oss-short-window"]
)
def test_past_the_window_prompts_share_their_prefix_and_run_in_batches(monkeypatch: pytest.MonkeyPatch, case: str):
    model = model_of(case)
    shots = "the and 12 " * 9
    requests = [ScoreRequest(shots + "Question " + "x" * number, letter) for number in range(6) for letter in "ABCD"]
    expected = [naive(model, request) for request in requests]
    run = forwarded_tokens(monkeypatch)
    assert_close(model.logprobs(requests), expected)
    longest = len(model.tokenize(requests[-1].prompt))
    # The longest runs whole and is answered by that; the others are up to five tokens beyond what all share.
    assert run == [(1, longest), (5, 5)]


def test_the_longest_question_of_a_group_is_not_run_twice(monkeypatch: pytest.MonkeyPatch):
    shots = "the and 12 " * 9
    prompts = [f"{shots}Question {'x' * number}" for number in (2, 9, 4, 9)]
    requests = [ScoreRequest(prompt, letter) for prompt in prompts for letter in "AB"]
    expected = [naive(LLAMA, request) for request in requests]
    run = forwarded_tokens(monkeypatch)
    assert_close(LLAMA.logprobs(requests), expected)
    # The others, one and three tokens beyond what all share, have one row, without padding.
    assert run == [(1, len(LLAMA.tokenize(prompts[1]))), (1, 1 + 3)]


def test_a_longest_question_that_memory_does_not_hold_costs_no_other(monkeypatch: pytest.MonkeyPatch):
    shots = "the and 12 " * 9
    prompts = [f"{shots}Question {number}" for number in range(4)] + [f"{shots}Question {'x' * 90}"]
    requests = [ScoreRequest(prompt, letter) for prompt in prompts for letter in "AB"]
    expected = [naive(LLAMA, request) for request in requests]
    forward = Runner.forward
    most = len(LLAMA.tokenize(prompts[0])) + 2

    def short_of_memory(self: Runner, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        if ids.numel() > most:
            raise torch.OutOfMemoryError("out of memory")
        return forward(self, ids, **arguments)

    monkeypatch.setattr(Runner, "forward", short_of_memory)
    model = model_of("llama")  # its budget shrinks
    with pytest.warns(memory.MemoryShortage):
        found = model.logprobs(requests)
    assert_close(found[:-2], expected[:-2])
    assert all(isinstance(one, Unanswered) and "memory" in one.reason for one in found[-2:])


@pytest.mark.parametrize("case", ["llama", "mpt", "mamba", "lfm2"])
def test_the_letters_of_a_question_come_from_one_position(monkeypatch: pytest.MonkeyPatch, case: str):
    model = model_of(case)
    requests = [ScoreRequest(f"Question {number}:", letter) for number in range(5) for letter in "ABCD"]
    expected = [naive(model, request) for request in requests]
    run = forwarded_tokens(monkeypatch)
    assert_close(model.logprobs(requests), expected)
    assert [rows for rows, _ in run] == [5]


def test_one_long_option_pads_no_other(monkeypatch: pytest.MonkeyPatch):
    options = ["xyz", "uvw", "xyx", "Q" * 60]
    requests = [ScoreRequest(f"Question {number}:", option) for number in range(40) for option in options]
    run = forwarded_tokens(monkeypatch)
    LLAMA.logprobs(requests)
    prompts = sum(len(LLAMA.tokenize(f"Question {number}:")) for number in range(40))
    needed = prompts + 40 * (3 * 2 + 59)
    assert sum(rows * tokens for rows, tokens in run) <= 1.1 * needed


def test_an_empty_list_runs_nothing(monkeypatch: pytest.MonkeyPatch):
    run = forwarded_tokens(monkeypatch)
    assert LLAMA.logprobs([]) == []
    assert run == []


def forwarded_tokens(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, tokens) of every forward from here on."""
    run: list[tuple[int, int]] = []
    forward = Runner.forward

    def spy(self: Runner, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        run.append((ids.shape[0], ids.shape[1]))
        return forward(self, ids, **arguments)

    monkeypatch.setattr(Runner, "forward", spy)
    return run


@pytest.mark.parametrize("budget", [1, 70, 300])
def test_small_batches_give_the_same_scores(monkeypatch: pytest.MonkeyPatch, budget: int):
    requests = mixed_requests(LLAMA, seed=4)
    expected = [naive(LLAMA, request) for request in requests]
    run = forwarded_tokens(monkeypatch)
    monkeypatch.setattr(memory, "token_budget", lambda _network, _device, **_: budget)
    monkeypatch.setattr(token_scores, "LOGIT_ROWS", 3)
    assert_close(LLAMA.logprobs(requests), expected)
    assert len(run) >= {1: 20, 70: 8, 300: 5}[budget]


@pytest.mark.parametrize("strange", [288, 10**9, -1])
def test_token_ids_of_another_tokenizer_are_unanswered(strange: int):
    answers = LLAMA.logprobs([ScoreRequest("", (5, strange, 7)), ScoreRequest("", (5, 287, 7))])
    assert answers[0] == Unanswered(reason="it holds token ids outside the vocabulary of 288")
    assert isinstance(answers[1], ContinuationScore)


def test_greedy_means_every_token_of_the_continuation(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_scores, "LOGIT_ROWS", 3)
    ids = LLAMA.tokenize("the and")
    start = len(ids)
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(LLAMA.network(torch.tensor([ids])).logits[0, -1].argmax()))
    continuation = ids[start:]
    requests = [ScoreRequest("the and", tuple(continuation))]
    for place in range(8):  # greedy again after a token that is not
        changed = [*ids[: start + place], 7]
        with torch.no_grad():
            while len(changed) < len(ids):
                changed.append(int(LLAMA.network(torch.tensor([changed])).logits[0, -1].argmax()))
        requests.append(ScoreRequest("the and", tuple(changed[start:])))
    for reusable in (True, False):  # through the cache, and whole
        monkeypatch.setattr(scoring, "can_reuse_cache", lambda _network, _columns, r=reusable: r)
        answers = LLAMA.logprobs(requests)
        greedy = [isinstance(one, ContinuationScore) and one.is_greedy for one in answers]
        assert greedy == [True, *[False] * 8]


def test_a_request_fits_to_the_last_token_of_the_context():
    fits, exceeds = [4] * 256, [4] * 257
    answers = LLAMA.logprobs(
        [
            ScoreRequest("", tuple(fits)),
            ScoreRequest("", tuple(exceeds)),
            ScoreRequest("x" * 255, "A"),  # and <s>: 257
            ScoreRequest("x" * 254, "A"),
        ]
    )
    assert isinstance(answers[0], ContinuationScore)
    assert answers[0].tokens == 255
    assert answers[1] == Unanswered(reason="257 tokens exceed the context of 256")
    assert answers[2] == Unanswered(reason="257 tokens exceed the context of 256")
    assert isinstance(answers[3], ContinuationScore)


@pytest.mark.parametrize(
    "request_",
    [ScoreRequest("the", ""), ScoreRequest("", ()), ScoreRequest("", (7,)), ScoreRequest("the", ())],
)
def test_nothing_to_score_is_unanswered_not_zero(request_: ScoreRequest):
    answers = LLAMA.logprobs([request_, ScoreRequest("the", "A")])
    assert answers[0] == Unanswered(reason="the continuation has no token to score")
    assert isinstance(answers[1], ContinuationScore)


@pytest.mark.parametrize("case", ["llama", "mistral-short-window", "mixtral", "gpt2"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_costs_only_the_requests_that_meet_it(case: str, value: float):
    model = model_of(case, tie_word_embeddings=False)
    poisoned = int(model.tokenize("~")[-1])
    with torch.no_grad():
        model.network.get_input_embeddings().weight[poisoned] = value
    requests = [
        ScoreRequest("the and", " on"),
        ScoreRequest("the ~ and", " on"),  # in the prompt
        ScoreRequest("the and", "on ~ and"),  # in the continuation
        ScoreRequest("the and", "~"),  # only as a target: it is never run
        ScoreRequest("", tuple(model.tokenize("a~ and"))),
        ScoreRequest("", tuple(model.tokenize("a and and 12"))),
    ]
    unanswered = [isinstance(answer, Unanswered) for answer in model.logprobs(requests)]
    assert unanswered == [False, True, True, False, True, False]
    assert "NaN" in next(a.reason for a in model.logprobs(requests) if isinstance(a, Unanswered))


def test_infinite_logits_are_unanswered():
    model = toy_model()
    with torch.no_grad():
        model.network.lm_head.weight[9] = math.inf
    answers = model.logprobs([ScoreRequest("the", "A"), ScoreRequest("", (5, 6, 7))])
    assert all(isinstance(answer, Unanswered) for answer in answers)


def test_a_target_of_probability_zero_is_unanswered():
    # An infinite score would poison every mean that it enters.
    model = toy_model()
    lowered = int(model.tokenize("A")[-1])
    bias = torch.zeros(288)
    bias[lowered] = -math.inf
    model.network.lm_head.bias = torch.nn.Parameter(bias, requires_grad=False)
    answers = model.logprobs([ScoreRequest("the", "A"), ScoreRequest("the", "B"), ScoreRequest("", (5, lowered, 7))])
    assert [isinstance(answer, Unanswered) for answer in answers] == [True, False, True]


def test_a_conversation_needs_a_template():
    without = toy_model(chat=False)
    with pytest.raises(Exception, match="no chat template"):
        without.logprobs([ScoreRequest((Message("user", "hi"),), "A")])


@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_padding_takes_no_place_beyond_the_context(architecture: str):
    """A long prompt with a short continuation beside a shorter one with a long continuation, both as long as it is."""
    model = toy_model(architecture, max_position_embeddings=64)
    requests = [ScoreRequest("Q" * 59, "xyzx"), ScoreRequest("x" * 39, "Q" * 24)]
    assert [len(model.encode(request.prompt, str(request.continuation))) for request in requests] == [64, 64]
    assert_close(model.logprobs(requests), [naive(model, request) for request in requests])
