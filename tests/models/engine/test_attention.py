"""Another attention function is this thread's, for as long as it was asked for."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmkick.models.engine import attention
from llmkick.models.engine.attention import attention_replaced_by, default_attention, is_plain
from toy import toy_model


def test_it_answers_for_one_thread_and_no_longer_than_it_should() -> None:
    network = toy_model().network
    calls: list[int] = []

    def ours(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
        calls.append(threading.get_ident())
        return default_attention(*arguments, **options)

    def run() -> None:
        network(torch.tensor([[1, 2, 3]]))

    run()
    with attention_replaced_by(ours):
        run()
        layers = len(calls)
        assert layers == network.config.num_hidden_layers
        other = threading.Thread(target=run)
        other.start()
        other.join()
        assert len(calls) == layers
        with attention_replaced_by(default_attention):
            run()
        assert len(calls) == layers
        run()
        assert len(calls) == 2 * layers
    run()
    assert len(calls) == 2 * layers


def test_what_another_library_has_put_there_stays_the_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def theirs(*arguments: Any, **options: Any) -> tuple[Tensor, Any]:
        calls.append(1)
        return sdpa_attention_forward(*arguments, **options)

    monkeypatch.setattr(attention, "_default", sdpa_attention_forward)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", theirs)
    with attention_replaced_by(default_attention):
        default_attention(torch.nn.Module(), *(torch.zeros(1, 1, 2, 4) for _ in range(3)), None)
    assert calls == [1]


def test_an_error_ends_it_too() -> None:
    def failing(*_: Any, **__: Any) -> tuple[Tensor, Any]:
        raise ValueError

    network = toy_model().network
    try:
        with attention_replaced_by(failing):
            network(torch.tensor([[1, 2, 3]]))
    except ValueError:
        pass
    assert network(torch.tensor([[1, 2, 3]])).logits.shape[1] == 3


def test_what_is_plain() -> None:
    assert is_plain(0.0, {"softcap": None, "position_ids": 3})
    assert not is_plain(0.1, {})
    assert not is_plain(0.0, {"softcap": 30.0})
    assert not is_plain(0.0, {"s_aux": torch.zeros(2)})
