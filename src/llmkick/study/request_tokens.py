"""The tokens of a task's requests: what a model reads, and what it may write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmkick.models.engine.batches import group_by_prefix
from llmkick.models.engine.engine import Engine
from llmkick.models.language_model import GenerateRequest, LanguageModel, Prompt, ScoreRequest
from llmkick.models.transformers_model import TransformersModel
from llmkick.statistics import spread_places
from llmkick.tasks.evaluate import BATCH_ITEMS
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, ReadByReference, Task

# Characters a token of English text, where no tokenizer is at hand.
CHARACTERS_A_TOKEN = 4
# The share of the tokens that an answer may have which it has, before any was measured.
WRITTEN_SHARE = 0.6
# The items whose tokens are counted. Prompts of a task are very unequal: the mean of 64 was up to a seventh off.
COUNTED_ITEMS = 256


@dataclass(frozen=True, kw_only=True)
class RequestTokens:
    """Mean numbers for an item: requests, tokens read, and tokens written at most.

    shared: of the tokens read, those that a model has run for another item of a batch of BATCH_ITEMS, because the
    prompts begin with them: all of the task, or those of a subject with its worked examples.
    """

    requests: float
    read: float
    written: float
    shared: float = 0.0

    def passed(self, batch: int) -> float:
        """The tokens that are expected to pass through a model for an item in a batch of so many."""
        return self.passed_to_read(batch) + WRITTEN_SHARE * self.written

    def passed_to_read(self, batch: int) -> float:
        """Those of them that are read."""
        return self.read - self.shared * (1 - 1 / max(1, batch))


def request_tokens(
    task: Task,
    items: Sequence[Item],
    style: Prompting,
    model: LanguageModel | None,
    *,
    in_order: bool = True,
) -> RequestTokens:
    """Count the tokens of a task's requests, or estimate them from the characters where the tokenizer is unknown.

    The mean numbers are those of at most COUNTED_ITEMS items from all over; what is shared is that of a batch.

    in_order: batches are of neighbours, such as the questions of a subject, and not of items drawn from all.
    """
    if not items:
        return RequestTokens(requests=0, read=0, written=0)
    local = model if isinstance(model, TransformersModel) else None
    counted = _spread(items, COUNTED_ITEMS)
    read = written = requests = 0
    for item in counted:
        asked = task.requests(item, style)
        requests += len(asked)
        # A prompt that several requests share passes through the model once.
        read += sum(_length(prompt, local) for prompt in _distinct_prompts(asked))
        for request in asked:
            if isinstance(request, ScoreRequest):
                # The first token is scored by what the prompt ends with.
                read += _continuation_length(request, local) - bool(request.prompt)
            else:
                written += request.max_new_tokens
                # The dense model reads each prompt and answer in a second pass.
                read += _reread(task, request, local)
    count, shared = len(counted), _shared_tokens(task, _batch_of(items, in_order), style, local)
    return RequestTokens(requests=requests / count, read=read / count, written=written / count, shared=shared)


def _batch_of(items: Sequence[Item], in_order: bool) -> Sequence[Item]:
    """A batch like those that are asked: from the middle, or from all over."""
    if not in_order:
        return _spread(items, BATCH_ITEMS)
    first = max(0, (len(items) - BATCH_ITEMS) // 2)
    return items[first : first + BATCH_ITEMS]


def _spread(items: Sequence[Item], count: int) -> Sequence[Item]:
    """At most so many items, from all over."""
    return [items[place] for place in spread_places(len(items), count)]


def _shared_tokens(task: Task, batch: Sequence[Item], style: Prompting, model: TransformersModel | None) -> float:
    """Tokens of an item's prompts that this batch runs once for several, where the engine does."""
    from llmkick.models.engine.kv_cache import can_reuse_cache  # transformers takes long to import

    engine = None if model is None else model.engine
    prompts = [prompt for item in batch for prompt in _distinct_prompts(task.requests(item, style))]
    if len(prompts) < 2 or not isinstance(engine, Engine) or not can_reuse_cache(engine.network, 1):
        return 0.0
    encoded = [tuple(engine.encoder.encode(prompt)) for prompt in prompts]
    saved = sum((len(indices) - 1) * shared for indices, shared in group_by_prefix(encoded))
    return saved / (len(prompts) - 1) * len(prompts) / len(batch)


def _distinct_prompts(asked: Sequence[ScoreRequest | GenerateRequest]) -> set[Prompt]:
    return {request.prompt for request in asked if request.prompt}


def _reread(task: Task, request: GenerateRequest, model: TransformersModel | None) -> int:
    return _length(request.prompt, model) + request.max_new_tokens if isinstance(task, ReadByReference) else 0


def _length(prompt: Prompt, model: TransformersModel | None) -> int:
    if model is not None:
        return model.prompt_tokens(prompt)
    texts = [prompt] if isinstance(prompt, str) else [message.content for message in prompt]
    return sum(map(len, texts)) // CHARACTERS_A_TOKEN


def _continuation_length(request: ScoreRequest, model: TransformersModel | None) -> int:
    text = request.continuation
    if not isinstance(text, str):
        return len(text)
    return len(text) // CHARACTERS_A_TOKEN if model is None else len(model.tokenize(text))
