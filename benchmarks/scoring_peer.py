"""The lm-eval side of benchmarks/scoring.py; runs in lm-eval's own environment, never by hand.

Reads one JSON object a line from standard input, writes one a line to what was standard output.
"""

import json
import os
import sys
import time
from typing import Any

# lm-eval and datasets print: only answers may reach the pipe.
ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

import torch  # noqa: E402
from lm_eval import simple_evaluate  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402


class TimedHFLM(HFLM):  # type: ignore[misc]
    """The `hf` backend, with the seconds of its scoring alone: task building and metrics are not counted."""

    seconds = 0.0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        started = time.perf_counter()
        answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        self.seconds = time.perf_counter() - started
        return answers


def run(model: TimedHFLM, tasks: str, names: list[str], batch: int) -> dict[str, Any]:
    """Seconds of the forwards and tokenising, and the four log-probabilities of every question by its id."""
    model.batch_size_per_gpu = batch
    found = simple_evaluate(
        model=model,
        tasks=names,
        num_fewshot=5,
        bootstrap_iters=0,
        log_samples=True,
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
    )
    logprobs = {
        sample["doc"]["id"]: [answer[0] for answer in sample["filtered_resps"]]
        for name in names
        for sample in found["samples"][name]
    }
    return {"seconds": model.seconds, "logprobs": logprobs}


def main() -> None:
    """Load the model once, then answer until the input ends."""
    start = json.loads(sys.stdin.readline())
    torch.set_num_threads(start["threads"])
    model = TimedHFLM(pretrained=start["model"], dtype=start["dtype"], device=start["device"], batch_size=1)
    ANSWERS.write(json.dumps({"ready": True}) + "\n")
    ANSWERS.flush()
    for line in sys.stdin:
        job = json.loads(line)
        ANSWERS.write(json.dumps(run(model, job["tasks"], job["names"], job["batch"])) + "\n")
        ANSWERS.flush()


if __name__ == "__main__":
    main()
