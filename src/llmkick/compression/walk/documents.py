"""Documents to calibrate on: text files, JSON lines, folders of them, and the first shard of C4."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llmkick.errors import ConfigError, DataError, ModelError, one_line

C4_REPOSITORY = "allenai/c4"
C4_FILE = "en/c4-train.00000-of-01024.json.gz"
C4_REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"


def read_documents(path: Path) -> Iterator[str]:
    """The documents of a file or folder: a .txt file is one, JSON lines give their "text"; either may be .gz.

    Raises ConfigError for a path that does not exist, DataError naming file and line for what cannot be read.
    """
    if path.is_dir():
        endings = (".txt", ".jsonl", ".json", ".gz")
        files = sorted(file for file in path.rglob("*") if file.name.endswith(endings) and file.is_file())
        if not files:
            raise DataError(f"{path} holds no .txt, .jsonl, .json or .gz file to calibrate on")
        for file in files:
            yield from read_documents(file)
        return
    if not path.is_file():
        raise ConfigError(f"calibration source {str(path)!r} is neither self, pocket, auto, c4, a file nor a folder")
    opening: Any = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        if path.name.removesuffix(".gz").endswith(".txt"):
            with opening(path, "rt", encoding="utf-8") as stream:
                yield stream.read()
            return
        with opening(path, "rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield _text_of(line, path, number)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        where = f"past line {number}" if number else "to its end"
        raise DataError(f"{path} cannot be read {where}: {error}") from error


def _text_of(line: bytes, path: Path, number: int) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError) as error:  # ValueError: neither JSON nor UTF-8
        raise DataError(f'{path}, line {number}: expected a JSON object with a "text" field') from error
    if not isinstance(text, str):
        raise DataError(f'{path}, line {number}: "text" is {type(text).__name__}, not text')
    return text


def c4_shard() -> Path:
    """The first training shard of C4, from the hub or its cache. Raises ModelError when it is in neither."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(C4_REPOSITORY, C4_FILE, repo_type="dataset", revision=C4_REVISION))
    except Exception as error:
        raise ModelError(
            f"cannot get the C4 shard from the hub, and it is not cached: {one_line(error)}\n"
            'Use calibration source "self" or "pocket" (offline), or a local file or folder of text.'
        ) from error
