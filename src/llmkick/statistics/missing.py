"""Missing scores: whether one model lacks more of them than the other, on the same items."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

from llmkick.statistics.pairing import pair_scores


@dataclass(frozen=True, kw_only=True)
class MissingScores:
    """Numbers of items without a score in the dense and in the compressed model, and the test that they are equal."""

    items: int
    dense: int
    compressed: int
    more_dense: int  # clusters in which the dense model lacks more scores
    more_compressed: int  # clusters in which the compressed model lacks more scores
    p: float  # two-sided


def missing_scores(
    dense: Mapping[str, float | None],
    compressed: Mapping[str, float | None],
    *,
    clusters: Mapping[str, Hashable] | None = None,
) -> MissingScores:
    """Does what is missing depend on the model? An exact sign test over clusters, two-sided.

    A cluster counts for the model that lacks more of its scores. With one item in each cluster this is McNemar's exact
    test. Without a relation to the model, either side is equally likely. Raises DataError for items that do not match.
    """
    pairs = pair_scores(dense, compressed, None, clusters=clusters)
    gaps = np.isnan(pairs.dense), np.isnan(pairs.compressed[0])
    counts = [np.bincount(pairs.cluster, weights=gap) for gap in gaps]
    more_dense, more_compressed = int((counts[0] > counts[1]).sum()), int((counts[1] > counts[0]).sum())
    unequal = more_dense + more_compressed
    return MissingScores(
        items=pairs.dense.size,
        dense=int(gaps[0].sum()),
        compressed=int(gaps[1].sum()),
        more_dense=more_dense,
        more_compressed=more_compressed,
        p=float(stats.binomtest(more_compressed, unequal).pvalue) if unequal else 1.0,
    )
