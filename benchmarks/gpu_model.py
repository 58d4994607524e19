"""A random model in the shape of a Llama, with a tokenizer of bytes: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from llama_shape import Shape
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from llmkick.models.language_model import ModelInfo
from llmkick.models.transformers_model import TransformersModel

LLAMA_2_7B = Shape(name="Llama-2-7B", hidden=4096, inner=11008, blocks=32, heads=32, vocabulary=32000)
TOY = Shape(name="a toy", hidden=64, inner=160, blocks=2, heads=4, vocabulary=320)


def random_model(shape: Shape, device: torch.device) -> TransformersModel:
    """The model on the device, in bfloat16."""
    with torch.device(device):
        network: Any = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.bfloat16)
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02 if shape.hidden > 1000 else 0.1, generator=generator)
    network.eval().requires_grad_(False)
    info = ModelInfo(
        name=f"random, as {shape.name}",
        revision="seed 0",
        digest="not hashed",
        architecture="LlamaForCausalLM",
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        dtype="bfloat16",
    )
    return TransformersModel.wrap(network, tokenizer_of_bytes(), info)


def tokenizer_of_bytes() -> PreTrainedTokenizerFast:
    """A token for each byte."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<s>")
