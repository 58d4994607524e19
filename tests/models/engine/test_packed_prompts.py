"""Prompts end to end in one row answer as each alone, or the network says that it does not run that way."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from llmkick.models.engine.attention import default_attention
from llmkick.models.engine.packed_prompts import AttentionByPrompt, UnsupportedAttentionError, can_pack_prompts
from llmkick.models.engine.runner import Prefix, Runner
from llmkick.models.transformers_model import TransformersModel
from toy import toy_model

SUITED = ["llama", "qwen2", "gemma", "opt", "gpt_neox", "gpt2", "mixtral", "deepseek_v3"]
CPU = torch.device("cpu")


def prompts_behind_one(prefix: int, lengths: list[int]) -> list[tuple[int, ...]]:
    generator = random.Random(prefix)
    shared = tuple(generator.randrange(284) for _ in range(prefix))
    return [(*shared, *(generator.randrange(284) for _ in range(length))) for length in lengths]


def unpadded(model: TransformersModel, prompts: list[tuple[int, ...]], prefix: int) -> torch.Tensor | None:
    runner = Runner(model.network, model.device, reusable=True)
    with torch.inference_mode():
        return runner.final_logits_packed(prompts, prefix, Prefix(runner, prompts[0][:prefix]).cache)


@pytest.mark.parametrize("architecture", SUITED)
def test_each_prompt_answers_as_alone(architecture: str) -> None:
    model = toy_model(architecture)
    prompts = prompts_behind_one(20, [7, 1, 12, 4, 12])
    assert can_pack_prompts(model.network, model.device)
    found = unpadded(model, prompts, 20)
    assert found is not None
    assert (found.shape[0], found.dtype) == (5, torch.float32)
    with torch.inference_mode():
        expected = torch.stack([model.network(torch.tensor([prompt])).logits[0, -1] for prompt in prompts])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_an_attention_of_its_own_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that goes another way lets the prompts see each other: there is no answer then."""
    model = toy_model()
    own = model.network.model.layers[1].self_attn
    forward = own.forward

    def apart(*arguments: Any, **options: Any) -> Any:
        from llmkick.models.engine.attention import attention_replaced_by

        with attention_replaced_by(default_attention):
            return forward(*arguments, **options)

    monkeypatch.setattr(own, "forward", apart)
    assert unpadded(model, prompts_behind_one(20, [3, 5]), 20) is None


@pytest.mark.parametrize("architecture", ["mistral", "gemma2", "gemma3", "gpt_oss", "bloom", "mpt"])
def test_networks_that_do_not_run_that_way(architecture: str) -> None:
    model = toy_model(architecture)
    if can_pack_prompts(model.network, model.device):
        assert unpadded(model, prompts_behind_one(20, [3, 5]), 20) is None


def test_only_on_a_processor_and_with_a_window_of_everything() -> None:
    network = toy_model().network
    assert can_pack_prompts(network, CPU)
    assert not can_pack_prompts(network, torch.device("cuda"))
    assert not can_pack_prompts(toy_model("mistral", sliding_window=12).network, CPU)
    network.config._attn_implementation = "eager"
    assert not can_pack_prompts(network, CPU)


@pytest.mark.parametrize("options", [{"softcap": 30.0}, {"sliding_window": 7}, {"dropout": 0.1}])
def test_more_than_a_softmax_of_products_is_refused(options: dict[str, Any]) -> None:
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(UnsupportedAttentionError, match="Module"):
        AttentionByPrompt(0, [3])(nn.Module(), states, states, states, None, **options)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
@pytest.mark.parametrize("key_heads", [1, 2, 6])
def test_a_prompt_sees_the_prefix_and_itself(key_heads: int, dtype: torch.dtype, atol: float) -> None:
    torch.manual_seed(key_heads)
    prefix, lengths = 11, [5, 1, 8]
    tokens = sum(lengths)
    query = torch.randn(1, tokens, 6, 16, dtype=dtype).transpose(1, 2)
    key, value = (torch.randn(1, key_heads, prefix + tokens, width, dtype=dtype) for width in (16, 20))
    attention = AttentionByPrompt(prefix, lengths)
    found, _ = attention(nn.Module(), query, key, value, None, scaling=0.3)
    assert (found.shape, attention.layers) == ((1, tokens, 6, 20), 1)
    module = nn.Module()
    module.num_key_value_groups = 6 // key_heads  # type: ignore[assignment]
    start = 0
    for length in lengths:
        own = [*range(prefix), *range(prefix + start, prefix + start + length)]
        mask = torch.ones(length, len(own), dtype=torch.bool).tril(prefix)[None, None]
        asking = query[:, :, start : start + length]
        expected, _ = sdpa_attention_forward(module, asking, key[:, :, own], value[:, :, own], mask, scaling=0.3)
        torch.testing.assert_close(found[:, start : start + length], expected, rtol=0, atol=atol)
        start += length


def test_layers_of_several_precisions_have_masks_of_their_own() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, tokens, 8) for tokens in (4, 7, 7))
    attention = AttentionByPrompt(3, [1, 3])
    single, _ = attention(nn.Module(), query, key, value, None)
    double, _ = attention(nn.Module(), query.double(), key.double(), value.double(), None)
    torch.testing.assert_close(double.float(), single, rtol=0, atol=1e-6)
