"""A model that vLLM runs: the prompts and the reading of answers are the engine's, the network is vLLM's.

Written against vLLM's public interface (`LLM`, `SamplingParams`, `TokensPrompt` and `RequestOutput`). Its prefix cache
is on. Prompts are given as token ids, so that they are those of the engine.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from llmkick.errors import ConfigError, ModelError, one_line
from llmkick.models.checkpoints.meta_model import MetaModel, load_meta_model
from llmkick.models.engine.answers import Answers, Row, rows_of
from llmkick.models.engine.encoding import EncodedRequest, encode_answerable
from llmkick.models.engine.network import vocabulary_of
from llmkick.models.engine.prompt_encoder import PromptEncoder
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    ModelDefaults,
    ModelInfo,
    Prompt,
    ScoreRequest,
    Unanswered,
)
from llmkick.models.precision import BALANCED
from llmkick.models.thoughts import Thinking

# vLLM reserves memory for a context of this length when it starts; longer ones leave too little for a batch.
MOST_TOKENS = 8192
# The share of a GPU's memory that vLLM takes, whatever the size of the model.
MEMORY_VARIABLE, MEMORY_SHARE = "LLMKICK_VLLM_MEMORY", 0.9


@dataclass(frozen=True, kw_only=True)
class VllmModel(ModelDefaults):
    """A LanguageModel that vLLM runs. Its digest covers the files, the version of vLLM and `thinking`."""

    info: ModelInfo
    runner: Any = field(repr=False)  # vllm.LLM
    package: Any = field(repr=False)  # vllm
    encoder: PromptEncoder = field(repr=False)
    end_tokens: frozenset[int]
    vocabulary: int
    max_tokens: int

    @property
    def has_chat_template(self) -> bool:
        """True for instruct models."""
        return self.encoder.has_chat_template

    @property
    def notes(self) -> tuple[str, ...]:
        """Who has answered, and what the chat template does not take."""
        version = self.package.__version__
        return (
            f"{self.info.name} was run by vLLM {version}, whose rounding depends on its batches",
            *self.encoder.notes,
        )

    def tokenize(self, text: str) -> list[int]:
        """Token ids of raw text, with the special tokens that the tokenizer puts before it by default."""
        return self.encoder.tokenize(text)

    def prompt_tokens(self, prompt: Prompt) -> int:
        """The number of tokens of a prompt, with the chat template if it is a conversation."""
        return len(self.encoder.encode(prompt))

    def with_thinking(self, thinking: Thinking) -> VllmModel:
        """The same model, asked to think before it answers or not; conversations alone are affected."""
        encoder = PromptEncoder(tokenizer=self.encoder.tokenizer, model_name=self.info.name, thinking=thinking)
        digest = self.info.digest
        if encoder.thinking_in_prompts is not None:
            digest = hashlib.sha256(f"{digest}\0{thinking}".encode()).hexdigest()
        return replace(self, encoder=encoder, info=replace(self.info, digest=digest))

    def logprobs(self, requests: Sequence[ScoreRequest]) -> list[ContinuationScore | Unanswered]:
        """One score for each request, in order: sums of the log-probabilities of its tokens in the prompt."""
        encoded, unanswered = encode_answerable(
            self.encoder.without_thinking, requests, vocabulary=self.vocabulary, context=self.max_tokens
        )
        # At least one token has to be generated; it is not used.
        parameters = self.package.SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1, detokenize=False)
        outputs = self._run([(*one.prompt, *one.continuation) for one in encoded], [parameters] * len(encoded))
        scores: dict[int, ContinuationScore | Unanswered] = dict(unanswered)
        for one, output in zip(encoded, outputs, strict=True):
            scores[one.index] = _score_of(one, output.prompt_logprobs)
        return [scores[index] for index in range(len(requests))]

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation | Unanswered]:
        """One greedy generation for each request, in order."""
        answers = Answers(self.encoder, self.end_tokens)
        rows = rows_of(requests, self.encoder, vocabulary=self.vocabulary, context=self.max_tokens)
        open_rows = [row for row in rows if row.outcome is None]
        self._answer(open_rows, answers, with_stops=True)
        # vLLM stops at any stop string, also at one before the answer or inside a thought.
        self._answer([row for row in open_rows if row.outcome is None], answers, with_stops=False)
        return [row.outcome if row.outcome is not None else answers.finished(row, "length") for row in rows]

    def _answer(self, rows: Sequence[Row], answers: Answers, *, with_stops: bool) -> None:
        """Give rows their outcomes, except those that ended at a stop string which does not count."""
        parameters = [
            self.package.SamplingParams(
                temperature=0.0,
                max_tokens=row.most_new,
                stop=list(row.request.stops) if with_stops and row.request.stops else None,
                stop_token_ids=sorted(self.end_tokens),
                skip_special_tokens=False,
            )
            for row in rows
        ]
        for row, output in zip(rows, self._run([row.prompt for row in rows], parameters), strict=True):
            _replay(row, output.outputs[0], answers)

    def _run(self, prompts: Sequence[Sequence[int]], parameters: Sequence[Any]) -> list[Any]:
        """The outputs of vLLM, in order."""
        if not prompts:
            return []
        tokens = [self.package.TokensPrompt(prompt_token_ids=list(prompt)) for prompt in prompts]
        outputs: list[Any] = self.runner.generate(tokens, list(parameters), use_tqdm=False)
        if len(outputs) != len(prompts):
            raise ModelError(f"vLLM gave {len(outputs)} answers to {len(prompts)} prompts; update it")
        return outputs


def _score_of(request: EncodedRequest, given: Sequence[Any] | None) -> ContinuationScore | Unanswered:
    """The score of a continuation. given: for each token of prompt and continuation, None or token id → Logprob."""
    tokens = (*request.prompt, *request.continuation)
    first = len(tokens) - request.scored_tokens
    if given is None or len(given) != len(tokens):
        return Unanswered(reason="vLLM gave no log-probabilities of the prompt")
    found = [(given[place] or {}).get(tokens[place]) for place in range(first, len(tokens))]
    if any(one is None or not math.isfinite(one.logprob) for one in found):
        return Unanswered(reason="the model's output is NaN or Inf, or vLLM left out a log-probability")
    return ContinuationScore(
        logprob=math.fsum(one.logprob for one in found if one is not None),
        tokens=len(found),
        is_greedy=all(one is not None and one.rank == 1 for one in found),
        boundary_moved=request.boundary_moved,
    )


def _replay(row: Row, completion: Any, answers: Answers) -> None:
    """Read a completion token by token, as the engine reads its own, from the beginning."""
    row.tokens.clear()
    row.thought = 0
    for token in completion.token_ids:
        answers.append(row, int(token), is_finite=True)
        if row.outcome is not None:
            return
    if completion.finish_reason == "length":
        row.outcome = answers.finished(row, "length")
    elif not isinstance(completion.stop_reason, str):  # an end token that is not among the tokens
        row.outcome = answers.finished(row, "end")


def load_vllm(path: str, *, dtype: str = "auto", device: str = "auto") -> VllmModel:
    """The model in a folder, on the hub or in the list of built-in ones, run by vLLM.

    dtype: as in `load_model`. device: "auto" or "cuda" for one GPU, "balanced" for all; "cpu" where there is no GPU.
    Raises ModelError where the package is missing or cannot run the model, ConfigError for another device.
    """
    if importlib.util.find_spec("vllm") is None:
        raise ModelError("vllm:PATH needs the package vllm: pip install 'llmkick[vllm]' (Linux and a GPU)")
    gpus, share = torch.cuda.device_count(), _memory_share()
    if device not in ("auto", "cuda", BALANCED) and not (device == "cpu" and gpus == 0):
        raise ConfigError(
            f"vLLM chooses its device itself, not {device!r}; use auto, cuda or {BALANCED}; "
            "CUDA_VISIBLE_DEVICES says which GPUs it may use"
        )
    meta_model = load_meta_model(path, dtype=dtype, device="auto" if device == BALANCED and gpus == 0 else device)
    checkpoint, model = meta_model.checkpoint, meta_model.model
    if checkpoint.packed:
        raise ModelError(f"{path} is in llmkick's compact form, which vLLM cannot read; compress without --packed")
    context = min(model.max_tokens, MOST_TOKENS)
    try:
        package: Any = importlib.import_module("vllm")
        runner = package.LLM(
            model=str(checkpoint.folder),
            dtype=model.info.dtype,
            max_model_len=context,
            enable_prefix_caching=True,
            gpu_memory_utilization=share,
            tensor_parallel_size=gpus if device == BALANCED and gpus > 1 else 1,
            trust_remote_code=False,
            seed=0,
        )
    except Exception as error:
        raise ModelError(f"vLLM cannot run {path}: {one_line(error)}") from error
    return _model_of(meta_model, runner, package, context)


def _model_of(meta_model: MetaModel, runner: Any, package: Any, context: int) -> VllmModel:
    model, name = meta_model.model, f"vllm:{meta_model.info.name}"
    identity = {"weights": model.info.digest, "vllm": package.__version__, "context": context}
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    return VllmModel(
        info=replace(model.info, name=name, digest=digest),
        runner=runner,
        package=package,
        encoder=PromptEncoder(tokenizer=model.tokenizer, model_name=name),
        end_tokens=model.end_tokens,
        vocabulary=vocabulary_of(model.network),
        max_tokens=context - 1,  # vLLM generates at least one token beyond what it scores
    )


def _memory_share() -> float:
    """The share of a GPU's memory for vLLM. Raises ConfigError for a text that is none."""
    text = os.environ.get(MEMORY_VARIABLE, str(MEMORY_SHARE))
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise ConfigError(f"{MEMORY_VARIABLE} is {text!r}; give a share of the GPU's memory such as 0.4")
    return share
