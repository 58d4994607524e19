"""The tokens of a task's requests: what a model reads, and what it may write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmkick.models.engine.batches import common_prefix
from llmkick.models.engine.engine import Engine
from llmkick.models.language_model import GenerateRequest, Prompt, ScoreRequest
from llmkick.models.transformers_model import TransformersModel
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, ReadByReference, Task

# Characters a token of English text, where no tokenizer is at hand.
CHARACTERS_A_TOKEN = 4
# The share of the tokens that an answer may have which it has, before any was measured.
WRITTEN_SHARE = 0.6


@dataclass(frozen=True, kw_only=True)
class RequestTokens:
    """Mean numbers for an item: requests, tokens read, and tokens written at most.

    shared: of the tokens read, those of the prefix of all prompts, which a model runs once for a batch.
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
    task: Task, items: Sequence[Item], style: Prompting, model: TransformersModel | None
) -> RequestTokens | None:
    """Count the tokens of these items' requests; None without items. Without a tokenizer, from the characters."""
    if not items:
        return None
    read = written = requests = 0
    prompts: list[Prompt] = []
    for item in items:
        asked = task.requests(item, style)
        requests += len(asked)
        # A prompt that several requests share passes through the model once.
        distinct = {request.prompt for request in asked if request.prompt}
        prompts += distinct
        read += sum(_length(prompt, model) for prompt in distinct)
        for request in asked:
            if isinstance(request, ScoreRequest):
                read += _continuation_length(request, model)
            else:
                written += request.max_new_tokens
                # The dense model reads each prompt and answer in a second pass.
                read += _reread(task, request, model)
    count = len(items)
    shared = len(prompts) * _shared_tokens(prompts, model) / count
    return RequestTokens(requests=requests / count, read=read / count, written=written / count, shared=shared)


def _shared_tokens(prompts: Sequence[Prompt], model: TransformersModel | None) -> int:
    """Tokens that all prompts begin with, where the engine runs them once."""
    from llmkick.models.engine.kv_cache import can_reuse_cache  # transformers takes long to import

    engine = None if model is None else model.engine
    if len(prompts) < 2 or not isinstance(engine, Engine) or not can_reuse_cache(engine.network, 1):
        return 0
    return common_prefix([tuple(engine.encoder.encode(prompt)) for prompt in prompts])


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
