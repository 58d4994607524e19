"""A model whose answers come from a worker elsewhere; its tokenizer and configuration are here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llmkick.errors import ModelError, one_line
from llmkick.models.checkpoints.meta_model import load_structure
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    ModelInfo,
    ScoreRequest,
    Unanswered,
)
from llmkick.models.transformers_model import TransformersModel

# Requests of one kind, or the answers to them.
Batch = Sequence[Any]
Ask = Callable[[str, Batch], Batch]


@dataclass(frozen=True, kw_only=True)
class RemoteModel(TransformersModel):
    """As the model that `ask` reaches: called with a method's name and requests, it gives the answers.

    The network here has no weights. `place` is the device that the weights are on, over there.
    """

    place: torch.device
    ask: Ask

    @property
    def device(self) -> torch.device:
        """Where its inputs go, over there."""
        return self.place

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        """One score a request, in order."""
        return list(self.ask("logprobs", requests))

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        """One generation a request, in order."""
        return list(self.ask("generate", requests))


@dataclass(frozen=True, kw_only=True)
class RemoteModelSpec:
    """A model without its weights, which are neither read nor fetched; `reference` names the model for workers."""

    reference: str
    network: Any
    tokenizer: Any

    @property
    def parameters(self) -> int:
        """How many weights it has."""
        return sum(parameter.numel() for parameter in self.network.parameters())

    def model(self, info: ModelInfo, place: torch.device, ask: Ask) -> RemoteModel:
        """The model that answers elsewhere."""
        local = TransformersModel.wrap(self.network, self.tokenizer, info)
        return RemoteModel(info=info, engine=local.engine, place=place, ask=ask)


def remote_model_spec(reference: str) -> RemoteModelSpec:
    """The specification of the model behind a reference.

    Raises ModelError when its tokenizer or configuration cannot be read on this machine.
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
        reference=_elsewhere(reference, structure.folder), network=structure.network, tokenizer=structure.tokenizer
    )


def _elsewhere(reference: str, folder: Path) -> str:
    """What machines with another working directory, and at another moment, call the same model."""
    path = Path(reference).expanduser()
    if path.exists():
        return str(path.absolute())
    if folder.parent.name == "snapshots":  # of the hub: its branch may move on between two workers
        return f"{reference.partition('@')[0]}@{folder.name}"
    return reference
