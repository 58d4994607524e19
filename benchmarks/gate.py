"""Simulated nightly gates: how often `kick gate` fails a lossless model or passes a worse one, beside point rules.

    python benchmarks/gate.py [--nights 1000] [--write]

Scores are simulated, no model is asked: each night draws items anew, a reference that is right on 70 % of them, and a
candidate that changes some answers both ways and loses a number of points. The gate decides by the rule that
`kick gate` uses; the point rules compare the two means on a fixed number of items.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llmkick.gate.result import OUTCOME_OF
from llmkick.statistics import order_items
from llmkick.study.running.early_stopping import Asked, StoppingRule

ACCURACY, MARGIN, ALPHA = 0.7, 0.05, 0.05
# Share of items that a lossless candidate gets right and the reference wrong; as many the other way round. Rounding to
# 8 and 4 bits changes 2 to 10 % of the answers both ways.
GAINED = 0.03
POINTS = (0, 3, 5, 10)
BUDGETS = (1000, 3000)
RESULT = Path(__file__).parent / "results" / "gate.md"

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class PointRule:
    """A rule on two means over `items` items."""

    name: str
    items: int
    passes: Callable[[float, float], bool]


def keeps_ratio(reference: float, candidate: float) -> bool:
    """Whether the candidate keeps 95 % of the reference's score."""
    return candidate >= 0.95 * reference


def drops_a_point(reference: float, candidate: float) -> bool:
    """Whether the candidate loses at most one percentage point."""
    return reference - candidate <= 0.01 + 1e-12


POINT_RULES = tuple(
    PointRule(name, items, passes)
    for items in (200, 1000)
    for name, passes in (("ratio ≥ 0.95", keeps_ratio), ("drop ≤ 1 point", drops_a_point))
)


def simulated(rng: np.random.Generator, items: int, points: int) -> tuple[Scores, Scores]:
    """Scores of reference and candidate, right 1 and wrong 0; the candidate's expectation is `points` % lower."""
    reference = rng.random(items) < ACCURACY
    chance = rng.random(items)
    lost = chance < (GAINED + points / 100) / ACCURACY
    gained = chance < GAINED / (1 - ACCURACY)
    candidate = np.where(reference, ~lost, gained)
    return reference.astype(float), candidate.astype(float)


def gate(reference: Scores, candidate: Scores, seed: int) -> tuple[str, int]:
    """The outcome of a gate with these items as its budget, and the number of items that it asked."""
    ids = [str(number) for number in range(len(reference))]
    order = order_items(ids, dict(zip(ids, ids, strict=True)), seed=seed)
    rule = StoppingRule(order=order, seed=seed, margin=MARGIN, alpha=ALPHA, chance=0.0)
    scores = [dict(zip(ids, some.tolist(), strict=True)) for some in (reference, candidate)]
    state = rule.until_decided(*(Asked(scores=known, ask=lambda batch: {}) for known in scores))
    return OUTCOME_OF[state.outcome], state.items


def gate_row(budget: int, points: int, nights: int) -> list[str]:
    """Shares of nights by outcome, and the mean number of items."""
    rng = np.random.default_rng([budget, points])
    results = [gate(*simulated(rng, budget, points), seed=night) for night in range(nights)]
    outcomes, used = Counter(outcome for outcome, _ in results), [items for _, items in results]
    shares = [f"{100 * outcomes[outcome] / nights:.1f} %" for outcome in ("matches", "loses", "undecided")]
    return [f"kick gate, budget {budget:,}", *shares, f"{np.mean(used):,.0f}"]


def point_row(rule: PointRule, points: int, nights: int) -> list[str]:
    """Shares of nights that a point rule passes and fails."""
    rng = np.random.default_rng([rule.items, points])
    passed = 0
    for _ in range(nights):
        reference, candidate = simulated(rng, rule.items, points)
        passed += rule.passes(float(reference.mean()), float(candidate.mean()))
    return [rule.name, f"{100 * passed / nights:.1f} %", f"{100 * (1 - passed / nights):.1f} %", "–", f"{rule.items:,}"]


def table(points: int, nights: int) -> list[str]:
    """The table of one model."""
    loss = points / 100 / ACCURACY
    beyond = "the model to pass" if not points else "within the margin" if loss < MARGIN else "beyond the margin"
    title = "A lossless model" if not points else f"{points} points worse"
    rows = [gate_row(budget, points, nights) for budget in BUDGETS]
    rows += [point_row(rule, points, nights) for rule in POINT_RULES]
    head = ["rule", "passes", "fails", "undecided", "items"]
    return [
        f"\n## {title}\n\nA relative loss of {100 * loss:.1f} %: {beyond}.\n",
        *(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)),
    ]


def report(nights: int, words: Sequence[str]) -> str:
    """The whole page."""
    started = time.process_time()
    tables = [line for points in POINTS for line in table(points, nights)]
    seconds = time.process_time() - started
    return "\n".join(
        [
            "# Nightly gates: errors of `kick gate` and of point rules\n",
            f"`python benchmarks/gate.py {' '.join(words)}`".replace(" `", "`")
            + f" · {seconds:.0f} s of CPU time · Python {platform.python_version()}\n",
            f"{nights:,} simulated nights for each row. The reference is right on {100 * ACCURACY:.0f} % of the items. "
            f"A lossless candidate gains {100 * GAINED:.0f} % of the items and loses as many. Margin "
            f"{100 * MARGIN:.0f} % of the reference's score ({100 * MARGIN * ACCURACY:.1f} points), alpha "
            f"{100 * ALPHA:.0f} %. Items are independent and drawn anew each night.",
            *tables,
            "\nThe gate passes a model beyond the margin, and fails one within it, in at most alpha of the nights. "
            "Where the items do not suffice, it says so (exit code 2) instead of guessing. A point rule has no such "
            "answer: near its threshold it decides like the toss of a coin.",
        ]
    ) + "\n"  # fmt: skip


def main() -> None:
    """Simulate, print, and with --write keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/gate.md")
    given = parser.parse_args()
    text = report(given.nights, [word for word in sys.argv[1:] if word != "--write"])
    sys.stdout.write(text)
    if given.write:
        RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
