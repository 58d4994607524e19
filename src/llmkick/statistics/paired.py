"""Comparison of two models on the same items: the loss, its interval, the verdict, and the items gained and lost."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy import stats

from llmkick.errors import ConfigError
from llmkick.statistics.betting import Stopping
from llmkick.statistics.mean import MeanTest
from llmkick.statistics.pairing import Groups, Pairs, Scores, SeedScores, check_settings, pair_scores, sampling_notes
from llmkick.statistics.power import observed_detectable_loss
from llmkick.statistics.undecided import Undecided, explain_undecided
from llmkick.statistics.variance import Range
from llmkick.statistics.verdict import PairedScores, Verdict, decide, loss_bounds, loss_test

PaperVerdict = Literal["matching", "not matching"]

# The end of a note on unscored items.
CANNOT_CHANGE = "cannot change the verdict"
BOUNDS = "pair of one-sided bounds, by the test of the verdict"
PAPER_SHARE = 0.95  # The rule of LLM-KICK (arXiv:2310.01382): at least 95 % of the dense score.


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A compressed model against its dense model on one task; what cannot be computed is None, never 0."""

    task: str
    recipe: str
    seeds: tuple[int | str, ...]
    n: int  # items scored by both models, in every seed
    unscored: int
    clusters: int  # independent units: clusters, or items that no cluster joins
    dense: float | None
    compressed: float | None  # mean over items and seeds
    relative_drop: float | None  # 1 − (compressed − chance) / (dense − chance): what the verdict is about
    drop_bounds: Range | None  # the same with every unscored item at its best, and at its worst
    interval: Range | None  # one-sided bounds of relative_drop, each at level 1 − alpha
    interval_method: str
    gained: float  # number of items; the mean over seeds
    lost: float  # number of items; the mean over seeds
    mcnemar_p: float | None
    verdict: Verdict
    paper_verdict: PaperVerdict | None
    p_matching: float | None  # one-sided, H0: the relative drop is the margin or more
    p_not_matching: float | None  # one-sided, H0: the relative drop is the margin or less
    smallest_detectable_loss: float | None  # at 80 % power, as a relative drop
    margin: float
    alpha: float
    chance: float
    notes: tuple[str, ...]
    raw_drop: float | None = None  # 1 − compressed / dense, the loss of the paper's rule
    strata: int | None = None  # number of fixed groups, if the task declares them
    undecided: Undecided | None = None  # why, if the verdict is "undecided"
    seed_share: float | None = None  # the part of the loss's variance that is between seeds; None for a single seed
    stopping: Stopping | None = None  # for comparisons that stop as soon as the verdict is known
    kind: Literal["task"] = "task"  # tells it apart from a PerplexityComparison in a file


def compare(
    dense_scores: Scores,
    compressed_scores: SeedScores,
    *,
    margin: float = 0.05,
    strata: Groups | None = None,
    clusters: Groups | None = None,
    chance: float = 0.0,
    alpha: float = 0.05,
    task: str = "",
    recipe: str = "",
    seeds: Sequence[int | str] | None = None,
    score_range: Range = (0.0, 1.0),
    same_model: bool | None = None,
    explain: bool = True,
) -> Comparison:
    """Did the compressed model keep at least 1 − margin of the dense score, or of its part above chance?

    Scores are paired by id or by position, and every score lies in `score_range`. Declare what the items' groups are:
    `strata` are fixed (the subjects of MMLU: the claim is about these), `clusters` are drawn (passages, stories,
    dialogues: the claim is about others like them, so clusters are the units). `seeds` names the calibration seeds; an
    empty sequence means that the method is not calibrated. The verdict rests on one-sided tests of
    E[(c − chance) − (1 − margin)·(d − chance)] at alpha, and `interval` is the pair of one-sided bounds of the same
    test; see `mean_test` for the test and benchmarks/results/statistics.md for its error rates. `same_model` says
    whether both models are known to have the same weights; if that is unknown (None), scores that are identical on
    every item match by definition. `explain` simulates how many more items would decide an undecided verdict.
    Raises ConfigError for settings out of range, DataError for scores that cannot be paired.
    """
    check_settings(margin, alpha)
    low, high = score_range
    if not 0 <= low < high or not 0 <= chance < high:
        raise ConfigError(f"score_range {score_range} must start at 0 or above and end above chance {chance}")
    pairs = pair_scores(dense_scores, compressed_scores, seeds, clusters=clusters, strata=strata)
    pairs.check_range(low, high)
    scores = pairs.complete(low, high)
    verdict = _verdict(pairs, scores, margin=margin, chance=chance, alpha=alpha, same_model=same_model)
    decidable = verdict != "no signal" and scores.clusters > 1
    outcome = _Outcome(
        pairs=pairs,
        scores=scores,
        verdict=verdict,
        test=loss_test(scores, margin, chance) if decidable else None,
        interval=loss_bounds(scores, margin=margin, alpha=alpha, chance=chance, same_model=same_model),
        margin=margin,
        alpha=alpha,
        chance=chance,
        same_model=same_model,
        undecided=explain_undecided(scores, margin=margin, alpha=alpha, chance=chance)
        if explain and verdict == "undecided" and decidable
        else None,
    )
    return _comparison(outcome, task=task, recipe=recipe)


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """The test results for two models' scores, and the settings of the tests."""

    pairs: Pairs  # all items
    scores: PairedScores  # the items that both models have a score for
    verdict: Verdict
    test: MeanTest | None  # at the margin; None where nothing can be decided
    interval: Range | None
    margin: float
    alpha: float
    chance: float
    same_model: bool | None
    undecided: Undecided | None

    @property
    def unscored(self) -> int:
        """How many items lack a score in either model."""
        return int(self.pairs.dense.size - self.scores.dense.size)


def _comparison(outcome: _Outcome, *, task: str, recipe: str) -> Comparison:
    """The outcome as a comparison, with the descriptive statistics of the scores."""
    pairs, scores, test, chance = outcome.pairs, outcome.scores, outcome.test, outcome.chance
    gained, lost, mcnemar_p = _flips(scores)
    dense, compressed = scores.means
    return Comparison(
        task=task,
        recipe=recipe,
        seeds=pairs.seeds,
        n=scores.dense.size,
        unscored=outcome.unscored,
        clusters=scores.clusters,
        dense=dense,
        compressed=compressed,
        strata=pairs.strata,
        relative_drop=relative_loss(dense, compressed, chance),
        raw_drop=relative_loss(dense, compressed),
        drop_bounds=_drop_bounds(pairs, scores.low, scores.high, chance),
        interval=outcome.interval,
        interval_method="none" if outcome.interval is None else BOUNDS,
        gained=gained,
        lost=lost,
        mcnemar_p=mcnemar_p,
        verdict=outcome.verdict,
        paper_verdict=_paper_verdict(dense, compressed),
        p_matching=test.p_above if test else None,
        p_not_matching=test.p_below if test else None,
        smallest_detectable_loss=observed_detectable_loss(
            scores, test, margin=outcome.margin, alpha=outcome.alpha, chance=chance
        ),
        margin=outcome.margin,
        alpha=outcome.alpha,
        chance=chance,
        notes=_notes(outcome),
        seed_share=test.seed_share if test and len(pairs.seeds) > 1 else None,
        undecided=outcome.undecided,
    )


def _verdict(
    pairs: Pairs, scores: PairedScores, *, margin: float, chance: float, alpha: float, same_model: bool | None
) -> Verdict:
    """The verdict on the scored items; "incomplete" if the best or the worst for the unscored items changes it."""
    if not scores.dense.size:
        return "incomplete"
    verdict = decide(scores, margin=margin, chance=chance, alpha=alpha, same_model=same_model)
    if scores.dense.size < pairs.dense.size:
        for worst in (True, False):
            filled = pairs.filled(scores.low, scores.high, worst=worst)
            if decide(filled, margin=margin, chance=chance, alpha=alpha, same_model=same_model) != verdict:
                return "incomplete"
    return verdict


def as_incomplete(comparison: Comparison, reason: str) -> Comparison:
    """The comparison with the verdict "incomplete", for a reason that its scores alone do not show."""
    notes = [note for note in comparison.notes if not note.endswith(CANNOT_CHANGE)]
    return replace(comparison, verdict="incomplete", notes=(*notes, reason))


def relative_loss(dense: float | None, compressed: float | None, chance: float = 0.0) -> float | None:
    """1 − compressed / dense, both scores above chance; None unless the dense score exceeds chance."""
    if dense is None or compressed is None or dense <= chance:
        return None
    return 1 - (compressed - chance) / (dense - chance)


def _drop_bounds(pairs: Pairs, low: float, high: float, chance: float) -> Range | None:
    """The relative loss with the unscored items at their best and at their worst for the compressed model."""
    best, worst = (relative_loss(*pairs.filled(low, high, worst=end).means, chance) for end in (False, True))
    return None if best is None or worst is None else (best, worst)


def _paper_verdict(dense: float | None, compressed: float | None) -> PaperVerdict | None:
    """The verdict by the rule of the LLM-KICK paper; None without a dense score above 0."""
    if dense is None or compressed is None or dense <= 0:
        return None
    # Exactly 95 % is a match; without the tolerance, rounding denies it for 0.03325 against 0.035.
    return "matching" if compressed >= PAPER_SHARE * dense - 1e-12 else "not matching"


def _flips(scores: PairedScores) -> tuple[float, float, float | None]:
    """Numbers of items gained and lost (mean over seeds) and, for binary scores of one seed, the exact McNemar p."""
    gained = (scores.compressed > scores.dense).sum(axis=1)
    lost = (scores.compressed < scores.dense).sum(axis=1)
    p = None
    if len(gained) == 1 and scores.binary and scores.dense.size:
        discordant = int(gained[0] + lost[0])
        p = float(stats.binomtest(int(lost[0]), discordant).pvalue) if discordant else 1.0
    return float(gained.mean()), float(lost.mean()), p


def _notes(outcome: _Outcome) -> tuple[str, ...]:
    """Notes that a reader needs to interpret the numbers."""
    scores, verdict, interval = outcome.scores, outcome.verdict, outcome.interval
    notes = list(sampling_notes(outcome.pairs, scores, "item"))
    if outcome.unscored:
        changes = "could change the verdict" if verdict == "incomplete" else CANNOT_CHANGE
        items = f"{outcome.unscored} of {outcome.pairs.dense.size} items"
        notes.append(f"{items} are unscored and left out; they {changes}")
    if verdict == "no signal":
        notes.append(f"the dense score is not shown to be above chance ({outcome.chance:g}): nothing to forget")
    notes += _notes_on_identity(outcome)
    if outcome.undecided is not None:
        notes.append(outcome.undecided.sentence(scores))
    if interval is None and scores.clusters > 1 and verdict != "no signal":
        notes.append(f"the dense score is not clearly above {outcome.chance:g}: no bounds")
    if not scores.binary:
        notes.append("scores are not all right or wrong: gained and lost count items that rose and that fell")
    return tuple(notes)


def _notes_on_identity(outcome: _Outcome) -> tuple[str, ...]:
    """Notes on equal weights, or on scores that are equal on every item."""
    scores, verdict, same_model = outcome.scores, outcome.verdict, outcome.same_model
    if same_model and verdict == "matching":
        return ("the weights are the dense model's: matching by definition",)
    if not scores.dense.size or not scores.identical:
        return ()
    proof = "" if outcome.test is None else f" (by the test alone p = {outcome.test.p_above:.2g})"
    if verdict == "matching" and same_model is None:
        return (f"all {scores.dense.size} scores are identical: matching by definition{proof}",)
    if verdict == "undecided":
        return (f"all {scores.dense.size} scores are identical, which so few items do not prove{proof}",)
    return ()
