"""vLLM on the prompts of gpu_scoring.py, with random weights of its own: seconds of scoring and of generation."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import vllm


def main() -> None:
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    engine = vllm.LLM(
        model=job["folder"],
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="bfloat16",
        max_model_len=2048,
        enable_prefix_caching=True,
        gpu_memory_utilization=0.6,
    )
    # A letter is scored as the last token of a prompt; prompt log-probabilities go with one token at least.
    scoring = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
    generation = vllm.SamplingParams(max_tokens=job["new_tokens"], temperature=0, detokenize=False)
    scored = [{"prompt_token_ids": [*prompt, letter]} for prompt in job["prompts"] for letter in job["letters"]]
    continued = [{"prompt_token_ids": prompt} for prompt in job["short"]]
    answer: dict[str, Any] = {"version": vllm.__version__}
    for name, prompts, parameters in (("scoring", scored, scoring), ("generation", continued, generation)):
        engine.generate(prompts[:4], parameters, use_tqdm=False)
        started = time.perf_counter()
        engine.generate(prompts, parameters, use_tqdm=False)
        answer[name] = time.perf_counter() - started
    Path(job["result"]).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
