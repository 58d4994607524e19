"""Paired statistics: tests whether a compressed model lost more than a margin, and power calculations."""

from llmkick.statistics.agreement import ChoiceAgreement, choice_agreement
from llmkick.statistics.betting import (
    SequentialState,
    SequentialTest,
    Stopping,
    confidence_sequence,
)
from llmkick.statistics.early_stopped_comparison import compare_stopped
from llmkick.statistics.early_stopping import EarlyStop, signal_after
from llmkick.statistics.frontier import Frontier, find_frontier
from llmkick.statistics.item_order import ItemOrder, order_items, stratified_order, whole_cluster_order
from llmkick.statistics.missing import MissingScores, missing_scores
from llmkick.statistics.multiplicity import fixed_sequence, holm, overall_verdict
from llmkick.statistics.paired import Comparison, as_incomplete, compare
from llmkick.statistics.perplexity import PerplexityComparison, compare_bits_per_byte, compare_perplexity
from llmkick.statistics.power import items_needed, smallest_detectable_loss, verdict_power
from llmkick.statistics.verdict import Verdict

__all__ = [
    "ChoiceAgreement",
    "Comparison",
    "EarlyStop",
    "Frontier",
    "ItemOrder",
    "MissingScores",
    "PerplexityComparison",
    "SequentialState",
    "SequentialTest",
    "Stopping",
    "Verdict",
    "as_incomplete",
    "choice_agreement",
    "compare",
    "compare_bits_per_byte",
    "compare_perplexity",
    "compare_stopped",
    "confidence_sequence",
    "find_frontier",
    "fixed_sequence",
    "holm",
    "items_needed",
    "missing_scores",
    "order_items",
    "overall_verdict",
    "signal_after",
    "smallest_detectable_loss",
    "stratified_order",
    "verdict_power",
    "whole_cluster_order",
]
