"""The context of a server's model: what it was started with, not what its model was trained with."""

from __future__ import annotations

from typing import Any

import pytest

from llmkick.models.server import failures
from llmkick.models.server.server import connect
from llmkick.models.server.settings import ServerSettings
from loopback import Reply, Server, chat, completion, serving

QUICK = ServerSettings(timeout=60.0, concurrency=2, attempts=2)
# As llama.cpp's server lists its model.
LLAMA_CPP = {"id": "m", "object": "model", "owned_by": "llamacpp", "meta": {"n_ctx_train": 131072, "n_params": 135}}
SHORT = {**LLAMA_CPP, "meta": {"n_ctx_train": 2048}}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("LLMKICK_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def script(path: str, body: dict[str, Any]) -> Any:
    return chat("B") if path.endswith("/chat/completions") else completion("B")


def properties(server: Server, found: Reply) -> list[str]:
    """Let a server answer /props; the paths that it is asked for by GET."""
    answer, asked = server.answer, list[str]()

    def answered(path: str, body: dict[str, Any] | None) -> Reply:
        if body is None:
            asked.append(path)
        return found if path == "/props" and body is None else answer(path, body)

    server.answer = answered  # type: ignore[method-assign]
    return asked


def props(tokens: Any) -> Reply:
    return Reply({"default_generation_settings": {"n_ctx": tokens, "speculative": False}, "total_slots": 4})


NOT_FOUND = Reply({"error": {"message": "File Not Found"}}, status=404)


@pytest.mark.parametrize(
    ("entry", "found", "context"),
    [
        (LLAMA_CPP, props(2048), 2048),
        (LLAMA_CPP, props(16384), 16384),
        ({**LLAMA_CPP, "meta": None}, props(1024), 1024),
        ({"id": "m", "meta": {"n_ctx_train": 8192, "n_ctx": 512}}, props(256), 256),
        ({"id": "m", "meta": {"n_ctx_train": 8192, "n_ctx": 512}}, NOT_FOUND, 512),
        (LLAMA_CPP, NOT_FOUND, 4096),
        (SHORT, NOT_FOUND, 2048),
        (LLAMA_CPP, props(0), 4096),  # a router of several models
        (LLAMA_CPP, Reply({"default_generation_settings": None}), 4096),
        (LLAMA_CPP, Reply([1]), 4096),
        (LLAMA_CPP, Reply("<html>"), 4096),
        (LLAMA_CPP, Reply({"error": {"message": "Invalid API Key"}}, status=401), 4096),
        (LLAMA_CPP, Reply({"error": {"message": "loading"}}, status=503), 4096),
    ],
)
def test_the_context_that_llama_cpp_was_started_with(entry: dict[str, Any], found: Reply, context: int):
    with serving(script, models=(entry,)) as server:
        asked = properties(server, found)
        assert connect(server.reference(), QUICK).max_tokens == context
    assert "/props" in asked


@pytest.mark.parametrize("entry", [{"id": "m", "max_model_len": 4321, "owned_by": "vllm"}, {"id": "m"}])
def test_other_servers_are_asked_for_nothing_else(entry: dict[str, Any]):
    with serving(script, models=(entry,)) as server:
        asked = properties(server, props(77))
        assert connect(server.reference(), QUICK).max_tokens == entry.get("max_model_len", 4096)
    assert set(asked) == {"/v1/models"}


def test_an_address_without_a_version():
    with serving(script, models=(LLAMA_CPP,)) as server:
        properties(server, props(2048))
        assert connect(f"openai:{server.url.removesuffix('/v1')}#m", QUICK).max_tokens == 2048
