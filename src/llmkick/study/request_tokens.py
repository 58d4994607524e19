"""The tokens of a task's requests: what a model reads, and what it may write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmkick.models.language_model import GenerateRequest, Prompt, ScoreRequest
from llmkick.models.transformers_model import TransformersModel
from llmkick.tasks.prompting import Prompting
from llmkick.tasks.task import Item, ReadByReference, Task

# Characters a token of English text, where no tokenizer is at hand.
CHARACTERS_A_TOKEN = 4


@dataclass(frozen=True, kw_only=True)
class RequestTokens:
    """Mean numbers for an item: requests, tokens read, and tokens written at most."""

    requests: float
    read: float
    written: float


def request_tokens(
    task: Task, items: Sequence[Item], style: Prompting, model: TransformersModel | None
) -> RequestTokens | None:
    """Count the tokens of these items' requests; None without items. Without a tokenizer, from the characters."""
    if not items:
        return None
    read = written = requests = 0
    for item in items:
        asked = task.requests(item, style)
        requests += len(asked)
        # A prompt that several requests share passes through the model once.
        read += sum(_length(prompt, model) for prompt in {request.prompt for request in asked if request.prompt})
        for request in asked:
            if isinstance(request, ScoreRequest):
                read += _continuation_length(request, model)
            else:
                written += request.max_new_tokens
                # The dense model reads each prompt and answer in a second pass.
                read += _reread(task, request, model)
    count = len(items)
    return RequestTokens(requests=requests / count, read=read / count, written=written / count)


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
