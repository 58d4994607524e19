"""A store of finished compressions that machines share, on any file system that fsspec supports.

A model is compressed in the cache of a machine and then copied to the store; other machines copy it to their caches.
The store is a folder that all machines can reach, or a URL such as `s3://bucket/folder` or `gs://…`, for which the
matching fsspec package must be installed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llmkick.compression.storage.cache import name_of
from llmkick.compression.walk.finished_blocks import STATE_FILE, delete_blocks
from llmkick.errors import ConfigError, ModelError, one_line
from llmkick.files import sha256_of_file

# File name → sha256. Written last: all files that it lists are there and complete.
LISTING = "listing.json"


@dataclass(frozen=True)
class ArtifactStore:
    """Finished compressions below a folder or URL, in one folder each."""

    url: str

    def check(self) -> None:
        """Raise ConfigError when the store cannot be written to or read from."""
        probe = f".write-test-{os.getpid()}"
        try:
            files, root = self._open()
            files.makedirs(root, exist_ok=True)
            files.pipe_file(f"{root}/{probe}", b"llmkick")
            content = files.cat_file(f"{root}/{probe}")
            files.rm_file(f"{root}/{probe}")
        except ImportError as error:
            raise ConfigError(f"--artifacts {self.shown}: {error}") from error
        except Exception as error:
            raise ConfigError(
                f"--artifacts {self.shown} cannot be written: {one_line(error)}; give a folder that every machine "
                "sees, or a URL and the rights to write there"
            ) from error
        if content != b"llmkick":
            raise ConfigError(f"--artifacts {self.shown} gives back other bytes than were written there")

    def fetch(self, key: Mapping[str, Any], folder: Path) -> bool:
        """Copy a finished compression into a folder of the cache. False when the store does not have it.

        Raises ModelError when it is damaged, and leaves the folder empty.
        """
        files, root = self._open()
        place = f"{root}/{name_of(key)}"
        try:
            text = files.cat_file(f"{place}/{LISTING}")
        except FileNotFoundError:
            return False
        try:
            listing: dict[str, str] = json.loads(text)
            # The state file last, and no earlier one meanwhile: a folder without it counts as empty.
            (folder / STATE_FILE).unlink(missing_ok=True)
            for name in sorted(listing, key=lambda name: name == STATE_FILE):
                if Path(name).name != name:
                    raise ModelError(f"{name} in its listing is no plain name")
                _get(files, f"{place}/{name}", folder / name, listing[name])
        except (OSError, ValueError, ModelError) as error:
            delete_blocks(folder)
            folder.mkdir(exist_ok=True)
            raise ModelError(f"the shared compressed model {name_of(key)} is damaged: {error}") from error
        return True

    def has(self, key: Mapping[str, Any]) -> bool:
        """Whether a finished compression is in the store; False where it does not answer."""
        try:
            files, root = self._open()
            return bool(files.exists(f"{root}/{name_of(key)}/{LISTING}"))
        except OSError:
            return False

    def put(self, key: Mapping[str, Any], folder: Path, *, anew: bool = False) -> None:
        """Copy a finished compression to the store. Does nothing if the store has it, unless `anew`."""
        files, root = self._open()
        place = f"{root}/{name_of(key)}"
        if not anew and files.exists(f"{place}/{LISTING}"):
            return
        names = sorted(file.name for file in folder.glob("block-*.safetensors"))
        files.makedirs(place, exist_ok=True)
        for name in (*names, STATE_FILE):
            files.put_file(str(folder / name), f"{place}/{name}")
        listing = {name: sha256_of_file(folder / name) for name in (*names, STATE_FILE)}
        files.pipe_file(f"{place}/{LISTING}", json.dumps(listing, indent=1).encode())

    @property
    def shown(self) -> str:
        """The URL without its password."""
        parts = urlsplit(self.url)
        return self.url.replace(f"{parts.netloc}", parts.netloc.rpartition("@")[2]) if parts.password else self.url

    def _open(self) -> tuple[Any, str]:
        import fsspec

        files, root = fsspec.core.url_to_fs(self.url)
        return files, str(root).rstrip("/")


def _get(files: Any, source: str, target: Path, sha256: str) -> None:
    """Copy a file, under another name until it is checked. Raises ModelError for another checksum.

    A file of the target's name stays as it is for whoever has it under a second name, as a folder in compact form may.
    """
    temporary = target.with_name(f".{target.name}.fetched")
    try:
        temporary.unlink(missing_ok=True)
        files.get_file(source, str(temporary))
        if sha256_of_file(temporary) != sha256:
            raise ModelError(f"{target.name} has another checksum than when it was written")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
