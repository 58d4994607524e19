"""Running prompts together leaves each as it would be alone."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from llmkick.models.engine import prefix_attention, scoring
from llmkick.models.engine.attention import default_attention
from llmkick.models.engine.branches import run_branches
from llmkick.models.engine.grouped_query import GroupedQueryAttention
from llmkick.models.engine.prefilled import join_states
from llmkick.models.engine.prefix_attention import CausalBehindPrefix
from llmkick.models.engine.runner import Prefix, Runner, pad
from llmkick.models.language_model import ScoreRequest
from toy import toy_model

CPU = torch.device("cpu")


def test_padding_is_masked_on_either_side():
    ids, mask = pad([(5, 6, 7), (8,)], CPU, left=True)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = pad([(5, 6, 7), (8,)], CPU, left=False)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


WINDOWS: dict[str, dict[str, Any]] = {
    "mistral": {"sliding_window": 12},
    "gemma3": {"sliding_window": 12},
    # The window is in the mask alone: the layers do not name it.
    "qwen2_moe": {"use_sliding_window": True, "sliding_window": 12},
    "phimoe": {"sliding_window": 12},
}


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma", "opt", "gpt_neox", "gpt2", "mixtral", "mistral", "gemma3", "gpt_neo"]
)
def test_prefill_goes_on_from_a_shared_prefix_without_spending_it(architecture: str):
    model = toy_model(architecture, **WINDOWS.get(architecture, {}))
    runner = Runner(model.network, model.device, reusable=True)
    generator = random.Random(0)
    prefix = tuple(generator.randrange(284) for _ in range(20))
    # The last is so short that the whole prefix moves out of the way of the longest, and padding is left.
    prompts = [(*prefix, *(generator.randrange(284) for _ in range(length))) for length in (1, 9, 4, 40)]
    with torch.inference_mode():
        cache = Prefix(runner, prefix).cache
        before = [layer.keys.clone() for layer in cache.layers]
        for _ in range(2):  # the second time from the same cache
            state = runner.prefill(prompts, len(prefix), cache)
            assert cache.get_seq_length() == 20
            assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))
            assert state.lengths.tolist() == [21, 29, 24, 60]
            assert state.mask.sum(1).tolist() == [21, 29, 24, 60]
            for row, prompt in enumerate(prompts):
                expected = model.network(torch.tensor([prompt])).logits[0, -1]
                assert torch.allclose(state.next_logits[row], expected, atol=1e-4)
        chosen = [2, 2, 0]
        taken = state.select(torch.tensor(chosen))
        assert taken.lengths.tolist() == [24, 24, 21]
        assert taken.mask.tolist() == [[1] * 24, [1] * 24, [0] * 3 + [1] * 21]  # the columns of the longest are gone
        assert taken.cache.layers[0].keys.shape[0] == 3
        assert taken.cache.get_seq_length() == 24
        for tokens in ([3, 4, 5], [6, 7, 8]):
            prompts = [(*prompts[row], token) for row, token in zip(chosen, tokens, strict=True)]
            runner.step(taken, torch.tensor(tokens)[:, None])
            chosen = [0, 1, 2]
            for row, prompt in enumerate(prompts):
                expected = model.network(torch.tensor([prompt])).logits[0, -1]
                assert torch.allclose(taken.next_logits[row], expected, atol=1e-4)


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma", "opt", "gpt_neox", "gpt2", "mixtral", "mistral", "gemma3", "gpt_neo"]
)
def test_final_logits_are_those_of_each_prompt_alone(architecture: str):
    model = toy_model(architecture, **WINDOWS.get(architecture, {}))
    runner = Runner(model.network, model.device, reusable=True)
    generator = random.Random(2)
    prefix = tuple(generator.randrange(284) for _ in range(20))
    prompts = [(*prefix, *(generator.randrange(284) for _ in range(length))) for length in (1, 9, 4, 40)]
    with torch.inference_mode():
        expected = torch.stack([model.network(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])
        shared = Prefix(runner, prefix, within=prompts[1])
        assert shared.next_logits is None
        for found in (
            runner.final_logits(prompts),
            runner.final_logits(prompts, 20, Prefix(runner, prefix).cache),
            runner.final_logits(prompts, 20, shared.cache),
        ):
            assert torch.allclose(found, expected, atol=1e-4)
    assert shared.cache.get_seq_length() == 20
    assert shared.next_logits is not None
    assert torch.allclose(shared.next_logits[0], expected[1], atol=1e-4)


@pytest.mark.parametrize(
    "architecture", ["llama", "gemma", "opt", "gpt_neox", "gpt2", "mixtral", "mistral", "gemma3", "gpt_neo"]
)
def test_padding_behind_the_tokens_needs_no_mask(architecture: str, monkeypatch: pytest.MonkeyPatch):
    """As on a GPU, whose fastest kernels take none."""
    model = toy_model(architecture, **WINDOWS.get(architecture, {}))
    runner = Runner(model.network, model.device, reusable=True)
    assert runner.masks_padding_behind
    generator = random.Random(3)
    prompts = [tuple(generator.randrange(284) for _ in range(length)) for length in (21, 29, 24, 60)]
    forward, masks = model.network.forward, list[torch.Tensor]()

    def watching(*, attention_mask: torch.Tensor, **options: Any) -> Any:
        masks.append(attention_mask)
        return forward(attention_mask=attention_mask, **options)

    with torch.inference_mode():
        expected = runner.final_logits(prompts)
        runner.masks_padding_behind = False
        monkeypatch.setattr(model.network, "forward", watching)
        found = runner.final_logits(prompts)
    assert [bool(mask.all()) for mask in masks] == [True]
    assert torch.allclose(found, expected, atol=1e-5)


def test_running_text_with_padding_behind_it_needs_no_mask(monkeypatch: pytest.MonkeyPatch):
    """Texts of several lengths in one batch, as on a GPU: the scores are those under a mask."""
    model = toy_model("llama")
    texts = ["A short text.", "A text that is a little longer than the other one.", "One more."]
    requests = [ScoreRequest("", text) for text in texts]
    forward, masks = model.network.forward, list[torch.Tensor]()

    def watching(**options: Any) -> Any:
        if "attention_mask" in options:  # not where the size of a cache is measured
            masks.append(options["attention_mask"])
        return forward(**options)

    monkeypatch.setattr(scoring, "can_reuse_cache", lambda *_: False)  # each text runs whole
    monkeypatch.setattr(model.network, "forward", watching)
    expected = model.logprobs(requests)
    assert not all(bool(mask.all()) for mask in masks)
    masks.clear()
    monkeypatch.setattr(Runner, "needs_no_mask", True)
    found = model.logprobs(requests)
    assert masks
    assert all(bool(mask.all()) for mask in masks)
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-4)


@pytest.mark.parametrize(
    "architecture",
    ["llama", "qwen2", "gemma", "opt", "gpt_neox", "gpt2", "mixtral", "gpt_neo", *WINDOWS],
)
@pytest.mark.parametrize("prefix", [0, 20])
def test_prompts_without_a_mask_go_on_like_those_under_one(
    architecture: str, prefix: int, monkeypatch: pytest.MonkeyPatch
):
    """As on a GPU: padding stands behind the tokens while they run, and before them afterwards."""
    model = toy_model(architecture, **WINDOWS.get(architecture, {}))
    runner = Runner(model.network, model.device, reusable=True)
    generator = random.Random(3)
    start = tuple(generator.randrange(284) for _ in range(20))
    prompts = [start + tuple(generator.randrange(284) for _ in range(length)) for length in (1, 9, 4, 40)]
    under_mask, attend = list[int](), GroupedQueryAttention.__call__

    def counted(*arguments: Any, **options: Any) -> Any:
        under_mask.append(arguments[1] is not None)
        return attend(*arguments, **options)

    with torch.inference_mode():
        cache = Prefix(runner, start[:prefix]).cache
        expected = runner.prefill(prompts, prefix, cache)
        runner.masks_padding_behind = False
        monkeypatch.setattr(GroupedQueryAttention, "__call__", counted)
        found = runner.prefill(prompts, prefix, cache)
        attended_under_mask = len(under_mask)
        assert torch.equal(found.mask, expected.mask)
        assert torch.equal(found.lengths, expected.lengths)
        assert torch.allclose(found.next_logits, expected.next_logits, atol=1e-5)
        for token in (5, 6, 7):
            for state in (found, expected):
                runner.step(state, torch.full((4, 1), token))
            assert torch.allclose(found.next_logits, expected.next_logits, atol=1e-5)
        if prefix:
            assert cache.get_seq_length() == prefix
            assert torch.allclose(runner.final_logits(prompts, prefix, cache), last_logits(model, prompts), atol=1e-5)
    # Behind a prefix windows need their masks; nothing else does.
    assert not prefix or bool(attended_under_mask) == (architecture in WINDOWS)


def test_a_mask_of_a_layer_itself_is_kept(monkeypatch: pytest.MonkeyPatch):
    network = toy_model().network
    query, states = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 7, 8)
    own = torch.randn(1, 1, 3, 7)
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    found, _ = CausalBehindPrefix(network)(module, query, states, states, own)
    expected, _ = default_attention(module, query, states, states, own)
    assert torch.allclose(found, expected, atol=1e-6)
    causal = torch.ones(3, 7, dtype=torch.bool).tril(4)[None, None]
    expected, _ = default_attention(module, query, states, states, causal)
    for mask in (None, causal):
        assert torch.allclose(CausalBehindPrefix(network)(module, query, states, states, mask)[0], expected, atol=1e-6)
    # Without a kernel for heads in groups, the mask is used.
    monkeypatch.setattr(prefix_attention, "_takes_groups", lambda *_: False)
    assert torch.allclose(CausalBehindPrefix(network)(module, query, states, states, causal)[0], expected, atol=1e-6)
    assert not torch.allclose(CausalBehindPrefix(network)(module, query, states, states, own)[0], expected, atol=1e-2)


def test_a_mask_that_may_hold_a_window_is_kept():
    query, states = torch.randn(1, 4, 3, 8), torch.randn(1, 2, 7, 8)
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]
    causal = torch.ones(3, 7, dtype=torch.bool).tril(4)[None, None]
    window = causal & torch.ones(3, 7, dtype=torch.bool).triu(2)
    attention = CausalBehindPrefix(toy_model("phimoe", sliding_window=3).network)
    for options, seen in (({}, window), ({"sliding_window": 3}, window), ({"sliding_window": None}, causal)):
        expected, _ = default_attention(module, query, states, states, seen)
        found, _ = attention(module, query, states, states, window, **options)
        assert torch.allclose(found, expected, atol=1e-6), options


class Copies(TorchFunctionMode):
    """Notes the copies to the device of a runner for which the processor would wait, and those of masks."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[str] = []
        self.sent: list[torch.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        options = options or {}
        if options.get("device") is DEVICE and function is torch.tensor:
            self.waiting.append("torch.tensor")
        if function is torch.Tensor.to and DEVICE in arguments[1:]:
            if options.get("non_blocking"):
                self.sent.append(arguments[0])
            else:
                self.waiting.append("to")
            return arguments[0]
        if options.get("device") is DEVICE:
            options = {**options, "device": CPU}
        return function(*arguments, **options)


# Stands for a GPU: what is sent there stays where it is.
DEVICE = torch.device("cuda", 5)


def test_a_batch_is_sent_to_a_gpu_without_waiting_for_it():
    model = toy_model()
    prompts = [(5, 6, 7, 8, 9), (5, 6, 7)]
    with torch.inference_mode():
        expected = Runner(model.network, CPU, reusable=True).final_logits(prompts)
        runner = Runner(model.network, DEVICE, reusable=True)
        assert runner.prefills_without_mask
        with Copies() as copies:
            ids, mask = pad(prompts, DEVICE, left=True)
            assert (ids.tolist(), mask.sum().item(), len(copies.sent)) == ([[5, 6, 7, 8, 9], [0, 0, 5, 6, 7]], 8, 2)
            copies.sent.clear()
            found, cache = runner.prefill_left_aligned(prompts, 0, None)
            # The ids and the columns of the last tokens; the mask, of ones alone, is made on the device.
            assert [one.tolist() for one in copies.sent] == [[[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]], [[4], [2]]]
            copies.sent.clear()
            run_branches(runner, prompts, cache, [(0, (8, 9)), (1, (4,))], note=pytest.fail)
            assert [2, 4] in [list(one.shape) for one in copies.sent]
            state = runner.prefill(prompts)
            runner.step(state, torch.tensor([[3], [4]]))
    assert copies.waiting == []
    assert torch.allclose(found, expected, atol=1e-5)
    assert not any(set(one.flatten().tolist()) <= {0, 1} and one.shape == (2, 5) for one in copies.sent)


def last_logits(model: Any, prompts: list[tuple[int, ...]]) -> torch.Tensor:
    """The logits after each prompt, run alone and whole."""
    return torch.stack([model.network(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])


def test_the_head_sees_one_column_a_row():
    model = toy_model()
    runner = Runner(model.network, model.device, reusable=True)
    head = model.network.get_output_embeddings()
    seen: list[tuple[int, ...]] = []
    handle = head.register_forward_hook(lambda _module, inputs, _output: seen.append(tuple(inputs[0].shape[:2])))
    with torch.inference_mode():
        expected = runner.final_logits([(5, 6, 7), (8, 9)])
        handle.remove()
        assert seen == [(2, 1)]
        # A network that multiplies by its head without calling it gives all columns.
        model.network.get_output_embeddings = torch.nn.Identity
        assert torch.allclose(runner.final_logits([(5, 6, 7), (8, 9)]), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_batches_that_join_go_on_as_each_would(architecture: str):
    model = toy_model(architecture, **WINDOWS.get(architecture, {}))
    runner = Runner(model.network, model.device, reusable=True)
    generator = random.Random(1)
    texts = [tuple(generator.randrange(284) for _ in range(length)) for length in (30, 7, 18, 3)]
    with torch.inference_mode():
        early = runner.prefill(texts[:2])
        for token in (5, 6):
            runner.step(early, torch.tensor([[token], [token]]))
        late = runner.prefill(texts[2:])
        state = join_states([early, late], [torch.tensor([1]), torch.tensor([0, 1])])
        rows = [(*texts[1], 5, 6), texts[2], texts[3]]
        assert state.cache.get_seq_length() == 18  # the longest left
        for token in range(40, 80):  # beyond the room of a buffer
            runner.step(state, torch.full((3, 1), token))
            rows = [(*row, token) for row in rows]
        for row, text in enumerate(rows):
            expected = model.network(torch.tensor([text])).logits[0, -1]
            assert torch.allclose(state.next_logits[row], expected, atol=1e-4)


def test_a_prefix_runs_once_and_an_empty_one_never(monkeypatch: pytest.MonkeyPatch):
    model = toy_model()
    runner = Runner(model.network, model.device, reusable=True)
    run: list[int] = []
    forward = Runner.forward

    def spy(self: Runner, ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
        run.append(ids.shape[1])
        return forward(self, ids, **arguments)

    monkeypatch.setattr(Runner, "forward", spy)
    prefix, empty = Prefix(runner, (1, 2, 3)), Prefix(runner, ())
    longer, same = Prefix(runner, (1, 2, 3, 4, 5), prefix), Prefix(runner, (1, 2, 3), prefix)
    assert run == []
    assert prefix.cache is prefix.cache
    assert empty.cache is None
    assert run == [3]
    assert same.cache is prefix.cache
    assert run == [3]
    assert longer.cache.get_seq_length() == 5
    assert (run, prefix.cache.get_seq_length()) == ([3, 2], 3)
    expected = model.network(torch.tensor([[1, 2, 3, 4, 5]]), use_cache=True).past_key_values
    for one, other in zip(longer.cache.layers, expected.layers, strict=True):
        assert torch.allclose(one.keys, other.keys, atol=1e-5)
        assert torch.allclose(one.values, other.values, atol=1e-5)


def test_networks_without_optional_arguments_are_served_too():
    class Plain:
        """Neither positions nor logits_to_keep."""

        def forward(self, input_ids: torch.Tensor, attention_mask: Any, past_key_values: Any, use_cache: bool) -> Any:
            return SimpleNamespace(logits=torch.nn.functional.one_hot(input_ids, 8))

        __call__ = forward

    ids = torch.tensor([[3, 1, 4]])
    arguments: dict[str, Any] = {"mask": torch.ones_like(ids), "positions": ids, "cache": None}
    assert Runner(Plain(), CPU).forward(ids, keep=range(2, 3), **arguments).argmax(-1).tolist() == [[4]]
    assert Runner(Plain(), CPU).forward(ids, keep=range(1, 3), **arguments).argmax(-1).tolist() == [[1, 4]]
    assert Runner(Plain(), CPU).forward(ids, **arguments).argmax(-1).tolist() == [[3, 1, 4]]


@pytest.mark.parametrize("keep", [None, range(4, 5), range(1, 4)])
def test_logits_only_where_they_are_wanted(keep: range | None):
    model = toy_model()
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    seen: list[int] = []
    model.network.lm_head.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0].shape[1]))
    whole = model.network(ids).logits
    found = Runner(model.network, CPU).forward(
        ids, mask=torch.ones_like(ids), positions=torch.arange(5)[None], cache=None, keep=keep
    )
    assert torch.allclose(found, whole if keep is None else whole[:, keep.start : keep.stop], atol=1e-5)
    assert seen == [5, 5 if keep is None else len(keep)]
