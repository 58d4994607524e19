"""Verdicts from two lm-eval (lm-evaluation-harness) outputs of `--log_samples`, dense and compressed.

Documents are paired by `doc_id` and must have the same `doc_hash`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from llmkick.errors import ConfigError, DataError
from llmkick.files import write_text_atomically
from llmkick.lm_eval.pairing import DocumentGroups, SamplePair, listed
from llmkick.lm_eval.samples import NO_FILTER, find_samples, read_samples
from llmkick.statistics import Comparison, compare
from llmkick.statistics.pairing import GroupsArgument


@dataclass(frozen=True, kw_only=True)
class ImportedTask:
    """One task with one filter: the verdict, doc_id → (dense, compressed) score, groups of documents, and notes."""

    task: str
    filter: str
    metric: str
    comparison: Comparison
    scores: Mapping[int, tuple[float | None, float | None]]
    groups: tuple[DocumentGroups, ...]
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """The task name, followed by the filter name unless lm-eval applied no filter."""
        return self.task if self.filter == NO_FILTER else f"{self.task} ({self.filter})"


def import_lm_eval(
    dense: Path,
    compressed: Path,
    *,
    metrics: Sequence[str] = (),
    tasks: Sequence[str] = (),
    filters: Sequence[str] = (),
    cluster: str | None = None,
    strata: str | None = None,
    chance: float | None = None,
    highest: float = 1.0,
    margin: float = 0.05,
    alpha: float = 0.05,
) -> list[ImportedTask]:
    """Compare two outputs of lm-eval, separately for each task and filter.

    `dense` and `compressed` are samples files, or folders of samples files. The compared metric is the first of
    `metrics` that the task has; if `metrics` is empty, it is "acc" or the task's only metric. `cluster` names the
    document field of clusters that were drawn (passages, stories), `strata` that of fixed groups (subjects); "none"
    means that there are none, and None takes a usual field that groups the documents (`GROUP_FIELDS`).
    `chance` is the expected score of guessing; None takes one over the number of scored options (the share of true ones
    where several are true), or 0 for other tasks.
    `highest` is the maximum score of a document.
    Raises ConfigError for a missing task, filter, metric or field; DataError, with file and line, for damaged files,
    and for outputs that cannot be paired.
    """
    imported = []
    for task, (first, second) in _pair_files(dense, compressed, tasks).items():
        dense_samples, compressed_samples = read_samples(first), read_samples(second)
        if set(dense_samples) != set(compressed_samples):
            raise DataError(
                f"{task}: filters {listed(dense_samples)} in {first}, but {listed(compressed_samples)} in {second}"
            )
        chosen = [name for name in dense_samples if not filters or name in filters]
        if not chosen:
            raise ConfigError(f"{task} has no filter {listed(filters)}; it has {listed(dense_samples)}")
        for name in chosen:
            pair = SamplePair(
                task=task, files=(first, second), dense=dense_samples[name], compressed=compressed_samples[name]
            )
            metric = pair.metric(metrics)
            groups = pair.groups(cluster=cluster, strata=strata)
            imported.append(
                _compared(pair, name, metric, groups, chance=chance, highest=highest, margin=margin, alpha=alpha)
            )
    return imported


def _pair_files(dense: Path, compressed: Path, tasks: Sequence[str]) -> dict[str, tuple[Path, Path]]:
    first, second = find_samples(dense), find_samples(compressed)
    # The name of a renamed file does not give its task. The hashes of the documents show whether the tasks match.
    if len(first) == len(second) == 1 and "" in (*first, *second):
        name = next((task for task in (*first, *second) if task), dense.stem)
        first, second = {name: next(iter(first.values()))}, {name: next(iter(second.values()))}
    for task in tasks:
        if task not in first or task not in second:
            raise ConfigError(f"no samples of {task!r}; {dense} has {listed(first)}, {compressed} has {listed(second)}")
    if not tasks and set(first) != set(second):
        both = sorted(set(first) & set(second))
        hint = f"; to compare what both have give --task {' --task '.join(both)}" if both else ""
        raise DataError(f"tasks differ: {dense} has {listed(first)}, {compressed} has {listed(second)}{hint}")
    return {task: (first[task], second[task]) for task in (tasks or sorted(first))}


def _compared(
    pair: SamplePair,
    filter_name: str,
    metric: str,
    groups: tuple[DocumentGroups, ...],
    *,
    chance: float | None,
    highest: float,
    margin: float,
    alpha: float,
) -> ImportedTask:
    """The comparison of the two models on this task, with its notes."""
    dense = pair.scores(pair.dense, metric, pair.files[0])
    compressed = pair.scores(pair.compressed, metric, pair.files[1])
    for file, scores in zip(pair.files, (dense, compressed), strict=True):
        outside = [(k, v) for k, v in scores.items() if v is not None and not 0 <= v <= highest]
        if outside:
            raise DataError(
                f"{pair.task}: {metric} of doc_id {outside[0][0]} in {file} is {outside[0][1]:g}, outside 0 to "
                f"{highest:g}; give --highest, the best that a document can have"
            )
    arguments: GroupsArgument = {}
    for declared in groups:
        arguments |= declared.argument
    comparison = compare(
        {str(number): score for number, score in dense.items()},
        {str(number): score for number, score in compressed.items()},
        **arguments,
        chance=pair.chance(metric) if chance is None else chance,
        margin=margin,
        alpha=alpha,
        task=pair.task,
        recipe="compressed",
        seeds=(),
        score_range=(0.0, highest),
    )
    return ImportedTask(
        task=pair.task,
        filter=filter_name,
        metric=metric,
        comparison=comparison,
        scores={number: (dense[number], compressed[number]) for number in dense},
        groups=groups,
        notes=(*_notes(pair, dense, compressed, groups, comparison.chance), *comparison.notes),
    )


def _notes(
    pair: SamplePair,
    dense: Mapping[int, float | None],
    compressed: Mapping[int, float | None],
    groups: tuple[DocumentGroups, ...],
    chance: float,
) -> Iterator[str]:
    if chance:
        yield f"guessing scores {chance:.3g}"
    yield from (declared.note for declared in groups)
    unscored = sum(dense[number] is None or compressed[number] is None for number in dense)
    if unscored:
        yield f"{unscored} of {len(dense)} documents have NaN for a score and count as unscored"
    changed = sum(sample.prompt_hash != pair.compressed[number].prompt_hash for number, sample in pair.dense.items())
    if changed:
        yield (
            f"{changed} of {len(dense)} prompts differ between the runs (examples, chat template): the loss is of "
            "that too"
        )


# Results


def is_folder(target: Path) -> bool:
    """Whether verdicts go into a folder: one that is there, or any name that does not end in .json or .csv.

    Raises ConfigError for a file of another kind.
    """
    if target.is_dir():
        return True
    if target.suffix in (".json", ".csv"):
        return False
    if target.exists():
        raise ConfigError(f"{target} is a file: verdicts are written as .json, as .csv, or into a folder")
    return True


def write_imported(imported: Sequence[ImportedTask], target: Path) -> list[Path]:
    """Write verdicts to a .json or .csv file, or to a folder: both files, and all document scores in scores.csv.

    Returns the paths of the files. Raises ConfigError for a file of another kind, see `is_folder`, and DataError if a
    file cannot be written.
    """
    comparisons = [_comparison_row(task) for task in imported]
    verdicts = pd.DataFrame([{k: _cell(v) for k, v in row.items()} for row in comparisons]).to_csv(index=False)
    as_text = json.dumps({"schema": 1, "comparisons": comparisons}, indent=1, ensure_ascii=False, allow_nan=False)
    if not is_folder(target):
        texts = {target: verdicts if target.suffix == ".csv" else as_text + "\n"}
    else:
        scores = pd.DataFrame([row for task in imported for row in _score_rows(task)]).to_csv(index=False)
        names = {"verdicts.json": as_text + "\n", "verdicts.csv": verdicts, "scores.csv": scores}
        texts = {target / name: text for name, text in names.items()}
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_atomically(path, text)
    except OSError as error:
        raise DataError(f"cannot write {target}: {error}") from error
    return list(texts)


def _comparison_row(imported: ImportedTask) -> dict[str, object]:
    comparison = asdict(imported.comparison)
    left_out = ("kind", "task", "recipe", "seeds", "notes")
    fields = {key: value for key, value in comparison.items() if key not in left_out}
    names = {"task": imported.task, "filter": imported.filter, "metric": imported.metric}
    return {**names, **fields, "notes": list(imported.notes)}


def _cell(value: object) -> object:
    """The value as the text of a table cell: intervals as "low high", notes as sentences."""
    if not isinstance(value, list | tuple):
        return value
    return ("; " if value and isinstance(value[0], str) else " ").join(map(str, value))


def _score_rows(imported: ImportedTask) -> Iterator[dict[str, object]]:
    names = {"task": imported.task, "filter": imported.filter, "metric": imported.metric}
    for doc_id, (dense, compressed) in imported.scores.items():
        groups = {"cluster": "", "stratum": ""}
        for declared in imported.groups:
            groups["stratum" if declared.kind == "strata" else "cluster"] = declared.of[doc_id]
        yield {**names, "doc_id": doc_id, **groups, "dense": dense, "compressed": compressed}
