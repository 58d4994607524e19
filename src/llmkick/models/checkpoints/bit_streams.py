"""Packing of whole numbers into as few bits as they need, and the numbering of N:M patterns."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

# How many values wider than a byte are expanded into single bits at a time.
CHUNK = 1 << 20


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Whole numbers below 2^bits → a stream in which value i takes bits [i·bits, (i+1)·bits), lowest first.

    (count,) integers → (ceil(count·bits/8),) uint8; bits from 1 to 63.
    """
    count = values.numel()
    if bits > 8:
        shifts = torch.arange(bits, dtype=torch.int64, device=values.device)
        pieces = [(piece[:, None] >> shifts & 1).flatten() for piece in torch.split(values.to(torch.int64), CHUNK)]
        return pack_bits(torch.cat(pieces), 1) if pieces else torch.empty(0, dtype=torch.uint8, device=values.device)
    if bits == 8:
        return values.to(torch.uint8, copy=True)
    if bits == 1 and values.device.type == "cpu":
        return torch.from_numpy(np.packbits(values.to(torch.uint8).numpy(), bitorder="little"))
    # Some at a time: what they need in between stays in the processor's caches.
    pieces = [_pack_words(piece, bits) for piece in torch.split(values, CHUNK)]
    stream = torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.uint8, device=values.device)
    return stream[: -(-count * bits // 8)]


def _pack_words(values: Tensor, bits: int) -> Tensor:
    """`pack_bits` of values to which as many zeros are added as make their number a multiple of 8."""
    padded = F.pad(values.to(torch.uint8), (0, -values.numel() % 8))
    if bits in (2, 4):  # values do not cross bytes
        places = padded.view(-1, 8 // bits)
        stream = places[:, 0].clone()
        for place in range(1, 8 // bits):
            stream |= places[:, place] << (bits * place)
        return stream
    # Eight values make a word of as many bytes as they have bits.
    places = padded.view(-1, 8)
    words = torch.zeros(len(places), dtype=torch.int64, device=values.device)
    for place in range(8):
        words |= places[:, place].to(torch.int64) << (bits * place)
    return words.view(torch.uint8).view(-1, 8)[:, :bits].flatten()


def unpack_bits(stream: Tensor, bits: int, count: int) -> Tensor:
    """Undo `pack_bits`: → (count,) uint8, or int64 above 8 bits."""
    if bits == 8:
        return stream[:count].clone()
    if bits == 1 and stream.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(stream.numpy(), count=count, bitorder="little"))
    if bits > 8:
        planes = unpack_bits(stream, 1, bits * count).view(-1, bits)
        shifts = torch.arange(bits, dtype=torch.int64)
        pieces = [(piece.to(torch.int64) << shifts).sum(dim=1) for piece in torch.split(planes, CHUNK)]
        return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)
    groups = -(-count // 8)
    padded = F.pad(stream, (0, groups * bits - stream.numel())).view(-1, bits)
    words = F.pad(padded, (0, 8 - bits)).contiguous().view(torch.int64).flatten()
    values = torch.empty(groups, 8, dtype=torch.uint8)
    for place in range(8):
        values[:, place] = words >> (bits * place) & ((1 << bits) - 1)
    return values.flatten()[:count]


def pattern_bits(kept: int, of: int) -> int:
    """Bits that number the C(M, N) patterns of N:M."""
    return (math.comb(of, kept) - 1).bit_length()


def filled_up(filled: Tensor, kept: int) -> Tensor | None:
    """A mask (groups, M) with exactly N places set, all non-zeros among them; None when a group has more."""
    missing = kept - filled.sum(dim=1, keepdim=True)
    if bool((missing < 0).any()):
        return None
    return filled | (~filled & ((~filled).cumsum(dim=1) <= missing))


def rank_patterns(mask: Tensor) -> Tensor:
    """Number of each pattern in the combinatorial number system: (groups, M) bool → (groups,) int64.

    With places p₁ < p₂ < … the number is Σ C(pᵢ, i): patterns of as many places have consecutive numbers from 0.
    """
    of = mask.shape[1]
    table = binomials(of).to(mask.device)
    counted = torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
    rank = torch.zeros_like(counted)
    for place in range(of):
        counted += mask[:, place]
        rank += torch.where(mask[:, place], table[place][counted], 0)
    return rank


def unrank_patterns(rank: Tensor, kept: int, of: int) -> Tensor:
    """Undo `rank_patterns`: (groups,) → (groups, M) bool with N set in each."""
    table = binomials(of)
    left, rank = torch.full_like(rank, kept, dtype=torch.int64), rank.to(torch.int64)
    mask = torch.zeros(len(rank), of, dtype=torch.bool)
    for place in reversed(range(of)):
        rank_from = table[place][left]
        taken = (left > 0) & (rank >= rank_from)
        rank = rank - torch.where(taken, rank_from, 0)
        left -= taken.to(torch.int64)
        mask[:, place] = taken
    return mask


def binomials(of: int) -> Tensor:
    """C(p, k) for p < M and k ≤ M: (M, M + 1) int64, which is wide enough up to M = 64."""
    return torch.tensor([[math.comb(p, k) for k in range(of + 1)] for p in range(of)])
