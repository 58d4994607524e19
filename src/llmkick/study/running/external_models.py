"""External models that a study compares with its dense model: locating, opening and describing them."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from llmkick.errors import ConfigError
from llmkick.models.checkpoint import Checkpoint
from llmkick.models.checkpoints.loading import load_located, read_tokenizer
from llmkick.models.checkpoints.references import locate
from llmkick.models.checkpoints.sparsity import zeros_of
from llmkick.models.language_model import LanguageModel
from llmkick.models.plugin_models import plugin_of
from llmkick.models.precision import resolve_device, resolve_dtype
from llmkick.models.server.open_model import open_model
from llmkick.models.server.settings import ServerSettings
from llmkick.models.server_scheme import is_server
from llmkick.models.thoughts import Thinking
from llmkick.models.transformers_model import TransformersModel, thinking_of_prompts
from llmkick.models.vllm.model import VllmModel
from llmkick.study.cells import Variant, style_of, variants_of
from llmkick.study.results.records import ComparedModel, CompressionSummary
from llmkick.study.spec.study import Study
from llmkick.tasks.evaluate import refuse_unanswerable
from llmkick.tasks.prompting import Prompting, resolve_prompting
from llmkick.tasks.task import Task

# The tokens of this text distinguish tokenizers that have the same vocabulary.
PROBE = "The 1,234 naïve cafés;\n\n\tdef f(x): return x**2  # 東京 🙂 end"


@dataclass(kw_only=True)
class ExternalModels:
    """The external models of a study, by label."""

    study: Study
    checkpoints: dict[str, Checkpoint] = field(default_factory=dict)
    live: dict[str, LanguageModel] = field(default_factory=dict)  # models of servers and plug-ins: open after `find`
    _thinking: dict[str, Thinking | None] = field(default_factory=dict)

    def find(self) -> None:
        """Locate every model and contact every server, so that missing models fail before any work.

        Raises ModelError for missing files or packages and for servers that do not answer correctly.
        """
        study = self.study
        for variant in variants_of(study):
            reference = variant.reference
            if is_server(reference) or plugin_of(reference) is not None:
                self.live[variant.label] = open_model(
                    reference, dtype=study.dtype, device=study.device, server=settings_of(study)
                )
            elif reference:
                self.checkpoints[variant.label] = locate(reference)

    def weights_key(self, variant: Variant) -> dict[str, object]:
        """Return all inputs that determine the answers of a model, except the questions."""
        if variant.label in self.live:
            return answers_key(self.live[variant.label])
        device = resolve_device(self.study.device)
        dtype = str(resolve_dtype(self.study.dtype, device)).removeprefix("torch.")
        return {"weights": self.checkpoints[variant.label].digest, "dtype": dtype, "device": device.type}

    def open(self, variant: Variant) -> LanguageModel:
        """Load a model, or return a live model; the caller releases the loaded model."""
        if variant.label in self.live:
            return self.live[variant.label]
        gc.collect()  # reference cycles may hold the previous model in memory
        model = load_located(self.checkpoints[variant.label], dtype=self.study.dtype, device=self.study.device)
        return model.with_thinking(self.study.thinking)

    def thinking_in_prompts(self, variant: Variant) -> Thinking | None:
        """Return `thinking` where it is "on" or changes the prompts of a model; the digest of a server covers it."""
        if variant.label in self.live:
            model = self.live[variant.label]
            return model.thinking_in_prompts if isinstance(model, TransformersModel) else None
        if variant.label not in self._thinking:
            tokenizer = read_tokenizer(self.checkpoints[variant.label])
            self._thinking[variant.label] = thinking_of_prompts(tokenizer, self.study.thinking)
        return self._thinking[variant.label]

    def prompting(self, dense: LanguageModel) -> Prompting:
        """Return the prompting style for all models: `auto` selects chat if every model has a chat template.

        Raises ConfigError if the study asks for chat and a model has no chat template.
        """
        style = resolve_prompting(dense, self.study.prompting)
        if style == "raw":
            return style
        tokenizers = {label: read_tokenizer(checkpoint) for label, checkpoint in self.checkpoints.items()}
        templates = {label: bool(tokenizer.chat_template) for label, tokenizer in tokenizers.items()}
        templates |= {name: model.has_chat_template for name, model in self.live.items()}
        without = [name for name, has_template in templates.items() if not has_template]
        if without and self.study.prompting == "chat":
            raise ConfigError(f'{without[0]} has no chat template; use prompting = "raw" (or "auto")')
        return "raw" if without else style

    def check(self, dense: LanguageModel, tasks: Sequence[Task], prompting: Prompting) -> None:
        """Raise ConfigError if a live model cannot answer the requests of a task; the dense model reads the answers."""
        for model in self.live.values():
            for task in tasks:
                refuse_unanswerable(model, task, prompting=style_of(task, prompting), reference=dense)

    def with_other_tokens(self, dense: LanguageModel) -> list[str]:
        """Return the labels of models whose tokenizer differs from the dense model's tokenizer.

        Live models are included, because their tokenizer is unknown, except those that vLLM runs.
        """
        digest = _digest_of_tokens(dense)
        return [
            *(label for label, files in self.checkpoints.items() if tokenizer_digest(read_tokenizer(files)) != digest),
            *(label for label, model in self.live.items() if (_digest_of_tokens(model) or "unknown") != digest),
        ]


def _digest_of_tokens(model: LanguageModel) -> str | None:
    """Return the digest of a model's tokenizer, None where it is unknown."""
    if isinstance(model, VllmModel):
        return tokenizer_digest(model.encoder.tokenizer)
    return tokenizer_digest(model.tokenizer) if isinstance(model, TransformersModel) else None


def answers_key(model: LanguageModel) -> dict[str, object]:
    """Return the inputs that determine the answers of a model that is not loaded from local files."""
    return {"weights": model.info.digest, "dtype": model.info.dtype}


def settings_of(study: Study) -> ServerSettings:
    """Return the settings for requests to the servers of a study."""
    return ServerSettings(**study.server.model_dump(), thinking=study.thinking)


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a hash of a tokenizer's vocabulary and of the tokens of PROBE."""
    content = [sorted(tokenizer.get_vocab().items()), tokenizer(PROBE, verbose=False)["input_ids"]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def describe_model(label: str, model: LanguageModel, reference: str) -> ComparedModel:
    """Return the entry of a model in results.json: identity, stored size in bytes, and zeros. None means unknown."""
    facts: dict[str, object] = {"label": label, "reference": reference, **asdict(model.info)}
    if not isinstance(model, TransformersModel):
        facts |= {"parameters": model.info.parameters or None, "stored_bytes": None, "zeros": None}
        return ComparedModel.model_validate(facts)
    zeros = zeros_of(model.network)
    facts["stored_bytes"] = None if model.checkpoint is None else model.checkpoint.stored_bytes
    facts["zeros"] = None if zeros is None else asdict(zeros)
    return ComparedModel.model_validate(facts)


def describe_recipe(dense: ComparedModel, compression: CompressionSummary) -> ComparedModel:
    """Return the entry of a model that a recipe produced; its stored bytes are the size of the compact form."""
    assert dense.parameters is not None, "only a model with local weights is compressed"
    weights = [rows * columns for rows, columns in (layer.shape for layer in compression.layers)]
    zeros = sum(w * layer.realised_sparsity for w, layer in zip(weights, compression.layers, strict=True))
    whole = dense.parameters * resolve_dtype(dense.dtype, torch.device("cpu")).itemsize
    entry: dict[str, object] = {
        **dense.facts,
        "label": compression.recipe,
        "digest": compression.digest,
        "stored_bytes": whole - compression.dense_bytes + compression.stored_bytes,
        "zeros": {
            "count": round(zeros),
            "share": zeros / sum(weights) if weights else 0.0,
            "pattern": "",
            "pruned_layers": 0,
            "layers": len(weights),
        },
    }
    return ComparedModel.model_validate(entry)
