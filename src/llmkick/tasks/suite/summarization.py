"""Summaries of short, medium and long stories: can the model still condense a text? (the CNN/DailyMail setting)"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from llmkick.errors import ConfigError, DataError
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    LanguageModel,
    Prompt,
    ScoreRequest,
    Unanswered,
)
from llmkick.tasks.data.published import CNN_DAILYMAIL
from llmkick.tasks.data.readers import Loaded, counted
from llmkick.tasks.data.readers.cnn_dailymail import read_stories
from llmkick.tasks.data.sources import Origin, origin_of, read_pocket, stratified_sample
from llmkick.tasks.fitting import fits, shorter_text, styles
from llmkick.tasks.judge.prompts import Kind
from llmkick.tasks.prompting import Prompting, conversation
from llmkick.tasks.task import Answer, Item, Record, content_hash, is_whole, task_key, unscored
from llmkick.tasks.text_measures import copied_share, rouge, words_of

BUCKETS = ("short", "medium", "long")
# The paper asks for "less than 150 words"; 256 tokens leave a margin.
WORDS, MAX_NEW_TOKENS = 150, 256
INSTRUCTION = (
    "Summarize the given story in less than {words} words while preserving high coherence, consistency, fluency, "
    "and relevance."
)
# Number of stories used to estimate the ROUGE-L of an unrelated summary.
FLOOR_STORIES = 256
# The end of a sentence, with optional closing quotation marks or brackets.
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s|$)")
# Marker before the highlights in the raw CNN/DailyMail files. The original code left the highlights in the story.
_HIGHLIGHT = "@highlight"


@dataclass(frozen=True, kw_only=True)
class Summarization:
    """Stories to summarize in less than `words` words and at most `max_new_tokens` tokens.

    The score is ROUGE-L (F-measure) against the reference. Each story is in a bucket: short, medium or long. By
    default the buckets are the thirds of the whole data set by word count. `bucket_words` instead gives the maximum
    word count of a short story and of a medium story. Pocket stories have a bucket in their data. A story that is too
    long for the model is truncated at the end of a sentence, and the record's details report the truncation.
    """

    source: str = "pocket"
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0
    words: int | None = None
    max_new_tokens: int | None = None
    bucket_words: tuple[int, int] | None = None
    per_bucket: int | None = None
    split: str | None = None
    revision: str | None = None
    sha256: str | Mapping[str, str] | None = None

    name = "summarization"
    version = 1
    metric = "ROUGE-L"
    setting = "synthesis"

    def __post_init__(self) -> None:
        for option in ("words", "max_new_tokens", "per_bucket"):
            value = getattr(self, option)
            if value is not None and not (is_whole(value) and value >= 1):
                raise ConfigError(f"{option} of {self.name} must be a whole number of at least 1; got {value!r}")
        if self.protocol == "paper" and self.words not in (None, WORDS):
            raise ConfigError(f"words of {self.name} are {WORDS} in protocol paper; got {self.words}")
        if self.per_bucket is not None and self.limit is not None:
            raise ConfigError(
                f"limit of {self.name} and per_bucket do not go together: one counts all stories, the other those of "
                "each length; give one of them"
            )
        if self.bucket_words is not None:
            edges = tuple(self.bucket_words)
            if not (len(edges) == 2 and all(map(is_whole, edges)) and 1 <= edges[0] < edges[1]):
                raise ConfigError(
                    f"bucket_words of {self.name} are two rising whole numbers: the most words of a short and of a "
                    f"medium story; got {self.bucket_words!r}"
                )
            object.__setattr__(self, "bucket_words", edges)  # a study file gives a list
        _ = self.origin

    @cached_property
    def chance_level(self) -> float:
        """The mean ROUGE-L of another story's reference, which estimates the score of an unrelated summary."""
        items = self._loaded.items
        spread = items[:: max(1, len(items) // FLOOR_STORIES)]
        if len(spread) < 2:
            return 0.0
        pairs = zip(spread, (*spread[1:], spread[0]), strict=True)
        return round(sum(rouge(b.references[0], a.references[0])["rougeL"] for a, b in pairs) / len(spread), 4)

    @property
    def prompting(self) -> Prompting | None:
        """Protocol `paper` uses raw-text prompts, as the paper does; None leaves the choice open."""
        return "raw" if self.protocol == "paper" else None

    @property
    def _words(self) -> int:
        return self.words or WORDS

    @property
    def _max_new_tokens(self) -> int:
        return self.max_new_tokens or MAX_NEW_TOKENS

    @cached_property
    def origin(self) -> Origin | None:
        """Where the published data comes from; None for the pocket suite."""
        return origin_of(self, CNN_DAILYMAIL)

    @cached_property
    def _loaded(self) -> Loaded:
        if self.origin is not None:
            return _cleaned(read_stories(self.origin))
        return Loaded(
            items=tuple(
                Item(
                    id=row["id"],
                    cluster=row["id"],
                    question=row["title"],
                    context=row["story"],
                    references=(row["summary"],),
                    details={"bucket": row["bucket"]},
                )
                for row in read_pocket("summarization.jsonl", ("id", "bucket", "title", "story", "summary"))
            )
        )

    @cached_property
    def _bucketed(self) -> tuple[Item, ...]:
        """All stories, each with exactly one bucket."""
        items = self._loaded.items
        if self.bucket_words is None and self.origin is None:
            return items
        lengths = {item.id: len(item.context.split()) for item in items}
        if self.bucket_words is not None:
            edges: Sequence[float] = self.bucket_words
        else:
            ordered = sorted(lengths.values())
            edges = [ordered[(third * len(ordered) - 1) // 3] for third in (1, 2)]
        return tuple(
            replace(item, details={**item.details, "bucket": BUCKETS[sum(lengths[item.id] > edge for edge in edges)]})
            for item in items
        )

    @property
    def notes(self) -> Sequence[str]:
        """Statements about the rows that were left out of the data, and about empty buckets."""
        sizes = Counter(item.details["bucket"] for item in self._bucketed)
        empty = [bucket for bucket in BUCKETS if not sizes[bucket]]
        return (*self._loaded.notes, *((f"no story is {' or '.join(empty)}",) if empty else ()))

    @cached_property
    def key(self) -> Mapping[str, Any]:
        """All properties of the task that can change a score."""
        key = {**task_key(self, content_hash(self._loaded.items)), "words": self._words}
        key["max_new_tokens"] = self._max_new_tokens
        if self.bucket_words is not None:
            key["bucket_words"] = list(self.bucket_words)
        if self.per_bucket is not None:
            key["per_bucket"] = self.per_bucket
        return key

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The sampled stories, stratified by bucket; for a model, truncated to fit its context."""
        items = self._sampled()
        return items if model is None else [self._fitted(item, model) for item in items]

    def _sampled(self) -> list[Item]:
        """The stories that are asked: a proportional sample, or as many of each length."""
        if self.per_bucket is None:
            return stratified_sample(self._bucketed, self.limit, self.seed, by=lambda item: str(item.details["bucket"]))
        chosen: set[str] = set()
        for bucket in BUCKETS:
            stories = [item for item in self._bucketed if item.details["bucket"] == bucket]
            if len(stories) < self.per_bucket:
                raise DataError(
                    f"{self.name}: per_bucket asks for {self.per_bucket} {bucket} stories; {self.source} has "
                    f"{len(stories)}; give a smaller per_bucket, or other bucket_words"
                )
            chosen |= {item.id for item in stratified_sample(stories, self.per_bucket, self.seed)}
        return [item for item in self._bucketed if item.id in chosen]

    def _fitted(self, item: Item, model: LanguageModel) -> Item:
        def prompts(story: str) -> list[Prompt]:
            return [self._prompt(story, style) for style in styles(model, self.prompting)]

        if fits(model, prompts(item.context), self._max_new_tokens):
            return item
        story = to_whole_sentences(shorter_text(model, item.context, prompts, self._max_new_tokens))
        # If no sentence fits, keep the whole story, so that the model reports that the prompt is too long.
        if not story:
            return item
        tokens = len(model.tokenize(story)) - len(model.tokenize(""))
        return replace(item, context=story, details={**item.details, "story_cut": True, "story_tokens": tokens})

    def _prompt(self, story: str, prompting: Prompting) -> Prompt:
        asked = f"{INSTRUCTION.format(words=self._words)}\n\n{story}"
        if self.protocol == "paper":
            return asked
        return conversation(asked) if prompting == "chat" else f"{asked}\n\nSummary:"

    def requests(self, item: Item, prompting: Prompting) -> Sequence[ScoreRequest | GenerateRequest]:
        """One generation request. A raw prompt stops at a blank line, because a base model would write more stories."""
        stops = ("\n\n",) if prompting == "raw" and self.protocol == "strict" else ()
        return [
            GenerateRequest(self._prompt(item.context, prompting), stops=stops, max_new_tokens=self._max_new_tokens)
        ]

    def judge_kind(self, item: Item) -> Kind:
        """The kind "summary", for the paper's summary prompt."""
        return "summary"

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """ROUGE-L against the reference. An empty summary scores 0; a failed request is unscored."""
        answer = answers[0]
        if isinstance(answer, Unanswered):
            return unscored(item, answer.reason)
        assert isinstance(answer, Generation), type(answer)
        summary = answer.text.strip()
        measures = rouge(summary, item.references[0])
        words = len(words_of(summary))
        details: dict[str, Any] = {**measures, "words": words, "length_kept": 0 < words < self._words, **item.details}
        copied = copied_share(summary, item.context)
        if copied is not None:
            details["copied_share"] = round(copied, 6)
        if len(answers) > 1 and isinstance(answers[1], ContinuationScore):
            details["dense_logprob"] = round(answers[1].logprob / answers[1].tokens, 6)
        return Record(
            item_id=item.id,
            cluster=item.cluster,
            response=summary,
            score=measures["rougeL"],
            tokens=answer.tokens,
            truncated=answer.finish == "length",
            details=details,
        )

    def beside(self, record: Record, reference_answer: str) -> Record:
        """The record with ROUGE against the dense model's summary in its details."""
        measures = rouge(record.response, reference_answer)
        return replace(record, details={**record.details, **{f"dense_{name}": x for name, x in measures.items()}})


def _cleaned(loaded: Loaded) -> Loaded:
    """The stories without highlights, duplicates and empty stories."""
    seen: set[str] = set()
    items, held, repeated, empty = [], 0, 0, 0
    for item in loaded.items:
        story, mark, _ = item.context.partition(_HIGHLIGHT)
        held += bool(mark)
        text = " ".join(story.split())
        if not text:
            empty += 1
        elif text in seen:
            repeated += 1
        else:
            items.append(replace(item, context=story.strip()))
        seen.add(text)
    return Loaded(
        items=tuple(items),
        notes=(
            *loaded.notes,
            *counted(repeated, "stories left out: they are in the data before, word for word"),
            *counted(empty, "stories left out: they hold nothing but highlights"),
            *counted(held, "stories had their highlights inside; they were taken out"),
        ),
    )


def to_whole_sentences(text: str) -> str:
    """The text truncated after its last complete sentence; unchanged if it has no complete sentence."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    return text[: ends[-1]] if ends else text
