"""Options of several tokens behind the cached prompts of their questions, for GPUs: without a mask, and without copies.

Each row runs the tokens of its prompt beyond the shortest prompt of the batch again: prompts of similar length share a
batch, so these are few, and as all rows then continue the same number of columns, attention needs no mask and can be
flash attention. Attention to the prompt and to the row itself are two calls whose results are merged, so that the keys
of a prompt are read once for all its options; a copy for each option is read, written and read again, and with 600
columns of a model of 7 billion parameters without grouped heads that is 0.9 GB, for which a GPU takes as long as for
the matrix products of an option of ten tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from llmkick.models.engine.attention import is_plain
from llmkick.models.engine.batches import FORWARD_COST_TOKENS, Ids
from llmkick.models.engine.kv_cache import empty_cache, repeat_rows
from llmkick.models.engine.packed_prompts import UnsupportedAttentionError
from llmkick.models.engine.prefix_attention import CausalBehindPrefix
from llmkick.models.engine.runner import Runner, pad_ids, sent
from llmkick.models.memory import is_out_of_memory

# A question (its place among the prompts) and the tokens that run behind its prompt.
Branch = tuple[int, Ids]


def alike_in_length(questions: Mapping[int, tuple[int, int]]) -> Iterator[list[int]]:
    """Questions in groups, shortest prompt first, that run few tokens of their prompts again.

    questions: the tokens of each question's prompt, and how many branches it has.
    """
    group: list[int] = []
    again = 0
    for question, (tokens, branches) in sorted(questions.items(), key=lambda item: (item[1][0], item[0])):
        again += branches * (tokens - questions[group[0]][0]) if group else 0
        if again > FORWARD_COST_TOKENS:
            yield group
            group, again = [], 0
        group.append(question)
    if group:
        yield group


def run_branches(
    runner: Runner, prompts: Sequence[Ids], cache: Any, branches: Sequence[Branch], *, note: Callable[[str], None]
) -> Tensor:
    """Logits after each token of each branch: (branches, longest branch, vocabulary) in the network's dtype.

    cache: keys and values of the prompts, a row each, left-aligned; it is left untouched. note: called with what the
    user should know about an error after which the prompts are copied.
    """
    start = min(len(prompts[question]) for question, _ in branches)
    ids = pad_ids([prompts[question][start:] + tokens for question, tokens in branches], runner.device, left=False)
    positions = torch.arange(start, start + ids.shape[1], device=runner.device)[None].expand(len(ids), -1)
    longest = max(len(tokens) for _, tokens in branches)
    first = torch.tensor([[len(prompts[question]) - start] for question, _ in branches])
    column = sent((first + torch.arange(longest)).clamp(max=ids.shape[1] - 1), runner.device)
    mask = torch.ones(len(ids), start + ids.shape[1], dtype=torch.long, device=runner.device)
    questions = [question for question, _ in branches]

    def forward(rows: Any, attention: Any) -> Tensor:
        return runner.forward(ids, mask=mask, positions=positions, cache=rows, column=column, attention=attention)

    if runner.shares_prompts and _is_cheaper_shared(questions, start, ids.shape[1]):
        shared = AttentionBehindPrompts(cache, questions, start)
        layers = runner.network.config.get_text_config(decoder=True).num_hidden_layers
        try:
            logits = forward(shared.cache, shared)
        except Exception as error:
            # A layer with an attention of its own may also fail on a mask that is longer than the keys that it got.
            if is_out_of_memory(error):
                raise
            if not isinstance(error, UnsupportedAttentionError):
                note(_copies_instead(error))
            shared.layers = 0
        if shared.layers == layers:  # a layer with an attention of its own has not seen the prompts
            return logits
        runner.shares_prompts = False
    rows = sent(torch.tensor(questions), runner.device)
    return forward(repeat_rows(cache, rows, start, room=ids.shape[1]), CausalBehindPrefix(runner.network))


def _copies_instead(error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0][:200]
    return (
        f"options of several tokens could not share the keys of their prompts ({type(error).__name__}: {reason}): "
        "they run on copies; in half precision close answers may differ from a run without the error"
    )


def _is_cheaper_shared(questions: Sequence[int], start: int, tokens: int) -> bool:
    """Whether queries, padded to as many rows for each question, move less than copied keys would."""
    covered = max(questions) - min(questions) + 1
    return covered * _most(questions) * tokens <= len(questions) * start


def _most(questions: Sequence[int]) -> int:
    return max(Counter(questions).values())


class AttentionBehindPrompts:
    """An attention function for the layers of one forward; `layers` counts them, `cache` is the cache of that forward.

    Row i continues the first `start` columns of row questions[i] of `prompts`, which is left untouched.
    """

    def __init__(self, prompts: Any, questions: Sequence[int], start: int) -> None:
        self.layers = 0
        self.cache = empty_cache()
        # The layer whose keys have come last: the attention that is called next is this layer's.
        self._layer: _PromptLayer | None = None
        first, covered = min(questions), max(questions) - min(questions) + 1
        self._most = _most(questions)
        self._slots = torch.tensor(
            [
                (question - first) * self._most + questions[:row].count(question)
                for row, question in enumerate(questions)
            ]
        )
        for like in prompts.layers:
            layer = _PromptLayer(self)
            if like.is_initialized:  # a layer that borrows another's keys stays empty
                layer.hold(*(states[first : first + covered, :, :start] for states in (like.keys, like.values)))
            self.cache.layers.append(layer)

    def updated(self, layer: _PromptLayer) -> None:
        """Called by a layer of the cache with new keys."""
        self._layer = layer

    def __call__(
        self,
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[Tensor, Any]:
        """Queries (rows, heads, tokens, width), own keys (rows, key heads, tokens, width) → (rows, tokens, heads, …).

        Raises UnsupportedAttentionError for attention that is more than a softmax of scaled products, or that no kernel
        here computes in two parts.
        """
        layer, self._layer = self._layer, None
        is_own = attention_mask is not None and attention_mask.dtype != torch.bool  # not a mask of transformers
        is_causal = is_plain(dropout, options) and options.get("sliding_window") is None and not is_own
        keys, values = (None, None) if layer is None else (layer.keys, layer.values)
        if keys is None or values is None or not is_causal or not _runs_in_parts(query, key, value, keys, values):
            raise UnsupportedAttentionError(type(module).__name__)
        self.layers += 1
        own, own_sum = _attend(query, key, value, scaling, is_causal=True)
        behind, behind_sum = self._behind(query, keys, values, scaling)
        # Each part is divided by its own sum of exponentials: these are their shares in the whole sum.
        share = torch.sigmoid(own_sum - behind_sum)[..., None]
        output = torch.lerp(behind.to(share.dtype), own.to(share.dtype), share).to(query.dtype)
        return output.transpose(1, 2).contiguous(), None

    def _behind(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float | None) -> tuple[Tensor, Tensor]:
        """Attention of all rows to their prompts: (rows, heads, tokens, width), and the log of the sums of it.

        The queries of a question, of all its rows and of all heads that share a key head, are stacked in one product.
        """
        _, heads, tokens, width = query.shape
        questions, key_heads = keys.shape[:2]
        slots = self._slots = self._slots.to(query.device, non_blocking=True)
        padded = query.new_zeros(questions * self._most, heads, tokens, width).index_copy_(0, slots, query)
        shape = (questions, self._most, key_heads, heads // key_heads, tokens)
        stacked = padded.view(*shape, width).permute(0, 2, 3, 1, 4, 5).reshape(questions, key_heads, -1, width)
        attended, sums = _attend(stacked, keys, values, scaling, is_causal=False)
        order = (questions, key_heads, heads // key_heads, self._most, tokens)
        states = attended.view(*order, width).permute(0, 3, 1, 2, 4, 5).reshape(-1, heads, tokens, width)
        return states[slots], sums.view(*order).permute(0, 3, 1, 2, 4).reshape(-1, heads, tokens)[slots]


class _PromptLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values of prompts, which are not appended to: new ones are handed back alone."""

    def __init__(self, attention: AttentionBehindPrompts) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._attention = attention

    def hold(self, keys: Tensor, values: Tensor) -> None:
        """Keep these keys and values, each (questions, heads, columns, width)."""
        self.dtype, self.device = keys.dtype, keys.device
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The new keys and values as they are."""
        self._attention.updated(self)
        return key_states, value_states


def _runs_in_parts(query: Tensor, key: Tensor, value: Tensor, prompt_keys: Tensor, prompt_values: Tensor) -> bool:
    """Whether a kernel returns the sums by which the two parts of attention are merged: flash attention does.

    The cached states must be such as the layer attends to: one with latent attention may cache what it makes them of.
    """
    same = key.shape[2] == query.shape[2] and _are_alike(key, prompt_keys) and _are_alike(value, prompt_values)
    if not same or not query.shape[3] == key.shape[3] == value.shape[3]:
        return False
    if query.device.type == "cpu":
        return True
    parameters = torch.backends.cuda.SDPAParams(query, key, value, None, 0.0, True, True)
    # torch pads other widths before it calls the kernel.
    return query.shape[3] % 8 == 0 and bool(torch.backends.cuda.can_use_flash_attention(parameters))


def _are_alike(own: Tensor, cached: Tensor) -> bool:
    """Whether both have the same heads, width, dtype and device: (rows, heads, tokens, width) each."""
    same_shape = own.shape[1] == cached.shape[1] and own.shape[3] == cached.shape[3]
    return same_shape and own.dtype == cached.dtype and own.device == cached.device


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, *, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention (rows, heads, tokens, width), and the log of its sum of exponentials, (rows, heads, tokens) float32."""
    if query.device.type == "cpu":
        kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    else:
        kernel = torch.ops.aten._scaled_dot_product_flash_attention
    attended, sums = kernel(query, key, value, 0.0, is_causal, scale=scaling)[:2]
    return attended, sums
