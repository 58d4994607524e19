"""The built-in model behind real servers: greedy answers agree with those of the same weights here."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkick.models.checkpoints.builtin import builtin_gguf
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.references import locate
from llmkick.models.server.capabilities import Capabilities
from llmkick.models.server.server import ServerModel, connect
from llmkick.models.server.settings import ServerSettings
from llmkick.models.transformers_model import TransformersModel
from llmkick.tasks.evaluate import evaluate
from llmkick.tasks.registry import get_task
from real_servers import free_port, llama_cpp_command, running, transformers_command

MODEL = "smollm2-135m-instruct"
ITEMS = 6
PATIENT = ServerSettings(timeout=300, concurrency=2)

pytestmark = [pytest.mark.model, pytest.mark.timeout(900)]


def missing(*modules: str) -> str:
    absent = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"{', '.join(absent)} not installed" if absent else ""


@pytest.fixture(scope="module")
def here() -> TransformersModel:
    return load_model(MODEL, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def transformers_server() -> Iterator[ServerModel]:
    if reason := missing("fastapi", "uvicorn"):
        pytest.skip(reason)
    name, port = locate(MODEL).folder, free_port()
    with running(transformers_command(Path(name), port), port) as server:
        yield connect(f"openai:{server.url}#{name}", PATIENT)


@pytest.fixture(scope="module")
def llama_cpp_server() -> Iterator[ServerModel]:
    if reason := missing("llama_cpp", "fastapi", "uvicorn"):
        pytest.skip(reason)
    port = free_port()
    with running(llama_cpp_command(builtin_gguf(MODEL), port), port) as server:
        yield connect(f"openai:{server.url}#smol", PATIENT)


@pytest.mark.slow
@pytest.mark.parametrize("prompting", ["chat", "raw"])
def test_transformers_serve_gives_the_same_greedy_answers(
    here: TransformersModel, transformers_server: ServerModel, prompting: str
):
    task = get_task("factoid_qa", limit=ITEMS)
    ours, theirs = (evaluate(model, task, prompting=prompting) for model in (here, transformers_server))
    # The same weights in the same precision by the same library: only sums in another order may differ.
    alike = sum(one.response == other.response for one, other in zip(ours, theirs, strict=True))
    assert alike >= ITEMS - 1
    assert transformers_server.capabilities == Capabilities(chat=True, text=True)


@pytest.mark.slow
def test_letters_from_transformers_serve_are_generated(transformers_server: ServerModel):
    records = evaluate(transformers_server, get_task("multiple_choice:letter", limit=2), prompting="chat")
    assert {record.details.get("chosen_by", "unscored") for record in records} <= {"generated letter", "unscored"}


@pytest.mark.slow
def test_llama_cpp_answers_and_scores_as_the_model_here(here: TransformersModel, llama_cpp_server: ServerModel):
    task = get_task("factoid_qa", limit=ITEMS)
    ours, theirs = (evaluate(model, task, prompting="raw") for model in (here, llama_cpp_server))
    # llama.cpp multiplies Q4_1 weights with activations rounded to 8 bits: an answer may turn.
    assert sum(one.score == other.score for one, other in zip(ours, theirs, strict=True)) >= ITEMS - 2
    assert llama_cpp_server.capabilities.text
    if llama_cpp_server.capabilities.echo:
        cloze = get_task("multiple_choice:cloze", limit=4)
        ours, theirs = (evaluate(model, cloze, prompting="raw") for model in (here, llama_cpp_server))
        for one, other in zip(ours, theirs, strict=True):
            assert other.details["choice_logprobs"] == pytest.approx(one.details["choice_logprobs"], abs=2.0)
