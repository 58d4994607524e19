"""Compressed models shared between machines: finished ones by the hash of what decides them, on any file system.

Beside the cache of a machine, from which a model is recalled, and which alone is worked in. Whatever fsspec reaches
will do: a folder that all machines see, `s3://bucket/folder`, `gs://…`, where the package for it is installed.
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
from llmkick.compression.walk.finished_blocks import STATE_FILE
from llmkick.errors import ConfigError, ModelError, one_line
from llmkick.files import sha256_of_file

# Written last: what it lists is there, whole, with these checksums.
LISTING = "listing.json"


@dataclass(frozen=True)
class ArtifactStore:
    """Finished compressions below a folder or URL, one folder each."""

    url: str

    def check(self) -> None:
        """Raise ConfigError when nothing can be written and read there."""
        probe = f".write-test-{os.getpid()}"
        try:
            files, root = self._open()
            files.makedirs(root, exist_ok=True)
            files.pipe_file(f"{root}/{probe}", b"llmkick")
            seen = files.cat_file(f"{root}/{probe}")
            files.rm_file(f"{root}/{probe}")
        except ImportError as error:
            raise ConfigError(f"--artifacts {self.shown}: {error}") from error
        except Exception as error:
            raise ConfigError(
                f"--artifacts {self.shown} cannot be written: {one_line(error)}; give a folder that every machine "
                "sees, or a URL and the rights to write there"
            ) from error
        if seen != b"llmkick":
            raise ConfigError(f"--artifacts {self.shown} gives back other bytes than were written there")

    def fetch(self, key: Mapping[str, Any], folder: Path) -> bool:
        """Copy a finished compression into a folder of the cache; False when there is none.

        Raises ModelError when it is damaged: the folder is then empty.
        """
        files, root = self._open()
        place = f"{root}/{name_of(key)}"
        try:
            text = files.cat_file(f"{place}/{LISTING}")
        except FileNotFoundError:
            return False
        try:
            listing: dict[str, str] = json.loads(text)
            # The state last: without it the folder holds nothing.
            for name in sorted(listing, key=lambda name: name == STATE_FILE):
                if Path(name).name != name:
                    raise ModelError(f"{name} in its listing is no plain name")
                files.get_file(f"{place}/{name}", str(folder / name))
                if sha256_of_file(folder / name) != listing[name]:
                    raise ModelError(f"{name} has another checksum than when it was written")
        except (OSError, ValueError, ModelError) as error:
            for file in folder.iterdir():
                file.unlink()
            raise ModelError(f"the shared compressed model {name_of(key)} is damaged: {error}") from error
        return True

    def put(self, key: Mapping[str, Any], folder: Path, *, anew: bool = False) -> None:
        """Share a finished compression; what is there already stays, unless it is to be put `anew`."""
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
        """The URL without a password that it may hold."""
        parts = urlsplit(self.url)
        return self.url.replace(f"{parts.netloc}", parts.netloc.rpartition("@")[2]) if parts.password else self.url

    def _open(self) -> tuple[Any, str]:
        import fsspec

        files, root = fsspec.core.url_to_fs(self.url)
        return files, str(root).rstrip("/")
