"""Scoring and generation by a random model, beside plain transformers and, where it is installed, vLLM."""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_machine import Machine, timed
from gpu_model import random_model
from llama_shape import Shape

from llmkick.models.engine import generation
from llmkick.models.language_model import ContinuationScore, GenerateRequest, Generation, ScoreRequest
from llmkick.models.transformers_model import TransformersModel

LETTERS = "ABCD"
# Options of several tokens, of unequal lengths: a token is a byte.
OPTIONS = (" the north", " a lake", " no one of these", " by hand")
SUBJECTS = 4  # questions of a subject share their worked examples
NEVER = 10**9  # steps that a CUDA graph is worth
BATCH = 16  # prompts that plain transformers scores at a time
SCRIPT = Path(__file__).parent / "peers" / "vllm_engine.py"


def questions(count: int, *, example_bytes: int, question_bytes: int) -> list[str]:
    """Prompts of random text: worked examples that a subject shares, and a question."""
    generator = random.Random(0)

    def text(size: int) -> str:
        return "".join(generator.choice("abcdefghijklmnop     .\n") for _ in range(size))

    examples = [text(example_bytes) for _ in range(SUBJECTS)]
    return [examples[number % SUBJECTS] + text(question_bytes) + "Answer: " for number in range(count)]


@torch.inference_mode()
def plain_logprobs(model: TransformersModel, prompts: Sequence[Sequence[int]], letters: Sequence[int]) -> list[float]:
    """Each prompt whole, right-padded in batches, without a cache: what a short script does."""
    found: list[float] = []
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        longest = max(map(len, some))
        ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in some], device=model.device)
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in some], device=model.device)
        states = model.network.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        last = states[torch.arange(len(some)), torch.tensor([len(one) - 1 for one in some])]
        logprobs = model.network.lm_head(last).float().log_softmax(-1)
        found += logprobs[:, letters].flatten().tolist()
    return found


@torch.inference_mode()
def plain_options(model: TransformersModel, prompts: Sequence[Sequence[int]], rows: Sequence[list[int]]) -> list[float]:
    """The log-probability of each row's tokens behind its prompt, with the whole row run for each option."""
    found: list[float] = []
    for start in range(0, len(rows), BATCH):
        some, starts = rows[start : start + BATCH], [len(one) for one in prompts[start : start + BATCH]]
        longest = max(map(len, some))
        ids = torch.tensor([[*one, *[0] * (longest - len(one))] for one in some], device=model.device)
        mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in some], device=model.device)
        states = model.network.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        logprobs = [
            model.network.lm_head(states[row, first - 1 : len(one) - 1]).float().log_softmax(-1)
            for row, (first, one) in enumerate(zip(starts, some, strict=True))
        ]
        targets = [ids[row, first : len(one)] for row, (first, one) in enumerate(zip(starts, some, strict=True))]
        sums = [each.gather(1, wanted[:, None]).double().sum() for each, wanted in zip(logprobs, targets, strict=True)]
        found += torch.stack(sums).tolist()
    return found


@torch.inference_mode()
def plain_answers(model: TransformersModel, prompts: Sequence[Sequence[int]], new_tokens: int) -> int:
    """The number of tokens that transformers' own `generate` made, all prompts in a batch."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[*[0] * (longest - len(one)), *one] for one in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts], device=model.device)
    made = model.network.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
    )
    return int((made[:, longest:] > 1).sum())


def scoring_part(
    shape: Shape,
    options: argparse.Namespace,
    machine: Machine,
    folder: Path,
    until: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Scoring and generation, ours beside the peers; vLLM is stopped at `until`."""
    model = random_model(shape, machine.device)
    sizes = {"example_bytes": 60, "question_bytes": 30} if options.tiny else {}
    texts = questions(options.questions, **{"example_bytes": 900, "question_bytes": 150, **sizes})
    prompts = [model.encode(text) for text in texts]
    short = [text[-100:] for text in texts]
    results = {
        "scoring": _scoring(model, texts, prompts, shape, machine),
        "options": _options(model, texts[: max(4, len(texts) // 4)], shape, machine),
        "generation": _generation(model, short, shape, machine, options.new_tokens),
        "notes": [],
    }
    job = {
        "prompts": prompts,
        "short": [model.encode(text) for text in short],
        "new_tokens": options.new_tokens,
        "letters": [model.encode("", letter)[-1] for letter in LETTERS],
    }
    del model
    if machine.device.type == "cuda":
        torch.cuda.empty_cache()
    answer = (
        vllm(shape, job, folder, max(30.0, until - time.perf_counter()))
        if machine.device.type == "cuda"
        else "vLLM was not tried without a GPU"
    )
    if isinstance(answer, str):
        results["notes"].append(answer)
        say(answer)
    else:
        for name in ("scoring", "generation"):
            results[name]["seconds"][f"vLLM {answer['version']}"] = answer[name]
    return results


def _scoring(
    model: TransformersModel, texts: Sequence[str], prompts: Sequence[list[int]], shape: Shape, machine: Machine
) -> dict[str, Any]:
    requests = [ScoreRequest(text, letter) for text in texts for letter in LETTERS]
    letters = [model.encode("", letter)[-1] for letter in LETTERS]
    ours: list[Any] = []
    theirs: list[float] = []

    def run_ours() -> None:
        ours[:] = model.logprobs(requests)

    def run_theirs() -> None:
        theirs[:] = plain_logprobs(model, prompts, letters)

    seconds = _best({"llmkick": run_ours, "transformers": run_theirs}, machine)
    scores = [one.logprob if isinstance(one, ContinuationScore) else float("nan") for one in ours]
    apart = max(abs(one - other) for one, other in zip(scores, theirs, strict=True))
    distinct = len({tuple(prompt[: end + 1]) for prompt in prompts for end in range(len(prompt))})
    return {
        "what": "questions",
        "items": len(texts),
        "tokens": sum(map(len, prompts)),
        "seconds": seconds,
        "floor": 2 * distinct * shape.block_weights / machine.flops["bfloat16"],
        "largest_difference": apart,
        "agreement": f"The log-probabilities of the letters are apart by {apart:.2g} nats at most, in bfloat16; one "
        f"token in {sum(map(len, prompts)) / distinct:.1f} is distinct.",
    }


def _options(model: TransformersModel, texts: Sequence[str], shape: Shape, machine: Machine) -> dict[str, Any]:
    """Options of several tokens: each question's prompt runs once here, and once for each option in the peer."""
    requests = [ScoreRequest(text, option) for text in texts for option in OPTIONS]
    prompts = [model.encode(request.prompt) for request in requests]
    rows = [
        model.encode(request.prompt, option) for request, option in zip(requests, OPTIONS * len(texts), strict=True)
    ]
    ours: list[Any] = []
    theirs: list[float] = []

    def run_ours() -> None:
        ours[:] = model.logprobs(requests)

    def run_theirs() -> None:
        theirs[:] = plain_options(model, prompts, rows)

    seconds = _best({"llmkick": run_ours, "transformers": run_theirs}, machine)
    scores = [one.logprob if isinstance(one, ContinuationScore) else float("nan") for one in ours]
    apart = max(abs(one - other) for one, other in zip(scores, theirs, strict=True))
    distinct = len({tuple(row[: end + 1]) for row in rows for end in range(len(row))})
    return {
        "what": "questions",
        "items": len(texts),
        "tokens": sum(map(len, rows)),
        "seconds": seconds,
        "floor": 2 * distinct * shape.block_weights / machine.flops["bfloat16"],
        "largest_difference": apart,
        "agreement": f"The log-probabilities of {len(OPTIONS)} options of {min(map(len, OPTIONS))} to "
        f"{max(map(len, OPTIONS))} tokens are apart by {apart:.2g} nats at most, in bfloat16.",
    }


def _generation(
    model: TransformersModel, texts: Sequence[str], shape: Shape, machine: Machine, new_tokens: int
) -> dict[str, Any]:
    requests = [GenerateRequest(text, max_new_tokens=new_tokens) for text in texts]
    prompts = [model.encode(text) for text in texts]
    ours: list[Any] = []
    made = [0]

    def run_ours() -> None:
        ours[:] = model.generate(requests)

    def run_theirs() -> None:
        made[0] = plain_answers(model, prompts, new_tokens)

    unrecorded: list[Any] = []

    def run_unrecorded() -> None:
        with patch.object(generation, "WORTHWHILE_STEPS", NEVER):
            unrecorded[:] = model.generate(requests)

    sides = {"llmkick": run_ours, "llmkick without CUDA graphs": run_unrecorded, "transformers": run_theirs}
    seconds = _best(sides, machine)
    same = sum(one == other for one, other in zip(ours, unrecorded, strict=True))
    tokens = sum(one.tokens for one in ours if isinstance(one, Generation))
    # Each step reads all weights; 64 rows decode together.
    steps = -(-len(texts) // 64) * new_tokens
    read = 2 * (shape.block_weights + shape.vocabulary * shape.hidden)
    return {
        "what": "answers",
        "items": len(texts),
        "tokens": tokens,
        "seconds": seconds,
        "floor": steps * read / machine.bandwidth,
        "agreement": f"{tokens} tokens by llmkick, {made[0]} by transformers. Without CUDA graphs {same} of "
        f"{len(texts)} answers are the same, in bfloat16.",
    }


def _best(sides: dict[str, Callable[[], None]], machine: Machine) -> dict[str, float]:
    """Seconds of each side, the better of two rounds after one that warms up."""
    rounds = [{name: timed(side, machine.device) for name, side in sides.items()} for _ in range(3)]
    return {name: min(some[name] for some in rounds[1:]) for name in sides}


def vllm(shape: Shape, job: dict[str, Any], folder: Path, limit: float) -> dict[str, Any] | str:
    """Seconds of vLLM on the same prompts, in a process of its own; or why there are none."""
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed, so it is not compared"
    shape.config().save_pretrained(folder)
    file, result = folder / "job.json", folder / "vllm.json"
    file.write_text(json.dumps({**job, "folder": str(folder), "result": str(result)}), encoding="utf-8")
    try:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(file)], capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return f"vLLM did not end within {limit:.0f} s"
    if done.returncode != 0 or not result.exists():
        return f"vLLM failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1][:200]}"
    answer: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return answer
