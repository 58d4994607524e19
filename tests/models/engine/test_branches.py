"""Options of several tokens without a mask and without copies of a prompt, as on a GPU: as if each ran alone."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from llmkick.models.engine import batches, branches, scoring
from llmkick.models.engine.attention import default_attention
from llmkick.models.engine.batch_budget import MemoryShortage
from llmkick.models.engine.branches import AttentionBehindPrompts, alike_in_length, run_branches
from llmkick.models.engine.grouped_query import GroupedQueryAttention
from llmkick.models.engine.packed_prompts import UnsupportedAttentionError
from llmkick.models.engine.runner import Prefix, Runner
from llmkick.models.language_model import ContinuationScore, ScoreRequest, Unanswered
from llmkick.models.transformers_model import TransformersModel
from toy import toy_model

# Whether the keys of a prompt are shared by its options: attention is the sum of two parts that a kernel can return.
SHARED: dict[str, tuple[dict[str, Any], bool]] = {
    **{name: ({}, True) for name in ("llama", "qwen2", "gemma", "opt", "gpt_neox", "gpt2", "mixtral")},
    "mistral": ({"sliding_window": 12}, False),
    "gemma2": ({}, False),
    "gemma3": ({"sliding_window": 12}, False),
    "gpt_neo": ({"window_size": 12}, False),
    "gpt_oss": ({}, False),
    "qwen2_moe": ({"use_sliding_window": True, "sliding_window": 12}, False),  # the window is in the mask alone
    "phimoe": ({"sliding_window": 12}, False),  # the window is in the mask alone
    "deepseek_v3": ({}, False),  # values of another width than keys
}


@pytest.fixture
def without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runners that run prompts without a mask, as on a GPU."""
    initialise = Runner.__init__

    def as_on_a_gpu(self: Runner, *arguments: Any, **options: Any) -> None:
        initialise(self, *arguments, **options)
        self.masks_padding_behind = False

    monkeypatch.setattr(Runner, "__init__", as_on_a_gpu)


def tokens_of(generator: random.Random, length: int) -> tuple[int, ...]:
    return tuple(generator.randrange(4, 284) for _ in range(length))


def alone(model: TransformersModel, prompt: tuple[int, ...], branch: tuple[int, ...]) -> torch.Tensor:
    """The logits after each token of the branch, of a forward without cache, mask or padding: (tokens, vocabulary)."""
    return model.network(torch.tensor([prompt + branch])).logits[0, len(prompt) :]


PRECISE = [(name, torch.float64) for name in ("llama", "gpt2", "mistral")]


@pytest.mark.parametrize("prefix", [0, 20])
@pytest.mark.parametrize(("architecture", "dtype"), [*((name, torch.float32) for name in SHARED), *PRECISE])
def test_every_branch_is_as_it_would_be_alone(
    architecture: str, dtype: torch.dtype, prefix: int, without_masks: None, monkeypatch: pytest.MonkeyPatch
):
    config, is_shared = SHARED[architecture]
    model = toy_model(architecture, dtype=dtype, **config)
    # In shares of the largest logit.
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13}[dtype]
    generator = random.Random(4)
    start = tokens_of(generator, 20)
    prompts = [start + tokens_of(generator, length) for length in (9, 3, 8, 1)]
    # Prompts of several lengths, in any order, with one to three options, and one prompt without.
    rows = [
        (question, tokens_of(generator, length))
        for question, length in ((2, 4), (0, 2), (2, 9), (0, 1), (2, 4), (1, 6))
    ]
    copied: list[int] = []
    repeat = branches.repeat_rows
    monkeypatch.setattr(branches, "repeat_rows", lambda *a, **k: copied.append(1) or repeat(*a, **k))
    monkeypatch.setattr(branches, "_is_cheaper_shared", lambda *_: True)
    with torch.inference_mode():
        runner = Runner(model.network, model.device, reusable=True)
        shared = Prefix(runner, start[:prefix])
        logits, cache = runner.prefill_left_aligned(prompts, prefix, shared.cache)
        before = [layer.keys.clone() for layer in cache.layers]
        for batch in (rows, rows[:1], [(3, (5, 6, 7))]):
            found = run_branches(runner, prompts, cache, batch, note=pytest.fail)
            for row, (question, tokens) in enumerate(batch):
                expected = alone(model, prompts[question], tokens)
                error = (found[row, : len(tokens)] - expected).abs().max() / expected.abs().max()
                assert error <= tolerance, (row, question, error)
        assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
        for row, prompt in enumerate(prompts):
            assert torch.allclose(logits[row], model.network(torch.tensor([prompt])).logits[0, -1].float(), atol=1e-4)
    assert runner.shares_prompts is is_shared
    assert len(copied) == (0 if is_shared else 3)


def requests_of(seed: int) -> list[ScoreRequest]:
    """Questions behind the same examples and by themselves, with options of one token and of more."""
    draw = random.Random(seed)
    shots = "the and 12 " * 8
    requests = []
    for number in range(12):
        prompt = (shots if number % 3 else "") + "Q" * draw.randint(1, 9) + f" {number}:"
        requests += [ScoreRequest(prompt, draw.choice("ABC"))] if number % 2 else []
        requests += [ScoreRequest(prompt, "xyz"[: draw.randint(2, 3)] + "w" * draw.randint(0, 6)) for _ in range(3)]
    return requests


def naive(model: TransformersModel, request: ScoreRequest) -> float:
    prompt = model.encode(request.prompt)
    together = model.encode(request.prompt, str(request.continuation))
    with torch.no_grad():
        logprobs = torch.log_softmax(model.network(torch.tensor([together])).logits[0].double(), dim=-1)
    return sum(float(logprobs[place - 1, together[place]]) for place in range(len(prompt), len(together)))


@pytest.mark.parametrize("budget", [None, 150])
@pytest.mark.parametrize("architecture", SHARED)
def test_scores_are_those_of_one_forward_a_request(
    architecture: str, budget: int | None, without_masks: None, monkeypatch: pytest.MonkeyPatch
):
    model = toy_model(architecture, **SHARED[architecture][0])
    if budget is not None:
        monkeypatch.setattr(scoring.BatchBudget, "tokens", lambda *_, **__: budget)
    masked: list[Any] = []
    monkeypatch.setattr(scoring._Scorer, "_score_longer", lambda *_: masked.append(1))
    requests = requests_of(0)
    found = model.logprobs(requests)
    assert not masked
    for request, one in zip(requests, found, strict=True):
        assert isinstance(one, ContinuationScore)
        assert one.logprob == pytest.approx(naive(model, request), abs=1e-5 * one.tokens), request


def test_no_mask_and_no_padding_before_a_token(without_masks: None, monkeypatch: pytest.MonkeyPatch):
    """All options run behind cached prompts, and each attention of theirs is one that flash attention takes."""
    model = toy_model()
    requests = requests_of(1)
    parts, under_mask = list[bool](), list[int]()
    attend, grouped = branches._attend, GroupedQueryAttention.__call__

    def watched(*arguments: Any, is_causal: bool) -> Any:
        parts.append(is_causal)
        return attend(*arguments, is_causal=is_causal)

    def noted(*arguments: Any, **options: Any) -> Any:
        under_mask.append(arguments[5] is not None)
        return grouped(*arguments, **options)

    monkeypatch.setattr(branches, "_attend", watched)
    monkeypatch.setattr(branches, "_is_cheaper_shared", lambda *_: True)
    monkeypatch.setattr(GroupedQueryAttention, "__call__", noted)
    model.logprobs(requests)
    assert parts
    assert parts.count(True) == parts.count(False)
    assert not any(under_mask)


def test_a_cpu_runs_options_as_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scoring, "run_branches", lambda *_: pytest.fail("not on a CPU"))
    assert not any(isinstance(one, Unanswered) for one in toy_model().logprobs(requests_of(0)))


@pytest.mark.parametrize("fails", [True, False])
def test_a_layer_with_its_own_attention_gets_copies(fails: bool, without_masks: None, monkeypatch: pytest.MonkeyPatch):
    """One layer of three does not call the attention that is given; it may fail on the mask, or notice nothing."""
    model = toy_model()
    expected = [naive(model, request) for request in requests_of(0)]
    tried: list[int] = []
    attend = AttentionBehindPrompts.__call__

    def without_the_last(self: AttentionBehindPrompts, *arguments: Any, **options: Any) -> Any:
        if self.layers < 2:
            return attend(self, *arguments, **options)
        tried.append(1)
        if fails:
            raise RuntimeError("the size of the mask must match the size of the keys")
        return default_attention(*arguments[:4], None, scaling=options["scaling"], is_causal=True)

    monkeypatch.setattr(branches, "_is_cheaper_shared", lambda *_: True)
    monkeypatch.setattr(AttentionBehindPrompts, "__call__", without_the_last)
    found = model.logprobs(requests_of(0))
    assert tried == [1]
    assert [one.logprob for one in found if isinstance(one, ContinuationScore)] == pytest.approx(expected, abs=1e-4)
    model.logprobs(requests_of(0))
    assert tried == [1, 1]
    told = [
        "options of several tokens could not share the keys of their prompts (RuntimeError: the size of the mask must "
        "match the size of the keys): they run on copies; in half precision close answers may differ from a run "
        "without the error"
    ]
    assert list(model.notes) == (told if fails else [])


def test_a_shortage_of_memory_makes_batches_smaller(without_masks: None, monkeypatch: pytest.MonkeyPatch):
    model = toy_model()
    expected = [naive(model, request) for request in requests_of(0)]
    attend, rows = AttentionBehindPrompts.__call__, list[int]()

    def short(self: AttentionBehindPrompts, module: Any, query: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        rows.append(len(query))
        if len(query) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return attend(self, module, query, *arguments, **options)

    monkeypatch.setattr(branches, "_is_cheaper_shared", lambda *_: True)
    monkeypatch.setattr(AttentionBehindPrompts, "__call__", short)
    with pytest.warns(MemoryShortage):
        found = model.logprobs(requests_of(0))
    assert min(rows) <= 3 < max(rows)
    assert [one.logprob for one in found if isinstance(one, ContinuationScore)] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "change", [{"dropout": 0.1}, {"softcap": 30.0}, {"sliding_window": 8}, {"attention_mask": torch.zeros(1, 1, 2, 9)}]
)
def test_attention_of_another_kind_is_refused(change: dict[str, Any]):
    model = toy_model()
    runner = Runner(model.network, model.device, reusable=True)
    with torch.inference_mode():
        cache = runner.prefill([(5, 6, 7, 8, 9, 10, 11)]).cache
    attention = AttentionBehindPrompts(cache, [0, 0], 7)
    query, states = torch.randn(2, 4, 2, 8), torch.randn(2, 2, 2, 8)
    options: dict[str, Any] = {"attention_mask": None, **change}
    with pytest.raises(UnsupportedAttentionError):  # keys that no layer of this cache has handed back
        attention(torch.nn.Module(), query, states, states, None)
    attention.cache.layers[1].update(states, states)
    attention(torch.nn.Module(), query, states, states, None)
    attention.cache.layers[1].update(states, states)
    with pytest.raises(UnsupportedAttentionError):
        attention(torch.nn.Module(), query, states, states, **options)
    attention.cache.layers[1].update(states, states)
    with pytest.raises(UnsupportedAttentionError):  # values of another width
        attention(torch.nn.Module(), query, states, states[..., :4], None)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("cached", [torch.zeros(1, 2, 7, 4), torch.zeros(1, 2, 7, 8).bfloat16(),
                                    torch.empty(1, 2, 7, 8, device="meta"), torch.zeros(1, 1, 7, 8)])  # fmt: skip
def test_cached_states_of_another_kind_are_refused(which: int, cached: torch.Tensor):
    """A layer with latent attention may cache something else than the keys and values that it attends to."""
    states = [torch.zeros(1, 2, 7, 8), torch.zeros(1, 2, 7, 8)]
    states[which] = cached
    layers = [SimpleNamespace(is_initialized=True, keys=states[0], values=states[1])]
    attention = AttentionBehindPrompts(SimpleNamespace(layers=layers), [0, 0], 7)
    own = torch.randn(2, 2, 2, 8)
    attention.cache.layers[0].update(own, own)
    with pytest.raises(UnsupportedAttentionError):
        attention(torch.nn.Module(), torch.randn(2, 4, 2, 8), own, own, None)


def test_the_budget_is_asked_once_for_all_groups(without_masks: None, monkeypatch: pytest.MonkeyPatch):
    """It is a question to a GPU's driver, and the answer changes between batches of questions only."""
    model, asked, groups = toy_model(), list[int](), list[list[int]]()
    tokens, alike = scoring.BatchBudget.tokens, scoring.alike_in_length

    def counted(*arguments: Any, **options: Any) -> int:
        asked.append(1)
        return tokens(*arguments, **options)

    def noted(questions: Any) -> Any:
        before, found = len(asked), list(alike(questions))
        groups.extend(found)
        yield from found
        assert len(asked) == before

    monkeypatch.setattr(scoring.BatchBudget, "tokens", counted)
    monkeypatch.setattr(scoring, "alike_in_length", noted)
    model.logprobs(requests_of(0) + requests_of(2))
    assert len(groups) > 2


def test_the_call_of_a_gpu_has_the_right_shapes(monkeypatch: pytest.MonkeyPatch):
    """With tensors that have a shape and no values: reading a number of them would raise an error."""
    monkeypatch.setattr(branches, "_runs_in_parts", lambda *_: True)
    options: dict[str, Any] = {"device": "meta", "dtype": torch.bfloat16}
    keys = torch.empty(3, 2, 9, 64, **options)
    prompts = SimpleNamespace(layers=[SimpleNamespace(is_initialized=True, keys=keys, values=keys)])
    attention = AttentionBehindPrompts(prompts, [0, 2, 2, 2], 7)
    query, own = torch.empty(4, 8, 5, 64, **options), torch.empty(4, 2, 5, 64, **options)
    attention.cache.layers[0].update(own, own)
    found, _ = attention(torch.nn.Module(), query, own, own, None, scaling=0.1)
    assert found.shape == (4, 5, 8, 64)
    assert found.dtype == torch.bfloat16


def test_questions_whose_prompts_are_alike_run_together():
    # Question: tokens of its prompt, options. 4 × 10 and 2 × 12 tokens run again, then 1 more would be too many.
    questions = {7: (50, 3), 1: (60, 4), 2: (62, 2), 3: (63, 5), 9: (63, 1)}
    assert batches.FORWARD_COST_TOKENS == 64
    assert list(alike_in_length(questions)) == [[7, 1, 2], [3, 9]]
    assert list(alike_in_length({})) == []
    assert list(alike_in_length({4: (9, 1)})) == [[4]]
    generator = random.Random(0)
    many = {index: (generator.randint(20, 90), generator.randint(1, 6)) for index in range(100)}
    groups = list(alike_in_length(many))
    assert sorted(index for group in groups for index in group) == sorted(many)
    for group in groups:
        shortest = min(many[index][0] for index in group)
        assert sum((many[index][0] - shortest) * many[index][1] for index in group) <= 64


def test_padded_queries_are_no_more_than_the_keys_that_copies_would_move():
    # 40 columns; 3 rows of 5 tokens. Two of a question and one of its neighbour: 2 × 2 places.
    assert branches._is_cheaper_shared([4, 4, 5], 40, 5)
    # Two of the first and one of the last of a batch of 60 questions: 60 × 2 places of 5 tokens.
    assert not branches._is_cheaper_shared([0, 0, 59], 40, 5)
