"""What a server refuses is left out or renamed, once, and said; a request that is at fault itself stays refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llmkick.models.language_model import GenerateRequest, Generation, Message
from llmkick.models.server import failures as endpoint_failures
from llmkick.models.server.address import parse_address
from llmkick.models.server.endpoint import Endpoint
from llmkick.models.server.refusals import RefusedError
from llmkick.models.server.replies import final_text
from llmkick.models.server.server import connect
from llmkick.models.server.settings import ServerSettings
from loopback import Reply, chat, completion, refused, serving

USER = {"role": "user", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief."}
REQUEST: dict[str, Any] = {
    "messages": [USER], "max_tokens": 4, "temperature": 0, "seed": 7, "stop": ["\n"], "frequency_penalty": 0,
    "response_format": {"type": "json_object"},
    "extra_body": {"chat_template_kwargs": {"enable_thinking": False}, "repeat_penalty": 1.0},
}  # fmt: skip
DROPPABLE = ("temperature", "seed", "stop", "frequency_penalty", "response_format", "chat_template_kwargs")


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_failures, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def endpoint(server: Any) -> Endpoint:
    return Endpoint(parse_address(server.reference()), attempts=2, timeout=60.0)


def body(text: Any, status: int = 400) -> Reply:
    return Reply(text, status=status)


# How servers say that they do not take a parameter.
WORDS: dict[str, Callable[[str], Reply]] = {
    "OpenAI": lambda name: body(
        {"error": {"message": f"Unsupported parameter: '{name}' is not supported with this model.",
                   "type": "invalid_request_error", "param": name, "code": "unsupported_parameter"}}
    ),
    "OpenAI, a value": lambda name: body(
        {"error": {"message": f"Unsupported value: '{name}' does not support 0 with this model.", "param": name}}
    ),
    "OpenAI, unknown": lambda name: refused(f"Unrecognized request argument supplied: {name}"),
    "FastAPI": lambda name: body(
        {"detail": [{"loc": ["body", name], "msg": "extra fields not permitted", "type": "value_error.extra"}]}, 422
    ),
    "vLLM": lambda name: body(
        {"object": "error", "message": f"[{{'type': 'extra_forbidden', 'loc': ('body', '{name}'), 'msg': 'Extra "
         "inputs are not permitted'}]", "code": 400}
    ),
    "serde": lambda name: body(
        f"Failed to deserialize: unknown field `{name}`, expected one of `messages`, `model`, `max_tokens`", 422
    ),
    "Anthropic": lambda name: refused(f"{name}: Extra inputs are not permitted"),
    "an error that is a text": lambda name: body({"error": f"{name} is not supported"}),
    "a nested value": lambda name: refused(f"{name}.type: unknown value"),
    "Python": lambda name: refused(f"create() got an unexpected keyword argument '{name}'", 500),
}  # fmt: skip


@pytest.mark.parametrize("name", DROPPABLE)
@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_a_refused_parameter_is_left_out_once_and_said(name: str, words: Callable[[str], Reply]):
    def script(path: str, asked: dict[str, Any]) -> Any:
        return words(name) if name in asked else chat("fine")

    with serving(script) as server:
        one = endpoint(server)
        assert one.differences.notes == ()
        for _ in range(3):
            assert final_text(one.chat(**REQUEST)).text == "fine"
    first, last = server.asked[0][1], server.asked[-1][1]
    assert set(first) - set(last) == {name}
    assert {key: first[key] for key in last} == last
    refusals = sum(name in asked for _, asked in server.asked)
    assert refusals == (2 if words is WORDS["Python"] else 1)  # status 500 is tried again first
    (note,) = one.differences.notes
    assert f"refuses {name}, which is left out: " in note


def test_the_limit_has_another_name_or_none():
    def newer(path: str, asked: dict[str, Any]) -> Any:
        if "max_tokens" in asked:
            return refused("Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.")
        return chat(str(asked["max_completion_tokens"]))

    with serving(newer) as server:
        one = endpoint(server)
        assert [final_text(one.chat(messages=[USER], max_tokens=n)).text for n in (4, 9)] == ["4", "9"]
    assert len(server.asked) == 3
    assert one.differences.notes == ("it refuses max_tokens; the limit is sent as max_completion_tokens",)

    def neither(path: str, asked: dict[str, Any]) -> Any:
        named = next((name for name in ("max_tokens", "max_completion_tokens") if name in asked), None)
        return refused(f"Unknown parameter: '{named}'") if named else chat("fine")

    with serving(neither) as server:
        one = endpoint(server)
        assert final_text(one.chat(messages=[USER], max_tokens=4)).text == "fine"
    assert any("no limit on their length" in note for note in one.differences.notes)


def test_several_refusals_are_all_met():
    wanted = {"model", "messages", "max_tokens"}

    def script(path: str, asked: dict[str, Any]) -> Any:
        strange = sorted(set(asked) - wanted)
        return refused(f"unknown parameter: '{strange[0]}'") if strange else chat("fine")

    request = {**REQUEST, "extra_body": {"chat_template_kwargs": {}}}
    with serving(script) as server:
        one = endpoint(server)
        assert final_text(one.chat(**request)).text == "fine"
    assert len(one.differences.notes) == len(DROPPABLE)


FAULTS = {
    "length": "'max_tokens' or 'max_completion_tokens' is too large: 5000. This model's maximum context length is 4096",
    "context": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (996 in the "
    "messages, 4 in the completion). Please reduce the length of the messages or completion.",
    "higher": "Could not finish the message because max_tokens or model output limit was reached. Please try again "
    "with higher max_tokens.",
    "text": "the text of the messages is not allowed",
    "penalty": "unknown field `repeat_penalty`, expected one of `model`, `messages`, `temperature`, `seed`",
    "no reason": "",
    "a word": "do not stop here",
}


@pytest.mark.parametrize("message", FAULTS.values(), ids=FAULTS)
def test_a_request_that_is_at_fault_stays_refused(message: str):
    with serving(lambda path, asked: refused(message)) as server:
        one = endpoint(server)
        with pytest.raises(RefusedError):
            one.chat(**REQUEST)
    assert len(server.asked) == 1
    assert one.differences.notes == ()


def test_what_did_not_help_is_not_remembered():
    def script(path: str, asked: dict[str, Any]) -> Any:
        return refused("invalid 'temperature'") if "bad" in str(asked["messages"]) else chat("fine")

    with serving(script) as server:
        one = endpoint(server)
        with pytest.raises(RefusedError):
            one.chat(**{**REQUEST, "messages": [{"role": "user", "content": "bad"}]})
        one.chat(**REQUEST)
    assert server.asked[-1][1]["temperature"] == 0
    assert one.differences.notes == ()


@pytest.mark.parametrize(
    "message",
    [
        "Requested sample logprobs of 20, which is greater than max allowed: 5",
        "top_logprobs must be between 0 and 5",
        "top_logprobs: Input should be less than or equal to 5",
        "'top_logprobs' is at most 5",
    ],
)
def test_fewer_alternatives_are_asked_for_where_a_server_gives_fewer(message: str):
    name = "top_logprobs" if "top_logprobs" in message else "logprobs"

    def script(path: str, asked: dict[str, Any]) -> Any:
        reply = chat if path.endswith("/chat/completions") else completion
        return refused(message) if asked[name] > 5 else reply("fine")

    with serving(script) as server:
        one = endpoint(server)
        for _ in range(2):
            if name == "top_logprobs":
                one.chat(messages=[USER], max_tokens=1, logprobs=True, top_logprobs=20)
            else:
                one.complete(prompt="Q", max_tokens=1, logprobs=20)
    assert [asked[name] for _, asked in server.asked] == [20, 5, 5]
    assert one.differences.notes == (f"it takes {name} of at most 5, and gets that",)


def test_a_limit_that_is_too_small_is_raised():
    def script(path: str, asked: dict[str, Any]) -> Any:
        return refused("max_tokens must be at least 16") if asked["max_tokens"] < 16 else chat("fine")

    with serving(script) as server:
        one = endpoint(server)
        one.chat(messages=[USER], max_tokens=1)
        one.chat(messages=[USER], max_tokens=99)
    assert [asked["max_tokens"] for _, asked in server.asked] == [1, 16, 99]


SYSTEM_WORDS = {
    "Gemma": "System role not supported",
    "Mistral": "Conversation roles must alternate user/assistant/user/assistant/...",
    "OpenAI": "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
    "Google": "Developer instruction is not enabled for models/gemma-3",
    "roles": "Only user, assistant and tool roles are supported; got system",
}


@pytest.mark.parametrize("status", [400, 422, 500])
@pytest.mark.parametrize("words", SYSTEM_WORDS.values(), ids=SYSTEM_WORDS)
def test_a_system_message_goes_to_the_first_question(words: str, status: int):
    def script(path: str, asked: dict[str, Any]) -> Any:
        roles = [message["role"] for message in asked["messages"]]
        return refused(words, status) if "system" in roles else chat("fine")

    with serving(script) as server:
        one = endpoint(server)
        one.chat(messages=[SYSTEM, USER], max_tokens=1)
        one.chat(messages=[SYSTEM, USER], max_tokens=1)
    assert server.asked[-1][1]["messages"] == [{"role": "user", "content": "Be brief.\n\nHello"}]
    assert sum(message["role"] == "system" for _, asked in server.asked for message in asked["messages"]) <= 2
    assert "no system message" in one.differences.notes[0]


def test_turns_are_joined_where_they_must_alternate():
    def script(path: str, asked: dict[str, Any]) -> Any:
        roles = [message["role"] for message in asked["messages"]]
        alternate = all(role == ("user", "assistant")[n % 2] for n, role in enumerate(roles))
        return chat("fine") if alternate else refused("Conversation roles must alternate user/assistant/...")

    answer = {"role": "assistant", "content": "Hi"}
    with serving(script) as server:
        one = endpoint(server)
        one.chat(messages=[SYSTEM, USER, USER, answer, USER], max_tokens=1)
        one.chat(messages=[USER, answer, answer, USER], max_tokens=1)
    assert server.asked[-2][1]["messages"] == [
        {"role": "user", "content": "Be brief.\n\nHello\n\nHello"}, answer, USER,
    ]  # fmt: skip
    assert [message["content"] for message in server.asked[-1][1]["messages"]] == ["Hello", "Hi\n\nHi", "Hello"]
    assert len(one.differences.notes) == 2


def test_a_model_says_what_its_server_refuses():
    def script(path: str, asked: dict[str, Any]) -> Any:
        if not path.endswith("/chat/completions"):
            return refused("Not Found", 404)
        return refused("Unsupported parameter: 'temperature'") if "temperature" in asked else chat("Paris")

    with serving(script) as server:
        model = connect(server.reference(), ServerSettings(attempts=2, timeout=60.0))
        answer = model.generate([GenerateRequest((Message("user", "?"),))])[0]
    assert isinstance(answer, Generation)
    assert answer.text == "Paris"
    assert any("m: it refuses temperature" in note and "one run to the next" in note for note in model.notes)
