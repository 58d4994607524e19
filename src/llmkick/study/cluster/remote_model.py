"""A proxy model with a local tokenizer and configuration, whose answers come from a remote worker."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmkick.errors import ModelError, one_line
from llmkick.files import named_path
from llmkick.models.checkpoints.meta_model import load_structure
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    ModelInfo,
    ScoreRequest,
    Unanswered,
)
from llmkick.models.thoughts import Thinking
from llmkick.models.transformers_model import TransformersModel

# Requests of one kind, or the answers to them.
Batch = Sequence[Any]
Ask = Callable[[str, Batch], Batch]


@dataclass(frozen=True, kw_only=True)
class RemoteModel(TransformersModel):
    """A proxy for the model of a worker; `ask` takes a method name and requests and returns the answers.

    The local network has no weights. `place` is the device of the weights on the worker.
    """

    place: torch.device
    ask: Ask

    @property
    def device(self) -> torch.device:
        """The device of the inputs on the worker."""
        return self.place

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        """Return one score per request, in order."""
        return list(self.ask("logprobs", requests))

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        """Return one generation per request, in order."""
        return list(self.ask("generate", requests))


@dataclass(frozen=True, kw_only=True)
class RemoteModelSpec:
    """A model without its weights, which are not read or downloaded; `reference` names the model for workers."""

    reference: str
    network: Any
    tokenizer: Any
    thinking: Thinking = "off"

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def model(self, info: ModelInfo, place: torch.device, ask: Ask) -> RemoteModel:
        """Return the proxy for the model on a worker."""
        local = TransformersModel.wrap(self.network, self.tokenizer, info).with_thinking(self.thinking)
        return RemoteModel(info=info, engine=local.engine, place=place, ask=ask)


def remote_model_spec(reference: str, thinking: Thinking = "off") -> RemoteModelSpec:
    """Return the specification of the model that `reference` names.

    Raises ModelError if its tokenizer or configuration cannot be read on this machine.
    """
    try:
        structure = load_structure(reference)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(
            f"the tokenizer and configuration of {reference!r} are needed on this machine too: {one_line(error)}"
        ) from error
    return RemoteModelSpec(
        reference=_elsewhere(reference, structure.folder),
        network=structure.network,
        tokenizer=structure.tokenizer,
        thinking=thinking,
    )


def _elsewhere(reference: str, folder: Path) -> str:
    """Return a reference that names the same model on other machines and at later times."""
    path = named_path(reference)
    if path.exists():
        return str(path.absolute())
    if folder.parent.name == "snapshots":  # a hub model: its branch may change between two workers
        return f"{reference.partition('@')[0]}@{folder.name}"
    return reference
