"""Files of weights in compact form: a safetensors file with their parts, and metadata that say how to combine them.

The metadata have a `Layout` for each weight, and the digests of parameters whose experts are weights without one.
Format 1, which can be read too, has a digest and a checksum for each weight.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llmkick.errors import ModelError
from llmkick.models.checkpoints.packed import ALTERED, OPTIONAL_PARTS, Layout, Packed, Place, unpack
from llmkick.models.checkpoints.tensor_writer import write_tensors
from llmkick.models.weights import PartedDigest

FORMAT = 2
READABLE = (1, 2)
_LAYOUTS, _WHOLES = "llmkick", "llmkick_wholes"


def write_packed(file: Path, weights: Mapping[str, Packed], wholes: Mapping[str, PartedDigest] | None = None) -> None:
    """Write weights into a file atomically: a reader never sees a partial file, even after a crash.

    wholes: of the parameters, by name, whose experts are among the weights and have no digest of their own.
    """
    tensors = {f"{name}:{key}": part for name, packed in weights.items() for key, part in packed.parts.items()}
    metadata = {_LAYOUTS: json.dumps({name: _fields(packed.layout) for name, packed in weights.items()})}
    if wholes:
        facts = {name: {"digest": whole.hexdigest(), "shape": whole.shape} for name, whole in wholes.items()}
        metadata[_WHOLES] = json.dumps(facts)
    write_tensors(file, tensors, metadata)


def _fields(layout: Layout) -> dict[str, Any]:
    fields = asdict(layout)
    for name in ("rank", "checksum", "beside"):
        if not fields[name]:
            del fields[name]
    if layout.place is not None and not layout.place.flat:
        del fields["place"]["flat"]
    return fields


def read_placed(file: Path) -> Iterator[tuple[str, Place, Tensor]]:
    """Names, places and whole weights in a file; a weight without a place is the parameter of its name."""
    for name, packed, weight in read_checked(file):
        yield name, packed.layout.place or Place(parameter=name), weight


def read_checked(file: Path) -> Iterator[tuple[str, Packed, Tensor]]:
    """Names, compact forms and whole weights (out, in) in a file, one at a time; all are checked at the last one.

    Raises ModelError naming the file, and the weight or the parameter that holds it.
    """
    wholes: dict[str, tuple[str, PartedDigest]] = {}
    for name, packed in read_parts(file):
        try:
            weight = unpack(packed)
            place = packed.layout.place
            if not packed.layout.digest:
                if place is None or place.expert is None:
                    raise ModelError("it has no checksum")
                if place.parameter not in wholes:
                    wholes[place.parameter] = _whole(file, place.parameter, packed.layout.dtype)
                _check(wholes[place.parameter], place, weight)
        except (ModelError, RuntimeError, ValueError, KeyError, IndexError) as error:
            raise ModelError(f"{file}: {name} cannot be read: {error}; make the file again") from error
        yield name, packed, weight
    for parameter, (_, digest) in wholes.items():
        if not digest.is_complete:
            raise ModelError(f"{file}: {parameter} cannot be read: it lacks experts; make the file again")


def _whole(file: Path, parameter: str, dtype: str) -> tuple[str, PartedDigest]:
    """The digest that a parameter is to have, and one that has seen nothing yet."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        facts = json.loads(stream.metadata().get(_WHOLES, "{}"))[parameter]
    return facts["digest"], PartedDigest(getattr(torch, dtype), facts["shape"])


def _check(whole: tuple[str, PartedDigest], place: Place, weight: Tensor) -> None:
    """Add an expert (out, in) to the digest of its parameter, and compare it at the last one."""
    expected, digest = whole
    assert place.expert is not None, place
    digest.add(place.expert, place.lying(weight))
    if digest.is_complete and digest.hexdigest() != expected:
        raise ModelError(f"{place.parameter}, of which it is the last part: {ALTERED}")


def read_parts(file: Path) -> Iterator[tuple[str, Packed]]:
    """Names and compact forms in a file, one at a time."""
    from safetensors import SafetensorError, safe_open

    name = "its header"
    try:
        with safe_open(file, framework="pt") as stream:
            layouts = json.loads(stream.metadata()[_LAYOUTS])
            keys = set(stream.keys())
            for name, fields in layouts.items():
                place = None if fields["place"] is None else Place(**fields["place"])
                layout = Layout(**{**fields, "shape": tuple(fields["shape"]), "place": place})
                names = [key for key in ("values", *OPTIONAL_PARTS) if f"{name}:{key}" in keys]
                yield name, Packed(layout=layout, parts={key: stream.get_tensor(f"{name}:{key}") for key in names})
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise ModelError(
            f"{file}: {name} cannot be read ({error}): the file is cut short or damaged; make it again"
        ) from error
