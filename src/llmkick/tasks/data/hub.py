"""Download of published data sets: files are cached, verified against the host's checksums and pinned by a lock file.

Three checks protect a file. First, the revision is a commit from `published.py` or from the study. Second, the host
states a checksum: the sha256 of a large file or the git blob id of a small file (GitHub states no checksum). Third,
the first download writes the commit and the sha256 of every file to a lock file in the cache; any later difference is
an error.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import re
import tempfile
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmkick.errors import DataError, one_line
from llmkick.files import cache_folder, sha256_of_file, write_cached, writing_cache
from llmkick.tasks.data.published import DataSet

GITHUB = "https://raw.githubusercontent.com"
TIMEOUT_SECONDS = 60
COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class DataFile:
    """A local file and its name within its data set."""

    path: Path
    name: str


def fetch(dataset: DataSet, patterns: Sequence[str], revision: str | None = None) -> list[list[DataFile]]:
    """The files that match each pattern at a revision, from the cache or the network.

    Raises DataError if the files are unavailable or differ from the pinned files.
    """
    wanted = revision or dataset.revision
    lock = _Lock(dataset, wanted)
    paths = []
    for pattern in patterns:
        try:
            names = lock.names(pattern)
            stated: dict[str, tuple[str, str]] = {}
            if names is None:
                names, stated = _ask(dataset, pattern, lock)
            files = [DataFile(_download(dataset, name, lock), name) for name in names]
        except DataError:
            raise
        except Exception as error:
            raise DataError(_unreachable(dataset, wanted, error)) from error
        for file in files:
            _check_stated(dataset, file, stated.get(file.name))
            lock.check(file)
        lock.remember(pattern, names)
        paths.append(files)
    return paths


def _unreachable(dataset: DataSet, wanted: str, error: Exception) -> str:
    return (
        f"cannot get {dataset.name} ({dataset.repository}, revision {wanted}) from {_host(dataset)}, "
        f"and it is not cached: {one_line(error)}\n"
        'Check the network and the revision, or give source = "FOLDER" with the official files (docs/data.md)'
    )


def _host(dataset: DataSet) -> str:
    return "the hub" if dataset.host == "hub" else "GitHub"


class _Lock:
    """The lock entry of one requested revision of a data set: commit, file names and sha256 of each file."""

    def __init__(self, dataset: DataSet, wanted: str) -> None:
        self.dataset, self.wanted = dataset, wanted
        self.path = cache_folder("data") / f"{dataset.repository.replace('/', '--')}.lock.json"
        self.entry: dict[str, Any] = self._read().get(wanted, {"commit": None, "patterns": {}, "sha256": {}})

    def _read(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            for entry in content.values():
                if not isinstance(entry["patterns"], dict) or not isinstance(entry["sha256"], dict):
                    raise TypeError("no table of files")
            return dict(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"the lock file {self.path} is damaged ({error}): delete it to pin anew") from error

    @property
    def commit(self) -> str:
        """The commit to fetch from: the pinned commit, else the requested revision."""
        return self.entry["commit"] or self.wanted

    def pin(self, commit: str) -> None:
        """Store the commit of the revision. Raises DataError if it differs from the requested commit."""
        expected = self.entry["commit"] or (self.wanted if COMMIT.fullmatch(self.wanted) else commit)
        if commit != expected:
            raise DataError(
                f"{self.dataset.name}: asked for revision {expected}, but the hub answers with {commit}; "
                "check `revision` in the study"
            )
        self.entry["commit"] = commit

    def names(self, pattern: str) -> list[str] | None:
        """The names of the files that match a pattern; None if the lock file does not have the pattern."""
        names: list[str] | None = self.entry["patterns"].get(pattern)
        return names

    def check(self, file: DataFile) -> None:
        """Pin the sha256 of a new file. Raises DataError if a file differs from its pinned sha256."""
        digest = sha256_of_file(file.path)
        recorded = self.entry["sha256"].setdefault(file.name, digest)
        if digest != recorded:
            raise DataError(
                f"{file.name} of {self.dataset.name} has sha256 {digest}, but the first download was {recorded}: the "
                f"file is damaged or was changed. Delete {file.path.resolve()} to fetch it again, or, when the new "
                f"file is the right one, {self.path} to pin anew"
            )

    def remember(self, pattern: str, names: list[str]) -> None:
        """Write the lock file if it does not have these files yet."""
        if self.entry["patterns"].get(pattern) != names:
            self.entry["patterns"][pattern] = names
            content = {**self._read(), self.wanted: self.entry}
            write_cached(self.path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def _ask(dataset: DataSet, pattern: str, lock: _Lock) -> tuple[list[str], dict[str, tuple[str, str]]]:
    """The names of the files that match a pattern, and the hub's checksum of each file: (kind, hex)."""
    if dataset.host == "github":
        return [pattern], {}
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    info = api.dataset_info(dataset.repository, revision=lock.commit, files_metadata=True, timeout=TIMEOUT_SECONDS)
    lock.pin(str(info.sha))
    siblings = sorted(info.siblings or [], key=lambda file: file.rfilename)
    matching = [file for file in siblings if fnmatch.fnmatchcase(file.rfilename, pattern)]
    if not matching:
        there = ", ".join(file.rfilename for file in siblings[:8])
        raise DataError(f"{dataset.repository} at {lock.commit} has no file {pattern}; it has {there}, …")
    stated = {}
    for file in matching:
        if file.lfs is not None:
            stated[file.rfilename] = ("sha256", file.lfs.sha256)
        elif file.blob_id:
            stated[file.rfilename] = ("git", file.blob_id)
    return [file.rfilename for file in matching], stated


def _check_stated(dataset: DataSet, file: DataFile, stated: tuple[str, str] | None) -> None:
    """Raise DataError if a file does not match the checksum that its host states."""
    if stated is None:
        return
    kind, expected = stated
    if kind == "sha256":
        digest = sha256_of_file(file.path)
    else:
        content = file.path.read_bytes()
        digest = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    if digest != expected:
        raise DataError(
            f"{file.name} of {dataset.name} has {kind} checksum {digest}, but the hub states {expected}: the download "
            f"is damaged. Delete {file.path.resolve()} and try again"
        )


def _download(dataset: DataSet, name: str, lock: _Lock) -> Path:
    if dataset.host == "github":
        return _download_plain(dataset, name, lock.commit)
    from huggingface_hub import hf_hub_download

    return Path(
        hf_hub_download(
            dataset.repository,
            name,
            repo_type="dataset",
            revision=lock.commit,
            endpoint=os.environ.get("HF_ENDPOINT"),
            cache_dir=os.environ.get("HF_HUB_CACHE"),
        )
    )


def _download_plain(dataset: DataSet, name: str, revision: str) -> Path:
    folder = cache_folder("data")
    target = folder / dataset.repository.replace("/", "--") / revision.replace("/", "--") / name
    if target.exists():
        return target
    base = os.environ.get("LLMKICK_GITHUB", GITHUB)
    address = f"{base}/{dataset.repository}/{revision}/{name}"
    with urllib.request.urlopen(address, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310 - https, or a test's loopback
        content = answer.read()
    with writing_cache():
        # Hidden: `kick cache --clear` takes it for what is being written.
        with tempfile.NamedTemporaryFile(prefix=".", dir=folder, delete=False) as stream:
            stream.write(content)
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(stream.name).replace(target)
    return target
