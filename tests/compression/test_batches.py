"""How many calibration tokens run at a time on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from llmkick.compression.walk.batches import BATCH_TOKENS_CUDA, tokens_that_fit
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.linear_layer import LinearLayer


def block(*shapes: tuple[int, int], experts: int = 0, in_list: bool = False) -> Block:
    """A block of bfloat16 layers (in, out), and of experts as wide as the first of them, in one parameter or a list."""
    layers = []
    for number, (width, outputs) in enumerate(shapes):
        linear = nn.Linear(width, outputs, device="meta", dtype=torch.bfloat16)
        layers.append(LinearLayer(name=f"{number}", module=linear, form="linear"))
    if experts and in_list:
        several = [nn.Linear(*shapes[0], device="meta", dtype=torch.bfloat16) for _ in range(experts)]
        layers += [LinearLayer(name=f"e.{n}", module=one, form="linear", role="e.*") for n, one in enumerate(several)]
    elif experts:
        stacked = nn.Module()
        stacked.weight = nn.Parameter(torch.empty(experts, *shapes[0][::-1], dtype=torch.bfloat16, device="meta"))
        layers += [LinearLayer(name=f"e.{n}", module=stacked, form="expert", expert=n) for n in range(experts)]
    return Block(name="block", module=nn.Module(), layers=tuple(layers))


LLAMA = block(*[(4096, 4096)] * 4, *[(4096, 11008)] * 2, (11008, 4096))  # of Llama-2-7B: 156 KB for a token


def test_a_large_gpu_takes_sixteen_windows_and_a_smaller_one_fewer():
    windows = {gb: tokens_that_fit([LLAMA], gb * 10**9) / 2048 for gb in (140, 80, 40, 22, 16, 8, 2)}
    assert windows == {140: 16, 80: 16, 40: 16, 22: 16, 16: 8, 8: 4, 2: 1}


def test_the_widest_block_counts_and_memory_that_is_not_known_does_not():
    wide = block((8192, 28672))
    assert tokens_that_fit([wide, LLAMA], 10**10) == min(tokens_that_fit([one], 10**10) for one in (wide, LLAMA))
    assert tokens_that_fit([LLAMA], None) == BATCH_TOKENS_CUDA
    assert tokens_that_fit([LLAMA], 1) == 1


@pytest.mark.parametrize("in_list", [False, True])
@pytest.mark.parametrize("experts", [8, 64])
def test_a_token_meets_few_of_many_experts(experts: int, in_list: bool):
    alone, eight = (tokens_that_fit([block((4096, 4096), experts=count)], 3 * 10**9) for count in (0, 8))
    several = block((4096, 4096), experts=experts, in_list=in_list)
    assert tokens_that_fit([several], 3 * 10**9) == eight < alone
