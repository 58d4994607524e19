"""Forwards of a network: prompts are run once into a cache, from which scoring and generation continue."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from llmkick.models.engine.batch_budget import is_spread
from llmkick.models.engine.batches import Ids, common_prefix, group_by_prefix
from llmkick.models.engine.network import first_position_of, is_plain_sdpa
from llmkick.models.engine.packed_prompts import AttentionByPrompt, UnsupportedAttentionError, can_pack_prompts
from llmkick.models.engine.prefilled import Prefilled

if TYPE_CHECKING:
    from llmkick.models.engine.attention import AttentionFunction


class Runner:
    """Calls a network with explicit masks and positions, whatever its signature.

    `reusable` says that keys and values may be cut and repeated (see `can_reuse_cache`). `packs_prompts` and
    `shares_prompts` turn false when a layer turns out to have an attention of its own.
    """

    def __init__(self, network: Any, device: torch.device, *, reusable: bool = False) -> None:
        self.network = network
        self.device = device
        self.reusable = reusable
        accepted = inspect.signature(network.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._takes_keep = "logits_to_keep" in accepted
        self._first_position = first_position_of(network)
        self.packs_prompts = reusable and can_pack_prompts(network, device)
        self.shares_prompts = reusable and is_plain_sdpa(network)
        # A GPU has kernels for causal attention that take no mask; padding behind a token is hidden from it anyway.
        self.masks_padding_behind = device.type != "cuda"
        supports = getattr(network, "_supports_default_dynamic_cache", lambda: True)
        self.takes_cache: bool = "past_key_values" in accepted and supports()

    @property
    def needs_no_mask(self) -> bool:
        """Whether prompts with padding behind them run without a mask, which a GPU's causal kernels do not take."""
        return self.reusable and not self.masks_padding_behind

    @property
    def prefills_without_mask(self) -> bool:
        """Whether `prefill_left_aligned` runs: only an output head can leave out columns that are not the last."""
        return self.needs_no_mask and self.network.get_output_embeddings() is not None

    def new_cache(self) -> Any:
        """An empty cache: one that can be cut and repeated, or the kind that the network wants."""
        from transformers import DynamicCache

        from llmkick.models.engine.kv_cache import empty_cache

        config = self.network.config.get_text_config(decoder=True)
        return empty_cache() if self.reusable else DynamicCache(config=config)

    def forward(
        self,
        ids: Tensor,
        *,
        mask: Tensor,
        positions: Tensor,
        cache: Any,
        keep: range | None = None,
        column: Tensor | None = None,
        attention: AttentionFunction | None = None,
    ) -> Tensor:
        """Logits (rows, columns, vocabulary) in the network's dtype; `cache` grows in place.

        The columns are all of them, or the range `keep` at the end, or chosen ones of each row: `column`
        (rows, chosen). `attention` replaces the attention function of transformers.
        """
        extra: dict[str, Any] = {}
        if self._takes_positions:
            extra["position_ids"] = positions + self._first_position if self._first_position else positions
        if keep is not None and len(keep) < ids.shape[1] and self._takes_keep:
            extra["logits_to_keep"] = self._kept(keep)
        if self.takes_cache:
            extra["past_key_values"] = cache
        with self._attention(ids.shape[1], attention), self._head_for(column):
            output = self.network(input_ids=ids, attention_mask=mask, use_cache=cache is not None, **extra)
        logits: Tensor = output.logits
        if keep is not None and logits.shape[1] > len(keep):
            logits = logits[:, keep.start : keep.stop]
        if column is not None and logits.shape[1] > column.shape[1]:
            logits = _picked(logits, column)
        return logits

    @contextmanager
    def _head_for(self, column: Tensor | None) -> Iterator[None]:
        """While this lasts, the output head gets only the columns that are asked for, where the network calls it."""
        head = None if column is None else self.network.get_output_embeddings()
        if column is None or head is None:
            yield
            return
        handle = head.register_forward_pre_hook(lambda _, inputs: (_picked(inputs[0], column), *inputs[1:]))
        try:
            yield
        finally:
            handle.remove()

    def _attention(self, tokens: int, function: AttentionFunction | None) -> AbstractContextManager[None]:
        from llmkick.models.engine.attention import attention_replaced_by  # transformers takes long to import
        from llmkick.models.engine.grouped_query import GroupedQueryAttention

        if function is None and tokens > 1:
            function = GroupedQueryAttention()  # transformers has a path of its own for a single token
        return nullcontext() if function is None else attention_replaced_by(function)

    def _kept(self, keep: range) -> Any:
        # Indices, not a number: the slice that the number 1 makes is not contiguous, and torch then copies the
        # output head once a row. On several devices the head may be on another device than the indices, so there
        # the number is used.
        return len(keep) if is_spread(self.network) else sent(torch.tensor(keep), self.device)

    def last_logits(self, ids: Tensor, *, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Float32 logits after the last column, (rows, vocabulary); the arguments are those of `forward`."""
        keep = range(ids.shape[1] - 1, ids.shape[1])
        return self.forward(ids, mask=mask, positions=positions, cache=cache, keep=keep)[:, -1].float()

    def next_logits(self, ids: Tensor) -> Tensor:
        """Float32 logits after the last token of unpadded rows, run whole: (rows, tokens) → (rows, vocabulary)."""
        positions = torch.arange(ids.shape[1], device=self.device)[None].expand(len(ids), -1)
        return self.last_logits(ids, mask=torch.ones_like(ids), positions=positions, cache=None)

    def prefill(self, prompts: Sequence[Ids], prefix: int = 0, prefix_cache: Any = None) -> Prefilled:
        """Run prompts whose first `prefix` tokens are already in `prefix_cache` (one row, left untouched).

        Rows are right-aligned. Where a row is shorter than the longest, the prefix moves right, and the tokens
        pushed out of it run again in the place of padding: there is no padding between two tokens of a row, at no
        extra cost.
        """
        from llmkick.models.engine.kv_cache import repeat_prefix

        if self.prefills_without_mask:
            return self._prefill_without_mask(prompts, prefix, prefix_cache)
        ids, mask = pad(prompts, self.device, left=True)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        lengths = mask.sum(1)
        cache = self.new_cache()
        if prefix:
            shifts = torch.tensor([ids.shape[1] - len(prompt) for prompt in prompts])
            cache = repeat_prefix(prefix_cache, shifts, room=ids.shape[1] - prefix)
        logits = self.last_logits(ids[:, prefix:], mask=mask, positions=positions[:, prefix:], cache=cache)
        return Prefilled(next_logits=logits, cache=cache, mask=mask, lengths=lengths)

    def _prefill_without_mask(self, prompts: Sequence[Ids], prefix: int, prefix_cache: Any) -> Prefilled:
        """`prefill` with padding behind the tokens, which needs no mask; the cache is right-aligned afterwards."""
        from llmkick.models.engine.kv_cache import moved_right

        lengths = sent(torch.tensor([len(prompt) for prompt in prompts]), self.device)
        logits, cache = self.prefill_left_aligned(prompts, prefix, prefix_cache)
        columns = max(map(len, prompts))
        if min(map(len, prompts)) < columns:
            cache = moved_right(cache, columns - lengths)
        mask = (torch.arange(columns, device=self.device) >= columns - lengths[:, None]).long()
        return Prefilled(next_logits=logits, cache=cache, mask=mask, lengths=lengths)

    def prefill_left_aligned(self, prompts: Sequence[Ids], prefix: int, prefix_cache: Any) -> tuple[Tensor, Any]:
        """`prefill` without a mask: float32 logits after each prompt, (rows, vocabulary), and a left-aligned cache."""
        return self._run_left_aligned(prompts, prefix, prefix_cache, cache=self.new_cache())

    def final_logits(self, prompts: Sequence[Ids], prefix: int = 0, prefix_cache: Any = None) -> Tensor:
        """Float32 logits after each prompt, (rows, vocabulary), without a cache; `prefix` is as in `prefill`.

        Rows are left-aligned: every token is in the column that it has when its prompt runs alone, so kernels that
        sum by blocks of columns sum in the same order.
        """
        return self._run_left_aligned(prompts, prefix, prefix_cache, cache=None)[0]

    def _run_left_aligned(
        self, prompts: Sequence[Ids], prefix: int, prefix_cache: Any, *, cache: Any
    ) -> tuple[Tensor, Any]:
        """The logits after each prompt, and the cache: `cache` itself, or the repeated prefix with the new columns."""
        from llmkick.models.engine.kv_cache import repeat_prefix
        from llmkick.models.engine.prefix_attention import CausalBehindPrefix

        ids = pad_ids(prompts, self.device, left=False)
        positions = torch.arange(ids.shape[1], device=self.device)[None].expand(len(ids), -1)
        column = sent(torch.tensor([[len(prompt) - 1 - prefix] for prompt in prompts]), self.device)
        mask = padding_mask(prompts, self.device, left=False) if self.masks_padding_behind else torch.ones_like(ids)
        attention = CausalBehindPrefix(self.network) if prefix and not self.masks_padding_behind else None
        if prefix:
            cache = repeat_prefix(prefix_cache, torch.zeros(len(ids), dtype=torch.long), room=ids.shape[1] - prefix)
        ids, positions = ids[:, prefix:], positions[:, prefix:]
        logits = self.forward(ids, mask=mask, positions=positions, cache=cache, column=column, attention=attention)
        return logits[:, 0].float(), cache

    def final_logits_packed(self, prompts: Sequence[Ids], prefix: int, prefix_cache: Any) -> Tensor | None:
        """`final_logits` from one row that holds the prompts end to end behind their prefix, which must not be empty.

        None where this network cannot run that way, see `can_pack_prompts`.
        """
        from llmkick.models.engine.kv_cache import repeat_prefix

        lengths = torch.tensor([len(prompt) - prefix for prompt in prompts])
        ids = torch.tensor([[token for prompt in prompts for token in prompt[prefix:]]], device=self.device)
        positions = torch.cat([torch.arange(prefix, len(prompt)) for prompt in prompts])[None].to(self.device)
        attention = AttentionByPrompt(prefix, lengths.tolist())
        cache = repeat_prefix(prefix_cache, torch.zeros(1, dtype=torch.long), room=ids.shape[1])
        mask = torch.ones(1, prefix + ids.shape[1], dtype=torch.long, device=self.device)
        column = (lengths.cumsum(0) - 1)[None].to(self.device)
        try:
            logits = self.forward(ids, mask=mask, positions=positions, cache=cache, column=column, attention=attention)
        except UnsupportedAttentionError:
            return None
        layers: int = self.network.config.get_text_config(decoder=True).num_hidden_layers
        # A layer with an attention of its own has let the prompts see each other.
        return logits[0].float() if attention.layers == layers else None

    def step(self, state: Prefilled, tokens: Tensor) -> None:
        """Continue `state`, in place, with one more token for each row: (rows, 1)."""
        state.mask = torch.cat([state.mask, torch.ones_like(state.mask[:, :1])], dim=1)
        positions = state.next_positions
        state.next_logits = self.last_logits(tokens, mask=state.mask, positions=positions, cache=state.cache)
        state.lengths = state.lengths + 1


def _picked(states: Tensor, column: Tensor) -> Tensor:
    """(rows, columns, width) and some columns of each row (rows, chosen) → (rows, chosen, width)."""
    rows = torch.arange(len(states), device=states.device)[:, None]
    return states[rows, column.to(states.device)]


def read(numbers: Tensor) -> Tensor:
    """The numbers on the processor's side. It waits here for a GPU, which works ahead until then: read seldom."""
    return numbers.cpu()


def sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers of the processor on the device, for which it does not wait: CUDA has copied them when this returns."""
    return numbers.to(device, non_blocking=device.type == "cuda")


def pad(rows: Sequence[Ids], device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of unequal length → ids and mask, both (rows, longest). Padding is id 0 under mask 0."""
    return pad_ids(rows, device, left=left), padding_mask(rows, device, left=left)


def pad_ids(rows: Sequence[Ids], device: torch.device, *, left: bool) -> Tensor:
    """The ids of `pad` alone."""
    longest = max(map(len, rows))
    zeros = [(0,) * (longest - len(row)) for row in rows]
    padded = [(*room, *row) if left else (*row, *room) for row, room in zip(rows, zeros, strict=True)]
    return sent(torch.tensor(padded, dtype=torch.long), device)


def padding_mask(rows: Sequence[Ids], device: torch.device, *, left: bool) -> Tensor:
    """The mask of `pad` alone."""
    return pad_ids([(1,) * len(row) for row in rows], device, left=left)


class Prefix:
    """Tokens that several prompts begin with; they run when their cache is first asked for.

    `parent` is a shorter prefix of these tokens: only the tokens beyond it run. `within` is a prompt that begins with
    them: it runs whole, and leaves its `next_logits` beside the cache.
    """

    def __init__(self, runner: Runner, tokens: Ids, parent: Prefix | None = None, *, within: Ids = ()) -> None:
        self._runner = runner
        self._tokens = tokens
        self._parent = parent
        self._within = within
        self._cache: Any = None
        self.next_logits: Tensor | None = None  # (1, vocabulary) after `within`, once it has run

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def cache(self) -> Any:
        """The cache, a single row; None for an empty prefix."""
        from llmkick.models.engine.kv_cache import first_columns

        if self._parent is not None and len(self._parent) == len(self):
            return self._parent.cache
        if self._cache is None and self._within:
            state = self._runner.prefill([self._within])
            self._cache, self.next_logits = first_columns(state.cache, len(self)), state.next_logits
        elif self._cache is None and self._tokens:
            cached = 0 if self._parent is None else len(self._parent)
            parent_cache = None if self._parent is None else self._parent.cache
            self._cache = self._runner.prefill([self._tokens], cached, parent_cache).cache
        return self._cache


def prefix_groups(runner: Runner, prompts: Sequence[Ids]) -> Iterator[tuple[list[int], Prefix]]:
    """Groups of prompts that share a prefix: the indices of the prompts, and the prefix."""
    shared_prefix = Prefix(runner, prompts[0][: common_prefix(prompts)]) if prompts else None
    for indices, shared in group_by_prefix(prompts):
        yield indices, Prefix(runner, prompts[indices[0]][:shared], shared_prefix)
