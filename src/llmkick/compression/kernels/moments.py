"""Sums of squares and of products of a layer's inputs, in float32, as the device makes them fastest without a loss."""

import contextlib
from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

# Columns of the second moments computed at a time. A narrow panel wastes less below the diagonal, a wide one keeps all
# cores of a GPU busy.
PANEL, PANEL_CPU = 1024, 128
PADDED_ROWS = 16  # a number of tokens is padded to a multiple of this on a CPU
CACHED_VALUES = 2**19  # inputs squared at a time on a CPU: 2 MiB in float32, which its caches hold


def sums_of_squares(rows: Tensor) -> Tensor:
    """Σ x² of each input in float32: (tokens, in) → (in,).

    On a CPU in pieces that fit its caches, because it would spend most of the time on fetching new pages of memory for
    the squares of all rows. A GPU is given one call, which stores no squares.
    """
    if rows.device.type != "cpu":
        norms: Tensor = torch.linalg.vector_norm(rows, dim=0, dtype=torch.float32)
        return norms.square_()
    piece_rows = max(1, CACHED_VALUES // rows.shape[1])
    sums = torch.zeros(rows.shape[1], dtype=torch.float32, device=rows.device)
    for piece in torch.split(rows, piece_rows):
        sums += piece.float().square().sum(dim=0)
    return sums


def add_moments(moments: Tensor, rows: Tensor) -> None:
    """Add the upper triangle of rowsᵀ rows, (tokens, in) of any dtype, in float32: (in, in) in place.

    Products of two halves are exact in float32, so they are left to the units for halves where these sum in float32.
    """
    if has_half_products(rows):
        _add_upper_moments(moments, rows, product=_add_half_product)
        return
    on_cpu = rows.device.type == "cpu"
    with _products_of_bfloat16() if on_cpu and rows.dtype == torch.bfloat16 else contextlib.nullcontext():
        _add_upper_moments(moments, _padded(rows) if on_cpu else rows.float(), product=_add_product)


def _padded(rows: Tensor) -> Tensor:
    """The rows in float32 with rows of zeros below, up to one of a few heights: (tokens or more, in).

    oneDNN compiles a kernel for every new shape and keeps a thousand of them, which takes hundreds of megabytes. The
    experts of a mixture get another number of tokens in every batch; heights of three significant bits leave few
    shapes.
    """
    step = max(PADDED_ROWS, 1 << max(0, rows.shape[0].bit_length() - 3))
    missing = -rows.shape[0] % step
    if missing == 0:
        return rows.float()
    padded = torch.zeros(rows.shape[0] + missing, rows.shape[1], dtype=torch.float32, device=rows.device)
    padded[: rows.shape[0]] = rows
    return padded


def _add_upper_moments(moments: Tensor, rows: Tensor, *, product: Callable[[Tensor, Tensor, Tensor], object]) -> None:
    """Add the upper triangle of rowsᵀ rows, panel by panel: (in, in) in place, (tokens, in).

    For wide inputs this is half the work of the full product. The symmetric update of scipy's BLAS is no faster, runs
    on the CPU only and brings a second pool of threads into the process.
    """
    width = PANEL_CPU if rows.device.type == "cpu" else PANEL
    for start in range(0, rows.shape[1], width):
        panel = rows[:, start : start + width]
        product(moments[start : start + width, start:], panel.T, rows[:, start:])


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    total.addmm_(left, right)


def _add_half_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the product of two matrices of halves to one in float32, in place."""
    torch.addmm(total, left, right, out_dtype=torch.float32, out=total)


def has_half_products(rows: Tensor) -> bool:
    """Whether the device multiplies the halves in `rows` as they are and sums in float32."""
    is_half = rows.dtype in (torch.bfloat16, torch.float16)
    return rows.device.type == "cuda" and is_half and sums_halves_in_float32(rows.device, rows.dtype)


@cache
def sums_halves_in_float32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of halves on a device, with sums that no half can hold, is exact: tried once."""
    total = torch.full((16, 16), 1024.0, device=device)
    rows = torch.arange(16 * 32, device=device).remainder(61).view(32, 16)
    try:
        _add_half_product(total, rows.to(dtype).T, rows.to(dtype))
    except RuntimeError:  # a device, or a version of torch, without it
        return False
    return torch.equal(total, rows.float().T @ rows.float() + 1024)


@contextlib.contextmanager
def _products_of_bfloat16() -> Iterator[None]:
    """Let oneDNN multiply float32 matrices as bfloat16 and sum in float32: exact for values that fit bfloat16.

    Processors with bfloat16 tiles then multiply several times faster; on others oneDNN uses its float32 product. The
    setting belongs to the process and would round float32 products of other threads, so it is on for the sums only.
    """
    setting = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
