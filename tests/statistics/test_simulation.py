"""The claims about error rates, on the scenarios of benchmarks/statistics.py with fewer draws."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from llmkick.statistics.verdict import loss_test
from speeds import others_slow


def load_benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "statistics.py"
    spec = importlib.util.spec_from_file_location("statistics_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


benchmark = load_benchmark()
DRAWS = 400


def most(rate: float, draws: int) -> float:
    """What a true rate shows at most: three standard errors above it."""
    return rate + 3 * math.sqrt(rate * (1 - rate) / draws)


def named(scenarios: list[object], *parts: str) -> list[object]:
    return [s for s in scenarios if all(part in s.name for part in parts)]  # type: ignore[attr-defined]


def check(scenario: object, draws: int = DRAWS) -> tuple[float, float]:
    """Both bounds miss the true loss in at most 5 %; at the margin these are the errors of the verdicts."""
    upper, lower = benchmark.errors(scenario, draws)["ours"]
    assert upper <= most(0.05, draws)
    assert lower <= most(0.05, draws)
    return upper, lower


# Every time each fifth scenario: five divides no period of their grids, so that all values of all settings occur.
SOME, OTHERS = "each fifth", "the others"
PARTS = pytest.mark.parametrize("part", [SOME, pytest.param(OTHERS, marks=pytest.mark.slow)])


def scenarios_of(kind: str, part: str) -> list[object]:
    return [s for number, s in enumerate(benchmark.SCENARIOS[kind]) if (number % 5 == 0) == (part == SOME)]


@PARTS
@pytest.mark.parametrize("kind", ["independent", "losses", "clusters", "cluster losses", "very uneven", "seeds"])
def test_bounds_miss_the_truth_rarely(kind: str, part: str) -> None:
    for scenario in scenarios_of(kind, part):
        check(scenario, 150)


@PARTS
def test_bounds_of_generators_that_served_to_choose_nothing(part: str) -> None:
    for scenario in scenarios_of("unseen", part):
        check(scenario, 120)


@PARTS
def test_bounds_of_clusters_drawn_by_a_seed(part: str) -> None:
    for scenario in scenarios_of("drawn clusters", part):
        check(scenario, 80)


def test_what_no_sample_can_show_is_listed() -> None:
    """Rare clusters that lose everything are easily not among those asked: no test of these scores can know."""
    (rare, *_) = benchmark.SCENARIOS["unknowable"]
    assert benchmark.errors(rare, DRAWS)["ours"][0] > 0.2


CAREFUL = named(benchmark.FIXED, "n=1000", "gained 0.03")


@pytest.mark.parametrize("scenario", others_slow(CAREFUL, CAREFUL[::2]), ids=lambda s: s.name)
def test_neither_is_it_too_careful(scenario: object) -> None:
    """With enough discordant items the errors come close to their 5 %."""
    assert min(check(scenario, 2 * DRAWS)) >= 0.025


def test_errors_by_the_answers_expected_to_differ() -> None:
    (report,) = benchmark.errors_by_changes(2)  # 40 draws
    rows = [[cell.strip(" %") for cell in line.split("|")[1:-1]] for line in report.splitlines()[4:]]
    assert [row[0] for row in rows] == ["0 to 3", "3 to 6", "6 to 10", "10 to 20", "20 and more"]
    assert sum(int(row[1]) for row in rows) >= 250
    for _, _, upper, most_upper, lower, most_lower in rows:
        assert max(float(upper), float(lower)) <= 5.5
        assert max(float(most_upper), float(most_lower)) <= 100 * most(0.05, 40)


def test_the_guards_are_needed() -> None:
    """Student's t errs where losses are few, and on few clusters most of all."""
    (few,) = named(benchmark.FIXED, "n=200, accuracy 0.75, gained 0.0")[:1]
    assert benchmark.errors(few, DRAWS)["cluster t"][0] > most(0.05, DRAWS)
    (clusters,) = named(benchmark.VERY_UNEVEN, "10 even clusters of 40")
    assert benchmark.errors(clusters, DRAWS)["cluster t"][0] > most(0.05, DRAWS)


def test_graded_scores_decide() -> None:
    """A judge's grades of 30 dialogues that lost nothing are shown to match far more often than now and then."""
    (scenario,) = [s for s in benchmark.SCENARIOS["power"] if s.name.startswith("30 dialogues") and s.loss == 0]
    assert benchmark.shown_by(scenario, 200, benchmark.MARGIN)["ours"][0] >= 0.35


def test_clusters_need_fewer_degrees_of_freedom() -> None:
    """Large clusters that lose very unevenly: with all degrees of freedom "matching" errs far too often."""
    draws, wrong = 0, np.zeros(2)
    for scenario in named(benchmark.VERY_UNEVEN, "10 ", " clusters of 40"):
        rng = np.random.default_rng([1, *scenario.name.encode()])  # type: ignore[attr-defined]
        for _ in range(3 * DRAWS):
            test = loss_test(scenario.draw(rng), benchmark.MARGIN)  # type: ignore[attr-defined]
            wrong += test.p_above < 0.05, replace(test, df_above=test.df).p_above < 0.05
            draws += 1
    ours, all_of_them = wrong / draws
    assert ours <= most(0.05, draws)
    assert all_of_them > most(0.05, draws)


@pytest.mark.slow  # with fewer draws: the test of this name in test_strata.py
def test_fixed_subjects_match_as_often_as_stratified_theory_says() -> None:
    (report,) = benchmark.subjects_table(400, (2000,))
    for line in report.splitlines()[4:]:
        _, theory, fixed, stopped, _ = (cell.strip(" %").replace(",", "") for cell in line.split("|")[1:-1])
        allowed = 100 * (most(0.5, 40) - 0.5)
        assert abs(float(fixed) - float(theory)) <= allowed
        assert abs(float(stopped) - float(theory)) <= allowed + 8  # bets take a share of alpha


@pytest.mark.parametrize("draws", [120, pytest.param(400, marks=pytest.mark.slow)])
@pytest.mark.parametrize("stream", [benchmark.binary_stream, benchmark.stratified_stream])
def test_sequential_error_under_continuous_looking(stream: object, draws: int) -> None:
    rng = np.random.default_rng(0)
    decisions = [benchmark.sequential_run(stream, 3000, 0.6, 0.05, rng)[0] for _ in range(draws)]
    assert decisions.count("matching") <= most(0.05, draws) * draws
    assert decisions.count("not matching") <= most(0.05, draws) * draws


@pytest.mark.parametrize("draws", [80, pytest.param(200, marks=pytest.mark.slow)])
def test_sequential_clusters_error(draws: int) -> None:
    rng = np.random.default_rng(0)
    decisions = [benchmark.sequential_clusters_run(rng)[0] for _ in range(draws)]
    assert decisions.count("matching") <= most(0.05, draws) * draws
    assert decisions.count("not matching") <= most(0.05, draws) * draws


@pytest.mark.parametrize(("loss", "items"), [(0.25, 150), (0.12, 800), (0.0, 1700)])
def test_sequential_savings(loss: float, items: int) -> None:
    rng = np.random.default_rng(0)
    runs = [benchmark.sequential_run(benchmark.binary_stream, 14_042, 0.45, loss, rng) for _ in range(25)]
    assert {decision for decision, _ in runs} == {"not matching" if loss > 0.05 else "matching"}
    assert np.mean([bets for _, bets in runs]) <= 1.2 * items


STOPPING = benchmark.STOPPING[:3] + benchmark.STOPPING[4:]


@pytest.mark.parametrize("draws", [30, pytest.param(80, marks=pytest.mark.slow)])
@pytest.mark.parametrize("scenario", STOPPING, ids=lambda s: s.name)
def test_stopping_when_decided(scenario: object, draws: int) -> None:
    """Bets and the last test together: both errors at the margin."""
    rng = np.random.default_rng(0)
    outcomes = [benchmark.stopping_run(scenario, rng)[0] for _ in range(draws)]
    assert outcomes.count("matching") <= most(0.05, draws) * draws
    assert outcomes.count("not matching") <= most(0.05, draws) * draws


CURVES = ("loss ~ level²", "flat at the margin", "nothing, then a plateau at the margin")


@pytest.mark.parametrize("name", others_slow(CURVES, ["flat at the margin"]))
def test_the_level_found_is_rarely_too_severe_and_costs_a_part_of_the_grid(name: str) -> None:
    rng, draws = np.random.default_rng(0), 16
    truth = benchmark.CURVES[name](38)
    runs = np.array([benchmark.frontier_run(480, truth, 0.5, rng) for _ in range(draws)], dtype=float)
    too_severe, too_mild, share = runs.mean(axis=0)
    assert too_severe <= most(0.05, draws)
    assert too_mild <= most(0.05, draws)
    assert share <= 0.3
