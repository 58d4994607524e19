"""The sources of items (this package, the hub, a folder), and the seeded sample for a limit."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from operator import attrgetter
from typing import Any

from llmkick.errors import ConfigError, DataError
from llmkick.files import named_path, sha256_of_file
from llmkick.tasks.data.hub import DataFile, fetch
from llmkick.tasks.data.published import DataSet
from llmkick.tasks.task import Item


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The origin of a task's published data. The constructor validates it without reading or downloading data.

    `source` is "hub" or a folder; `split`, `revision` and `sha256` (of one file, or by file name) may be None.
    Raises ConfigError for a missing source and for incompatible options.
    """

    task: str
    dataset: DataSet
    source: str
    split: str | None = None
    revision: str | None = None
    sha256: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.source != "hub" and not named_path(self.source).is_dir():
            raise ConfigError(f"unknown source {self.source!r} for {self.task}: neither pocket, hub nor a folder")
        if self.revision is not None and (self.source != "hub" or not self.revision.strip()):
            raise ConfigError(
                f"revision of {self.task} is a commit, branch or tag of source hub; got {self.revision!r}"
            )
        every = self.dataset.hub if self.source == "hub" else self.dataset.folder
        splits = [split for split in every if split not in self.dataset.beside]
        if self.split is not None and self.split not in splits:
            raise ConfigError(f"unknown split {self.split!r} of {self.dataset.name}; choose from: {', '.join(splits)}")
        for digest in self.sha256.values() if isinstance(self.sha256, Mapping) else [self.sha256]:
            if digest is not None and not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
                raise ConfigError(f"sha256 of {self.task} is 64 hexadecimal digits; got {digest!r}")

    def described(self) -> dict[str, str | None]:
        """The identity of the data, for the records of a run."""
        revision = (self.revision or self.dataset.revision) if self.source == "hub" else None
        return {"dataset": self.dataset.name, "repository": self.dataset.repository, "revision": revision,
                "split": self.split}  # fmt: skip

    def chosen_split(self, order: Sequence[str]) -> str:
        """The requested split, or the first split of `order` that the source has.

        Raises DataError if the folder has none of the splits.
        """
        if self.split is not None:
            return self.split
        if self.source == "hub":
            return order[0]
        for split in order:
            if self.has(split):
                return split
        raise DataError(self._nothing_in_folder(order))

    def has(self, split: str) -> bool:
        """Whether the folder has files of a split."""
        return bool(self._in_folder(split))

    def files(self, *splits: str) -> list[list[DataFile]]:
        """The files of each split, verified against the study's checksums, if any.

        Raises DataError if files are missing or differ, ConfigError if `sha256` names none of the files.
        """
        if self.source == "hub":
            by_split = fetch(self.dataset, [self.dataset.hub[split] for split in splits], self.revision)
        else:
            by_split = [self._in_folder(split) for split in splits]
            missing = [split for split, files in zip(splits, by_split, strict=True) if not files]
            if missing:
                raise DataError(self._nothing_in_folder(missing))
        self._check_digests([file for files in by_split for file in files])
        return by_split

    def _in_folder(self, split: str) -> list[DataFile]:
        folder = named_path(self.source)
        for pattern in self.dataset.folder[split]:
            if paths := sorted(path for path in folder.glob(pattern) if path.is_file()):
                return [DataFile(path, path.relative_to(folder).as_posix()) for path in paths]
        return []

    def _nothing_in_folder(self, splits: Sequence[str]) -> str:
        looked_for = ", ".join(pattern for split in splits for pattern in self.dataset.folder[split])
        return f"{self.source} holds no {self.dataset.name} ({' or '.join(splits)}); looked for {looked_for}"

    def _check_digests(self, files: Sequence[DataFile]) -> None:
        if self.sha256 is None:
            return
        if isinstance(self.sha256, str):
            if len(files) != 1:
                names = ", ".join(file.name for file in files[:3])
                raise ConfigError(
                    f"sha256 of {self.task}: {self.dataset.name} is {len(files)} files ({names}, …); "
                    'give each its own: sha256 = { "NAME" = "…" }'
                )
            expected: Mapping[str, str] = {files[0].name: self.sha256}
        else:
            expected = self.sha256
        paths = {file.name: file.path for file in files}
        for name, digest in expected.items():
            if name not in paths:
                raise ConfigError(f"sha256 of {self.task} names {name!r}; the files are {', '.join(list(paths)[:8])}")
            actual = sha256_of_file(paths[name])
            if actual != digest:
                raise DataError(f"{name} of {self.dataset.name} has sha256 {actual}, but the study demands {digest}")


def origin_of(task: Any, dataset: DataSet) -> Origin | None:
    """The origin of a task's data from its fields; None for the data sets in this package.

    Raises ConfigError if `Origin` does, and for options of published data with the pocket source.
    """
    if task.source != "pocket":
        return Origin(
            task=task.name,
            dataset=dataset,
            source=task.source,
            split=task.split,
            revision=task.revision,
            sha256=task.sha256,
        )
    for option in ("split", "revision", "sha256"):
        if getattr(task, option) is not None:
            raise ConfigError(f"{option} of {task.name} is for source hub or a folder, not for pocket")
    return None


def read_pocket(file: str, required: Sequence[str]) -> list[dict[str, Any]]:
    """The rows of a data set in this package (JSON lines).

    Raises DataError, with file, line and field, if a row is damaged.
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


def stratified_sample(
    items: Sequence[Item], limit: int | None, seed: int, *, by: Callable[[Item], str] = attrgetter("cluster")
) -> list[Item]:
    """A seeded random sample of `limit` items, stratified by cluster; all items without a limit.

    `by` gives the stratum of an item, if not its cluster.
    The items keep their order, so items of the same cluster, which often share a prompt, stay together.
    """
    if limit is None or limit >= len(items):
        return list(items)
    generator = random.Random(seed)  # noqa: S311 - sampling, not cryptography
    clusters: dict[str, list[int]] = {}
    for index, item in enumerate(items):
        clusters.setdefault(by(item), []).append(index)
    for members in clusters.values():
        generator.shuffle(members)
    order = list(clusters.values())
    generator.shuffle(order)
    # Systematic sampling takes every (len/limit)-th item of the shuffled clusters, so each keeps its proportion.
    line = [index for members in order for index in members]
    step = len(line) / limit
    start = generator.random() * step
    chosen = sorted(line[int(start + step * count)] for count in range(limit))
    return [items[index] for index in chosen]
