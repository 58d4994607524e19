"""The token budget of a batch: a fixed number, halved only when memory runs short, with a warning.

The budget follows from the network and the device alone, never from the memory that happens to be free, so that the
same requests run in the same batches each time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from llmkick.models.engine.cache_size import bytes_a_token, cache_bytes_a_token
from llmkick.models.memory import attempt, free_bytes

CPU_BUDGET = 8192
# A decoding step takes a CPU nearly as long for a few rows as for many, so larger batches need fewer steps. Scoring,
# which runs all tokens of a request at once, gains nothing from a larger batch.
CPU_DECODING_BUDGET = 16384
CUDA_BUDGETS = (1024, 65536)
# Share of a GPU's memory that cached keys and values may take; the rest is for weights and activations.
CACHE_SHARE = 0.3
# Batches that need less than this are never compared with the free memory: a single request, or a toy model.
NEGLIGIBLE_BYTES = 64 * 2**20

Item = TypeVar("Item")


class MemoryShortage(UserWarning):
    """Batches were made smaller because memory ran short."""


@dataclass
class BatchBudget:
    """How many tokens a batch may hold: a share of the fixed budget, and a note for each time it had to shrink.

    In float32, smaller batches change no answer. In half precision they can move log-probabilities by the noise that
    docs/engine.md describes, so every shortage is noted.
    """

    share: float = 1.0
    notes: list[str] = field(default_factory=list)
    # Openings of notes that are made once, although their readers may take them away.
    _told: set[str] = field(default_factory=set, repr=False, compare=False)

    def tokens(self, network: Any, device: torch.device, *, decoding: bool = False) -> int:
        """Tokens that a batch may hold now, at least 1."""
        return max(1, int(self.share * token_budget(network, device, decoding=decoding)))

    def fit(self, network: Any, device: torch.device, tokens: int, *, decoding: bool = False) -> None:
        """Shrink until a batch of the budget, or of all `tokens` where they are fewer, fits into the free memory."""
        free, token_bytes = free_bytes(*devices_of(network, device)), bytes_a_token(network)
        share, budget = self.share, token_budget(network, device, decoding=decoding)
        needed = min(tokens, budget * share) * token_bytes
        if free is None or needed <= max(free, NEGLIGIBLE_BYTES):
            return
        while min(tokens, budget * share) * token_bytes > free and budget * share > 1:
            share /= 2
        wanted = f"{needed / 2**20:,.0f} MB wanted, {free / 2**20:,.0f} MB free"
        self._set(share, token_budget(network, device, decoding=decoding), device, wanted)

    def shrink(self, network: Any, device: torch.device, reason: str, *, decoding: bool = False) -> None:
        """Halve the budget after an allocation that failed."""
        self._set(self.share / 2, token_budget(network, device, decoding=decoding), device, reason)

    def note_once(self, note: str) -> None:
        """Add a note, unless one with the same words before its first bracket was added."""
        opening = note.split("(")[0]
        if opening not in self._told:
            self._told.add(opening)
            self.notes.append(note)

    def _set(self, share: float, budget: int, device: torch.device, reason: str) -> None:
        before, self.share = self.share, share
        now, then = (max(1, int(part * budget)) for part in (share, before))
        note = (
            f"memory ran short on {device} ({reason.splitlines()[0][:200]}): batches now hold "
            f"{now:,} tokens instead of {then:,}; no answer was lost, "
            "but in half precision close answers may differ from a run without the shortage"
        )
        self.notes.append(note)
        warnings.warn(note, MemoryShortage, stacklevel=2)


def token_budget(network: Any, device: torch.device, *, decoding: bool = False) -> int:
    """Cached tokens that a batch may hold: fixed on a CPU; on CUDA a power of two that grows with the card."""
    if device.type != "cuda":
        return CPU_DECODING_BUDGET if decoding else CPU_BUDGET
    total = sum(torch.cuda.mem_get_info(card)[1] for card in devices_of(network, device))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    affordable = int(CACHE_SHARE * max(0, total - weights) / max(1, cache_bytes_a_token(network)))
    smallest, largest = CUDA_BUDGETS
    return int(max(smallest, min(largest, 1 << max(0, affordable.bit_length() - 1))))


def devices_of(network: Any, device: torch.device) -> list[torch.device]:
    """The devices that share a network, each with some of its blocks and their keys and values."""
    if not is_spread(network):
        return [device]
    return list(dict.fromkeys(parameter.device for parameter in network.parameters()))


def is_spread(network: Any) -> bool:
    """Whether a network lies on several devices, between which accelerate's hooks move the hidden states."""
    return len(set(map(str, getattr(network, "hf_device_map", {}).values()))) > 1


def run_in_batches(
    items: Sequence[Item],
    *,
    budget: Callable[[], int],
    plan: Callable[[Sequence[Item], int], Iterable[list[int]]],
    work: Callable[[list[Item]], None],
    cost: Callable[[Item], int],
    shrink: Callable[[str], None],
    give_up: Callable[[Item], None],
) -> None:
    """`work` on all items, in the batches that `plan` makes for a budget of tokens.

    When memory runs out, the budget shrinks and the remaining items are planned again; finished batches stay
    finished. `give_up` gets an item that fails alone after the budget has shrunk below its `cost` in tokens.
    """
    waiting = list(items)
    while waiting:
        tokens, done = budget(), set[int]()
        for batch in plan(waiting, tokens):
            chosen = [waiting[index] for index in batch]
            reason = attempt(lambda chosen=chosen: work(chosen))  # type: ignore[misc]
            if reason is None:
                done.update(batch)
                continue
            if len(batch) == 1 and tokens <= cost(chosen[0]):
                give_up(chosen[0])
                done.update(batch)
                continue
            shrink(reason)
            break
        waiting = [item for index, item in enumerate(waiting) if index not in done]
