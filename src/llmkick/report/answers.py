"""Questions and answers for the page's browser, stored compactly: every text once, scores as lists."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pandas as pd

from llmkick.report.cells import ordered_tasks
from llmkick.report.reading import Run
from llmkick.report.tables import plain_rows
from llmkick.study.results import CONTROL_METRICS

# Longer passages are cut on the page; the journal holds them whole.
LONGEST_TEXT = 4000
# Beyond this many characters of JSON the page carries it deflated; browsers since 2023 unpack that themselves.
PLAIN_LIMIT = 1_000_000


def answers_payload(run: Run) -> dict[str, Any]:
    """The questions of every task that has any, and what each compressed model answered.

    `variants` are the models, dense first; a task's `answers[variant]` holds, in the order of its items, the
    place of the answer in `texts`, the score (null if unscored), and the place of the reason or −1.
    """
    texts = _Texts()
    variants = _variants(run)
    places = {variant: i for i, variant in enumerate(variants)}
    tasks = []
    for task in ordered_tasks(run.result):
        items = run.items[run.items["task"] == task["name"]]
        if task["metric"] in CONTROL_METRICS or items.empty:
            continue
        records = run.records[run.records["task"] == task["name"]]
        by_variant: list[Any] = [None] * len(variants)
        for (recipe, seed), cell in records.groupby(["recipe", "seed"], dropna=False):
            if (variant := _variant(recipe, seed)) in places:
                by_variant[places[variant]] = _answers(cell, items, texts)
        tasks.append({"name": task["name"], "items": _items(items, texts), "answers": by_variant})
    several = len({seed for _, seed in variants if seed is not None}) > 1
    named = [
        {"recipe": recipe, "label": f"{recipe}, seed {seed}" if several and seed is not None else recipe}
        for recipe, seed in variants
    ]
    return {"variants": named, "tasks": tasks, "texts": texts.all}


def embedded(value: Any) -> str:
    """JSON that can stand inside a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    # A lone surrogate has no UTF-8 form; as an escape it is valid JSON.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def packed(value: Any) -> str:
    """Like `embedded`; a large value is deflated: {"deflated": base64 of zlib of its JSON}."""
    text = embedded(value)
    if len(text) <= PLAIN_LIMIT:
        return text
    return embedded({"deflated": base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode("ascii")})


class _Texts:
    """Texts in the order they were first seen, each kept once."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._place: dict[str, int] = {}

    def place(self, text: str) -> int:
        if len(text) > LONGEST_TEXT:
            text = f"{text[:LONGEST_TEXT]}… [{len(text) - LONGEST_TEXT:,} more characters]"
        if text not in self._place:
            self._place[text] = len(self.all)
            self.all.append(text)
        return self._place[text]


def _items(items: pd.DataFrame, texts: _Texts) -> list[list[Any]]:
    """[id, cluster, question, context, references, choices], texts by their place."""
    rows: list[dict[Any, Any]] = items.to_dict("records")
    return [
        [
            row["item_id"],
            *(texts.place(row[key]) for key in ("cluster", "question", "context")),
            *([texts.place(str(text)) for text in row[key]] for key in ("reference", "choices")),
        ]
        for row in rows
    ]


def _answers(cell: pd.DataFrame, items: pd.DataFrame, texts: _Texts) -> list[list[Any]]:
    """[answers, scores, reasons, items cut short]."""
    by_item = {row["item_id"]: row for row in plain_rows(cell.drop(columns="details"))}
    rows = [by_item.get(item, _NEVER_ASKED) for item in items["item_id"]]
    return [
        [texts.place(row["response"]) for row in rows],
        [None if row["score"] is None else _short(row["score"]) for row in rows],
        [-1 if row["score"] is not None else texts.place(str(row["unscored_reason"])) for row in rows],
        [i for i, row in enumerate(rows) if row["truncated"]],
    ]


_NEVER_ASKED = {"response": "", "score": None, "unscored_reason": "never asked", "truncated": False}


def _short(score: float) -> float:
    return int(score) if score == int(score) else round(score, 4)


def _variants(run: Run) -> list[tuple[str, int | None]]:
    """Every (recipe, seed) that was asked: dense, then the study's order."""
    pairs = plain_rows(run.records[["recipe", "seed"]].drop_duplicates())
    order = ["dense", *run.result.labels]
    found = [_variant(row["recipe"], row["seed"]) for row in pairs if row["recipe"] in order]
    return sorted(found, key=lambda variant: (order.index(variant[0]), variant[1] or 0))


def _variant(recipe: Any, seed: Any) -> tuple[str, int | None]:
    return str(recipe), None if pd.isna(seed) else int(seed)
