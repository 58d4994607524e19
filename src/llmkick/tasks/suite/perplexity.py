"""Perplexity of running text, the control task: the paper shows that it hardly changes while knowledge is lost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from llmkick.errors import ConfigError, DataError
from llmkick.files import named_path
from llmkick.models.language_model import ContinuationScore, GenerateRequest, LanguageModel, ScoreRequest, Unanswered
from llmkick.tasks.data.published import C4, WIKITEXT
from llmkick.tasks.data.readers.running_text import read_c4, read_wikitext
from llmkick.tasks.data.sources import Origin, origin_of, read_pocket, stratified_sample
from llmkick.tasks.data.tables import read_text
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Answer, Item, Record, content_hash, is_whole, task_key, unscored

# Default tokens per window; a model with a shorter context uses its context length.
DEFAULT_WINDOW = 512
# Bytes per segment for each token of the window: the approximate ratio in English text.
BYTES_A_TOKEN = 4
# Fraction of a segment that serves as context for the scored rest.
CONTEXT = 1 / 8
UNITS = ("tokens", "bytes")
# Window of the paper's perplexities, in tokens: the model's context length, up to this maximum.
PAPER_WINDOW = 2048


def text_windows(model: LanguageModel, text: str, window: int) -> list[tuple[int, ...]]:
    """The text's tokens in non-overlapping windows; the incomplete last window is dropped.

    Raises ConfigError if the window exceeds the model's context, DataError if the text is shorter than one window.
    """
    _check_window(model, window)
    return cut_windows(model.tokenize(text), window)


def _check_window(model: LanguageModel, window: int) -> None:
    if not (is_whole(window) and 2 <= window <= model.max_tokens):
        raise ConfigError(
            f"window must be between 2 and the {model.max_tokens} tokens that {model.info.name} holds; got {window!r}"
        )


def cut_windows(ids: Sequence[int], window: int) -> list[tuple[int, ...]]:
    """The token ids in non-overlapping windows; the incomplete last window is dropped."""
    if len(ids) < window:
        raise DataError(f"the text has {len(ids)} tokens, which is less than one window of {window}")
    return [tuple(ids[start : start + window]) for start in range(0, len(ids) - window + 1, window)]


def text_segments(text: str, size: int) -> list[tuple[str, str]]:
    """The text in segments of about `size` bytes, split before whitespace; each is (context text, scored text).

    The segments do not depend on a tokenizer, so models with different tokenizers are scored on the same bytes. A word
    as long as a segment, as in text without spaces, is split between characters. The incomplete last segment is
    dropped. Raises DataError if the text is shorter than one segment.
    """
    segments, words_inside, inside = [], list[str](), 0
    for word in _words_below(text, size):
        words_inside.append(word)
        inside += len(word.encode())
        if inside >= size:
            segments.append(_read_and_scored(words_inside, inside))
            words_inside, inside = [], 0
    complete = [segment for segment in segments if all(segment)]
    if not complete:
        raise DataError(f"the text has {len(text.encode())} bytes, which is less than one segment of {size}")
    return complete


def _words_below(text: str, size: int) -> Iterator[str]:
    """The words of the text with the space before them, and the pieces of those that would fill a segment."""
    most = max(1, int(CONTEXT * size) // 4)  # characters: UTF-8 has four bytes at most
    for word in re.findall(r"\s*\S+", text):
        if len(word.encode()) < size:
            yield word
        else:
            yield from (word[start : start + most] for start in range(0, len(word), most))


def _read_and_scored(words: Sequence[str], size: int) -> tuple[str, str]:
    read, position = 0, 0
    while position < len(words) - 1 and (position == 0 or read < CONTEXT * size):
        read += len(words[position].encode())
        position += 1
    return "".join(words[:position]), "".join(words[position:])


def perplexity(model: LanguageModel, text_or_ids: str | npt.ArrayLike, *, window: int = 1024) -> float:
    """exp of the mean negative log-likelihood over non-overlapping windows; the incomplete last window is dropped.

    `text_or_ids` is text, or an array of token ids of any shape (read in order). The first token of each window is
    context only, so a window of w tokens has w − 1 predictions.
    Raises ConfigError if the window exceeds the model's context, DataError for less than one window of tokens.
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
    """The mean negative log-likelihood (nats per token) of each window; the table shows its exponential.

    With `unit` "bytes" the score is bits per byte instead. Every model then reads the same text segments, whatever
    its tokenizer. A segment has four bytes for each token of the window; its first eighth is context, the rest is
    scored. The text is the pocket suite's, a text file, WikiText-2 (source hub or its folder) or C4
    (`perplexity:c4`). The default `window` is 512 tokens, or 2048 in protocol `paper`, or the model's context length
    if that is shorter.
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
        if self.source not in ("pocket", "hub") and not named_path(self.source).exists():
            raise ConfigError(
                f"unknown source {self.source!r} for {self.name}: neither pocket, hub, a text file nor a folder"
            )
        _ = self.origin

    @property
    def name(self) -> str:
        """The name of the measure, followed by the data set if it is C4."""
        base = "perplexity" if self.unit == "tokens" else "bits_per_byte"
        return f"{base}:{self.data}" if self.data else base

    @property
    def metric(self) -> str:
        """The name of the metric: perplexity or bits per byte."""
        return "perplexity" if self.unit == "tokens" else "bits_per_byte"

    @property
    def _is_file(self) -> bool:
        return self.source not in ("pocket", "hub") and named_path(self.source).is_file()

    @cached_property
    def origin(self) -> Origin | None:
        """Where the published data comes from; None for the pocket suite and for a text file."""
        return None if self._is_file else origin_of(self, C4 if self.data == "c4" else WIKITEXT)

    @cached_property
    def _text(self) -> str:
        """The running text: the pocket passages and stories, a text file (also .gz), or a published data set."""
        if self.origin is not None:
            return read_c4(self.origin, self.seed) if self.data == "c4" else read_wikitext(self.origin)
        if self.source == "pocket":
            passages = [row["text"] for row in read_pocket("context_qa.jsonl", ("text",))]
            stories = [row["story"] for row in read_pocket("summarization.jsonl", ("story",))]
            return "\n\n".join(passages + stories)
        return read_text(named_path(self.source), self.source)

    @property
    def notes(self) -> Sequence[str]:
        """Empty: the task drops only the incomplete last window or segment."""
        return ()

    @property
    def _default_window(self) -> int:
        return PAPER_WINDOW if self.protocol == "paper" else DEFAULT_WINDOW

    @cached_property
    def key(self) -> Mapping[str, Any]:
        """All properties of the task that can change a score."""
        data = content_hash([Item(id="text", cluster="text", question=self._text)])
        key = {**task_key(self, data), "window": self.window or self._default_window}
        return key if self.unit == "tokens" else {**key, "unit": self.unit}

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The windows of the model's tokens, or the segments of text.

        Raises ConfigError if windows are needed without a model, or if the window exceeds the model's context.
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
        """One score request for the window or segment, independent of the prompting."""
        if self.unit == "bytes":
            return [ScoreRequest(item.context, item.question)]
        return [ScoreRequest("", item.tokens)]

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """The mean negative log-likelihood, in nats per token or in bits per byte."""
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
