"""Two models on the same items: the loss, its interval, the verdict, and what was gained and lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from llmkick.errors import ConfigError
from llmkick.statistics.betting import Stopping
from llmkick.statistics.bootstrap import bootstrap_interval
from llmkick.statistics.detection import detectable_loss
from llmkick.statistics.mean import MeanTest
from llmkick.statistics.pairing import Clusters, Pairs, Scores, SeedScores, check_settings, pair_scores, sampling_notes
from llmkick.statistics.variance import Range
from llmkick.statistics.verdict import PairedScores, Verdict, decide, loss_interval, loss_test

PaperVerdict = Literal["matching", "not matching"]

PAPER_SHARE = 0.95  # The rule of LLM-KICK (arXiv:2310.01382): at least 95 % of the dense score.


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One recipe against its dense model on one task; what could not be computed is None, never 0."""

    task: str
    recipe: str
    seeds: tuple[int | str, ...]
    n: int  # items scored by both models, in every seed
    unscored: int
    clusters: int
    dense: float | None
    compressed: float | None  # mean over items and seeds
    relative_drop: float | None  # 1 − compressed / dense
    drop_bounds: Range | None  # the same if every unscored item were at its best, at its worst
    interval: Range | None  # two-sided on relative_drop, level 1 − alpha
    interval_method: str
    bootstrap_interval: Range | None  # a second opinion on the same
    gained: float  # a count; with several seeds their mean
    lost: float
    mcnemar_p: float | None
    verdict: Verdict
    paper_verdict: PaperVerdict | None
    p_matching: float | None  # one-sided, H0: the relative drop is the margin or more
    p_not_matching: float | None  # one-sided, H0: the relative drop is the margin or less
    drop_above_chance: float | None
    interval_above_chance: Range | None
    smallest_detectable_loss: float | None  # at 80 % power, as a relative drop
    margin: float
    alpha: float
    chance: float
    notes: tuple[str, ...]
    stopping: Stopping | None = None  # where items were asked until the verdict was known
    kind: Literal["task"] = "task"  # tells it apart from a PerplexityComparison in a file


def compare(
    dense_scores: Scores,
    compressed_scores: SeedScores,
    *,
    margin: float = 0.05,
    clusters: Clusters | None = None,
    chance: float = 0.0,
    alpha: float = 0.05,
    task: str = "",
    recipe: str = "",
    seeds: Sequence[int | str] | None = None,
    score_range: Range = (0.0, 1.0),
    resamples: int = 10_000,
    seed: int = 0,
    same_model: bool | None = None,
) -> Comparison:
    """Did the compressed model keep at least 1 − margin of the dense score?

    Scores pair by id or position, clusters are resampled whole, every score lies in score_range. `seeds`
    names the calibration seeds; an empty one says that the method has none. The verdict rests on one-sided
    tests at alpha of E[c − (1 − margin)·d]; see `mean_test` for the test and benchmarks/results/statistics.md
    for how it errs. `resamples=0` skips the bootstrap. `same_model` says whether both are known to be the same
    weights; where nobody knows (None), scores that are identical throughout match by definition.
    """
    check_settings(margin, alpha, resamples)
    low, high = score_range
    if not 0 <= low < high or not 0 <= chance < high:
        raise ConfigError(f"score_range {score_range} must start at 0 or above and end above chance {chance}")
    pairs = pair_scores(dense_scores, compressed_scores, clusters, seeds)
    pairs.check_range(low, high)
    scores = pairs.complete(low, high)
    verdict = _verdict(pairs, scores, margin=margin, chance=chance, alpha=alpha, same_model=same_model)
    decidable = verdict != "no signal" and scores.clusters > 1
    test = loss_test(scores, margin) if decidable else None
    interval = loss_interval(scores, alpha=alpha)
    gained, lost, mcnemar_p = _flips(scores)
    dense, compressed = scores.means
    drop, paper_verdict = relative_loss(dense, compressed), _paper_verdict(dense, compressed)
    return Comparison(
        task=task,
        recipe=recipe,
        seeds=pairs.seeds,
        n=scores.dense.size,
        unscored=pairs.dense.size - scores.dense.size,
        clusters=scores.clusters,
        dense=dense,
        compressed=compressed,
        relative_drop=drop,
        drop_bounds=_drop_bounds(pairs, low, high),
        interval=interval,
        interval_method="none" if interval is None else "Fieller, cluster-robust",
        bootstrap_interval=bootstrap_interval(scores, alpha=alpha, resamples=resamples, seed=seed),
        gained=gained,
        lost=lost,
        mcnemar_p=mcnemar_p,
        verdict=verdict,
        paper_verdict=paper_verdict,
        p_matching=test.p_above if test else None,
        p_not_matching=test.p_below if test else None,
        drop_above_chance=relative_loss(dense, compressed, chance) if chance else None,
        interval_above_chance=loss_interval(scores, alpha=alpha, chance=chance) if chance else None,
        smallest_detectable_loss=detectable_loss(scores, test, margin, alpha),
        margin=margin,
        alpha=alpha,
        chance=chance,
        notes=_notes(pairs, scores, verdict, test, interval, margin=margin, chance=chance, same_model=same_model),
    )


def _verdict(
    pairs: Pairs, scores: PairedScores, *, margin: float, chance: float, alpha: float, same_model: bool | None
) -> Verdict:
    """The verdict on the scored items, or "incomplete" if the best or the worst for the others changes it."""
    if not scores.dense.size:
        return "incomplete"
    verdict = decide(scores, margin=margin, chance=chance, alpha=alpha, same_model=same_model)
    if scores.dense.size < pairs.dense.size:
        for worst in (True, False):
            filled = pairs.filled(scores.low, scores.high, worst=worst)
            if decide(filled, margin=margin, chance=chance, alpha=alpha, same_model=same_model) != verdict:
                return "incomplete"
    return verdict


def relative_loss(dense: float | None, compressed: float | None, chance: float = 0.0) -> float | None:
    """1 − compressed / dense, both counted from chance; None unless the dense score is above it."""
    if dense is None or compressed is None or dense <= chance:
        return None
    return 1 - (compressed - chance) / (dense - chance)


def _drop_bounds(pairs: Pairs, low: float, high: float) -> Range | None:
    """The relative loss with the unscored items at their best and at their worst for the compressed model."""
    best, worst = (relative_loss(*pairs.filled(low, high, worst=end).means) for end in (False, True))
    return None if best is None or worst is None else (best, worst)


def _paper_verdict(dense: float | None, compressed: float | None) -> PaperVerdict | None:
    if dense is None or compressed is None or dense <= 0:
        return None
    # Exactly 95 % is a match, which binary fractions deny for 0.03325 against 0.035.
    return "matching" if compressed >= PAPER_SHARE * dense - 1e-12 else "not matching"


def _flips(scores: PairedScores) -> tuple[float, float, float | None]:
    """Items gained and lost (mean over seeds) and, for one seed of binary scores, the exact McNemar p."""
    gained = (scores.compressed > scores.dense).sum(axis=1)
    lost = (scores.compressed < scores.dense).sum(axis=1)
    p = None
    if len(gained) == 1 and scores.binary and scores.dense.size:
        discordant = int(gained[0] + lost[0])
        p = float(stats.binomtest(int(lost[0]), discordant).pvalue) if discordant else 1.0
    return float(gained.mean()), float(lost.mean()), p


def _notes(
    pairs: Pairs,
    scores: PairedScores,
    verdict: Verdict,
    test: MeanTest | None,
    interval: Range | None,
    *,
    margin: float,
    chance: float,
    same_model: bool | None,
) -> tuple[str, ...]:
    """What a reader must know to read the numbers rightly, in sentences."""
    notes = list(sampling_notes(pairs, scores, "item"))
    unscored = pairs.dense.size - scores.dense.size
    if unscored:
        changes = "could change the verdict" if verdict == "incomplete" else "cannot change the verdict"
        notes.append(f"{unscored} of {pairs.dense.size} items are unscored and left out; they {changes}")
    if verdict == "no signal":
        notes.append(f"the dense score is not shown to be above chance ({chance:g}): nothing to forget")
    notes += _notes_on_identity(scores, verdict, test, same_model)
    if interval is None and scores.clusters > 1 and verdict != "no signal":
        notes.append("the dense score is not clearly above 0: no bounded interval")
    if interval is not None and verdict == "undecided" and not interval[0] <= margin <= interval[1]:
        notes.append("the interval leaves the margin out, but with so few clusters or losses a verdict has to be surer")
    if not scores.binary:
        notes.append("scores are not all right or wrong: gained and lost count items that rose and that fell")
    return tuple(notes)


def _notes_on_identity(
    scores: PairedScores, verdict: Verdict, test: MeanTest | None, same_model: bool | None
) -> tuple[str, ...]:
    if same_model and verdict == "matching":
        return ("the weights are the dense model's: matching by definition",)
    if not scores.dense.size or not scores.identical:
        return ()
    proof = "" if test is None else f" (by the test alone p = {test.p_above:.2g})"
    if verdict == "matching" and same_model is None:
        return (f"all {scores.dense.size} scores are identical: matching by definition{proof}",)
    if verdict == "undecided":
        return (f"all {scores.dense.size} scores are identical, which so few items do not prove{proof}",)
    return ()
