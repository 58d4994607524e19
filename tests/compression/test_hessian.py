"""Input statistics and the factor of the Hessian, against their definitions in double precision."""

import math

import pytest
import torch
from torch import Tensor

from launches import Launches
from llmkick.compression.kernels import moments
from llmkick.compression.kernels.factor import HessianFactor, factorise
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.errors import ConfigError, NumericalError


def correlated_inputs(sequences: int, tokens: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(width) + torch.randn(width, width, generator=generator) / math.sqrt(width)
    return torch.randn(sequences, tokens, width, generator=generator) @ mixing


def statistics_of(inputs: Tensor, *, hessian: bool = True) -> InputStatistics:
    statistics = InputStatistics(inputs.shape[2], hessian=hessian, name="layers.0.q_proj")
    statistics.add(inputs)
    return statistics


@pytest.mark.parametrize("width", [1, 40, 300])  # 300 takes two panels
def test_moments_are_those_of_the_papers(width: int) -> None:
    inputs = correlated_inputs(3, 50, width)
    rows = inputs.reshape(-1, width).double()
    statistics = statistics_of(inputs)
    assert torch.allclose(statistics.hessian().double(), 2 / 3 * rows.T @ rows, rtol=1e-5, atol=1e-3)
    assert torch.equal(statistics.hessian(), statistics.hessian().T)
    for hessian in (True, False):
        mean_square = statistics_of(inputs, hessian=hessian).mean_square()
        assert torch.allclose(mean_square.double(), rows.square().sum(0) / 3, rtol=1e-5)
    assert (statistics.sequences, statistics.tokens) == (3, 150)


def test_batches_add_up() -> None:
    inputs = correlated_inputs(6, 20, 30)
    whole, parts = statistics_of(inputs), InputStatistics(30, hessian=True)
    for batch in torch.split(inputs, [1, 3, 2]):
        parts.add(batch)
    assert torch.allclose(parts.hessian(), whole.hessian(), rtol=1e-5, atol=1e-4)
    assert (parts.sequences, parts.tokens) == (whole.sequences, whole.tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sums_are_float32_whatever_the_forward_computes_in(dtype: torch.dtype) -> None:
    inputs = (100 * correlated_inputs(2, 400, 20)).to(dtype)  # sums of squares overflow float16
    rows = inputs.reshape(-1, 20).double()
    hessian = statistics_of(inputs).hessian()
    assert hessian.dtype == torch.float32
    assert torch.allclose(hessian.double(), rows.T @ rows, rtol=1e-5, atol=1e-5 * float(hessian.max()))


def test_bfloat16_inputs_change_no_setting_and_lose_nothing() -> None:
    inputs = (correlated_inputs(2, 300, 200) + 3).bfloat16()
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    found = statistics_of(inputs).hessian()
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]
    # The same values in float32, which no product may round: a bfloat16 result would be 0.4 % off.
    assert torch.allclose(found, statistics_of(inputs.float()).hessian(), rtol=1e-5, atol=1e-5 * float(found.max()))


def test_float32_inputs_are_not_rounded() -> None:
    inputs = correlated_inputs(1, 64, 32) + 1 / 512  # not bfloat16's values
    rows = inputs[0].double()
    assert torch.allclose(statistics_of(inputs).hessian().double(), 2 * rows.T @ rows, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("hessian", [True, False])
@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "column 7"), (-math.inf, "column 7"), (1e25, "squares exceed float32")],
)
def test_inputs_that_are_not_finite_are_named(value: float, message: str, hessian: bool) -> None:
    inputs = correlated_inputs(2, 10, 12)
    inputs[1, 3, 7] = value
    with pytest.raises(NumericalError, match=f"layers.0.q_proj: .*{message}"):
        statistics_of(inputs, hessian=hessian)


def test_misuse_is_refused() -> None:
    statistics = InputStatistics(12, hessian=False, name="layers.0.q_proj")
    with pytest.raises(NumericalError, match=r"layers\.0\.q_proj: no calibration input"):
        statistics.mean_square()
    with pytest.raises(ConfigError, match=r"\(2, 5, 11\) are not \(sequences, tokens, 12\)"):
        statistics.add(torch.zeros(2, 5, 11))
    with pytest.raises(ConfigError, match=r"\(5, 12\) are not"):
        statistics.add(torch.zeros(5, 12))
    with pytest.raises(ConfigError, match=r"torch\.int64"):
        statistics.add(torch.zeros(2, 5, 12, dtype=torch.int64))
    statistics.add(torch.zeros(0, 5, 12))
    with pytest.raises(NumericalError, match="no calibration token"):
        statistics.mean_square()
    statistics.add(torch.ones(1, 5, 12))
    with pytest.raises(ConfigError, match="hessian=True"):
        statistics.hessian()


def inverse_of(factor: HessianFactor) -> torch.Tensor:
    """U = diag(size)⁻¹ M⁻¹, the upper Cholesky factor of H⁻¹ that both papers' code works with, in float64."""
    return torch.linalg.inv(factor.unit.double() * factor.size.double())


@pytest.mark.parametrize("width", [1, 2, 127, 128, 129, 257])
def test_factor_is_that_of_the_papers_two_choleskys(width: int) -> None:
    hessian = statistics_of(correlated_inputs(2, 300, width)).hessian()
    factor = factorise(hessian)
    damped = hessian.double() + 0.01 * hessian.diagonal().mean() * torch.eye(width)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    expected = torch.linalg.cholesky(inverse, upper=True)
    assert factor.damping == 0.01
    assert torch.allclose(inverse_of(factor), expected, rtol=1e-3, atol=1e-5 * float(expected.max()))
    assert torch.equal(factor.unit, factor.unit.triu())
    assert torch.equal(factor.unit.diagonal(), torch.ones(width))
    product = factor.unit.double() @ torch.diag(factor.size.double() ** 2) @ factor.unit.T.double()
    assert torch.allclose(product, damped, rtol=1e-5, atol=1e-5 * float(damped.max()))


def test_dead_inputs_count_as_one_and_touch_no_other() -> None:
    inputs = correlated_inputs(2, 100, 20)
    inputs[..., [3, 11]] = 0
    hessian = statistics_of(inputs).hessian()
    alive = [column for column in range(20) if column not in (3, 11)]
    factor = factorise(hessian)
    assert factor.dead.nonzero().flatten().tolist() == [3, 11]
    expected = hessian.double()
    expected[[3, 11], [3, 11]] = 1
    damping = 0.01 * float(expected.diagonal().mean())
    assert factor.size[3].item() == pytest.approx((1 + damping) ** 0.5, rel=1e-5)
    inner = torch.linalg.inv(expected[alive][:, alive] + damping * torch.eye(18))
    upper = inverse_of(factor)[alive][:, alive]
    assert torch.allclose(upper.T @ upper, inner, rtol=1e-3, atol=1e-5 * float(inner.max()))


def test_act_order_permutes_before_factorising() -> None:
    inputs = 0.1 * correlated_inputs(2, 100, 20) * torch.linspace(0.2, 3, 20)
    inputs[..., 4] = 0
    hessian = statistics_of(inputs).hessian()
    factor = factorise(hessian, act_order=True)
    order = factor.order
    assert order is not None
    counted = hessian.diagonal().clone()
    counted[4] = 1
    assert counted.min() < 1 < counted.max()
    assert counted[order].tolist() == sorted(counted.tolist(), reverse=True)
    assert torch.equal(factor.unit, factorise(hessian[order][:, order]).unit)
    assert factor.dead.nonzero().flatten().tolist() == [4]  # in the weight's own order


def test_layers_that_share_inputs_share_the_factor_until_more_arrive() -> None:
    statistics = statistics_of(correlated_inputs(2, 60, 20))
    first = statistics.factor()
    assert statistics.factor() is first
    assert statistics.factor(act_order=True) is not first
    statistics.add(correlated_inputs(2, 60, 20, seed=1))
    assert not torch.equal(statistics.factor().unit, first.unit)


@pytest.mark.parametrize(("correlation", "used"), [(0.5, 0.01), (1.05, 0.1), (1.5, 1.0), (5.0, 10.0)])
def test_damping_rises_step_by_step_and_says_how_far(correlation: float, used: float) -> None:
    hessian = torch.tensor([[1.0, correlation], [correlation, 1.0]])  # not positive definite from 1 on
    factor = factorise(hessian)
    assert factor.damping == pytest.approx(used)
    damped = hessian.double() + used * torch.eye(2)
    upper = inverse_of(factor)
    assert torch.allclose(upper.T @ upper @ damped, torch.eye(2).double(), atol=1e-5)


def test_a_hopeless_hessian_is_an_error_not_a_fallback() -> None:
    with pytest.raises(NumericalError, match=r"down_proj: .*cannot be factorised, even with 10 of"):
        factorise(torch.tensor([[1.0, 30.0], [30.0, 1.0]]), name="down_proj")
    with pytest.raises(NumericalError, match=r"down_proj: .*NaN or Inf"):
        factorise(torch.tensor([[1.0, math.nan], [math.nan, 1.0]]), name="down_proj")


def test_factorising_leaves_the_hessian_alone() -> None:
    hessian = statistics_of(correlated_inputs(2, 60, 20)).hessian()
    before = hessian.clone()
    factorise(hessian)
    factorise(hessian, act_order=True)
    assert torch.equal(hessian, before)


def test_the_mean_square_does_not_depend_on_the_company():
    """Wanda alone, and Wanda served by the pass that GPTQ needs, prune the same weights to the last bit."""
    inputs = torch.randn(3, 700, 96, generator=torch.Generator().manual_seed(0))
    alone, together = (InputStatistics(96, hessian=hessian) for hessian in (False, True))
    for batch in inputs.split(1):
        alone.add(batch)
        together.add(batch)
    assert torch.equal(alone.mean_square(), together.mean_square())
    assert torch.allclose(together.hessian().diagonal(), 2 * together.mean_square(), rtol=1e-5)


def test_squares_that_nobody_asks_for_are_the_diagonal():
    inputs = torch.randn(3, 70, 96, generator=torch.Generator().manual_seed(0))
    statistics = InputStatistics(96, hessian=True, squares=False)
    for batch in inputs.split(1):
        statistics.add(batch)
    assert torch.allclose(statistics.mean_square(), inputs.square().sum((0, 1)) / 3, rtol=1e-5)
    inputs[2, 5, 40] = math.nan
    with pytest.raises(NumericalError, match="the first of them in column 40"):
        statistics.add(inputs)


# What a GPU does in another way, here on a CPU.


@pytest.fixture
def _checked_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmkick.compression.kernels.hessian.is_checked_at_once", lambda _device: False)


@pytest.mark.usefixtures("_checked_later")
@pytest.mark.parametrize("has_hessian", [True, False])
@pytest.mark.parametrize("value", [math.nan, -math.inf, 1e25])
def test_inputs_that_are_checked_later_are_named_too(value: float, has_hessian: bool) -> None:
    inputs = correlated_inputs(2, 10, 12)
    good, bad = (InputStatistics(12, hessian=has_hessian, name=name) for name in ("q_proj", "down_proj"))
    for one in (good, bad):
        one.add(inputs)
    InputStatistics.check_finite([good, bad])
    inputs[1, 3, 7] = value
    bad.add(inputs)
    bad.add(correlated_inputs(2, 10, 12))  # nothing that follows hides it
    uses = [lambda: InputStatistics.check_finite([good, bad]), bad.mean_square]
    for use in [*uses, bad.hessian, bad.factor, lambda: bad.factor(act_order=True)][: 5 if has_hessian else 2]:
        with pytest.raises(NumericalError, match=r"down_proj: inputs are NaN or Inf.* first of them in column 7"):
            use()
    InputStatistics.check_finite([good])


@pytest.mark.usefixtures("_checked_later")
def test_statistics_without_inputs_are_an_error_later_too() -> None:
    with pytest.raises(NumericalError, match="no calibration input has reached this layer"):
        InputStatistics(12, hessian=True).mean_square()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_go_to_the_tensor_cores_as_they_are(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(moments, "has_half_products", lambda _rows: True)
    statistics = InputStatistics(2500, hessian=True)
    with Launches(number=1) as counted:
        statistics.add(torch.empty(2, 100, 2500, dtype=dtype, device="meta"))
        assert statistics.hessian().dtype == torch.float32
    assert counted.operations["addmm"] == 3  # panels of 1,024
    assert counted.operations["_to_copy"] == 0


def test_panels_of_halves_add_up_to_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = correlated_inputs(3, 50, 300).bfloat16()
    expected = statistics_of(inputs).hessian()
    seen: list[torch.dtype] = []

    def product(total: Tensor, left: Tensor, right: Tensor) -> None:
        seen.append(right.dtype)
        total += left.float() @ right.float()

    monkeypatch.setattr(moments, "has_half_products", lambda _rows: True)
    monkeypatch.setattr(moments, "_add_half_product", product)
    found = statistics_of(inputs).hessian()
    assert seen == [torch.bfloat16] * 3
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.max()))


def test_only_tensor_cores_get_halves() -> None:
    rows = torch.ones(2, 2)
    assert not moments.has_half_products(rows)
    assert not moments.has_half_products(rows.bfloat16())


def test_products_of_halves_are_tried_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    trial, place = moments.sums_halves_in_float32.__wrapped__, torch.device("cpu")
    assert not trial(place, torch.bfloat16)  # torch has no such product on a CPU

    def in_float32(total: Tensor, left: Tensor, right: Tensor) -> None:
        total += left.float() @ right.float()

    def in_halves(total: Tensor, left: Tensor, right: Tensor) -> None:
        total += left @ right

    for product, is_exact in ((in_float32, True), (in_halves, False)):
        monkeypatch.setattr(moments, "_add_half_product", product)
        assert trial(place, torch.bfloat16) == is_exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_squares_of_one_call_are_those_of_pieces(dtype: torch.dtype) -> None:
    rows = correlated_inputs(1, 200, 40)[0].to(dtype)
    found = torch.linalg.vector_norm(rows, dim=0, dtype=torch.float32).square_()
    assert torch.allclose(found, moments.sums_of_squares(rows), rtol=1e-5)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 127, 129, 300, 4097])
def test_any_number_of_tokens_is_summed_exactly(tokens: int) -> None:
    rows = torch.randint(-3, 4, (tokens, 160), generator=torch.Generator().manual_seed(tokens)).bfloat16()
    found = torch.zeros(160, 160)
    moments.add_moments(found, rows)
    assert torch.equal(found.triu(), (rows.float().T @ rows.float()).triu())


def test_products_have_few_heights(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN keeps a compiled kernel for each."""
    heights: set[int] = set()
    monkeypatch.setattr(moments, "_add_product", lambda _total, left, _right: heights.add(left.shape[1]))
    for tokens in range(1, 2049):
        moments.add_moments(torch.zeros(8, 8), torch.zeros(tokens, 8))
        assert tokens <= max(heights) < tokens + max(16, tokens / 4 + 1)
    assert len(heights) <= 40
    assert 2048 in heights
