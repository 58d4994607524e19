"""Questions and answers for the answer browser: inside the page if they fit, otherwise in files next to it.

A part is a table of texts, and rows that refer to texts by index, so a repeated text is stored once. A small study
is one part inside the page. For a large study, the page holds a sample of every task, and the folder `report-items`
next to it holds all answers: for each task its questions, its prompts, and one file for each model's answers. The
files are scripts, because a page opened from disk can read no other files. The page loads them on request.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from llmkick.files import write_text
from llmkick.report.lookup import ordered_tasks
from llmkick.report.page.embedding import deflated, packed, sha256
from llmkick.report.payload import Payload
from llmkick.report.run_folder import Run
from llmkick.statistics import spread_places
from llmkick.study.journal.journal import CellEntry
from llmkick.study.journal.prompts import PromptPart, unpacked

ITEMS_FOLDER = "report-items"
# The page truncates longer passages; the journal holds the full text.
LONGEST_TEXT = 4000
# Most characters of answers inside a page; with figures and library, the page stays below six megabytes.
PAGE_LIMIT = 3_500_000
# With more records, the page gets a sample without a trial of the full set, which saves memory.
MOST_RECORDS = 300_000
SMALLEST_SAMPLE = 5

Variant = tuple[str, int | None]
# Columns of values, as the page's script reads them.
Columns = list[list[object]]


def write_answers(run: Run, folder: Path, start: Mapping[str, str], build: str) -> str:
    """The answers as JSON for the page; answers that do not fit are written to `folder/report-items`.

    `build` identifies this version of the report: a page does not load files of another version.
    """
    shutil.rmtree(folder / ITEMS_FOLDER, ignore_errors=True)
    if sum(cell.records for cell in run.cells) <= MOST_RECORDS:
        text = packed({**answers_payload(run), "start": start})
        if len(text) <= PAGE_LIMIT:
            return text
    files = {}
    for name, content in _files(run):
        write_text(folder / ITEMS_FOLDER / f"{name}.js", f'kickItems("{build}","{name}","{content}");\n')
        files[name] = sha256(content)
    beside = {"folder": ITEMS_FOLDER, "build": build, "files": files}
    return _sampled(run, {"start": start, "beside": beside})


def _sampled(run: Run, common: Payload) -> str:
    """The largest evenly spread sample of each task's items that fits into the page."""
    cells = max(1, len(run.cells))
    sample = max(SMALLEST_SAMPLE, MOST_RECORDS // 2 // cells)
    while True:
        text = packed({**answers_payload(run, sample=sample), **common})
        if len(text) <= PAGE_LIMIT or sample <= SMALLEST_SAMPLE:
            return text
        sample = max(SMALLEST_SAMPLE, sample // 2)


def answers_payload(run: Run, *, sample: int | None = None) -> Payload:
    """The questions of every task that has questions, and each model's answers.

    `variants` are the models, dense first, recovered ones with the number of their `base`; a task's `answers[variant]`
    holds, in the order of its items, the index of the answer in `texts`, the score (null if unscored), the index of the
    reason or −1, and the items that were truncated. `total` is the number of all items, also if only a `sample` of them
    is included.
    """
    texts = _Texts()
    tasks = []
    variants = _variants(run)
    for name, items, cells in _asked(run):
        shown = items if sample is None else items.iloc[spread_places(len(items), sample)]
        by_variant = [_answers(run, cells[variant], shown, texts) if variant in cells else None for variant in variants]
        prompts = _prompts(run, name, set(shown["item_id"]))
        tasks.append(
            {
                "name": name, "total": len(items), "items": _items(shown, texts), "prompts": prompts,
                "answers": by_variant,
            }
        )  # fmt: skip
    return {"variants": _labels(run, variants), "tasks": tasks, "texts": texts.all}


def _files(run: Run) -> Iterator[tuple[str, str]]:
    """Every part, deflated: `0-items`, `0-prompts`, `0-3` (the answers of variant 3 to task 0), …"""
    variants = _variants(run)
    for number, (name, items, cells) in enumerate(_asked(run)):
        texts = _Texts()
        yield f"{number}-items", deflated({"items": _items(items, texts), "texts": texts.all})
        prompts = _prompts(run, name, set(items["item_id"]))
        if prompts["of"]:
            yield f"{number}-prompts", deflated(prompts)
        for place, variant in enumerate(variants):
            if variant in cells:
                texts = _Texts()
                answers = _answers(run, cells[variant], items, texts)
                yield f"{number}-{place}", deflated({"answers": answers, "texts": texts.all})


class _Texts:
    """Distinct texts, in order of first occurrence."""

    def __init__(self, longest: int = LONGEST_TEXT) -> None:
        self.all: list[str] = []
        self._longest = longest
        self._place: dict[str, int] = {}

    def place(self, text: str) -> int:
        number = self._place.get(text)
        if number is None:
            number = self._place[text] = len(self.all)
            if len(text) > self._longest:
                text = f"{text[: self._longest]}… [{len(text) - self._longest:,} more characters]"
            self.all.append(text)
        return number


def _asked(run: Run) -> Iterator[tuple[str, pd.DataFrame, dict[Variant, CellEntry]]]:
    """Each task that has questions and was run: its name, its items, its cells."""
    for task in ordered_tasks(run.result):
        items = run.items[run.items["task"] == task.name]
        if not task.is_control and not items.empty:
            cells = {(cell.recipe, cell.seed): cell for cell in run.cells if cell.task == task.name}
            yield task.name, items, cells


def _items(items: pd.DataFrame, texts: _Texts) -> Columns:
    """[id, cluster, question, context, references, choices], with texts as indices."""
    place = texts.place
    columns = (items[key] for key in ("item_id", "cluster", "question", "context", "reference", "choices"))
    return [
        [item, *map(place, texts), [place(str(text)) for text in right], [place(str(text)) for text in choices]]
        for item, *texts, right, choices in zip(*columns, strict=True)
    ]


def _answers(run: Run, cell: CellEntry, items: pd.DataFrame, texts: _Texts) -> Columns:
    """[answers, scores, reasons, truncated items]."""
    assert run.journal is not None
    by_item = {row[0]: row for row in run.journal.answers(cell.run_key)}
    rows = [by_item.get(item, _NEVER_ASKED) for item in items["item_id"]]
    return [
        [texts.place(row[1]) for row in rows],
        [None if row[2] is None else _short(row[2]) for row in rows],
        [-1 if row[2] is not None else texts.place(str(row[3])) for row in rows],
        [i for i, row in enumerate(rows) if row[4]],
    ]


_NEVER_ASKED: tuple[str, str, float | None, str, int] = ("", "", None, "never asked", 0)


def _prompts(run: Run, task: str, wanted: set[str]) -> Payload:
    """{"texts", "of": item → [base text or −1, head, tail, middle]}: the prompt of each item, in UTF-16 units.

    A prompt is its base's first `head` units, the middle, and the base's last `tail` units.
    """
    assert run.journal is not None
    parts = run.journal.prompts(task)
    bases = unpacked(part for part in parts if part.base == part.item_id)
    texts = _Texts(longest=sys.maxsize)
    stored = [part for part in parts if part.item_id in wanted and part.base in bases]
    return {"of": {part.item_id: _prompt(part, bases[part.base], texts) for part in stored}, "texts": texts.all}


def _prompt(part: PromptPart, base: str, texts: _Texts) -> list[int]:
    if part.item_id == part.base:
        return [-1, 0, 0, texts.place(base)]
    head, tail = _units(base[: part.head]), _units(base[len(base) - part.tail :])
    return [texts.place(base), head, tail, texts.place(part.middle)]


def _units(text: str) -> int:
    """The length of a text in UTF-16 code units, as in JavaScript."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _short(score: float) -> float:
    return int(score) if score == int(score) else round(score, 4)


def _variants(run: Run) -> list[Variant]:
    """Every (recipe, seed) that was run: dense first, then in the study's order."""
    order = ["dense", *run.result.labels]
    shown = {(cell.recipe, cell.seed) for cell in run.cells if cell.recipe in order}
    return sorted(shown, key=lambda variant: (order.index(variant[0]), variant[1] or 0))


def _labels(run: Run, variants: Sequence[Variant]) -> list[Payload]:
    """Recipe and label of each model; of a recovered one the number of its base too, of the same seed if it has one."""
    several = len({seed for _, seed in variants if seed is not None}) > 1
    base = {row.recipe: row.base for row in run.result.returned}
    labels: list[Payload] = []
    for recipe, seed in variants:
        label: Payload = {
            "recipe": recipe,
            "label": f"{recipe}, seed {seed}" if several and seed is not None else recipe,
        }
        bases = [
            place for place, of in enumerate(variants) if of in ((base.get(recipe), seed), (base.get(recipe), None))
        ]
        labels.append({**label, "base": bases[0]} if bases else label)
    return labels
