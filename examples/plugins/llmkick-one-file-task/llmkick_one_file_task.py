"""A task in one file: what is the opposite of a word? The questions, how they are asked, how they are scored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmkick.extend import (
    SENTENCE_EXAMPLES,
    Answer,
    ConfigError,
    GenerateRequest,
    Item,
    LanguageModel,
    Prompting,
    Record,
    TaskEntry,
    content_hash,
    question_prompt,
    score_answer,
    stratified_sample,
    task_key,
)

# Kind of word → words with what counts as their opposite.
WORDS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "size": {
        "big": ("small", "little", "tiny"),
        "tall": ("short",),
        "wide": ("narrow",),
        "deep": ("shallow",),
        "thick": ("thin",),
        "heavy": ("light",),
    },
    "sense": {
        "hot": ("cold",),
        "loud": ("quiet", "soft", "silent"),
        "bright": ("dark", "dim", "dull"),
        "wet": ("dry",),
        "rough": ("smooth",),
        "sweet": ("sour", "bitter"),
    },
    "place": {
        "up": ("down",),
        "left": ("right",),
        "north": ("south",),
        "inside": ("outside",),
        "near": ("far",),
        "top": ("bottom",),
    },
    "deed": {
        "open": ("close", "closed", "shut"),
        "push": ("pull",),
        "buy": ("sell",),
        "win": ("lose",),
        "arrive": ("leave", "depart"),
        "remember": ("forget",),
    },
}
ITEMS = tuple(
    Item(id=word, cluster=kind, question=f"What is the opposite of {word}?", references=opposites)
    for kind, words in WORDS.items()
    for word, opposites in words.items()
)


@dataclass(frozen=True, kw_only=True)
class Opposites:
    """Short questions, greedy short answers: right when an opposite stands in the first line as a whole word."""

    source: str = "pocket"
    protocol: str = "strict"
    limit: int | None = None
    seed: int = 0

    name = "opposites"
    version = 1  # raise it whenever a score could change
    metric = "accuracy"
    chance_level = 0.0
    setting = "knowledge"
    prompting = None  # asked in the model's own style, chat or raw
    origin = None  # no published data
    notes = ()

    def __post_init__(self) -> None:
        if (self.source, self.protocol) != ("pocket", "strict"):
            raise ConfigError("opposites has its own words and one protocol: leave source and protocol out")

    @property
    def key(self) -> Mapping[str, Any]:
        """Everything about the task that can change a score."""
        return task_key(self, content_hash(ITEMS))

    def items(self, model: LanguageModel | None = None) -> Sequence[Item]:
        """The sampled words."""
        return stratified_sample(ITEMS, self.limit, self.seed)

    def requests(self, item: Item, prompting: Prompting) -> Sequence[GenerateRequest]:
        """One short generation."""
        prompt = question_prompt(item.question, SENTENCE_EXAMPLES, prompting)
        return [GenerateRequest(prompt, stops=("\n",), max_new_tokens=16)]

    def score(self, item: Item, answers: Sequence[Answer]) -> Record:
        """1 when an opposite is in the answer."""
        return score_answer(item, answers[0])


TASK = TaskEntry(module="llmkick_one_file_task", factory="Opposites", summary="opposites of common words")
