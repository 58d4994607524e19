"""Paired statistics: tests whether a compressed model lost more than a margin, and power calculations."""

from llmkick.statistics.agreement import ChoiceAgreement, choice_agreement
from llmkick.statistics.betting import (
    SequentialState,
    SequentialTest,
    Stopping,
    confidence_sequence,
)
from llmkick.statistics.came_back import BackNames, BackOutcome, CameBack, what_came_back
from llmkick.statistics.design import Design, detectable_loss, items_for_power, simulated_power
from llmkick.statistics.early_stopped_comparison import compare_stopped
from llmkick.statistics.early_stopping import EarlyStop, SignalTest, signal_after, stopping_after
from llmkick.statistics.frontier import Frontier, find_frontier
from llmkick.statistics.item_order import ItemOrder, order_items, spread_places, stratified_order, whole_cluster_order
from llmkick.statistics.missing import MissingScores, missing_scores
from llmkick.statistics.multiplicity import fixed_sequence, holm, overall_verdict
from llmkick.statistics.paired import Comparison, as_incomplete, compare
from llmkick.statistics.pairing import groups_argument
from llmkick.statistics.perplexity import PerplexityComparison, compare_bits_per_byte, compare_perplexity
from llmkick.statistics.power import items_needed, smallest_detectable_loss, verdict_power
from llmkick.statistics.ratio import Ratio
from llmkick.statistics.undecided import Undecided
from llmkick.statistics.verdict import Verdict

__all__ = [
    "BackNames",
    "BackOutcome",
    "CameBack",
    "ChoiceAgreement",
    "Comparison",
    "Design",
    "EarlyStop",
    "Frontier",
    "ItemOrder",
    "MissingScores",
    "PerplexityComparison",
    "Ratio",
    "SequentialState",
    "SequentialTest",
    "SignalTest",
    "Stopping",
    "Undecided",
    "Verdict",
    "as_incomplete",
    "choice_agreement",
    "compare",
    "compare_bits_per_byte",
    "compare_perplexity",
    "compare_stopped",
    "confidence_sequence",
    "detectable_loss",
    "find_frontier",
    "fixed_sequence",
    "groups_argument",
    "holm",
    "items_for_power",
    "items_needed",
    "missing_scores",
    "order_items",
    "overall_verdict",
    "signal_after",
    "simulated_power",
    "smallest_detectable_loss",
    "spread_places",
    "stopping_after",
    "stratified_order",
    "verdict_power",
    "what_came_back",
    "whole_cluster_order",
]
