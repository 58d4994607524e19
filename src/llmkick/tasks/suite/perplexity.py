"""Perplexity of running text: the control. It hardly moves while knowledge goes, which is the paper's point."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmkick.errors import ConfigError, DataError
from llmkick.models.language_model import ContinuationScore, GenerateRequest, LanguageModel, ScoreRequest, Unanswered
from llmkick.tasks.data.published import C4, WIKITEXT
from llmkick.tasks.data.readers.running_text import read_c4, read_wikitext
from llmkick.tasks.data.sources import Origin, origin_of, read_pocket, stratified_sample
from llmkick.tasks.data.tables import read_text
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Answer, Item, Record, content_hash, is_whole, task_key, unscored

# Tokens a window, unless the study says otherwise or the model holds fewer.
DEFAULT_WINDOW = 512
# Bytes of a segment for each token of a window: what English text has, about.
BYTES_A_TOKEN = 4
# Share of a segment that is read before the rest is scored.
CONTEXT = 1 / 8
UNITS = ("tokens", "bytes")
# What the paper's perplexities are over: as many as the model holds, up to this.
PAPER_WINDOW = 2048


def text_windows(model: LanguageModel, text: str, window: int) -> list[tuple[int, ...]]:
    """The text's tokens in non-overlapping windows, the tail dropped.

    Raises ConfigError for a window the model cannot hold, DataError for a text shorter than one window.
    """
    _check_window(model, window)
    return cut_windows(model.tokenize(text), window)


def _check_window(model: LanguageModel, window: int) -> None:
    if not (is_whole(window) and 2 <= window <= model.max_tokens):
        raise ConfigError(
            f"window must be between 2 and the {model.max_tokens} tokens that {model.info.name} holds; got {window!r}"
        )


def cut_windows(ids: Sequence[int], window: int) -> list[tuple[int, ...]]:
    """Token ids in non-overlapping windows, the tail dropped."""
    if len(ids) < window:
        raise DataError(f"the text has {len(ids)} tokens, which is less than one window of {window}")
    return [tuple(ids[start : start + window]) for start in range(0, len(ids) - window + 1, window)]


def text_segments(text: str, size: int) -> list[tuple[str, str]]:
    """The text in segments of about `size` bytes, cut before the space of a word: (what is read, what is scored).

    They depend on no tokenizer, so that models with different ones are scored on the same bytes. The tail, less
    than one segment, is dropped. Raises DataError for a text shorter than one segment.
    """
    words = re.findall(r"\s*\S+", text)
    segments, words_inside, inside = [], list[str](), 0
    for word in words:
        words_inside.append(word)
        inside += len(word.encode())
        if inside >= size:
            segments.append(_read_and_scored(words_inside, inside))
            words_inside, inside = [], 0
    found = [segment for segment in segments if all(segment)]
    if not found:
        raise DataError(f"the text has {len(text.encode())} bytes, which is less than one segment of {size}")
    return found


def _read_and_scored(words: Sequence[str], size: int) -> tuple[str, str]:
    read, position = 0, 0
    while position < len(words) - 1 and (position == 0 or read < CONTEXT * size):
        read += len(words[position].encode())
        position += 1
    return "".join(words[:position]), "".join(words[position:])


def perplexity(model: LanguageModel, text_or_ids: str | npt.ArrayLike, *, window: int = 1024) -> float:
    """exp of the mean negative log-likelihood over non-overlapping windows, the tail dropped.

    `text_or_ids` is text, or token ids of any shape (taken in order). In each window the first token is
    context only, so a window of w tokens counts w − 1 predictions.
    Raises ConfigError for a window the model cannot hold, DataError for less than one window.
    """
    if isinstance(text_or_ids, str):
        windows = text_windows(model, text_or_ids, window)
    else:
        _check_window(model, window)
        ids = np.asarray(text_or_ids)
        if ids.size and not np.issubdtype(ids.dtype, np.integer):
            raise ConfigError(f"perplexity is of text or of integer token ids; got {ids.dtype}")
        windows = cut_windows(ids.reshape(-1).tolist(), window)
    scores = model.logprobs([ScoreRequest("", ids) for ids in windows])
    failed = next((score for score in scores if isinstance(score, Unanswered)), None)
    if failed is not None:
        raise DataError(f"perplexity is undefined: {failed.reason}")
    done = [score for score in scores if isinstance(score, ContinuationScore)]
    return math.exp(-sum(score.logprob for score in done) / sum(score.tokens for score in done))


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Mean negative log-likelihood (nats a token) of each window; the table shows its exponential.

    With `unit` "bytes" it is bits per byte instead: of the same segments of text for every model, whatever its
    tokens, four bytes long for each token of the window; the first eighth of a segment is read, the rest scored.
    The text is the pocket suite's, a text file, WikiText-2 (source hub or its folder) or C4 (`perplexity:c4`).
    Without a `window` it is 512 tokens, in protocol `paper` 2048, or all that the model holds where that is less.
    """

    data: str = ""
    source: str = "pocket"
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0
    window: int | None = None
    unit: str = "tokens"
    split: str | None = None
    revision: str | None = None
    sha256: str | Mapping[str, str] | None = None

    version = 1
    chance_level = 0.0
    setting = "control"
    prompting = None

    def __post_init__(self) -> None:
        if self.window is not None and not (is_whole(self.window) and self.window >= 2):
            raise ConfigError(f"window of {self.name} must be a whole number of at least 2 tokens; got {self.window!r}")
        if self.unit not in UNITS:
            raise ConfigError(f"unknown unit {self.unit!r} of perplexity; choose from: {', '.join(UNITS)}")
        if self.data and (self.source == "pocket" or self._is_file):
            raise ConfigError(f'source of {self.name} is "hub" or a folder: the pocket suite has no such data')
        if self.source not in ("pocket", "hub") and not Path(self.source).expanduser().exists():
            raise ConfigError(
                f"unknown source {self.source!r} for {self.name}: neither pocket, hub, a text file nor a folder"
            )
        _ = self.origin

    @property
    def name(self) -> str:
        """What is measured, with the data set where it is C4."""
        base = "perplexity" if self.unit == "tokens" else "bits_per_byte"
        return f"{base}:{self.data}" if self.data else base

    @property
    def metric(self) -> str:
        """What the number is called."""
        return "perplexity" if self.unit == "tokens" else "bits_per_byte"

    @property
    def _is_file(self) -> bool:
        return self.source not in ("pocket", "hub") and Path(self.source).expanduser().is_file()

    @cached_property
    def origin(self) -> Origin | None:
        """Where published data comes from; None for the pocket suite and for a text file."""
        return None if self._is_file else origin_of(self, C4 if self.data == "c4" else WIKITEXT)

    @cached_property
    def _text(self) -> str:
        """The running text: our passages and stories, a file (.gz too), or a published data set."""
        if self.origin is not None:
            return read_c4(self.origin, self.seed) if self.data == "c4" else read_wikitext(self.origin)
        if self.source == "pocket":
            passages = [row["text"] for row in read_pocket("context_qa.jsonl", ("text",))]
            stories = [row["story"] for row in read_pocket("summarization.jsonl", ("story",))]
            return "\n\n".join(passages + stories)
        return read_text(Path(self.source).expanduser(), self.source)

    @property
    def notes(self) -> Sequence[str]:
        """Nothing is left out but the tail shorter than a window."""
        return ()

    @property
    def _default_window(self) -> int:
        return PAPER_WINDOW if self.protocol == "paper" else DEFAULT_WINDOW

    @property
    def key(self) -> Mapping[str, Any]:
        """Everything about the task that can change a score."""
        data = content_hash([Item(id="text", cluster="text", question=self._text)])
        key = {**task_key(self, data), "window": self.window or self._default_window}
        return key if self.unit == "tokens" else {**key, "unit": self.unit}

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """Windows of the model's tokens, or segments of text.

        Raises ConfigError without a model to cut windows, or for one too short.
        """
        if self.unit == "bytes":
            return stratified_sample(self._segments(), self.limit, self.seed)
        if model is None:
            raise ConfigError("perplexity windows depend on the tokenizer: call items(model)")
        windows = text_windows(model, self._text, self.window or min(self._default_window, model.max_tokens))
        items = [
            Item(id=f"window-{index:04d}", cluster=f"window-{index:04d}", question="", tokens=ids)
            for index, ids in enumerate(windows)
        ]
        return stratified_sample(items, self.limit, self.seed)

    def _segments(self) -> list[Item]:
        size = BYTES_A_TOKEN * (self.window or self._default_window)
        return [
            Item(id=f"segment-{index:04d}", cluster=f"segment-{index:04d}", question=scored, context=read)
            for index, (read, scored) in enumerate(text_segments(self._text, size))
        ]

    def requests(self, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
        """The window or segment as running text, whatever the prompting."""
        if self.unit == "bytes":
            return [ScoreRequest(item.context, item.question)]
        return [ScoreRequest("", item.tokens)]

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """Mean negative log-likelihood in nats a token, or in bits a byte."""
        answer = answers[0]
        if isinstance(answer, Unanswered):
            return unscored(item, answer.reason)
        assert isinstance(answer, ContinuationScore), type(answer)
        if self.unit == "bytes":
            size = len(item.question.encode())
            return Record(
                item_id=item.id,
                cluster=item.cluster,
                response="",
                score=-answer.logprob / math.log(2) / size,
                tokens=answer.tokens,
                details={"bytes": size, **({"boundary_moved": True} if answer.boundary_moved else {})},
            )
        return Record(
            item_id=item.id,
            cluster=item.cluster,
            response="",
            score=-answer.logprob / answer.tokens,
            tokens=answer.tokens,
        )
