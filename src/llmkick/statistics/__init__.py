"""Paired statistics: has a compressed model lost more than a margin, and how many items tell?"""

from llmkick.statistics.bits_per_byte import compare_bits_per_byte
from llmkick.statistics.choices import ChoiceAgreement, choice_agreement
from llmkick.statistics.frontier import Frontier, evaluations_at_most, find_frontier
from llmkick.statistics.paired import Comparison, compare
from llmkick.statistics.perplexity import PerplexityComparison, compare_perplexity
from llmkick.statistics.power import items_needed, smallest_detectable_loss, verdict_power
from llmkick.statistics.sequential import (
    SequentialState,
    SequentialTest,
    stratified_order,
    whole_cluster_order,
)
from llmkick.statistics.verdict import Verdict, fixed_sequence, holm, overall_verdict

__all__ = [
    "ChoiceAgreement",
    "Comparison",
    "Frontier",
    "PerplexityComparison",
    "SequentialState",
    "SequentialTest",
    "Verdict",
    "choice_agreement",
    "compare",
    "compare_bits_per_byte",
    "compare_perplexity",
    "evaluations_at_most",
    "find_frontier",
    "fixed_sequence",
    "holm",
    "items_needed",
    "overall_verdict",
    "smallest_detectable_loss",
    "stratified_order",
    "verdict_power",
    "whole_cluster_order",
]
