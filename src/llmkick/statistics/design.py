"""Power by simulation of a study's design as it is: clusters, calibration seeds, right-or-wrong or graded scores.

Every draw has a known true loss and goes through the test of the verdict itself, so few clusters, few losses and the
caution of that test count as they will in the study.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from llmkick.errors import ConfigError
from llmkick.statistics.power import POWER, changes, items_needed
from llmkick.statistics.simulated_test import SimulatedTest
from llmkick.statistics.variance import Codes, Floats
from llmkick.statistics.verdict import PairedScores

# Standard error of a share of 80 % over this many draws: 1.3 points. A search for a number of items or a loss looks
# many times, with fewer draws: 2 points.
DRAWS, SEARCH_DRAWS = 1000, 400
# What a design assumes where nothing is known yet. In the pocket suite, losses of questions on one subject correlate by
# 0.01 to 0.08 on average over recipes; calibration seeds of one recipe differ by about a point, and half of the items
# that fall do so with every seed.
CORRELATION, SEED_SPREAD, COMMON_SHARE = 0.05, 0.01, 0.5
# Graded scores of the dense model have this standard deviation at most (F1, judge's grades over 10).
GRADED_SPREAD = 0.25
# Above this number of independent right-or-wrong answers the normal approximation holds. A search for a number of items
# ends at this many times the number of independent ones: clusters multiply it by their design effect, but calibration
# seeds that differ set a limit that no number of items lifts.
MANY_ITEMS, MOST_TIMES = 3_000, 30
# Items drawn in all for one look of a search, in at least so many draws.
_LOOK_ITEMS, _FEWEST_DRAWS = 1_000_000, 100


@dataclass(frozen=True, kw_only=True)
class Design:
    """The items of a task as a study asks them, and what is assumed about the scores.

    `cluster_sizes` has the number of items of each cluster, ones for independent items (strata included).
    `discordance` is the share of items that exactly one model gets right; of graded scores, the mean absolute change
    beside the loss.
    """

    cluster_sizes: tuple[int, ...]
    accuracy: float
    discordance: float = 0.1
    chance: float = 0.0
    seeds: int = 1
    graded: bool = False
    correlation: float = CORRELATION
    seed_spread: float = SEED_SPREAD

    def __post_init__(self) -> None:
        if not self.cluster_sizes or min(self.cluster_sizes) < 1 or self.seeds < 1:
            raise ConfigError("a design needs at least one item and one seed")
        if not 0 <= self.chance < self.accuracy <= 1:
            raise ConfigError(f"accuracy {self.accuracy} must be above chance {self.chance} and at most 1")
        if not (0 <= self.discordance <= 1 and 0 <= self.correlation < 1 and self.seed_spread >= 0):
            raise ConfigError(
                f"discordance {self.discordance} and correlation {self.correlation} must be shares, and the spread "
                f"between seeds {self.seed_spread} 0 or more"
            )

    @classmethod
    def of_items(cls, items: int, *, cluster_size: int = 1, **assumed: float | int | bool) -> Design:
        """A design of clusters of one size; the last may be smaller."""
        whole, rest = divmod(items, cluster_size)
        sizes = (cluster_size,) * whole + ((rest,) if rest else ())
        return cls(cluster_sizes=sizes, **assumed)  # type: ignore[arg-type]

    @property
    def items(self) -> int:
        """Number of items."""
        return sum(self.cluster_sizes)

    def scaled(self, items: int) -> Design:
        """The same design with about this many items: clusters keep their sizes."""
        times, rest = divmod(items, self.items)
        sizes = list(self.cluster_sizes) * times
        for size in self.cluster_sizes:
            if rest <= 0:
                break
            sizes.append(size)
            rest -= size
        return replace(self, cluster_sizes=tuple(sizes))

    def draw(self, loss: float, rng: np.random.Generator) -> PairedScores:
        """Paired scores with this true relative loss of the part above chance."""
        codes = np.repeat(np.arange(len(self.cluster_sizes)), self.cluster_sizes)
        net = loss * (self.accuracy - self.chance)
        shift = self.seed_spread * rng.standard_normal(self.seeds) if self.seeds > 1 else np.zeros(1)
        if self.graded:
            dense, compressed = self._graded(codes, net, shift, rng)
        else:
            dense, compressed = self._binary(codes, net, shift, rng)
        return PairedScores(dense=dense, compressed=compressed, cluster=codes, low=0.0, high=1.0)

    def _binary(self, codes: Codes, net: float, shift: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        lost, gained = changes(self.accuracy, net, self.discordance)
        right = self._by_cluster(self.accuracy, codes, rng)
        falling = self._by_cluster(lost / self.accuracy, codes, rng)
        rising = gained / (1 - self.accuracy) if self.accuracy < 1 else 0.0
        dense = rng.random(codes.size) < right
        fate = self._fates(codes.size, rng)
        share = np.clip(falling[None] + shift[:, None] / self.accuracy, 0, 1)
        compressed = np.where(dense[None], fate >= share, fate < rising)
        return dense.astype(np.float64), compressed.astype(np.float64)

    def _graded(self, codes: Codes, net: float, shift: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        spread = min(GRADED_SPREAD, 0.9 * math.sqrt(self.accuracy * (1 - self.accuracy)))
        total = self.accuracy * (1 - self.accuracy) / spread**2 - 1 if spread else 0.0
        dense = (
            rng.beta(self.accuracy * total, (1 - self.accuracy) * total, codes.size)
            if spread
            else np.full(codes.size, self.accuracy)
        )
        losing = self._by_cluster(min(1.0, net / self.accuracy), codes, rng)
        kept = dense[None] * np.clip(1 - losing[None] - shift[:, None] / self.accuracy, 0, 1)
        room = np.minimum(kept, 1 - kept)
        mean_room = float(room.mean())
        # u uniform on −1 … 1 has a mean absolute value of a half.
        size = min(1.0, 2 * self.discordance / mean_room) if mean_room > 0 else 0.0
        compressed: Floats = kept + size * room * (2 * self._fates(codes.size, rng) - 1)
        return np.asarray(dense, dtype=np.float64), compressed

    def _by_cluster(self, share: float, codes: Codes, rng: np.random.Generator) -> Floats:
        """A share that differs between clusters as much as the correlation says: (items,)."""
        if len(self.cluster_sizes) == codes.size or self.correlation == 0 or not 0 < share < 1:
            return np.full(codes.size, share)
        spread = 1 / self.correlation - 1
        values: Floats = rng.beta(share * spread, (1 - share) * spread, len(self.cluster_sizes))[codes]
        return values

    def _fates(self, items: int, rng: np.random.Generator) -> Floats:
        """Uniform numbers (seeds, items), half of them the same with every seed."""
        own = rng.random((self.seeds, items))
        return own if self.seeds == 1 else np.where(rng.random(own.shape) < COMMON_SHARE, rng.random(items), own)


def simulated_power(
    design: Design,
    *,
    loss: float = 0.0,
    margin: float = 0.05,
    alpha: float = 0.05,
    draws: int = DRAWS,
    seed: int = 0,
) -> float:
    """Probability of the right verdict: "matching" for a true loss below the margin, "not matching" above it."""
    if len(design.cluster_sizes) < 2:
        return 0.0
    return _right_verdicts(design, loss, margin=margin, alpha=alpha, draws=draws, seed=seed) / draws


def _right_verdicts(
    design: Design, loss: float, *, margin: float, alpha: float, draws: int, seed: int, enough: float = math.inf
) -> int:
    """The number of draws with the right verdict; draws end when `enough` is reached or out of reach."""
    rng = np.random.default_rng(seed)
    test = SimulatedTest(margin=margin, alpha=alpha, chance=design.chance)
    shown = test.matches if loss < margin else test.fails
    right = 0
    for drawn in range(draws):
        if right >= enough or (enough < math.inf and right + draws - drawn < enough):
            break
        right += shown(design.draw(loss, rng))
    return right


def _has_power(
    design: Design, power: float, *, loss: float, margin: float, alpha: float, draws: int, seed: int
) -> bool:
    """Whether `simulated_power` is at least `power`, with no more draws than that takes."""
    if len(design.cluster_sizes) < 2:
        return power <= 0
    enough = power * draws
    return _right_verdicts(design, loss, margin=margin, alpha=alpha, draws=draws, seed=seed, enough=enough) >= enough


def items_for_power(
    design: Design,
    *,
    loss: float = 0.0,
    margin: float = 0.05,
    alpha: float = 0.05,
    power: float = POWER,
    draws: int = SEARCH_DRAWS,
    seed: int = 0,
) -> int | None:
    """The number of items, in clusters like the design's, that give the right verdict with probability `power`.

    It is found by bisection on the logarithm, to a twentieth. Thousands of independent right-or-wrong answers need no
    simulation: there the normal approximation holds. None if no realistic number suffices: calibration seeds that
    differ set a limit that items cannot lift. Raises ConfigError for a loss of exactly the margin.
    """
    start = items_needed(
        design.accuracy,
        loss=loss,
        discordance=min(design.discordance, 1.0),
        margin=margin,
        alpha=alpha,
        power=power,
        chance=design.chance,
    )

    plain = design.seeds == 1 and not design.graded and max(design.cluster_sizes) == 1
    if plain and start > MANY_ITEMS:
        return start

    def suffices(items: int) -> bool:
        count = max(_FEWEST_DRAWS, min(draws, _LOOK_ITEMS // max(1, items * design.seeds)))
        return _has_power(design.scaled(items), power, loss=loss, margin=margin, alpha=alpha, draws=count, seed=seed)

    below, above = 1, max(4, start)
    most = MOST_TIMES * above
    while not suffices(above):
        if above >= most:
            return None
        below, above = above, min(most, 3 * above)
    while above > 1.05 * below and above - below > 1:
        middle = round(math.sqrt(below * above))
        below, above = (below, middle) if suffices(middle) else (middle, above)
    return design.scaled(above).items


def detectable_loss(
    design: Design,
    *,
    margin: float = 0.05,
    alpha: float = 0.05,
    power: float = POWER,
    draws: int = SEARCH_DRAWS,
    seed: int = 0,
) -> float | None:
    """The smallest true loss called "not matching" with probability `power`, to half a point; None if no loss is."""

    def shows(loss: float) -> bool:
        return _has_power(design, power, loss=loss, margin=margin, alpha=alpha, draws=draws, seed=seed)

    below, above = margin, 1.0
    if not shows(above):
        return None
    while above - below > 0.005:
        middle = (below + above) / 2
        below, above = (below, middle) if shows(middle) else (middle, above)
    return above


def cluster_sizes(labels: Sequence[object]) -> tuple[int, ...]:
    """Number of items of each cluster, in order of appearance."""
    counts: dict[object, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return tuple(counts.values())
