"""Memory: a budget that does not depend on the moment, and shortages that cost nothing but speed, and are said."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from llmkick.models.engine import batch_budget as memory
from llmkick.models.engine.batch_budget import (
    BatchBudget,
    MemoryShortage,
    run_in_batches,
    token_budget,
)
from llmkick.models.engine.cache_size import bytes_a_token, cache_bytes_a_token
from llmkick.models.engine.runner import Runner
from llmkick.models.language_model import ContinuationScore, GenerateRequest, Generation, ScoreRequest, Unanswered
from llmkick.models.transformers_model import TransformersModel
from speeds import others_slow
from toy import toy_model

CPU = torch.device("cpu")
CUDA: Any = SimpleNamespace(type="cuda")
ALLOCATOR = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


def test_the_budget_is_fixed_on_the_cpu_and_follows_the_card_on_cuda(monkeypatch: pytest.MonkeyPatch):
    network = toy_model().network
    assert cache_bytes_a_token(network) == 2 * 3 * 2 * 8 * 4  # keys and values, layers, key heads, width, float32
    assert (token_budget(network, CPU), token_budget(network, CPU, decoding=True)) == (8192, 16384)
    weights = 4 * sum(parameter.numel() for parameter in network.parameters())
    total = weights + 10_000 * 384
    for free in (0, total):  # what happens to be free plays no part
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device, free=free: (free, total))
        for decoding in (False, True):  # 0.3 × 10,000, down to a power of two
            assert token_budget(network, CUDA, decoding=decoding) == 2048
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (0, 0))
    assert token_budget(network, CUDA) == 1024
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (0, 10**12))
    assert token_budget(network, CUDA) == 65536


def test_plenty_of_memory_leaves_the_budget_alone(monkeypatch: pytest.MonkeyPatch):
    network, budget = toy_model().network, BatchBudget()
    needed = 8192 * bytes_a_token(network)
    monkeypatch.setattr(memory, "NEGLIGIBLE_BYTES", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for free in (needed, 10 * needed, 10**15):
            monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
            budget.fit(network, CPU, 10**9)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * bytes_a_token(network)))
        budget.fit(network, CPU, 100)  # little is enough for little
    assert (budget.tokens(network, CPU), budget.notes) == (8192, [])


def test_too_little_memory_shrinks_the_budget_and_says_so(monkeypatch: pytest.MonkeyPatch):
    network, budget = toy_model().network, BatchBudget()
    monkeypatch.setattr(memory, "NEGLIGIBLE_BYTES", 0)
    free = 3000 * bytes_a_token(network)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    with pytest.warns(MemoryShortage, match="batches now hold 2,048 tokens instead of 8,192"):
        budget.fit(network, CPU, 10**9)
    assert budget.tokens(network, CPU) == 2048
    budget.fit(network, CPU, 10**9)  # it fits now: nothing more to say
    assert len(budget.notes) == 1
    with pytest.warns(MemoryShortage, match=r"on cpu \(no more\): batches now hold 1,024 tokens instead of 2,048"):
        budget.shrink(network, CPU, "no more\nsecond line")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0))
    with pytest.warns(MemoryShortage, match="batches now hold 1 tokens"):
        budget.fit(network, CPU, 10**9)


def test_what_decodes_holds_more_and_shrinks_alike(monkeypatch: pytest.MonkeyPatch):
    network, budget = toy_model().network, BatchBudget()
    monkeypatch.setattr(memory, "NEGLIGIBLE_BYTES", 0)
    free = 9000 * bytes_a_token(network)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free))
    budget.fit(network, CPU, 10**9)  # what scores fits
    assert budget.notes == []
    with pytest.warns(MemoryShortage, match="batches now hold 8,192 tokens instead of 16,384"):
        budget.fit(network, CPU, 10**9, decoding=True)
    assert [budget.tokens(network, CPU, decoding=decoding) for decoding in (False, True)] == [4096, 8192]
    with pytest.warns(MemoryShortage, match="batches now hold 4,096 tokens instead of 8,192"):
        budget.shrink(network, CPU, "no more", decoding=True)
    assert budget.share == 0.25


def test_finished_batches_are_not_run_again():
    finished: list[int] = []
    budgets = [100]

    def work(items: list[int]) -> None:
        if sum(items) > 40:
            raise MemoryError
        finished.extend(items)

    def plan(items: Any, budget: int) -> Iterator[list[int]]:
        batch: list[int] = []
        for index, item in enumerate(items):
            if batch and sum(items[one] for one in batch) + item > budget:
                yield batch
                batch = []
            batch.append(index)
        yield batch

    given_up: list[int] = []
    run_in_batches(
        [30, 10, 90, 20, 50, 7],
        budget=lambda: budgets[-1],
        plan=plan,
        work=work,
        cost=lambda item: item,
        shrink=lambda _reason: budgets.append(budgets[-1] // 2),
        give_up=given_up.append,
    )
    assert sorted(finished) == [7, 10, 20, 30]
    assert given_up == [90, 50]
    assert budgets == [100, 50]


# The engine when memory runs short


def failing_above(monkeypatch: pytest.MonkeyPatch, cells: int) -> list[tuple[int, int]]:
    """Forwards whose rows × columns exceed `cells` run out of memory; the sizes of the others are noted."""
    run: list[tuple[int, int]] = []
    forward = Runner.forward

    def short(self: Runner, ids: torch.Tensor, *, mask: torch.Tensor, **arguments: Any) -> torch.Tensor:
        if mask.numel() > cells:
            raise RuntimeError(ALLOCATOR)
        run.append((ids.shape[0], mask.shape[1]))
        return forward(self, ids, mask=mask, **arguments)

    monkeypatch.setattr(Runner, "forward", short)
    return run


def score_requests() -> list[ScoreRequest]:
    generator = random.Random(0)
    prompts = ["".join(generator.choices("QxyzABC ", k=generator.randint(5, 40))) for _ in range(10)]
    requests = [ScoreRequest(prompt, option) for prompt in prompts for option in ("A", "B", "long one", "the and")]
    return [*requests, *(ScoreRequest("", tuple(range(4, 4 + length))) for length in (9, 30, 41))]


def generate_requests() -> list[GenerateRequest]:
    generator = random.Random(1)
    return [
        GenerateRequest("".join(generator.choices("QxyzABC ", k=generator.randint(5, 40))), max_new_tokens=new)
        for new in (3, 20, 1, 8) * 3
    ]


Ask = Callable[[TransformersModel], list[Any]]
ASKS: dict[str, Ask] = {
    "scores": lambda model: model.logprobs(score_requests()),
    "generations": lambda model: model.generate(generate_requests()),
}


SHORT = [(architecture, name) for architecture in ("llama", "mistral", "mpt") for name in ASKS]


@pytest.mark.parametrize(
    ("architecture", "name"),
    others_slow(SHORT, [("llama", "scores"), ("llama", "generations"), ("mpt", "generations")]),
)
def test_a_shortage_costs_no_answer_and_is_said(monkeypatch: pytest.MonkeyPatch, architecture: str, name: str):
    ask = ASKS[name]
    expected = ask(toy_model(architecture))
    model = toy_model(architecture)
    run = failing_above(monkeypatch, 130)
    if name == "generations" and architecture == "mpt":  # one row at a time, whole: nothing to run short of
        assert ask(model) == expected
        return
    with pytest.warns(MemoryShortage, match="no answer was lost"):
        found = ask(model)
    assert max(rows for rows, _ in run) > 1
    assert any("can't allocate memory" in note for note in model.notes)
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, Generation):
            assert one == other
        else:
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    # What was learned stays known: no further shortage in the next call, nor in a copy's.
    notes = model.notes
    copy = model.with_network(model.network, digest="compressed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(ask(copy)) == len(found)
    assert copy.notes == notes


@pytest.mark.parametrize("ask", ASKS.values(), ids=ASKS)
def test_what_never_fits_is_unanswered_and_the_rest_is_not(monkeypatch: pytest.MonkeyPatch, ask: Ask):
    for budget in ("CPU_BUDGET", "CPU_DECODING_BUDGET"):
        monkeypatch.setattr(memory, budget, 512)
    model = toy_model()
    failing_above(monkeypatch, 40)
    with pytest.warns(MemoryShortage):
        found = ask(model)
    lost = [one for one in found if isinstance(one, Unanswered)]
    assert 0 < len(lost) < len(found)
    assert all(one.reason.startswith("the memory of cpu does not hold its ") for one in lost)
    assert all(isinstance(one, ContinuationScore | Generation) for one in found if one not in lost)


def test_other_errors_are_not_taken_for_shortages(monkeypatch: pytest.MonkeyPatch):
    def broken(*_arguments: Any, **_keywords: Any) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Runner, "forward", broken)
    for ask in ASKS.values():
        with pytest.raises(RuntimeError, match="mat1 and mat2"):
            ask(toy_model())


def test_batches_do_not_depend_on_free_memory(monkeypatch: pytest.MonkeyPatch):
    sizes = []
    for available in (10**9, 10**12):
        monkeypatch.setattr(psutil, "virtual_memory", lambda a=available: SimpleNamespace(available=a))
        with monkeypatch.context() as patch:
            run = failing_above(patch, 10**9)
            for ask in ASKS.values():
                ask(toy_model())
        sizes.append(run)
    assert sizes[0] == sizes[1]
