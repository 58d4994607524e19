"""Stands for the package vllm: the part of its interface that is used, on a network of transformers, row by row."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

__version__ = "0.stub"


@dataclass(kw_only=True)
class SamplingParams:
    """Only arguments that vLLM's class has; its defaults sample, so callers have to ask for greedy decoding."""

    temperature: float = 1.0
    max_tokens: int = 16
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True


class TokensPrompt(dict[str, Any]):
    """A prompt as token ids."""


@dataclass(kw_only=True)
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(kw_only=True)
class CompletionOutput:
    text: str
    token_ids: list[int]
    finish_reason: str
    stop_reason: str | int | None = None
    index: int = 0


@dataclass(kw_only=True)
class RequestOutput:
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool = True


@dataclass(kw_only=True)
class LLM:
    model: str
    dtype: str
    max_model_len: int
    enable_prefix_caching: bool
    gpu_memory_utilization: float
    tensor_parallel_size: int
    trust_remote_code: bool
    seed: int
    asked: list[SamplingParams] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = AutoModelForCausalLM.from_pretrained(self.model, dtype=getattr(torch, self.dtype)).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.model)
        ends = GenerationConfig.from_pretrained(self.model).eos_token_id
        self.ends = set(ends if isinstance(ends, list) else [ends])

    def generate(
        self, prompts: list[TokensPrompt], sampling_params: list[SamplingParams], *, use_tqdm: bool = True
    ) -> list[RequestOutput]:
        assert len(prompts) == len(sampling_params)
        self.asked += sampling_params
        with torch.no_grad():
            return [
                self._answer(prompt["prompt_token_ids"], parameters)
                for prompt, parameters in zip(prompts, sampling_params, strict=True)
            ]

    def _answer(self, prompt: list[int], parameters: SamplingParams) -> RequestOutput:
        if len(prompt) + 1 > self.max_model_len:
            raise ValueError(f"The decoder prompt (length {len(prompt)}) is longer than the maximum model length")
        assert parameters.temperature == 0.0, "it would sample"
        given: list[dict[int, Logprob] | None] | None = None
        if parameters.prompt_logprobs is not None:
            given = [None, *self._logprobs_of(prompt, parameters.prompt_logprobs)]
        tokens: list[int] = []
        completion = None
        while completion is None:
            token = int(self._logits([*prompt, *tokens])[-1].argmax())
            tokens.append(token)
            completion = self._end(tokens, parameters, room=self.max_model_len - len(prompt))
        return RequestOutput(prompt_token_ids=prompt, prompt_logprobs=given, outputs=[completion])

    def _logits(self, ids: list[int]) -> torch.Tensor:
        logits: torch.Tensor = self.network(torch.tensor([ids])).logits[0].float()
        return logits

    def _logprobs_of(self, prompt: list[int], most: int) -> list[dict[int, Logprob]]:
        rows = self._logits(prompt)[:-1].log_softmax(-1)
        found = []
        for row, token in zip(rows, prompt[1:], strict=True):
            chosen = {token, *row.topk(most).indices.tolist()}
            found.append({t: Logprob(logprob=float(row[t]), rank=int((row >= row[t]).sum())) for t in chosen})
        return found

    def _end(self, tokens: list[int], parameters: SamplingParams, *, room: int) -> CompletionOutput | None:
        text = self.tokenizer.decode(tokens, skip_special_tokens=parameters.skip_special_tokens)
        if tokens[-1] in self.ends:
            return CompletionOutput(text=text, token_ids=tokens, finish_reason="stop")
        if tokens[-1] in (parameters.stop_token_ids or []):
            return CompletionOutput(text=text, token_ids=tokens, finish_reason="stop", stop_reason=tokens[-1])
        for stop in (parameters.stop or []) if parameters.detokenize else []:
            if stop in text:
                return CompletionOutput(text=text, token_ids=tokens, finish_reason="stop", stop_reason=stop)
        if len(tokens) >= min(parameters.max_tokens, room):
            return CompletionOutput(text=text, token_ids=tokens, finish_reason="length")
        return None


def installed() -> ModuleType:
    """This module under the name vllm, as `import` and `find_spec` see an installed package."""
    module = ModuleType("vllm")
    module.__dict__.update({name: value for name, value in globals().items() if not name.startswith("__")})
    module.__dict__["__version__"] = __version__
    module.__spec__ = importlib.util.spec_from_loader("vllm", None)
    return module
