"""Reader of the files that lm-eval writes with `--log_samples`: one line per document and filter of a task."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmkick.errors import DataError

FILE_NAME = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}(?:\.\d+)?)\.jsonl")
NO_FILTER = "none"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The result of one document with one filter.

    `metrics` has the scores from lm-eval, `fields` has the short fields of the document as text, and `options` is the
    number of options whose log-likelihoods were compared (0 for other kinds of task). `labels` has the document's lists
    of labels by field: for each option 1 if it is true, else 0.
    """

    doc_hash: str
    prompt_hash: str
    metrics: Mapping[str, object]
    fields: Mapping[str, str]
    options: int
    labels: Mapping[str, tuple[int, ...]]


# Filter → doc_id → sample.
Samples = dict[str, dict[int, Sample]]


def find_samples(source: Path) -> dict[str, Path]:
    """Task → its newest samples file, for a folder or a single file; the task is "" if the file name gives no task.

    Raises DataError if there is no samples file, or if a folder has the samples files of several models.
    """
    if source.is_file():
        name = FILE_NAME.fullmatch(source.name)
        return {name["task"] if name else "": source}
    if not source.is_dir():
        raise DataError(f"there is no file or folder {source}")
    files = [path for path in sorted(source.rglob("samples_*.jsonl")) if FILE_NAME.fullmatch(path.name)]
    if not files:
        raise DataError(f"{source} holds no samples_TASK_DATE.jsonl: run lm-eval with --log_samples and --output_path")
    folders = sorted({str(path.parent) for path in files})
    if len(folders) > 1:
        raise DataError(f"{source} holds samples in several folders; give one of: {', '.join(folders)}")
    newest: dict[str, Path] = {}
    for path in sorted(files, key=_date):
        newest[str(FILE_NAME.fullmatch(path.name)["task"])] = path  # type: ignore[index]
    return newest


def _date(path: Path) -> str:
    name = FILE_NAME.fullmatch(path.name)
    return "" if name is None else name["date"]


def read_samples(path: Path) -> Samples:
    """The samples of one file. Raises DataError, with file and line, for damaged or repeated samples."""
    samples: Samples = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)  # accepts NaN and Infinity, which lm-eval writes
        except ValueError as error:
            raise DataError(f"{where}: not JSON ({error}); the file is damaged or cut short") from error
        missing = [key for key in ("doc_id", "doc", "doc_hash") if not isinstance(row, dict) or key not in row]
        if missing:
            raise DataError(f"{where}: has no {', '.join(missing)}; a line of --log_samples of lm-eval 0.4 has")
        if not isinstance(row["doc_id"], int) or isinstance(row["doc_id"], bool):
            raise DataError(f"{where}: doc_id is {row['doc_id']!r}, not a whole number")
        of_filter = samples.setdefault(str(row.get("filter", NO_FILTER)), {})
        if row["doc_id"] in of_filter:
            raise DataError(f"{where}: doc_id {row['doc_id']} is there a second time")
        of_filter[row["doc_id"]] = _sample(row)
    if not samples:
        raise DataError(f"{path} is empty")
    return samples


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, line
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}, line {number + 1}: cannot be read ({error})") from error


# Maximum length of a field that can give a cluster; a longer field is a text.
LONGEST_FIELD = 200
# The keys that lm-eval writes in addition to the metrics.
_KEYS = (
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
    "prompt_hash", "target_hash",
)  # fmt: skip


def _sample(row: Mapping[str, object]) -> Sample:
    metrics = row.get("metrics")
    names: list[str] = metrics if isinstance(metrics, list) else [key for key in row if key not in _KEYS]
    doc = row["doc"] if isinstance(row["doc"], dict) else {}
    return Sample(
        doc_hash=str(row["doc_hash"]),
        prompt_hash=str(row.get("prompt_hash", "")),
        metrics={name: row.get(name) for name in names},
        fields={k: str(v) for k, v in doc.items() if isinstance(v, str | int) and len(str(v)) <= LONGEST_FIELD},
        options=_options(row, names),
        labels={name: found for name, value in doc.items() if (found := _labels(value))},
    )


def _labels(value: object) -> tuple[int, ...]:
    """The labels of a field such as mc2_targets of TruthfulQA; empty for other fields."""
    labels = value.get("labels") if isinstance(value, dict) else None
    if not isinstance(labels, list) or not all(label in (0, 1) for label in labels):
        return ()
    return tuple(map(int, labels))


def _options(row: Mapping[str, object], metrics: Sequence[str]) -> int:
    """The number of options whose log-likelihoods were compared; 0 for other kinds of task."""
    answers = row.get("filtered_resps")
    if not isinstance(answers, list) or len(answers) < 2:
        return 0
    if not all(isinstance(answer, list) and len(answer) == 2 for answer in answers):
        return 0
    # The mutual-information metric scores every option a second time, without the question.
    return len(answers) // 2 if "acc_mutual_info" in metrics else len(answers)
