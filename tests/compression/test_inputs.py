"""The sample of a layer's inputs on which its output error is measured, and layers that share an input at times."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from llmkick.compression.walk import inputs as inputs_module
from llmkick.compression.walk.inputs import InputRecord
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.errors import ModelError

WINDOWS, LENGTH = 4, 64


def layer(name: str) -> LinearLayer:
    return LinearLayer(name=name, module=nn.Linear(2, 2, bias=False), form="linear")


def batch(number: int) -> Tensor:
    """(windows, tokens, 2): of each token the number of its window, and its place."""
    windows = torch.arange(WINDOWS) + number * WINDOWS
    return torch.stack(torch.meshgrid(windows, torch.arange(LENGTH), indexing="ij"), dim=-1).float()


@pytest.mark.parametrize("batches", [1, 4, 32, 128])
def test_errors_are_measured_on_all_places_of_the_windows(batches: int):
    """An even step over whole windows hits the same places in each, with many batches the first token alone."""
    own = layer("own")
    record = InputRecord([own], hessian=False, batches=batches)
    for number in range(batches):
        record.add([(own, batch(number))])
    sample = record.sample_of(own)
    assert sample is not None
    assert len(sample) == inputs_module.ERROR_TOKENS
    windows, places = sample[:, 0].int(), sample[:, 1].int()
    assert len(windows.unique()) >= min(WINDOWS * batches, 64) // 2
    assert len(places.unique()) > 40  # of 64; 128 draws are expected to hit 55
    assert int(places.min()) > 0  # the first token of a window is unlike all others
    assert abs(float(places.float().mean()) - LENGTH / 2) < 6  # four standard errors
    assert len(sample.unique(dim=0)) == len(sample)


def test_the_sample_is_the_same_in_every_run():
    records = []
    for _ in range(2):
        own = layer("own")
        records.append(InputRecord([own], hessian=False, batches=2))
        records[-1].add([(own, batch(0))])
    first, second = (record.sample_of(own) for record in records for own in [layer("own")])
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)


def test_all_tokens_are_taken_where_there_are_few():
    own = layer("own")
    record = InputRecord([own], hessian=False, batches=1)
    record.add([(own, batch(0)[:1, :5])])
    sample = record.sample_of(own)
    assert sample is not None
    assert torch.equal(sample, batch(0)[0, 1:5])
    tokens = layer("expert")  # whose places are not known
    record = InputRecord([tokens], hessian=False, batches=1)
    record.add([(tokens, batch(0)[0, :5])])
    sample = record.sample_of(tokens)
    assert sample is not None
    assert torch.equal(sample, batch(0)[0, :5])


def test_a_layer_that_stops_sharing_its_input_is_refused():
    """What it saw before is counted for the other layer alone, so that its own statistics would lack it."""
    one, other = layer("one"), layer("other")
    record = InputRecord([one, other], hessian=True, batches=2)
    shared = batch(0)
    record.add([(one, shared), (other, shared)])
    with pytest.raises(ModelError, match="other shares its input with one on some calibration windows only"):
        record.add([(other, batch(1))])


def test_a_layer_that_begins_to_share_its_input_keeps_statistics_of_its_own():
    one, other = layer("one"), layer("other")
    record = InputRecord([one, other], hessian=True, batches=2)
    record.add([(one, batch(0)), (other, batch(0))])
    shared = batch(1)
    record.add([(one, shared), (other, shared)])
    statistics = record.statistics_of(other)
    assert statistics is not None
    assert statistics.tokens == 2 * WINDOWS * LENGTH
