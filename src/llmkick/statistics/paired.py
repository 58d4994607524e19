"""Two models on the same items: pair their scores, compare them, say what was lost."""

import math
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from llmkick.errors import ConfigError, DataError
from llmkick.statistics.verdict import (
    Codes,
    Floats,
    MeanTest,
    PairedScores,
    Range,
    Verdict,
    cluster_sums,
    decide,
    loss_interval,
    loss_test,
    mean_test,
)

# By position, or by item id (a mapping, or (id, score) pairs); None is an item that could not be scored.
Scores = Mapping[str, float | None] | Sequence[float | None] | Sequence[tuple[str, float | None]] | NDArray[Any]
# One of the above, or one for every calibration seed: a mapping seed → scores, or rows of a 2-d array.
SeedScores = Scores | Mapping[int, Scores] | Mapping[str, Scores] | Sequence[Scores]
Clusters = Mapping[str, Hashable] | Sequence[Hashable] | NDArray[Any]

PaperVerdict = Literal["matching", "not matching"]

PAPER_SHARE = 0.95  # The rule of LLM-KICK (arXiv:2310.01382): at least 95 % of the dense score.
DETECTION_POWER = 0.8


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
) -> Comparison:
    """Did the compressed model keep at least 1 − margin of the dense score?

    Scores pair by id or position, clusters are resampled whole, every score lies in score_range. `seeds`
    names the calibration seeds; an empty one says that the method has none. The verdict rests on one-sided
    tests at alpha of E[c − (1 − margin)·d]; see `verdict.mean_test` for the test and docs/statistics.md for
    the reasons. `resamples=0` skips the bootstrap.
    """
    _check_settings(margin, alpha, resamples)
    low, high = score_range
    if not 0 <= low < high or not 0 <= chance < high:
        raise ConfigError(f"score_range {score_range} must start at 0 or above and end above chance {chance}")
    pairs = _pair(dense_scores, compressed_scores, clusters, seeds)
    pairs.check_range(low, high)
    scores = pairs.complete(low, high)
    verdict = _verdict(pairs, scores, margin=margin, chance=chance, alpha=alpha)
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
        smallest_detectable_loss=_detectable_loss(dense, test, margin, alpha),
        margin=margin,
        alpha=alpha,
        chance=chance,
        notes=_notes(pairs, scores, verdict, test, interval, chance),
    )


def _verdict(pairs: "_Pairs", scores: PairedScores, *, margin: float, chance: float, alpha: float) -> Verdict:
    """The verdict on the scored items, or "incomplete" if the best or the worst for the others changes it."""
    if not scores.dense.size:
        return "incomplete"
    verdict = decide(scores, margin=margin, chance=chance, alpha=alpha)
    if scores.dense.size < pairs.dense.size:
        for worst in (True, False):
            filled = pairs.filled(scores.low, scores.high, worst=worst)
            if decide(filled, margin=margin, chance=chance, alpha=alpha) != verdict:
                return "incomplete"
    return verdict


def relative_loss(dense: float | None, compressed: float | None, chance: float = 0.0) -> float | None:
    """1 − compressed / dense, both counted from chance; None unless the dense score is above it."""
    if dense is None or compressed is None or dense <= chance:
        return None
    return 1 - (compressed - chance) / (dense - chance)


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


def _detectable_loss(dense: float | None, test: MeanTest | None, margin: float, alpha: float) -> float | None:
    """The smallest true loss these items would call "not matching" with 80 % probability."""
    if dense is None or test is None:
        return None
    loss = margin + (test.critical(alpha) + test.critical(1 - DETECTION_POWER)) / dense
    return loss if loss <= 1 else None


def _notes(
    pairs: "_Pairs",
    scores: PairedScores,
    verdict: Verdict,
    test: MeanTest | None,
    interval: Range | None,
    chance: float,
) -> tuple[str, ...]:
    """What a reader must know to read the numbers rightly, in sentences."""
    notes = list(_sampling_notes(pairs, scores, "item"))
    unscored = pairs.dense.size - scores.dense.size
    if unscored:
        changes = "could change the verdict" if verdict == "incomplete" else "cannot change the verdict"
        notes.append(f"{unscored} of {pairs.dense.size} items are unscored and left out; they {changes}")
    if verdict == "no signal":
        notes.append(f"the dense score is not shown to be above chance ({chance:g}): nothing to forget")
    if scores.dense.size and scores.identical and verdict == "matching":
        proof = "" if test is None else f" (by the test alone p = {test.p_above:.2g})"
        notes.append(f"all {scores.dense.size} scores are identical: matching by definition{proof}")
    if interval is None and scores.clusters > 1 and verdict != "no signal":
        notes.append("the dense score is not clearly above 0: no bounded interval")
    if not scores.binary:
        notes.append("scores are not all right or wrong: gained and lost count items that rose and that fell")
    return tuple(notes)


def _sampling_notes(pairs: "_Pairs", scores: PairedScores, unit: str) -> tuple[str, ...]:
    notes = []
    if len(pairs.compressed) == 1 and pairs.calibrated:
        notes.append("one calibration seed: calibration variance is not in the interval")
    if len(pairs.compressed) == 2:
        notes.append("two calibration seeds: their variance is hardly known; three or more tell")
    if scores.clusters == 1:
        notes.append(f"only one {unit if scores.dense.size == 1 else 'cluster'}: no interval")
    return tuple(notes)


@dataclass(frozen=True, kw_only=True)
class PerplexityComparison:
    """Perplexity beside the tasks; it carries no verdict, so it cannot enter an overall one."""

    task: str
    recipe: str
    seeds: tuple[int | str, ...]
    n: int  # windows
    dense: float  # perplexity
    compressed: float  # perplexity at the mean loss over seeds
    relative_increase: float  # compressed / dense − 1
    interval: Range | None  # two-sided, level 1 − alpha
    interval_method: str
    bootstrap_interval: Range | None
    outcome: Literal["within margin", "beyond margin", "undecided"]
    p_within: float | None  # one-sided, H0: the increase is the margin or more
    p_beyond: float | None
    margin: float
    alpha: float
    notes: tuple[str, ...]


def compare_perplexity(
    dense_nll: Scores,
    compressed_nll: SeedScores,
    tokens: Scores | None = None,
    *,
    margin: float = 0.05,
    clusters: Clusters | None = None,
    alpha: float = 0.05,
    task: str = "",
    recipe: str = "",
    seeds: Sequence[int | str] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> PerplexityComparison:
    """Relative increase of perplexity over paired windows of text.

    The losses are mean negative log-likelihoods per token (nats) of each window; `tokens`, the number of
    tokens predicted in each window, weights them (default: all alike). ppl_c / ppl_d is the exponential of
    the weighted mean difference, so its interval is that of a mean, exponentiated.
    """
    _check_settings(margin, alpha, resamples)
    pairs = _pair(dense_nll, compressed_nll, clusters, seeds)
    windows = pairs.complete(-np.inf, np.inf)
    if not windows.dense.size or windows.dense.size < pairs.dense.size:
        raise DataError("perplexity needs at least one window and a loss for every window in both models")
    weight = _window_weights(tokens, pairs)
    difference = windows.compressed - windows.dense
    dense, log_ratio = float((weight * windows.dense).mean()), float((weight * difference).mean())
    test, interval = None, None
    if windows.clusters > 1:
        unbounded = (-np.inf, np.inf)
        test = mean_test(weight * (math.log1p(margin) - difference), windows.cluster, unbounded)
        around = mean_test(weight * (difference - log_ratio), windows.cluster, unbounded)
        half = around.critical(alpha / 2)
        interval = (math.expm1(log_ratio - half), math.expm1(log_ratio + half))
    resampled = bootstrap_ratio(
        cluster_sums(weight * difference, windows.cluster),
        cluster_sums(weight[None], windows.cluster)[0],
        alpha=alpha,
        resamples=resamples,
        seed=seed,
    )
    p_within, p_beyond = (test.p_above, test.p_below) if test else (None, None)
    return PerplexityComparison(
        task=task,
        recipe=recipe,
        seeds=pairs.seeds,
        n=windows.dense.size,
        dense=math.exp(dense),
        compressed=math.exp(dense + log_ratio),
        relative_increase=math.expm1(log_ratio),
        interval=interval,
        interval_method="none" if interval is None else "Student t on log perplexity, cluster-robust",
        bootstrap_interval=resampled and (math.expm1(resampled[0]), math.expm1(resampled[1])),
        outcome=_perplexity_outcome(p_within, p_beyond, alpha),
        p_within=p_within,
        p_beyond=p_beyond,
        margin=margin,
        alpha=alpha,
        notes=_sampling_notes(pairs, windows, "window"),
    )


def _perplexity_outcome(
    p_within: float | None, p_beyond: float | None, alpha: float
) -> Literal["within margin", "beyond margin", "undecided"]:
    if p_within is not None and p_within < alpha:
        return "within margin"
    return "beyond margin" if p_beyond is not None and p_beyond < alpha else "undecided"


def _window_weights(tokens: Scores | None, pairs: "_Pairs") -> Floats:
    """Tokens of each window over their mean: (windows,)."""
    if tokens is None:
        return np.ones(pairs.dense.size)
    ids, counts = _column(tokens, "tokens")
    counts = _aligned(ids, counts, pairs.ids, pairs.dense.size, "tokens")
    if not (counts > 0).all():
        raise DataError(f"every window needs a positive number of tokens; one has {counts.min()}")
    weights: Floats = counts / counts.mean()
    return weights


@dataclass(frozen=True, kw_only=True)
class ChoiceAgreement:
    """How far a compressed model's distribution over the choices is from the dense one's."""

    n: int
    mean_kl: float  # KL(dense ‖ compressed), nats
    top1_agreement: float  # share of items with the same likeliest choice


def choice_agreement(
    dense_logprobs: Mapping[str, ArrayLike] | Sequence[ArrayLike],
    compressed_logprobs: Mapping[str, ArrayLike] | Sequence[ArrayLike],
) -> ChoiceAgreement:
    """Agreement over the choices of each item: log-likelihoods (choices,) an item, normalised here.

    Accuracy can hide many changed answers (Dutta et al. 2024, arXiv:2407.09141); this does not.
    """
    dense, compressed = _keyed(dense_logprobs), _keyed(compressed_logprobs)
    _same_items(dense.keys(), compressed.keys(), "compressed log-probabilities")
    if not dense:
        raise DataError("no items: choice agreement needs at least one")
    divergences, agreed = [], 0
    for key, row in dense.items():
        p, q = np.asarray(row, dtype=np.float64), np.asarray(compressed[key], dtype=np.float64)
        if p.shape != q.shape or p.ndim != 1 or p.size < 2 or not np.isfinite([p, q]).all():
            raise DataError(f"item {key!r}: give two or more finite log-probabilities, as many in both models")
        log_p, log_q = special.log_softmax(p), special.log_softmax(q)
        divergences.append(float((np.exp(log_p) * (log_p - log_q)).sum()))
        agreed += int(p.argmax() == q.argmax())
    return ChoiceAgreement(
        n=len(dense), mean_kl=math.fsum(divergences) / len(dense), top1_agreement=agreed / len(dense)
    )


def _keyed(rows: Mapping[str, ArrayLike] | Sequence[ArrayLike]) -> dict[Hashable, ArrayLike]:
    return dict(rows.items() if isinstance(rows, Mapping) else enumerate(rows))


def bootstrap_interval(scores: PairedScores, *, alpha: float, resamples: int, seed: int) -> Range | None:
    """Paired bootstrap interval of the relative loss, clusters drawn whole, calibration seeds drawn first."""
    dense = cluster_sums(scores.dense[None], scores.cluster)[0]
    kept = bootstrap_ratio(
        cluster_sums(scores.compressed, scores.cluster), dense, alpha=alpha, resamples=resamples, seed=seed
    )
    return kept and (1 - kept[1], 1 - kept[0])


def bootstrap_ratio(numerator: Floats, denominator: Floats, *, alpha: float, resamples: int, seed: int) -> Range | None:
    """Two-sided interval of mean-over-seeds Σ numerator / Σ denominator: (seeds, clusters), (clusters,).

    BCa (Efron 1987) with one seed, percentiles of the two-stage bootstrap with several. None with fewer than
    two clusters or when a resample has a denominator of 0.
    """
    seeds, clusters = numerator.shape
    if clusters < 2 or resamples == 0:
        return None
    rng = np.random.default_rng(seed)
    sums = np.vstack([denominator, numerator])
    # Clusters alike in everything are drawn as one kind: 14,042 right-or-wrong items are four.
    kinds, count = np.unique(sums, axis=1, return_counts=True)
    few = 8 * count.size < clusters
    seed_share = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    ratios = np.empty(resamples)
    chunk = max(1, 4_000_000 // (count.size if few else clusters))
    for start in range(0, resamples, chunk):
        stop = min(start + chunk, resamples)
        if few:
            drawn = rng.multinomial(clusters, count / clusters, size=stop - start) @ kinds.T
        else:
            picked = rng.integers(clusters, size=(stop - start, clusters), dtype=np.int32)
            drawn = np.stack([row[picked].sum(axis=1) for row in sums], axis=1)
        if (drawn[:, 0] <= 0).any():
            return None
        ratios[start:stop] = (drawn[:, 1:] * seed_share[start:stop]).sum(axis=1) / drawn[:, 0]
    if seeds > 1:
        low, high = np.quantile(ratios, [alpha / 2, 1 - alpha / 2])
        return float(low), float(high)
    return _bca(ratios, numerator[0], denominator, alpha)


def _bca(ratios: Floats, numerator: Floats, denominator: Floats, alpha: float) -> Range:
    """Bias-corrected and accelerated percentiles of ratios; the jackknife leaves out one cluster."""
    estimate = numerator.sum() / denominator.sum()
    below = ((ratios < estimate).mean() + (ratios <= estimate).mean()) / 2
    bias = stats.norm.ppf(np.clip(below, 0.5 / ratios.size, 1 - 0.5 / ratios.size))
    with np.errstate(divide="ignore", invalid="ignore"):
        left_out = (numerator.sum() - numerator) / (denominator.sum() - denominator)
    deviation = left_out.mean() - left_out
    spread = (deviation**2).sum() ** 1.5
    acceleration = (deviation**3).sum() / (6 * spread) if spread > 0 and np.isfinite(spread) else 0.0
    z = bias + stats.norm.ppf([alpha / 2, 1 - alpha / 2])
    low, high = np.quantile(ratios, stats.norm.cdf(bias + z / (1 - acceleration * z)))
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Scores aligned item by item, NaN where unscored: dense (items,), compressed (seeds, items)."""

    ids: tuple[str, ...] | None
    seeds: tuple[int | str, ...]
    calibrated: bool
    dense: Floats
    compressed: Floats
    cluster: Codes

    def check_range(self, low: float, high: float) -> None:
        everything = np.append(self.compressed.ravel(), self.dense)
        outside = everything[(everything < low) | (everything > high)]
        if outside.size:
            raise DataError(f"score {outside[0]} is outside {low} … {high}; scale it or give its score_range")

    def complete(self, low: float, high: float) -> PairedScores:
        """Only the items scored by both models in every seed."""
        scored = ~(np.isnan(self.dense) | np.isnan(self.compressed).any(axis=0))
        cluster = np.unique(self.cluster[scored], return_inverse=True)[1]
        dense, compressed = self.dense[scored], self.compressed[:, scored]
        return PairedScores(dense=dense, compressed=compressed, cluster=cluster, low=low, high=high)

    def filled(self, low: float, high: float, *, worst: bool) -> PairedScores:
        """All items, the unscored at what is worst or best for the compressed model."""
        dense, compressed = (high, low) if worst else (low, high)
        return PairedScores(
            dense=np.where(np.isnan(self.dense), dense, self.dense),
            compressed=np.where(np.isnan(self.compressed), compressed, self.compressed),
            cluster=self.cluster,
            low=low,
            high=high,
        )


def _pair(
    dense: Scores, compressed: SeedScores, clusters: Clusters | None, seeds: Sequence[int | str] | None
) -> _Pairs:
    """Align by id where there are ids, by position otherwise."""
    ids, values = _column(dense, "dense scores")
    rows = _seed_rows(compressed)
    aligned = []
    for label, row in rows:
        name = "compressed scores" if label is None else f"compressed scores of seed {label!r}"
        aligned.append(_aligned(*_column(row, name), ids, values.size, name))
    if not values.size:
        raise DataError("no items: a comparison needs at least one")
    labels = tuple(label for label, _ in rows if label is not None)
    if seeds is not None and len(seeds) != len(rows) and (seeds or len(rows) > 1):
        raise ConfigError(f"{len(seeds)} seeds named for {len(rows)} sets of compressed scores")
    return _Pairs(
        ids=ids,
        seeds=labels if seeds is None else tuple(seeds),
        calibrated=seeds is None or len(seeds) > 0,
        dense=values,
        compressed=np.stack(aligned),
        cluster=_cluster_codes(clusters, ids, values.size),
    )


def _seed_rows(compressed: SeedScores) -> list[tuple[int | str | None, Any]]:
    """The scores of each calibration seed with its label, None if there is but one."""
    if isinstance(compressed, Mapping):
        if compressed and all(_is_column(row) for row in compressed.values()):
            return list(compressed.items())
        return [(None, compressed)]
    if len(compressed) and all(_is_column(row) for row in compressed) and not _is_pair(compressed[0]):
        return list(enumerate(compressed))
    return [(None, compressed)]


def _is_column(row: object) -> bool:
    return isinstance(row, Mapping | Sequence | np.ndarray) and not isinstance(row, str)


def _is_pair(entry: object) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)


def _column(scores: Any, name: str) -> tuple[tuple[str, ...] | None, Floats]:
    """Ids (None: by position) and values, None → NaN; a NaN that is given is an error."""
    ids: tuple[str, ...] | None = None
    entries: list[Any] = list(scores.items()) if isinstance(scores, Mapping) else list(scores)
    values = entries
    if isinstance(scores, Mapping) or (entries and _is_pair(entries[0])):
        ids, values = tuple(key for key, _ in entries), [value for _, value in entries]
        if len(set(ids)) < len(ids):
            twice = [key for key, count in Counter(ids).items() if count > 1]
            raise DataError(f"{name}: ids occur more than once: {_some(twice)}; give every item one id")
    column = np.full(len(values), np.nan)
    for index, value in enumerate(values):
        if value is None:
            continue
        try:
            column[index] = float(value)
        except (TypeError, ValueError):
            column[index] = np.nan
        if not math.isfinite(column[index]):
            where = ids[index] if ids else index
            raise DataError(f"{name}: item {where!r} has {value!r}; give a finite number, or None if unscored")
    return ids, column


def _aligned(
    ids: tuple[str, ...] | None, values: Floats, wanted: tuple[str, ...] | None, items: int, name: str
) -> Floats:
    """Values in the order of the dense scores."""
    if (ids is None) != (wanted is None):
        raise DataError(f"{name} and dense scores must both be by id or both by position")
    if ids is None or wanted is None:
        if values.size != items:
            raise DataError(f"{name}: {values.size} items against {items} dense ones; pair them by id")
        return values
    _same_items(wanted, ids, name)
    by_id = dict(zip(ids, values, strict=True))
    return np.array([by_id[key] for key in wanted])


def _same_items(wanted: Collection[Hashable], given: Collection[Hashable], name: str) -> None:
    known, there = set(wanted), set(given)
    missing, extra = [key for key in wanted if key not in there], [key for key in given if key not in known]
    if missing or extra:
        raise DataError(f"{name} are of other items: missing {_some(missing)}; not in dense {_some(extra)}")


def _cluster_codes(clusters: Clusters | None, ids: tuple[str, ...] | None, items: int) -> Codes:
    """The cluster of each item as a code; items on their own without clusters."""
    if clusters is None:
        return np.arange(items)
    if isinstance(clusters, Mapping) != (ids is not None):
        raise DataError("clusters and scores must both be by id or both by position")
    if isinstance(clusters, Mapping):
        without = [key for key in ids or () if key not in clusters]
        if without:
            raise DataError(f"items without a cluster: {_some(without)}")
        clusters = [clusters[key] for key in ids or ()]
    if len(clusters) != items:
        raise DataError(f"{len(clusters)} clusters for {items} items; give one an item")
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(label, len(codes)) for label in clusters], dtype=np.int64)


def _some(ids: Sequence[Hashable]) -> str:
    """The first few of a list for an error message."""
    return ", ".join(repr(key) for key in ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "") or "none"


def _check_settings(margin: float, alpha: float, resamples: int) -> None:
    if not 0 < margin < 1:
        raise ConfigError(f"margin {margin} must lie between 0 and 1; 0.05 allows a relative loss of 5 %")
    if not 0 < alpha < 0.5:
        raise ConfigError(f"alpha {alpha} must lie between 0 and 0.5; 0.05 is customary")
    if resamples < 0:
        raise ConfigError(f"resamples {resamples} must be 0 (no bootstrap) or more")
