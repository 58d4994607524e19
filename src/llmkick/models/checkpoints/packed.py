"""The compact form of compressed weights on disk, and its bit-exact decoding.

A weight is stored in some of its places: all of them, those whose bit is set in a mask, or N of every M, each group
with the number of its pattern. The values are stored as they are, or as integer codes with a scale and a zero point
for each group of inputs. Two thin matrices may be added to a weight, see `low_rank`. A safetensors file holds the parts
of many weights; its metadata says how to combine them, with a checksum for each.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llmkick.errors import ModelError
from llmkick.models.checkpoints.bit_streams import (
    pack_bits,
    pattern_bits,
    unpack_bits,
    unrank_patterns,
)
from llmkick.models.checkpoints.packed_places import of_patterns, raw_bits, under
from llmkick.models.checkpoints.tensor_writer import write_tensors
from llmkick.models.low_rank import Adapter, merged
from llmkick.models.weights import bytes_of, digest_of

FORMAT = 1
# Values that are decoded together: what they need in between stays in the processor's caches. A GPU has fewer and
# larger pieces to launch.
VALUES_AT_ONCE = 1 << 18
VALUES_AT_ONCE_ON_A_GPU = 1 << 24
OPTIONAL_PARTS = ("places", "scale", "zero", "adapter_a", "adapter_b")


@dataclass(frozen=True, kw_only=True)
class Codes:
    """Integer codes of a weight (out, in), which is scale × (code − zero), in float32, cast to its dtype."""

    codes: Tensor  # (out, in) uint8
    scale: Tensor  # (out, groups) float32
    zero: Tensor  # (out, groups) whole numbers
    bits: int
    group: int  # inputs that share a scale; the last group of a row may be smaller
    symmetric: bool  # the zero is 2^(bits − 1) everywhere


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the parts of one weight make up the whole."""

    shape: tuple[int, ...]
    dtype: str
    digest: str  # sha256 of the whole weight's bytes
    checksum: str = ""  # sha256 of the parts' bytes
    kept: int | None = None  # N of N:M
    of: int | None = None  # M of N:M
    masked: bool = False
    bits: int | None = None
    group: int | None = None
    symmetric: bool = False
    place: Place | None = None
    rank: int | None = None  # of an adapter, with which the weight is whole


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a weight belongs in a network's state dict: a parameter, or an expert in it, or a transpose of either.

    flat: the parameter is a matrix that holds the experts one below the other.
    """

    parameter: str
    transposed: bool = False
    expert: int | None = None
    flat: bool = False


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A tensor in compact form: `parts` are "values" and, where the layout has them, those of `OPTIONAL_PARTS`."""

    layout: Layout
    parts: dict[str, Tensor]

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(part.numel() * part.element_size() for part in self.parts.values())


def pack(
    weight: Tensor,
    *,
    codes: Codes | None = None,
    masked: bool = False,
    pattern: tuple[int, int] | None = None,
    place: Place | None = None,
) -> Packed:
    """The compact form of a weight (out, in), on the CPU.

    `masked` leaves out zeros and keeps a bit for each place; `pattern` (N, M) keeps N of every M consecutive inputs.
    A weight that would not come back bit for bit is stored in a wider form: as values where the codes do not give
    the weight, under a mask where a group has more than N non-zeros. −0 does not count as a zero.
    """
    weight = weight.detach().contiguous()
    dtype = str(weight.dtype).removeprefix("torch.")
    layout = Layout(shape=tuple(weight.shape), dtype=dtype, digest=digest_of(weight), place=place)
    codes = codes if codes is None or gives(codes, weight) else None
    # On the device of the weight, so that only what is kept leaves it.
    values, parts = weight.flatten() if codes is None else codes.codes.to(weight.device).flatten(), {}
    if codes is not None:
        layout = replace(layout, bits=codes.bits, group=codes.group, symmetric=codes.symmetric)
        parts["scale"] = codes.scale.float().contiguous()
        if not codes.symmetric:
            parts["zero"] = pack_bits(codes.zero.flatten(), codes.bits)
    bits = raw_bits(weight).flatten()
    chosen = None if pattern is None else of_patterns(bits, values, *pattern)
    if chosen is not None and pattern is not None:
        ranks, values = chosen
        parts["places"] = pack_bits(ranks, pattern_bits(*pattern))
        layout = replace(layout, kept=pattern[0], of=pattern[1])
    elif masked or pattern is not None:
        filled = bits != 0
        parts["places"] = pack_bits(filled, 1)
        layout, values = replace(layout, masked=True), under(filled, values)
    parts["values"] = (values.clone() if chosen is None else values) if codes is None else pack_bits(values, codes.bits)
    parts = {name: part.cpu() for name, part in parts.items()}
    return Packed(layout=replace(layout, checksum=_checksum(parts)), parts=parts)


def with_adapter(base: Packed, adapter: Adapter, weight: Tensor) -> Packed:
    """The compact form of a weight (out, in) = base + b·a, which must be what `low_rank.merged` makes of both."""
    parts = {**base.parts, "adapter_a": adapter.a.cpu(), "adapter_b": adapter.b.cpu()}
    layout = replace(base.layout, rank=adapter.a.shape[0], digest=digest_of(weight), checksum=_checksum(parts))
    return Packed(layout=layout, parts=parts)


def gives(codes: Codes, weight: Tensor) -> bool:
    """Whether the codes stand for a weight (out, in), bit for bit: compared where the weight is, waited for once."""
    codes = replace(
        codes,
        codes=codes.codes.to(weight.device),
        scale=codes.scale.to(weight.device),
        zero=codes.zero.to(weight.device),
    )
    at_once = VALUES_AT_ONCE if weight.device.type == "cpu" else VALUES_AT_ONCE_ON_A_GPU
    rows = max(1, at_once // weight.shape[1])
    pieces = [slice(start, start + rows) for start in range(0, len(weight), rows)]
    return bool(torch.stack([_gives_rows(codes, weight, rows) for rows in pieces]).all())


def _gives_rows(codes: Codes, weight: Tensor, rows: slice) -> Tensor:
    """Whether the codes stand for some rows of a weight, bit for bit: a bool that is not waited for."""
    some = replace(codes, codes=codes.codes[rows], scale=codes.scale[rows], zero=codes.zero[rows])
    return (raw_bits(_decode(some).to(weight.dtype)) == raw_bits(weight[rows])).all()


def unpack(packed: Packed) -> Tensor:
    """The whole weight, on the CPU. Raises ModelError when it is not the weight that was packed."""
    return _unpacked(packed)[0]


def unpack_apart(packed: Packed) -> tuple[Tensor, Adapter | None]:
    """The weight (out, in) without its adapter, and the adapter; None where it has none. Errors as in `unpack`."""
    _, base, adapter = _unpacked(packed)
    return base, adapter


def _unpacked(packed: Packed) -> tuple[Tensor, Tensor, Adapter | None]:
    """The whole weight, the weight without an adapter, and the adapter."""
    layout, parts = packed.layout, packed.parts
    if _checksum(parts) != layout.checksum:
        raise ModelError("its checksum does not match: the file was altered or damaged")
    codes = codes_of(packed)
    if codes is None:
        count = math.prod(layout.shape)
        blank = torch.zeros(count, dtype=_dtype(layout.dtype))
        base = _spread(parts["values"], _places(layout, parts, count), blank).view(layout.shape)
    else:
        base = _decode(codes).to(_dtype(layout.dtype))
    adapter = None if layout.rank is None else Adapter(b=parts["adapter_b"], a=parts["adapter_a"])
    weight = base if adapter is None else merged(base, adapter)
    if digest_of(weight) != layout.digest:
        raise ModelError("its contents do not match their checksum: it was written by a faulty program")
    return weight, base, adapter


def codes_of(packed: Packed) -> Codes | None:
    """The integer codes of a weight, those of left-out zeros filled in; None when it is not stored as codes."""
    layout, parts = packed.layout, packed.parts
    if layout.bits is None or layout.group is None:
        return None
    count, scale = math.prod(layout.shape), parts["scale"]
    middle = torch.full(scale.shape, 1 << (layout.bits - 1), dtype=torch.uint8)
    zero = middle if layout.symmetric else unpack_bits(parts["zero"], layout.bits, scale.numel()).view(scale.shape)
    places = _places(layout, parts, count)
    stored = unpack_bits(parts["values"], layout.bits, count if places is None else int(places.sum()))
    blank = zero.repeat_interleave(layout.group, dim=1)[:, : layout.shape[1]].flatten()
    return Codes(
        codes=_spread(stored, places, blank).view(layout.shape),
        scale=scale,
        zero=zero,
        bits=layout.bits,
        group=layout.group,
        symmetric=layout.symmetric,
    )


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ModelError(f"it says that its values are {name!r}, which is no type of number")
    return dtype


def _places(layout: Layout, parts: Mapping[str, Tensor], count: int) -> Tensor | None:
    if layout.kept is not None and layout.of is not None:
        rank = unpack_bits(parts["places"], pattern_bits(layout.kept, layout.of), count // layout.of)
        return unrank_patterns(rank, layout.kept, layout.of).flatten()
    return unpack_bits(parts["places"], 1, count).bool() if layout.masked else None


def _spread(values: Tensor, places: Tensor | None, blank: Tensor) -> Tensor:
    return values if places is None else blank.masked_scatter(places, values)


def _decode(codes: Codes) -> Tensor:
    """Codes → weights (out, in) float32, by the same operations in the same order as in the rounding."""
    rows, columns = codes.codes.shape
    padded = F.pad(codes.codes.float(), (0, -columns % codes.group)).view(rows, -1, codes.group)
    weights = (padded - codes.zero.float()[..., None]).mul_(codes.scale.float()[..., None])
    return weights.view(rows, -1)[:, :columns]


def _checksum(parts: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, part in sorted(parts.items()):
        total.update(f"{name}\0{part.dtype}\0{tuple(part.shape)}\0".encode())
        total.update(memoryview(bytes_of(part)))
    return total.hexdigest()


def write_packed(file: Path, weights: Mapping[str, Packed]) -> None:
    """Write weights into a file atomically: a reader never sees a partial file, even after a crash."""
    tensors = {f"{name}:{key}": part for name, packed in weights.items() for key, part in packed.parts.items()}
    layouts = {name: _fields(packed.layout) for name, packed in weights.items()}
    write_tensors(file, tensors, {"llmkick": json.dumps(layouts)})


def _fields(layout: Layout) -> dict[str, Any]:
    fields = asdict(layout)
    if layout.rank is None:
        del fields["rank"]  # as below
    if layout.place is not None and not layout.place.flat:
        del fields["place"]["flat"]  # versions that do not know it can read the file
    return fields


def read_packed(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and whole weights in a file, one at a time. Raises ModelError naming the file and the weight."""
    for name, _, weight in read_placed(file):
        yield name, weight


def read_placed(file: Path) -> Iterator[tuple[str, Place, Tensor]]:
    """Names, places and whole weights in a file; a weight without a place is the parameter of its name."""
    for name, packed in read_parts(file):
        try:
            yield name, packed.layout.place or Place(parameter=name), unpack(packed)
        except (ModelError, RuntimeError, ValueError, KeyError, IndexError) as error:
            raise ModelError(f"{file}: {name} cannot be read: {error}; make the file again") from error


def read_parts(file: Path) -> Iterator[tuple[str, Packed]]:
    """Names and compact forms in a file, one at a time."""
    from safetensors import SafetensorError, safe_open

    name = "its header"
    try:
        with safe_open(file, framework="pt") as stream:
            layouts = json.loads(stream.metadata()["llmkick"])
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
