"""The compact form of compressed weights on disk, and its bit-exact decoding.

A weight is stored in some of its places: all of them, those whose bit is set in a mask, or N of every M, each group
with the number of its pattern. The values are stored as they are, or as integer codes with a scale and a zero point
for each group of inputs. Two thin matrices may be added to a weight, see `low_rank`. A safetensors file holds the parts
of many weights; its metadata says how to combine them, see `packed_file`.

What a weight is checked by is the digest of all of its values: hashed once, when it is packed. It also shows an altered
part, unless the change is lost where values are rounded to the weight's type. So parts that are more precise than the
weight have a digest of their own.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

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
from llmkick.models.low_rank import Adapter, merged
from llmkick.models.weights import PartedDigest, bytes_of, digest_of

# Values that are decoded together: what they need in between stays in the processor's caches. A GPU has fewer and
# larger pieces to launch.
VALUES_AT_ONCE = 1 << 18
VALUES_AT_ONCE_ON_A_GPU = 1 << 24
OPTIONAL_PARTS = ("places", "scale", "zero", "adapter_a", "adapter_b")
ALTERED = "its checksum does not match: the file was altered or damaged"


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
    """How the parts of one weight make up the whole.

    digest: of the whole weight as it lies in the network, see `weights.digest_of`; empty for an expert that is checked
    with the parameter that holds it. beside: sha256 of the parts from which the weight is rounded: scales and zeros,
    and all parts where there is an adapter; empty where there are none. checksum: in files of format 1 the sha256 of
    all parts, whose digest is that of (out, in) in any case; otherwise empty.
    """

    shape: tuple[int, ...]
    dtype: str
    digest: str
    checksum: str = ""
    beside: str = ""
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

    def lying(self, weight: Tensor) -> Tensor:
        """A weight (out, in) as it lies in the parameter: a view."""
        return weight.t() if self.transposed else weight


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
    recovered: tuple[Adapter, Tensor] | None = None,
    digest: str = "",
    whole: PartedDigest | None = None,
) -> Packed:
    """The compact form of a weight (out, in), on the CPU.

    recovered: an adapter that belongs to the weight, and their sum, see `with_adapter`. digest: of the weight, where it
    is known. whole: of the parameter in which the weight is an expert; it is added there and gets no digest of its own.

    `masked` leaves out zeros and keeps a bit for each place; `pattern` (N, M) keeps N of every M consecutive inputs.
    A weight that would not come back bit for bit is stored in a wider form: as values where the codes do not give
    the weight, under a mask where a group has more than N non-zeros. −0 does not count as a zero.
    """
    weight = weight.detach().contiguous()
    dtype = str(weight.dtype).removeprefix("torch.")
    layout = Layout(shape=tuple(weight.shape), dtype=dtype, digest="", place=place)
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
    packed = Packed(layout=layout, parts=parts)
    if recovered is not None:
        return with_adapter(packed, *recovered, whole=whole)
    return _sealed(packed, weight, digest=digest, whole=whole)


def with_adapter(base: Packed, adapter: Adapter, weight: Tensor, *, whole: PartedDigest | None = None) -> Packed:
    """The compact form of a weight (out, in) = base + b·a, which must be what `low_rank.merged` makes of both."""
    parts = {**base.parts, "adapter_a": adapter.a.cpu(), "adapter_b": adapter.b.cpu()}
    layout = replace(base.layout, rank=adapter.a.shape[0])
    return _sealed(Packed(layout=layout, parts=parts), weight, whole=whole)


def with_digest(packed: Packed, weight: Tensor) -> Packed:
    """The same with a digest of its own, for an expert that was checked with others. weight: the one in memory."""
    return packed if packed.layout.digest else _sealed(packed, weight)


def _sealed(packed: Packed, weight: Tensor, *, digest: str = "", whole: PartedDigest | None = None) -> Packed:
    """A compact form with what it is checked by. weight: the whole one, (out, in)."""
    place = packed.layout.place or Place(parameter="")
    lying = place.lying(weight.detach())
    if whole is not None:
        assert place.expert is not None, f"{place.parameter} holds no experts"
        whole.add(place.expert, lying)
    own = "" if whole is not None else digest or digest_of(lying)
    return replace(packed, layout=replace(packed.layout, digest=own, checksum="", beside=_beside(packed)))


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
    """The whole weight (out, in), on the CPU. Raises ModelError when it is not the weight that was packed.

    An expert without a digest of its own is not checked here.
    """
    return unpack_apart(packed)[0]


def unpack_apart(packed: Packed) -> tuple[Tensor, Tensor, Adapter | None]:
    """The whole weight (out, in), the weight without its adapter, and the adapter, if any. Errors as in `unpack`."""
    layout = packed.layout
    if (_checksum(packed.parts) != layout.checksum) if layout.checksum else (_beside(packed) != layout.beside):
        raise ModelError(ALTERED)
    try:
        base, adapter = decoded(packed)
        weight = base if adapter is None else merged(base, adapter)
    except (RuntimeError, ValueError, KeyError, IndexError) as error:  # its parts do not fit together
        raise ModelError(ALTERED) from error
    lying = weight if layout.checksum or layout.place is None else layout.place.lying(weight)
    if layout.digest and digest_of(lying) != layout.digest:
        made = "its contents do not match their checksum: it was written by a faulty program"
        raise ModelError(made if layout.checksum else ALTERED)
    return weight, base, adapter


def decoded(packed: Packed) -> tuple[Tensor, Adapter | None]:
    """The weight (out, in) without its adapter, on the CPU, and the adapter: of what is in memory, without a check."""
    layout, parts = packed.layout, packed.parts
    codes = codes_of(packed)
    if codes is None:
        count = math.prod(layout.shape)
        blank = torch.zeros(count, dtype=_dtype(layout.dtype))
        base = _spread(parts["values"], _places(layout, parts, count), blank).view(layout.shape)
    else:
        base = _decode(codes).to(_dtype(layout.dtype))
    return base, None if layout.rank is None else Adapter(b=parts["adapter_b"], a=parts["adapter_a"])


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


def _beside(packed: Packed) -> str:
    """The digest of the parts that the whole weight does not show bit for bit, see `Layout`."""
    has_adapter = packed.layout.rank is not None
    parts = {name: part for name, part in packed.parts.items() if has_adapter or name in ("scale", "zero")}
    return _checksum(parts) if parts else ""


def _checksum(parts: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name, part in sorted(parts.items()):
        total.update(f"{name}\0{part.dtype}\0{tuple(part.shape)}\0".encode())
        total.update(memoryview(bytes_of(part)))
    return total.hexdigest()
