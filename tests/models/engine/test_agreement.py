"""The built-in model on real questions: float32 is exact, bfloat16 is no noisier than a plain forward is anyway."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from llmkick.models.checkpoints.loading import load_model
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.results.noise_floor import compare_runs

QUESTIONS = 500
MMLU = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "mmlu"


@pytest.fixture(scope="module")
def benchmark() -> Any:
    path = Path(__file__).parents[3] / "benchmarks" / "scoring.py"
    spec = importlib.util.spec_from_file_location("scoring_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.model
@pytest.mark.timeout(900)
def test_float32_is_the_plain_forward(benchmark: Any, builtin_model: TransformersModel):
    model, questions = builtin_model, benchmark.pocket_questions()[::180]
    requests = [request for question in questions for request in question.requests()]
    places = [range(start, start + 4) for start in range(0, len(requests), 4)]
    found = compare_runs(places, model.logprobs(requests), benchmark.naive_logprobs(model, questions, 1))
    assert found.questions == len(questions) == 2
    assert (found.flipped, found.largest_shift < 1e-4) == (0, True)


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(7200)
def test_bfloat16_flips_no_more_than_a_plain_forward_in_other_batches(
    benchmark: Any, capsys: pytest.CaptureFixture[str]
):
    model = load_model("smollm2-135m-instruct", dtype="bfloat16", device="cpu")
    questions = benchmark.pocket_questions()
    if MMLU.is_dir():
        questions += benchmark.mmlu_questions(MMLU)[:: len(questions) // 50]
    questions = [one for one in questions[-QUESTIONS:] if len(model.encode(one.prompt())) < model.max_tokens]
    engine, naive = benchmark.agreement(model, questions, [8]).values()
    with capsys.disabled():
        sys.stdout.write(f"\n{engine.questions} questions: engine {engine.flipped}, plain {naive.flipped} flips\n")
    assert engine.questions == len(questions) >= 350
    # Two counts of the same rate differ by chance: two standard deviations of their difference.
    assert engine.flipped <= naive.flipped + 2 * math.sqrt(engine.flipped + naive.flipped)
    assert engine.mean_shift <= 1.5 * naive.mean_shift
