"""The kernels of recoveries against brute force: best low-rank matrices, and least squares on weights and scales."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmkick.compression.kernels import reconstruct
from llmkick.compression.kernels.eora import eora
from llmkick.compression.kernels.grid import decode, encode, fit_grid
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.kernels.patterns import Grid
from llmkick.compression.kernels.reconstruct import refit_kept, refit_scales, row_errors
from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk.weight import compress_with_statistics
from llmkick.errors import ConfigError
from llmkick.models.low_rank import adapter_of, merged


def random_problem(rows: int, columns: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight (out, in), and inputs (tokens, in) that are far from white."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    inputs *= torch.logspace(-1, 1, columns)
    return torch.randn(rows, columns, generator=generator), inputs


def error(change: Tensor, inputs: Tensor) -> float:
    return float((inputs.double() @ torch.atleast_2d(change).double().mT).square().sum())


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (9, 6), (7, 7)])
@pytest.mark.parametrize("rank", [1, 3])
def test_eora_reaches_the_smallest_error_that_any_matrix_of_its_rank_can(rows: int, columns: int, rank: int) -> None:
    change, inputs = random_problem(rows, columns, tokens=50)
    b, a = eora(change, inputs.T @ inputs, rank)
    assert (b.shape, a.shape) == ((rows, rank), (rank, columns))
    # The error cannot be below the tail of the singular values of the outputs (Eckart, Young).
    tail = torch.linalg.svdvals(inputs.double() @ change.double().T)[rank:].square().sum()
    assert error(change - b @ a, inputs) == pytest.approx(float(tail), rel=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(5, 8), (8, 5)])
def test_eora_is_the_papers_projection(rows: int, columns: int) -> None:
    change, inputs = random_problem(rows, columns, tokens=40)
    hessian = (inputs.T @ inputs).double()
    values, vectors = torch.linalg.eigh(hessian)
    weighted = change.double() @ vectors @ torch.diag(values.sqrt())
    left, singular, right = torch.linalg.svd(weighted, full_matrices=False)
    best = left[:, :2] @ torch.diag(singular[:2]) @ right[:2] @ torch.diag(values.rsqrt()) @ vectors.T
    b, a = eora(change, hessian.float(), 2)
    assert torch.allclose(b @ a, best.float(), atol=1e-3)


@pytest.mark.parametrize(("rows", "columns"), [(6, 10), (10, 6)])
@pytest.mark.parametrize("tokens", [2, 4])
def test_eora_is_optimal_where_the_moments_are_singular(rows: int, columns: int, tokens: int) -> None:
    change, inputs = random_problem(rows, columns, tokens=tokens)
    inputs[:, 0] = 0  # an input that is always 0
    b, a = eora(change, inputs.T @ inputs, 3)
    tail = float(torch.linalg.svdvals(inputs.double() @ change.double().T)[3:].square().sum())
    scale = error(change, inputs)
    assert torch.isfinite(b).all()
    assert torch.isfinite(a).all()
    assert error(change - b @ a, inputs) == pytest.approx(tail, abs=1e-6 * scale)


def test_eora_of_no_change_is_nothing() -> None:
    _, inputs = random_problem(4, 6, tokens=20)
    b, a = eora(torch.zeros(4, 6), inputs.T @ inputs, 2)
    assert not (b @ a).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_merged_weight_is_weight_plus_product(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(8, 12, generator=generator).to(dtype)
    adapter = adapter_of(torch.randn(8, 3, generator=generator), torch.randn(3, 12, generator=generator), dtype)
    assert adapter.a.dtype == (torch.bfloat16 if dtype == torch.float32 else dtype)
    assert adapter.size == 2 * 3 * (8 + 12)
    expected = weight.double() + adapter.b.double() @ adapter.a.double()
    assert torch.allclose(merged(weight, adapter).double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)


def test_an_adapter_of_zeros_leaves_every_bit() -> None:
    weight = torch.tensor([[0.0, -0.0, 1.0, -3.0]])
    adapter = adapter_of(torch.zeros(1, 2), torch.ones(2, 4), weight.dtype)
    assert torch.equal(merged(weight, adapter).view(torch.int32), weight.view(torch.int32))


class Reads(TorchDispatchMode):
    """Counts numbers that are read from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.reads += func.overloadpacket.__name__ == "_local_scalar_dense"
        return func(*args, **(kwargs or {}))


def pruned(weight: Tensor, share: float = 0.5) -> Tensor:
    threshold = weight.abs().quantile(share)
    return torch.where(weight.abs() > threshold, weight, 0)


def test_refit_weights_solve_the_least_squares_problem_of_each_row() -> None:
    weight, inputs = random_problem(5, 12, tokens=60)
    sparse = pruned(weight)
    refit = refit_kept(weight, sparse, inputs.T @ inputs)
    for row, start, new in zip(weight, sparse, refit, strict=True):
        kept = start != 0
        best = torch.linalg.lstsq(inputs[:, kept].double(), (inputs @ row).double()).solution
        assert torch.allclose(new[kept].double(), best, atol=1e-2 * float(best.abs().max()))
        assert torch.equal(new != 0, kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [3, 60])
def test_no_row_has_a_larger_error_after_a_refit(dtype: torch.dtype, tokens: int) -> None:
    for seed in range(5):
        weight, inputs = random_problem(6, 16, tokens=tokens, seed=seed)
        inputs[:, 3] = 0
        hessian = inputs.T @ inputs
        dense = weight.to(dtype)
        sparse = pruned(weight).to(dtype)
        refit = refit_kept(dense, sparse, hessian)
        before, after = row_errors(dense, sparse, hessian), row_errors(dense, refit, hessian)
        assert (after <= before).all()
        assert float(after.sum()) < 0.9 * float(before.sum())
        zeros = sparse == 0
        integers = torch.int16 if dtype == torch.bfloat16 else torch.int32
        assert torch.equal(refit.view(integers)[zeros], sparse.view(integers)[zeros])


@pytest.mark.parametrize(("tokens", "columns", "stops"), [(400, 6, True), (12, 24, True), (40, 24, False)])
def test_a_device_that_does_not_stop_early_finds_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tokens: int, columns: int, stops: bool
) -> None:
    """All rows are finished before the last iteration, or they are not."""
    weight, inputs = random_problem(10, columns, tokens)
    problem = weight, pruned(weight), inputs.T @ inputs
    with Reads() as counted:
        stopped = refit_kept(*problem)
    assert (counted.reads < reconstruct.ITERATIONS) == stops
    monkeypatch.setattr(reconstruct, "is_stopped_early", lambda _device: False)
    with Reads() as counted:
        found = refit_kept(*problem)
    assert counted.reads == 0
    assert torch.equal(found.view(torch.int32), stopped.view(torch.int32))


def test_negative_zeros_keep_their_bits() -> None:
    weight, inputs = random_problem(2, 8, tokens=30)
    sparse = pruned(weight)
    sparse[sparse == 0] = -0.0
    refit = refit_kept(weight, sparse, inputs.T @ inputs)
    assert torch.equal(torch.signbit(refit)[sparse == 0], torch.ones(int((sparse == 0).sum()), dtype=torch.bool))


def test_a_weight_that_is_best_already_stays() -> None:
    weight, inputs = random_problem(4, 8, tokens=30)
    assert torch.equal(refit_kept(weight, weight, inputs.T @ inputs), weight)


@pytest.mark.parametrize("group", [None, 4, 5])
@pytest.mark.parametrize("symmetric", [False, True])
def test_scales_solve_the_least_squares_problem_for_fixed_codes(group: int | None, symmetric: bool) -> None:
    weight, inputs = random_problem(4, 12, tokens=60)
    grid = fit_grid(weight, Grid(bits=3, group_size=group, symmetric=symmetric))
    codes = encode(weight, grid)
    fitted = refit_scales(weight, codes, grid, inputs.T @ inputs, torch.float32)
    assert torch.equal(fitted.zero, grid.zero)
    width = group or 12
    for row in range(4):
        columns = []
        for place in range(grid.scale.shape[1]):
            part = slice(place * width, (place + 1) * width)
            columns.append(inputs[:, part] @ (codes[row, part].float() - grid.zero[row, place]))
        best = torch.linalg.lstsq(torch.stack(columns, 1).double(), (inputs @ weight[row]).double()).solution
        old = decode(codes, grid)[row]
        new = decode(codes, fitted)[row]
        if bool((best > 0).all()):
            assert torch.allclose(fitted.scale[row].double(), best, rtol=1e-3)
        assert error(weight[row] - new, inputs) <= error(weight[row] - old, inputs)


def test_scales_are_solved_for_a_part_of_the_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The systems of all rows of a wide weight in small groups take many times its own memory."""
    weight, inputs = random_problem(7, 24, tokens=60)
    grid = fit_grid(weight, Grid(bits=3, group_size=4))
    codes, hessian = encode(weight, grid), inputs.T @ inputs
    whole = refit_scales(weight, codes, grid, hessian, torch.float32).scale
    systems: list[int] = []
    solve = torch.linalg.cholesky_ex
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda matrix: systems.append(matrix.numel()) or solve(matrix))
    monkeypatch.setattr(reconstruct, "MATRIX_VALUES", 2 * 6**2)
    torch.testing.assert_close(refit_scales(weight, codes, grid, hessian, torch.float32).scale, whole)
    assert systems == [72, 72, 72, 36]


def statistics_of(inputs: Tensor) -> InputStatistics:
    statistics = InputStatistics(inputs.shape[1], hessian=True)
    statistics.add(inputs[None])
    return statistics


@pytest.mark.parametrize(
    "base",
    ["magnitude@0.5", "wanda@2:4", "sparsegpt@0.5", "rtn@3b-g8", "gptq@3b", "gptq@4b-g8-sym", "wanda@0.5+gptq@4b"],
)
@pytest.mark.parametrize("recovery", ["reconstruct", "eora-r3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recovered_layer_is_better_and_keeps_what_its_base_promises(
    base: str, recovery: str, dtype: torch.dtype
) -> None:
    weight, inputs = random_problem(12, 24, tokens=200, seed=3)
    weight, inputs = weight.to(dtype), inputs.to(dtype)
    statistics = statistics_of(inputs)
    compressed = compress_with_statistics(weight, statistics, parse_recipe(base))
    result = compress_with_statistics(weight, statistics, parse_recipe(f"{base}+{recovery}"))
    recovered = result.recovery
    assert recovered is not None
    assert recovered.error_before is not None
    assert recovered.error_after is not None
    assert recovered.error_after < recovered.error_before
    hessian = statistics.hessian()
    before = row_errors(weight, compressed.weight, hessian).sum() / row_errors(weight, 0 * weight, hessian).sum()
    assert recovered.error_before == pytest.approx(float(before) ** 0.5)
    if recovery == "eora-r3":
        assert recovered.adapter is not None
        assert recovered.base is not None
        assert torch.equal(recovered.base, compressed.weight)
        assert torch.equal(result.weight, merged(compressed.weight, recovered.adapter))
        return
    assert recovered.adapter is None
    assert torch.equal(result.weight[compressed.weight == 0], compressed.weight[compressed.weight == 0])
    if compressed.grid is not None:
        assert compressed.codes is not None
        assert result.codes is not None
        assert result.grid is not None
        assert torch.equal(result.codes, compressed.codes)
        assert torch.equal(result.grid.zero, compressed.grid.zero)
        assert torch.equal(result.weight, decode(result.codes, result.grid).to(dtype))


def test_a_single_weight_is_not_trained() -> None:
    weight, inputs = random_problem(4, 8, tokens=20)
    with pytest.raises(ConfigError, match=r"magnitude@0\.5\+lora trains a whole network"):
        compress_with_statistics(weight, statistics_of(inputs), parse_recipe("magnitude@0.5+lora"))
