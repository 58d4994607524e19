"""How much a batch may hold: a fixed budget, halved only when memory really runs short, and then said.

The budget follows from the network and the device alone, never from what happens to be free, so that the same
requests run in the same batches each time.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil
import torch

CPU_BUDGET = 8192
# A step of decoding costs a CPU nearly as much for a few rows as for many, so more of them wait together: 63 steps
# became 31 for 48 open-book questions. What scores all its tokens at once gains nothing by it.
CPU_DECODING_BUDGET = 16384
CUDA_BUDGETS = (1024, 65536)
# Share of a GPU's memory that cached keys and values may take; the rest is for weights and activations.
CACHE_SHARE = 0.3
# Free memory is not looked at for fewer tokens than this: they are a single request or a toy.
NEGLIGIBLE_BYTES = 64 * 2**20
OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
)

Item = TypeVar("Item")


class MemoryShortage(UserWarning):
    """Batches were made smaller because memory ran short."""


@dataclass
class BatchBudget:
    """The share of the fixed budget in use, and a note for each time it had to shrink.

    In float32 smaller batches change no answer; in half precision they can move log-probabilities by the noise
    that docs/engine.md describes, which is why a shortage is never passed over in silence.
    """

    share: float = 1.0
    notes: list[str] = field(default_factory=list)

    def tokens(self, network: Any, device: torch.device, *, decoding: bool = False) -> int:
        """How many tokens a batch may hold now, at least 1."""
        return max(1, int(self.share * token_budget(network, device, decoding=decoding)))

    def fit(self, network: Any, device: torch.device, tokens: int, *, decoding: bool = False) -> None:
        """Shrink until a batch of the budget, or of the `tokens` there are, fits into what is free."""
        free, each = free_bytes(*devices_of(network, device)), bytes_a_token(network)
        share, budget = self.share, token_budget(network, device, decoding=decoding)
        needed = min(tokens, budget * share) * each
        if free is None or needed <= max(free, NEGLIGIBLE_BYTES):
            return
        while min(tokens, budget * share) * each > free and budget * share > 1:
            share /= 2
        wanted = f"{needed / 2**20:,.0f} MB wanted, {free / 2**20:,.0f} MB free"
        self._set(share, token_budget(network, device, decoding=decoding), device, wanted)

    def shrink(self, network: Any, device: torch.device, reason: str, *, decoding: bool = False) -> None:
        """Halve the budget after an allocation that failed."""
        self._set(self.share / 2, token_budget(network, device, decoding=decoding), device, reason)

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
    """How many cached tokens a batch may hold: fixed on CPU, on CUDA a power of two from the size of the card."""
    if device.type != "cuda":
        return CPU_DECODING_BUDGET if decoding else CPU_BUDGET
    total = sum(torch.cuda.mem_get_info(card)[1] for card in devices_of(network, device))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
    affordable = int(CACHE_SHARE * max(0, total - weights) / cache_bytes_a_token(network))
    smallest, largest = CUDA_BUDGETS
    return int(max(smallest, min(largest, 1 << max(0, affordable.bit_length() - 1))))


def devices_of(network: Any, device: torch.device) -> list[torch.device]:
    """The devices that share a network, each with some of its blocks and their keys and values."""
    if not is_spread(network):
        return [device]
    return list(dict.fromkeys(parameter.device for parameter in network.parameters()))


def is_spread(network: Any) -> bool:
    """Whether a network lies on several devices, between which accelerate's hooks carry what passes."""
    return len(set(map(str, getattr(network, "hf_device_map", {}).values()))) > 1


def cache_bytes_a_token(network: Any) -> int:
    """Bytes of keys and values of one token in all layers."""
    config = network.config.get_text_config(decoder=True)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * network.dtype.itemsize)


def bytes_a_token(network: Any) -> int:
    """Bytes that one token of a batch takes at the worst moment.

    Its keys and values twice (a cache is copied while rows are selected), and a block's activations: a dozen
    vectors of the model's width, four of the inner width (four times the width where none is named).
    """
    config = network.config.get_text_config(decoder=True)
    inner = getattr(config, "intermediate_size", None)
    inner = inner if isinstance(inner, int) else 4 * config.hidden_size
    return int(2 * cache_bytes_a_token(network) + (12 * config.hidden_size + 4 * inner) * network.dtype.itemsize)


def free_bytes(*devices: torch.device) -> int | None:
    """What could be allocated now, in equal parts on all devices; None where nobody tells."""
    free = [_free_on(device) for device in devices]
    return None if None in free else len(free) * min(one for one in free if one is not None)


def _free_on(device: torch.device) -> int | None:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # What torch holds in reserve is free for its next tensors.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return int(psutil.virtual_memory().available) if device.type == "cpu" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed; CPU allocators say it only in the text."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in OUT_OF_MEMORY)


def attempt(work: Callable[[], None]) -> str | None:
    """Do `work`; None, or what the allocator said when memory ran out. Other errors pass."""
    try:
        work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error) or type(error).__name__
    else:
        return None
    # Only here are the frames of the failed work, and the tensors in them, let go.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return reason


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

    When memory runs out, the budget shrinks and what is left is planned anew: finished batches stay finished.
    An item alone whose `cost` the budget does not cover any more, and that still fails, is given up.
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
