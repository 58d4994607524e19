"""A random model in the shape of a Llama, with a tokenizer of bytes: nothing is downloaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from llmkick.models.language_model import ModelInfo
from llmkick.models.transformers_model import TransformersModel


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Widths and numbers of a Llama."""

    name: str
    hidden: int
    inner: int
    blocks: int
    heads: int
    vocabulary: int

    def with_blocks(self, blocks: int) -> Shape:
        """The same with fewer blocks."""
        return replace(self, blocks=min(blocks, self.blocks))

    def config(self) -> LlamaConfig:
        """What transformers, and vLLM, make the model from."""
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=4096,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=0,
            architectures=["LlamaForCausalLM"],
            dtype="bfloat16",
        )

    def layers(self) -> dict[str, tuple[int, int]]:
        """The linear layers of a block: name → (out, in)."""
        attention = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (self.hidden, self.hidden))
        wide = dict.fromkeys(("gate_proj", "up_proj"), (self.inner, self.hidden))
        return {**attention, **wide, "down_proj": (self.hidden, self.inner)}

    @property
    def block_weights(self) -> int:
        """Weights of the linear layers of all blocks."""
        return self.blocks * sum(rows * columns for rows, columns in self.layers().values())


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
