"""Where items come from, and the seeded sample that a limit takes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from importlib import resources
from typing import Any

from llmkick.errors import ConfigError, DataError
from llmkick.tasks.task import Item


def require_pocket(task: str, source: str) -> None:
    """Raise ConfigError for a source other than the data sets in this package."""
    if source != "pocket":
        raise ConfigError(f"unknown source {source!r} for {task}; choose from: pocket")


def read_pocket(file: str, required: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of one of this package's own data sets (JSON lines).

    Raises DataError naming file, line and field when a row is damaged.
    """
    text = resources.files("llmkick.tasks.pocket").joinpath(file).read_text(encoding="utf-8")
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}, line {number}: not JSON ({error})") from error
        missing = [name for name in required if name not in row]
        if missing:
            raise DataError(f"{file}, line {number}: no field {', '.join(missing)}")
        rows.append(row)
    return rows


def stratified_sample(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """A seeded random sample of `limit` items with each cluster's share kept; all items without a limit.

    The items keep their order, so that those of one cluster, which often share a prompt, stay together.
    """
    if limit is None or limit >= len(items):
        return list(items)
    generator = random.Random(seed)  # noqa: S311 - sampling, not cryptography
    clusters: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        clusters.setdefault(item.cluster, []).append(index)
    for members in clusters.values():
        generator.shuffle(members)
    order = list(clusters.values())
    generator.shuffle(order)
    # Systematic sampling: every len/limit-th item along the shuffled clusters gives each cluster its share.
    line = [index for members in order for index in members]
    step = len(line) / limit
    start = generator.random() * step
    chosen = sorted(line[int(start + step * count)] for count in range(limit))
    return [items[index] for index in chosen]
