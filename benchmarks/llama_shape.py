"""The shape of a Llama: widths and numbers from which benchmarks make random models."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import LlamaConfig


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Widths and numbers of a Llama; inner: width of the feed-forward part, key_heads: None for as many as heads."""

    name: str
    hidden: int
    inner: int
    blocks: int
    heads: int
    vocabulary: int
    key_heads: int | None = None
    longest: int = 4096  # positions

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
            num_key_value_heads=self.key_heads or self.heads,
            max_position_embeddings=self.longest,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=0,
            tie_word_embeddings=False,
            architectures=["LlamaForCausalLM"],
            dtype="bfloat16",
        )

    def layers(self) -> dict[str, tuple[int, int]]:
        """The linear layers of a block by name, in the order in which they run: (out, in)."""
        keys = self.hidden * (self.key_heads or self.heads) // self.heads
        return {
            "q_proj": (self.hidden, self.hidden),
            "k_proj": (keys, self.hidden),
            "v_proj": (keys, self.hidden),
            "o_proj": (self.hidden, self.hidden),
            "gate_proj": (self.inner, self.hidden),
            "up_proj": (self.inner, self.hidden),
            "down_proj": (self.hidden, self.inner),
        }

    @property
    def block_weights(self) -> int:
        """Weights of the linear layers of all blocks."""
        return self.blocks * sum(rows * columns for rows, columns in self.layers().values())

    @property
    def parameters(self) -> int:
        """All weights, with norms, embeddings and output head."""
        norms = (2 * self.blocks + 1) * self.hidden
        return self.block_weights + norms + 2 * self.vocabulary * self.hidden
