"""The samples of two models on one task, paired by document, with their common metric, groups and chance level."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from llmkick.errors import ConfigError, DataError
from llmkick.lm_eval.samples import Sample
from llmkick.statistics import groups_argument
from llmkick.statistics.pairing import Grouping, GroupsArgument, some_of

# The field of exported documents with the expected score of guessing: letters that are generated have no options.
CHANCE_FIELD = "llmkick_chance"
# Document fields that give the groups if nothing else is declared, in order of preference. Subjects and categories are
# fixed: a benchmark is about these. What a task calls a cluster was drawn together.
GROUP_FIELDS: Mapping[Grouping, tuple[str, ...]] = {"clusters": ("cluster",), "strata": ("subject", "category")}
# Metrics for which a lower value is better, so a decrease would be a gain.
LOWER_IS_BETTER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter", "wer")


@dataclass(frozen=True, kw_only=True)
class DocumentGroups:
    """The groups of documents: fixed strata or drawn clusters, by a field of the documents."""

    kind: Grouping
    field: str
    of: Mapping[int, str]  # doc_id → the value of the field

    @property
    def argument(self) -> GroupsArgument:
        """The groups as the argument of `compare`."""
        return groups_argument(self.kind, {str(number): value for number, value in self.of.items()})

    @property
    def note(self) -> str:
        """What the groups are, for a reader of the verdict."""
        count = len(set(self.of.values()))
        if self.kind == "strata":
            return f"{self.field!r} gives {count} fixed strata: the verdict is about these"
        return f"{self.field!r} gives {count} drawn clusters: the verdict is about others like them"


@dataclass(frozen=True, kw_only=True)
class SamplePair:
    """The samples of both models on the same documents, with one filter.

    Raises DataError if the documents differ.
    """

    task: str
    files: tuple[Path, Path]
    dense: Mapping[int, Sample]
    compressed: Mapping[int, Sample]

    def __post_init__(self) -> None:
        if set(self.dense) != set(self.compressed):
            missing, extra = (
                sorted(set(self.dense) - set(self.compressed)),
                sorted(set(self.compressed) - set(self.dense)),
            )
            raise DataError(
                f"{self.task}: other documents: {self.files[1]} lacks doc_id {some_of(missing)}, and has "
                f"{some_of(extra)} beyond those of {self.files[0]}; were both run with the same --limit?"
            )
        other = [number for number, sample in self.dense.items() if sample.doc_hash != self.compressed[number].doc_hash]
        if other:
            raise DataError(
                f"{self.task}: {len(other)} of {len(self.dense)} documents have another doc_hash in {self.files[1]} "
                f"than in {self.files[0]} (doc_id {some_of(other)}): two versions of the task or of its data"
            )

    def metric(self, wanted: Sequence[str]) -> str:
        """The metric to compare. Raises ConfigError, with the task's metrics, if the task has none of `wanted`."""
        there = sorted({name for sample in self.dense.values() for name in sample.metrics})
        numeric = [name for name in there if all(_is_number(s.metrics.get(name)) for s in self.dense.values())]
        usable = [name for name in numeric if name not in LOWER_IS_BETTER]
        for name in wanted:
            if name in LOWER_IS_BETTER:
                raise ConfigError(f"{self.task}: of {name} less is better, so there is no share of it to lose")
            if name in there and name not in numeric:
                value = next(s.metrics.get(name) for s in self.dense.values() if not _is_number(s.metrics.get(name)))
                raise DataError(f"{self.task}: {name} is {value!r}, not a number; choose from: {listed(usable)}")
            if name in there:
                return name
        if wanted or not usable:
            raise ConfigError(f"{self.task} has no metric {listed(wanted)}; choose from: {listed(usable)}")
        if "acc" in usable:
            return "acc"
        if len(usable) > 1:
            raise ConfigError(f"{self.task} has several metrics; choose with --metric from: {listed(usable)}")
        return usable[0]

    def scores(self, samples: Mapping[int, Sample], metric: str, file: Path) -> dict[int, float | None]:
        """doc_id → the value of the metric for the document; None for NaN."""
        scores: dict[int, float | None] = {}
        for number, sample in sorted(samples.items()):
            value = sample.metrics.get(metric)
            if not _is_number(value):
                raise DataError(f"{self.task}: {metric} of doc_id {number} in {file} is {value!r}, not a number")
            scores[number] = None if math.isnan(value) else float(value)
        return scores

    def groups(self, *, cluster: str | None = None, strata: str | None = None) -> tuple[DocumentGroups, ...]:
        """The declared groups of the documents; of a kind that is not declared (None), those of a usual field.

        Usual fields are taken only if they group the documents, strata only without clusters; "none" stands for no
        groups of a kind.
        """
        if cluster == strata is not None and cluster != "none":
            raise ConfigError(
                f"{self.task}: {cluster!r} cannot name both clusters and strata: were they drawn, or fixed?"
            )
        drawn = self._groups("clusters", cluster, usual=strata in (None, "none"))
        fixed = self._groups("strata", strata, usual=drawn is None)
        return tuple(groups for groups in (drawn, fixed) if groups is not None)

    def _groups(self, kind: Grouping, wanted: str | None, *, usual: bool) -> DocumentGroups | None:
        if wanted == "none" or (wanted is None and not usual):
            return None
        for field in GROUP_FIELDS[kind] if wanted is None else (wanted,):
            if all(field in sample.fields for sample in self.dense.values()):
                values = {number: sample.fields[field] for number, sample in self.dense.items()}
                if wanted is not None or 1 < len(set(values.values())) < len(values):
                    return DocumentGroups(kind=kind, field=field, of=values)
        if wanted is None:
            return None
        there = sorted(set.intersection(*(set(sample.fields) for sample in self.dense.values())))
        raise ConfigError(f"{self.task}: not every document has a field {wanted!r}; all have {listed(there)}")

    def chance(self, metric: str) -> float:
        """The expected score of guessing among the scored options; 0 for other kinds of score.

        Where several options of a document can be true (truthfulqa_mc2), the score is the probability of all of them,
        and guessing gives the mean share of true options. Documents that we exported state it.
        """
        stated = {sample.fields.get(CHANCE_FIELD) for sample in self.dense.values()}
        if metric == "acc" and len(stated) == 1 and (level := stated.pop()) is not None:
            return float(level)
        options = [sample.options for sample in self.dense.values()]
        if not metric.startswith("acc") or min(options) < 2:
            return 0.0
        labels = self._labels("mc2_targets")
        # The documents of truthfulqa_mc1 have these labels too, beside those of the options that it scores.
        if labels is not None and self._labels("mc1_targets") is None:
            return sum(sum(of_document) / len(of_document) for of_document in labels) / len(labels)
        return sum(1 / count for count in options) / len(options)

    def _labels(self, field: str) -> list[tuple[int, ...]] | None:
        """The labels of a field by document; None unless every document has as many as it has scored options."""
        labels = [sample.labels.get(field, ()) for sample in self.dense.values()]
        options = [sample.options for sample in self.dense.values()]
        return labels if list(map(len, labels)) == options else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float)


def listed(names: Iterable[str]) -> str:
    """The names as text for a message, separated by commas; "none" if there are no names."""
    return ", ".join(map(str, names)) or "none"
