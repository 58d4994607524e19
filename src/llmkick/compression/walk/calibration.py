"""Token windows that calibrate a compression: drawn from text, or sampled by the dense model itself."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llmkick.errors import ConfigError, DataError, ModelError, NumericalError, one_line
from llmkick.files import cache_folder
from llmkick.models.engine.runner import Runner
from llmkick.models.transformers_model import TransformersModel

TokenIds = npt.NDArray[np.int64]

C4_REPOSITORY = "allenai/c4"
C4_FILE = "en/c4-train.00000-of-01024.json.gz"
C4_REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"

# Part of the cache key of self-sampled text: raise it when the sampling changes.
SAMPLING_VERSION = 1
# Rows sampled together: enough to fill the arithmetic units, small enough for a long window on a laptop.
SAMPLING_ROWS = 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Calibration windows: `tokens` (sequences, tokens) int64, where they came from, and the seed."""

    tokens: TokenIds
    source: str
    seed: int

    @property
    def digest(self) -> str:
        """sha256 over shape and token ids."""
        header = f"{self.tokens.shape}\0".encode()
        return hashlib.sha256(header + np.ascontiguousarray(self.tokens, dtype="<i8").tobytes()).hexdigest()


def as_calibration(calibration: Calibration | npt.ArrayLike) -> Calibration:
    """A Calibration as it is, or token ids (sequences, tokens) wrapped into one.

    Raises ConfigError for anything that is not a non-empty two-dimensional integer array.
    """
    if isinstance(calibration, Calibration):
        return calibration
    tokens = np.asarray(calibration)
    if tokens.ndim != 2 or tokens.size == 0 or not np.issubdtype(tokens.dtype, np.integer):
        raise ConfigError(
            f"calibration must be integer token ids (sequences, tokens); got {tokens.dtype} of shape {tokens.shape}"
        )
    return Calibration(tokens=tokens.astype(np.int64), source="token ids", seed=0)


def calibrate(
    model: TransformersModel,
    *,
    source: str = "self",
    sequences: int = 32,
    length: int = 512,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Draw `sequences` windows of `length` tokens.

    `source` is "self" (text that the model samples, cached), "c4" (first training shard, from the hub), or
    a .txt, .json(l) or .gz file or a folder of them. Documents no longer than a window are skipped.
    Raises ConfigError or DataError when the source cannot give such windows.
    """
    if sequences < 1 or length < 2:
        raise ConfigError(f"calibration needs sequences >= 1 and length >= 2; got {sequences} and {length}")
    if length > model.max_tokens:
        raise ConfigError(f"calibration length {length} exceeds the model's context of {model.max_tokens} tokens")
    if source == "self":
        tokens = _self_sampled(model, sequences, length, seed, progress)
    else:
        path = _c4_shard() if source == "c4" else Path(source).expanduser()
        tokens = draw_windows(list(read_documents(path)), model.tokenize, sequences, length, seed, str(path))
    return Calibration(tokens=tokens, source=source, seed=seed)


def draw_windows(
    documents: Sequence[str],
    tokenize: Callable[[str], list[int]],
    sequences: int,
    length: int,
    seed: int,
    origin: str,
) -> TokenIds:
    """Random windows of random documents, in the order of draws of the Wanda and SparseGPT code.

    A document with at most `length` tokens is drawn again. Each document is tokenised once, and the number
    of draws is bounded: a corpus without a long enough document is a DataError, not an endless loop.
    """
    generator = random.Random(seed)  # noqa: S311 - sampling, not cryptography
    tokenised: dict[int, list[int]] = {}
    windows: list[list[int]] = []
    draws = 0
    while len(windows) < sequences and documents:
        if draws > 50 * (sequences + len(documents)):
            break
        draws += 1
        index = generator.randint(0, len(documents) - 1)
        if index not in tokenised:
            ids = tokenize(documents[index])
            tokenised[index] = ids if len(ids) > length else []
        ids = tokenised[index]
        if ids:
            start = generator.randint(0, len(ids) - length - 1)
            windows.append(ids[start : start + length])
        elif len(tokenised) == len(documents) and not any(tokenised.values()):
            break
    if len(windows) < sequences:
        raise DataError(
            f"{origin}: found {len(windows)} of {sequences} calibration windows: among its {len(documents)} "
            f"documents none, or too few, have more than {length} tokens; use a shorter length or longer documents"
        )
    return np.array(windows, dtype=np.int64)


def read_documents(path: Path) -> Iterator[str]:
    """Documents of a file or folder: .txt is one document, JSON lines give their "text"; .gz of either.

    Raises DataError naming file and line for anything that cannot be read.
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
        raise ConfigError(f"calibration source {str(path)!r} is neither self, c4, a file nor a folder")
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


def _c4_shard() -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(C4_REPOSITORY, C4_FILE, repo_type="dataset", revision=C4_REVISION))
    except Exception as error:
        raise ModelError(
            f"cannot get the C4 shard from the hub, and it is not cached: {one_line(error)}\n"
            'Use calibration source "self" (offline), or a local file or folder of text.'
        ) from error


def is_sampled(model: TransformersModel, sequences: int, length: int, seed: int) -> bool:
    """Whether text of the model's own is at hand, so that it need not be in memory to be calibrated."""
    return _cached_sample(_sample_file(model, sequences, length, seed), (sequences, length)) is not None


def _sample_file(model: TransformersModel, sequences: int, length: int, seed: int) -> Path:
    key = f"{model.info.digest}\0{model.info.dtype}\0{sequences}\0{length}\0{seed}\0{SAMPLING_VERSION}"
    return cache_folder("calibration") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"


def _cached_sample(file: Path, shape: tuple[int, int]) -> TokenIds | None:
    # A damaged file counts as none: sampling again gives the same text.
    with contextlib.suppress(OSError, ValueError, EOFError):
        cached: TokenIds = np.load(file, allow_pickle=False)
        if cached.shape == shape and cached.dtype == np.int64:
            return cached
    return None


def _self_sampled(
    model: TransformersModel,
    sequences: int,
    length: int,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> TokenIds:
    file = _sample_file(model, sequences, length, seed)
    cached = _cached_sample(file, (sequences, length))
    if cached is not None:
        return cached
    if model.device.type == "meta":
        raise ConfigError(f"{model.info.name} is not in memory, so it cannot sample text to calibrate on")
    generator = torch.Generator().manual_seed(seed)
    rows: list[TokenIds] = []
    for start in range(0, sequences, SAMPLING_ROWS):
        count = min(SAMPLING_ROWS, sequences - start)
        rows.append(_sample(model, count, length, generator, start, sequences, progress))
    tokens = np.concatenate(rows)
    temporary = file.with_suffix(f".{os.getpid()}.tmp.npy")
    np.save(temporary, tokens, allow_pickle=False)
    temporary.replace(file)
    return tokens


def _sample(
    model: TransformersModel,
    rows: int,
    length: int,
    generator: torch.Generator,
    done: int,
    total: int,
    progress: Callable[[int, int], None] | None,
) -> TokenIds:
    """Text sampled at temperature 1 from the start-of-text token: (rows, length) token ids.

    The first token of a window is the start token, as it is when a document begins; after an end-of-text
    token the model simply goes on with the next document.
    """
    start = model.tokenizer.bos_token_id
    if start is None:
        start = model.tokenizer.eos_token_id
    runner = Runner(model.network, model.device)
    tokens = torch.full((rows, 1), int(start or 0), dtype=torch.long)
    with torch.inference_mode():
        state = runner.prefill([(int(start or 0),)] * rows, 0, None) if runner.takes_cache else None
        for position in range(1, length):
            logits = runner.next_logits(tokens.to(runner.device)) if state is None else state.next_logits
            if not bool(torch.isfinite(logits).all()):
                raise NumericalError(f"{model.info.name} gives NaN or Inf: it cannot sample text to calibrate on")
            # On the CPU whatever the device, so that a seed means the same text everywhere it can.
            chosen = torch.multinomial(torch.softmax(logits.cpu(), dim=-1), 1, generator=generator)
            tokens = torch.cat([tokens, chosen], dim=1)
            if state is not None:
                runner.step(state, chosen.to(runner.device))
            if progress is not None:
                progress(done * length + rows * (position + 1), total * length)
    return tokens.numpy()
