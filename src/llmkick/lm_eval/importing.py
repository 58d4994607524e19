"""Verdicts on tasks that lm-eval (lm-evaluation-harness) ran: two outputs of `--log_samples`, dense and compressed.

Documents are paired by `doc_id`, and must have the same `doc_hash`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd

from llmkick.errors import ConfigError, DataError
from llmkick.files import write_text_atomically
from llmkick.lm_eval.samples import NO_FILTER, Sample, find_samples, read_samples
from llmkick.statistics import Comparison, compare
from llmkick.statistics.pairing import some_of

# Fields of a document that say what it has in common with others, in this order.
CLUSTER_FIELDS = ("cluster", "subject", "category")
# Metrics for which a small number is good: their loss would be a gain.
LOWER_IS_BETTER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter", "wer")


@dataclass(frozen=True, kw_only=True)
class ImportedTask:
    """One task through one filter: the verdict, both scores of every document, and how they were paired."""

    task: str
    filter: str
    metric: str
    comparison: Comparison
    scores: Mapping[int, tuple[float | None, float | None]]
    clusters: Mapping[int, str] | None
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The task, with the filter where lm-eval has a choice of them."""
        return self.task if self.filter == NO_FILTER else f"{self.task} ({self.filter})"


def import_lm_eval(
    dense: Path,
    compressed: Path,
    *,
    metrics: Sequence[str] = (),
    tasks: Sequence[str] = (),
    filters: Sequence[str] = (),
    cluster: str | None = None,
    chance: float | None = None,
    highest: float = 1.0,
    margin: float = 0.05,
    alpha: float = 0.05,
) -> list[ImportedTask]:
    """Compare two outputs of lm-eval task by task, every filter on its own.

    dense, compressed: a samples file each, or the folders they lie in. metrics: the first that a task has is
    compared; without any, "acc" or a task's only one. cluster: a field of the documents, "none" for each on its
    own; without it the first of `CLUSTER_FIELDS` that tells documents apart. chance: without it, of options that
    were scored, one in their number, else 0. highest: the best score that a document can have.
    Raises ConfigError for what was asked and is not there, DataError naming file and line for damaged files and
    for outputs that cannot be paired.
    """
    found = _pair_files(dense, compressed, tasks)
    imported = []
    for task, (first, second) in found.items():
        ours, theirs = read_samples(first), read_samples(second)
        if set(ours) != set(theirs):
            raise DataError(f"{task}: filters {_names(ours)} in {first}, but {_names(theirs)} in {second}")
        chosen = [name for name in ours if not filters or name in filters]
        if not chosen:
            raise ConfigError(f"{task} has no filter {_names(filters)}; it has {_names(ours)}")
        for name in chosen:
            pair = _Pair(task=task, files=(first, second), dense=ours[name], compressed=theirs[name])
            metric = pair.metric(metrics)
            groups = pair.clusters(cluster)
            imported.append(
                pair.compared(name, metric, groups, chance=chance, highest=highest, margin=margin, alpha=alpha)
            )
    return imported


def _pair_files(dense: Path, compressed: Path, tasks: Sequence[str]) -> dict[str, tuple[Path, Path]]:
    first, second = find_samples(dense), find_samples(compressed)
    # A file that was given another name says nothing about its task: the documents' hashes will.
    if len(first) == len(second) == 1 and "" in (*first, *second):
        name = next((task for task in (*first, *second) if task), dense.stem)
        first, second = {name: next(iter(first.values()))}, {name: next(iter(second.values()))}
    for task in tasks:
        if task not in first or task not in second:
            raise ConfigError(f"no samples of {task!r}; {dense} has {_names(first)}, {compressed} has {_names(second)}")
    if not tasks and set(first) != set(second):
        both = sorted(set(first) & set(second))
        hint = f"; to compare what both have give --task {' --task '.join(both)}" if both else ""
        raise DataError(f"tasks differ: {dense} has {_names(first)}, {compressed} has {_names(second)}{hint}")
    return {task: (first[task], second[task]) for task in (tasks or sorted(first))}


# Results


def write_imported(found: Sequence[ImportedTask], target: Path) -> list[Path]:
    """Write verdicts to a .json or .csv file, or to a folder: both, and in scores.csv every document's two scores.

    Returns what was written. Raises ConfigError for another ending, DataError when it cannot be written.
    """
    comparisons = [{"task": one.task, "filter": one.filter, "metric": one.metric, **_plain(one)} for one in found]
    verdicts = pd.DataFrame([{k: _cell(v) for k, v in row.items()} for row in comparisons]).to_csv(index=False)
    as_text = json.dumps({"schema": 1, "comparisons": comparisons}, indent=1, ensure_ascii=False, allow_nan=False)
    if target.suffix in (".json", ".csv"):
        texts = {target: verdicts if target.suffix == ".csv" else as_text + "\n"}
    elif target.suffix or target.is_file():
        raise ConfigError(f"{target}: verdicts are written as .json, as .csv, or into a folder")
    else:
        scores = pd.DataFrame([row for one in found for row in _score_rows(one)]).to_csv(index=False)
        names = {"verdicts.json": as_text + "\n", "verdicts.csv": verdicts, "scores.csv": scores}
        texts = {target / name: text for name, text in names.items()}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, text)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}") from error
    return list(texts)


def _plain(one: ImportedTask) -> dict[str, Any]:
    kept = {k: v for k, v in asdict(one.comparison).items() if k not in ("kind", "task", "recipe", "seeds", "notes")}
    return {**kept, "notes": list(one.notes)}


def _cell(value: Any) -> Any:
    """A value in one cell of a table: intervals as "low high", notes as sentences."""
    return ("; " if value and isinstance(value[0], str) else " ").join(map(str, value)) if _is_list(value) else value


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _score_rows(one: ImportedTask) -> Iterator[dict[str, Any]]:
    for number, (dense, compressed) in one.scores.items():
        cluster = "" if one.clusters is None else one.clusters[number]
        yield {"task": one.task, "filter": one.filter, "metric": one.metric, "doc_id": number, "cluster": cluster,
               "dense": dense, "compressed": compressed}  # fmt: skip


# Pairs


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """The same documents of both models, through one filter."""

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
        """The metric to compare; ConfigError naming those that are there when it is not."""
        there = sorted({name for sample in self.dense.values() for name in sample.metrics})
        numeric = [name for name in there if all(_is_number(s.metrics.get(name)) for s in self.dense.values())]
        usable = [name for name in numeric if name not in LOWER_IS_BETTER]
        for name in wanted:
            if name in LOWER_IS_BETTER:
                raise ConfigError(f"{self.task}: of {name} less is better, so there is no share of it to lose")
            if name in there and name not in numeric:
                value = next(s.metrics.get(name) for s in self.dense.values() if not _is_number(s.metrics.get(name)))
                raise DataError(f"{self.task}: {name} is {value!r}, not a number; choose from: {_names(usable)}")
            if name in there:
                return name
        if wanted or not usable:
            raise ConfigError(f"{self.task} has no metric {_names(wanted)}; choose from: {_names(usable)}")
        if "acc" in usable:
            return "acc"
        if len(usable) > 1:
            raise ConfigError(f"{self.task} has several metrics; choose with --metric from: {_names(usable)}")
        return usable[0]

    def scores(self, samples: Mapping[int, Sample], metric: str, file: Path) -> dict[int, float | None]:
        """The metric of every document; NaN is no score."""
        found: dict[int, float | None] = {}
        for number, sample in sorted(samples.items()):
            value = sample.metrics.get(metric)
            if not _is_number(value):
                raise DataError(f"{self.task}: {metric} of doc_id {number} in {file} is {value!r}, not a number")
            found[number] = None if math.isnan(value) else float(value)
        return found

    def clusters(self, wanted: str | None) -> tuple[str, dict[int, str]] | None:
        """The field that says which documents belong together, and its values; None for each on its own."""
        if wanted == "none":
            return None
        for field in CLUSTER_FIELDS if wanted is None else (wanted,):
            if all(field in sample.fields for sample in self.dense.values()):
                values = {number: sample.fields[field] for number, sample in self.dense.items()}
                if wanted is not None or 1 < len(set(values.values())) < len(values):
                    return field, values
        if wanted is None:
            return None
        there = sorted(set.intersection(*(set(sample.fields) for sample in self.dense.values())))
        raise ConfigError(f"{self.task}: not every document has a field {wanted!r}; all have {_names(there)}")

    def chance(self, metric: str) -> float:
        """What guessing among the scored options gives; 0 for every other kind of score."""
        options = [sample.options for sample in self.dense.values()]
        if not metric.startswith("acc") or min(options) < 2:
            return 0.0
        return sum(1 / count for count in options) / len(options)

    def compared(
        self,
        name: str,
        metric: str,
        groups: tuple[str, dict[int, str]] | None,
        *,
        chance: float | None,
        highest: float,
        margin: float,
        alpha: float,
    ) -> ImportedTask:
        """The verdict."""
        dense = self.scores(self.dense, metric, self.files[0])
        compressed = self.scores(self.compressed, metric, self.files[1])
        for file, scores in zip(self.files, (dense, compressed), strict=True):
            outside = [(k, v) for k, v in scores.items() if v is not None and not 0 <= v <= highest]
            if outside:
                raise DataError(
                    f"{self.task}: {metric} of doc_id {outside[0][0]} in {file} is {outside[0][1]:g}, outside 0 to "
                    f"{highest:g}; give --highest, the best that a document can have"
                )
        comparison = compare(
            {str(number): score for number, score in dense.items()},
            {str(number): score for number, score in compressed.items()},
            clusters=None if groups is None else {str(number): value for number, value in groups[1].items()},
            chance=self.chance(metric) if chance is None else chance,
            margin=margin,
            alpha=alpha,
            task=self.task,
            recipe="compressed",
            seeds=(),
            score_range=(0.0, highest),
        )
        return ImportedTask(
            task=self.task,
            filter=name,
            metric=metric,
            comparison=comparison,
            scores={number: (dense[number], compressed[number]) for number in dense},
            clusters=None if groups is None else groups[1],
            notes=(*self._notes(dense, compressed, groups, comparison.chance), *comparison.notes),
        )

    def _notes(
        self, dense: Mapping[int, float | None], compressed: Mapping[int, float | None], groups: Any, chance: float
    ) -> Iterator[str]:
        if chance:
            yield f"guessing scores {chance:.3g}"
        if groups is not None:
            yield f"documents clustered by {groups[0]!r} ({len(set(groups[1].values()))})"
        gone = sum(dense[number] is None or compressed[number] is None for number in dense)
        if gone:
            yield f"{gone} of {len(dense)} documents have NaN for a score and count as unscored"
        asked = sum(sample.prompt_hash != self.compressed[number].prompt_hash for number, sample in self.dense.items())
        if asked:
            yield (
                f"{asked} of {len(dense)} prompts differ between the runs (examples, chat template): the loss is of "
                "that too"
            )


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float)


def _names(names: Any) -> str:
    return ", ".join(map(str, names)) or "none"
