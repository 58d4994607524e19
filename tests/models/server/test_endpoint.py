"""A server that is down, slow, busy, broken, of another name, or that stops half-way: retried, or said clearly."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from llmkick.errors import ConfigError, JudgeError, KickError, ModelError
from llmkick.models.server import credentials
from llmkick.models.server import failures as endpoint_failures
from llmkick.models.server.address import Address, parse_address
from llmkick.models.server.endpoint import Endpoint
from llmkick.models.server.refusals import Refused, RefusedError
from llmkick.models.server.replies import final_text
from loopback import Reply, chat, completion, refused, serving

# Variables that the openai library reads for every program.
OTHERS_HEADERS = {
    "OPENAI_ORG_ID": "org-of-the-user",
    "OPENAI_PROJECT_ID": "proj-of-the-user",
    "OPENAI_CUSTOM_HEADERS": "X-Gateway: Token gw-very-secret\nno header\nauthorization: Bearer sk-of-others",
}
HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_failures, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("LLMKICK_API_KEY", "OPENAI_API_KEY", *OTHERS_HEADERS):
        monkeypatch.delenv(name, raising=False)


def endpoint(server: Any, name: str = "m", **options: Any) -> Endpoint:
    return Endpoint(parse_address(server.reference(name)), **{"attempts": 3, "timeout": 60.0, **options})


def text_of(reply: Any) -> str:
    return str(reply.choices[0].message.content)


# Addresses


def test_an_address_is_a_url_and_a_name():
    address = parse_address("openai:http://127.0.0.1:8000/v1/#Qwen/Qwen3-8B@main")
    assert address == Address("http://127.0.0.1:8000/v1", "Qwen/Qwen3-8B@main")
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "reference",
    [
        "openai:",
        "openai:http://h/v1",
        "openai:http://h/v1#",
        "openai:http://h/v1# ",
        "openai:h/v1#m",
        "openai:ftp://h#m",
        "http://h#m",
        "openai:http://[::1#m",
        "openai:http://h:port/v1#m",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(reference: str):
    with pytest.raises(ConfigError, match=r"openai:http://127\.0\.0\.1:8000/v1#my-model"):
        parse_address(reference)


@pytest.mark.parametrize(
    "url", ["https://me:s3cret@h/v1", "https://s3cret@h/v1", "https://h/v1?key=s3cret", "https://me:s3cret/@h/v1"]
)
def test_an_address_with_a_key_is_refused_without_repeating_it(url: str):
    with pytest.raises(ConfigError, match=r"must hold no key, .*LLMKICK_API_KEY") as caught:
        parse_address(f"openai:{url}#m")
    assert "s3cret" not in str(caught.value)


# Asking


def test_replies_come_in_the_order_of_the_requests_and_as_many_at_once_as_allowed():
    first_three = threading.Barrier(3)  # nobody is answered before three have asked

    def script(path: str, body: dict[str, Any]) -> Reply:
        number = int(body["messages"][0]["content"])
        if number < 3:
            first_three.wait(timeout=60)
        return Reply(chat(f"answer {number}"), after=0.02 * (number % 3))

    requests = [{"messages": [{"role": "user", "content": str(n)}], "max_tokens": 4} for n in range(12)]
    with serving(script) as server:
        replies = endpoint(server, concurrency=3).ask_all(endpoint(server).chat, requests)
    assert [text_of(reply) for reply in replies] == [f"answer {n}" for n in range(12)]
    assert server.most_at_once == 3
    assert {path for path, _ in server.asked} == {"/v1/chat/completions"}


def test_a_completion_is_asked_of_its_own_endpoint():
    with serving(lambda path, body: completion(f"{body['prompt']} two")) as server:
        assert endpoint(server).complete(prompt="one", max_tokens=2).choices[0].text == "one two"
    assert [path for path, _ in server.asked] == ["/v1/completions"]


TROUBLE = {
    "busy": refused("slow down", 429, **{"retry-after": "0"}),
    "restarting": refused("loading", 503),
    "broken": refused("oh", 500),
    "dropped before": Reply(nothing=True),
    "dropped half-way": Reply('{"id": "1", "choices": [{"mess', promised=100),
    "half a body": Reply('{"id": "1", "choices": [{"mess'),
    "no text at all": Reply(b'{"id": "\xff"}'),
    "too early": refused("wait", 425),
    "busy behind a gateway": Reply({"error": {"code": 429, "message": "slow down"}}),
    "an error without a number": Reply({"error": {"code": None, "message": "overloaded"}}),
    "an error that is a text": Reply({"error": "overloaded", "choices": None}),
    "a page": Reply("<html>proxy error</html>", headers={"content-type": "text/html"}),
    "no answer": Reply({"id": "1", "model": "m"}),
    "empty": Reply({"id": "1", "model": "m", "choices": []}),
}


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
def test_trouble_that_passes_is_tried_again(trouble: Reply):
    replies = iter([trouble, trouble, chat("done")])
    with serving(lambda path, body: next(replies)) as server:
        assert text_of(endpoint(server).chat(**HELLO)) == "done"
    assert len(server.asked) == 3


@pytest.mark.parametrize("trouble", TROUBLE.values(), ids=TROUBLE)
def test_trouble_that_stays_is_an_error_of_the_kind_asked_for(trouble: Reply):
    with serving(lambda path, body: trouble) as server:
        one = endpoint(server, error=JudgeError)
        with pytest.raises(JudgeError, match=rf"{server.url}.*\(3 attempts\)"):
            one.ask_all(one.chat, [HELLO])
    # A server that breaks is asked something tiny before it is given up.
    assert len(server.asked) == (6 if trouble is TROUBLE["broken"] else 3)


def test_what_the_server_asks_to_wait_is_waited():
    replies = iter([refused("slow down", 429, **{"retry-after": "0.3"}), chat("done")])
    with serving(lambda path, body: next(replies)) as server:
        started = time.perf_counter()
        endpoint(server).chat(**HELLO)
    assert time.perf_counter() - started >= 0.3


def test_a_date_to_wait_for_is_waited_for():
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)  # whole seconds
    replies = iter([refused("slow down", 429, **{"retry-after": later}), chat("done")])
    with serving(lambda path, body: next(replies)) as server:
        started = time.perf_counter()
        endpoint(server).chat(**HELLO)
    assert time.perf_counter() - started >= 1.5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("90", 90.0), ("-3", 0.0), ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0), ("", None), ("soon", None), ("inf", None),
        ("nan", None), ("Sun, 06 Nov 1994 08:49:37 -0000", 0.0), ("Sun Nov  6 08:49:37 1994", 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0), ("Sun, 06 Nov 1994 08:49:37 +99999999999999999999", None),
    ],
)  # fmt: skip
def test_waits_that_a_server_asks_for(header: str, seconds: float | None):
    with (
        serving(lambda path, body: refused("slow down", 429, **{"retry-after": header})) as server,
        pytest.raises(ModelError) as caught,
    ):
        endpoint(server, attempts=1).chat(**HELLO)
    assert endpoint_failures.asked_wait(caught.value.__cause__) == seconds


def test_a_server_that_asks_for_hours_is_not_waited_for():
    with serving(lambda path, body: refused("daily limit", 429, **{"retry-after": "7200"})) as server:
        one = endpoint(server)
        with pytest.raises(ModelError, match=r"asks to wait for 7,200 s: daily limit; go on later") as caught:
            one.ask_all(one.chat, [HELLO])
    assert len(server.asked) == 1
    assert endpoint_failures.is_permanent(caught.value)


@pytest.mark.parametrize(
    ("error", "message", "is_permanent"),
    [
        ({"code": 401, "message": "No cookie"}, "does not accept the key: No cookie", True),
        ({"code": "404", "message": "no m"}, "knows no 'm', or has no such endpoint: no m", True),
        ({"code": 402, "message": "pay"}, "fails with status 402: pay", False),
        ({"status": 429, "type": "insufficient_quota", "message": "spent"}, "wants to be paid: spent", True),
        ({"code": "insufficient_quota", "message": "spent"}, "wants to be paid: spent", True),
        ({"code": "invalid_api_key", "type": "invalid_request_error", "message": "no"}, "not accept the key: no", True),
        ({"code": "model_not_found", "type": "invalid_request_error", "message": "no"}, "knows no 'm', .*: no", True),
        ({"type": "authentication_error", "message": "no"}, "does not accept the key: no", True),
        ({"code": 401.0, "message": "no"}, "does not accept the key: no", True),
    ],
)
def test_an_error_in_a_reply_of_status_200_is_that_error(error: Any, message: str, is_permanent: bool):
    with serving(lambda path, body: Reply({"error": error})) as server:
        one = endpoint(server)
        with pytest.raises(ModelError, match=message) as caught:
            one.ask_all(one.chat, [HELLO])
    assert len(server.asked) == 1
    assert endpoint_failures.is_permanent(caught.value) is is_permanent


@pytest.mark.parametrize(
    "body", [{"error": "no key", "code": 401}, {"object": "error", "message": "no key", "code": 401}]
)
def test_the_status_of_an_error_may_stand_beside_it(body: Any):
    with serving(lambda path, _: Reply(body)) as server:
        one = endpoint(server)
        with pytest.raises(ModelError, match="does not accept the key: no key"):
            one.ask_all(one.chat, [HELLO])
    assert len(server.asked) == 1


@pytest.mark.parametrize("error", [{"code": 400}, {"code": "too_long", "type": "invalid_request_error"}])
def test_a_refusal_in_a_reply_of_status_200_is_of_that_request(error: Any):
    refusal = Reply({"error": {**error, "message": "too long"}})
    with serving(lambda path, body: refusal if body["max_tokens"] == 9 else chat("fine")) as server:
        one = endpoint(server)
        replies = one.ask_all(one.chat, [HELLO, {**HELLO, "max_tokens": 9}])
    assert text_of(replies[0]) == "fine"
    assert replies[1] == Refused("the server refused it: too long")


IN_FLIGHT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a shell that runs in the background
from llmkick.models.server.address import parse_address
from llmkick.models.server.endpoint import Endpoint
one = Endpoint(parse_address(sys.argv[1]), attempts=1, concurrency=4)
one.ask_all(one.chat, [{"messages": [{"role": "user", "content": str(n)}]} for n in range(4)])
"""
JUDGED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored below a shell that runs in the background
from llmkick.models.server.address import parse_address
from llmkick.tasks.judge.clients import EndpointJudge, Question
from llmkick.models.language_model import Message
judge = EndpointJudge(address=parse_address(sys.argv[1]), api_key_env="JUDGE_KEY", concurrency=4)
questions = [Question(key=str(n), messages=(Message("user", str(n)),)) for n in range(4)]
print(*judge.ask(questions, known=(), afford=lambda: True))
"""


@pytest.mark.parametrize("program", [IN_FLIGHT, JUDGED], ids=["model", "judge"])
def test_an_interrupt_waits_for_no_request_in_flight(program: str):
    over, asked = threading.Event(), threading.Event()

    def script(path: str, body: dict[str, Any]) -> Any:
        asked.set()
        return Reply(chat("late"), held=over)

    with serving(script) as server:
        arguments = [sys.executable, "-c", program, server.reference()]
        environment = {**os.environ, "JUDGE_KEY": "none"}
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, env=environment)
        try:
            assert asked.wait(60)
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=10)
        finally:
            process.kill()
            over.set()
    assert b"KeyboardInterrupt" in said


def test_a_slow_server_is_told_from_one_that_is_down():
    over = threading.Event()
    with (
        serving(lambda path, body: Reply(chat("late"), held=over)) as server,
        pytest.raises(ModelError, match=r"did not answer within 0\.1 s \(2 attempts\).*timeout"),
    ):
        endpoint(server, timeout=0.1, attempts=2).chat(**HELLO)
    over.set()


def test_a_server_that_is_down_is_said_before_anything_is_asked():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ModelError, match=rf"cannot reach {url} \(2 attempts\).*is the server running"):
        Endpoint(Address(url, "m"), attempts=2).check()


def test_a_request_that_the_server_refuses_is_that_requests_own_fault():
    def script(path: str, body: dict[str, Any]) -> Any:
        return refused("too long") if body["max_tokens"] == 9 else chat("fine")

    with serving(script) as server:
        one = endpoint(server)
        replies = one.ask_all(one.chat, [HELLO, {**HELLO, "max_tokens": 9}, HELLO])
        assert [type(reply).__name__ for reply in replies] == ["ChatCompletion", "Refused", "ChatCompletion"]
        assert replies[1] == Refused("the server refused it: too long")
        assert len(server.asked) == 3  # never tried again
        with pytest.raises(RefusedError, match="too long"):
            one.chat(**{**HELLO, "max_tokens": 9})


def test_one_request_that_breaks_a_server_is_told_from_a_broken_server():
    def script(path: str, body: dict[str, Any]) -> Any:
        return refused("index out of range", 500) if body["max_tokens"] == 9 else chat("fine")

    with serving(script) as server:
        one = endpoint(server)
        replies = one.ask_all(one.chat, [HELLO, {**HELLO, "max_tokens": 9}])
    assert isinstance(replies[1], Refused)
    assert "status 500 (3 attempts): index out of range" in replies[1].reason


ODD: dict[str, Any] = {"messages": [{"role": "user", "content": "odd"}], "max_tokens": 9, "logprobs": True}


@pytest.mark.parametrize("others", [[], [{**HELLO, "max_tokens": 0}]], ids=["alone", "beside a refused one"])
def test_a_request_that_breaks_a_server_where_nobody_else_is_answered(others: list[dict[str, Any]]):
    """As in the last batch of 65 questions, or where one answer is asked for without its stops."""

    def script(path: str, body: dict[str, Any]) -> Any:
        if not body["max_tokens"]:
            return refused("too few")
        return refused("oh", 500) if body["messages"][0]["content"] == "odd" else chat("fine")

    with serving(script) as server:
        one = endpoint(server)
        replies = one.ask_all(one.chat, [ODD, *others])
    assert replies[0] == Refused(f"{server.url} fails with status 500 (3 attempts): oh")
    assert all(isinstance(reply, Refused) for reply in replies)
    hi = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "logprobs": True, "model": "m"}
    assert [body for _, body in server.asked[3 + len(others) :]] == [hi]


def test_a_text_that_breaks_a_server_alone():
    def script(path: str, body: dict[str, Any]) -> Any:
        return refused("oh", 500) if body["prompt"] == "odd" else completion("fine")

    with serving(script) as server:
        one = endpoint(server)
        assert isinstance(one.ask_all(one.complete, [{"prompt": "odd", "max_tokens": 9}])[0], Refused)
    assert server.asked[-1] == ("/v1/completions", {"prompt": "Hi", "max_tokens": 1, "model": "m"})


def test_a_server_that_breaks_after_it_has_answered_ends_the_run():
    broken = threading.Event()
    with serving(lambda path, body: refused("oh", 500) if broken.is_set() else chat("fine")) as server:
        one = endpoint(server)
        one.ask_all(one.chat, [HELLO])
        broken.set()
        with pytest.raises(ModelError, match=r"status 500 \(3 attempts\): oh"):
            one.ask_all(one.chat, [HELLO, ODD])


@pytest.mark.parametrize(
    ("tiny", "message"),
    [
        (refused("max_tokens or model output limit was reached"), None),
        (refused("logprobs are broken, too", 500), r"status 500 \(3 attempts\): oh"),
        (refused("no such option"), r"status 500 \(3 attempts\): oh"),
        (refused("no such key", 401), "does not accept the key: no such key"),
    ],
    ids=["in a thought", "broken", "refused", "without a key"],
)
def test_what_a_server_says_to_the_tiny_request(tiny: Reply, message: str | None):
    with serving(lambda path, body: refused("oh", 500) if body["max_tokens"] > 1 else tiny) as server:
        one = endpoint(server)
        if message is None:
            assert isinstance(one.ask_all(one.chat, [ODD])[0], Refused)
        else:
            with pytest.raises(ModelError, match=message):
                one.ask_all(one.chat, [ODD])


@pytest.mark.parametrize("field", ["code", "type"])
def test_an_account_without_credit_is_not_asked_again(field: str):
    body = {"error": {"message": "You exceeded your current quota", field: "insufficient_quota"}}
    with serving(lambda path, _: Reply(body, status=429, headers={"retry-after": "50"})) as server:
        one = endpoint(server)
        with pytest.raises(ModelError, match="wants to be paid: You exceeded your current quota; add credit") as caught:
            one.ask_all(one.chat, [HELLO])
    assert len(server.asked) == 1
    assert not endpoint_failures.is_transient(caught.value.__cause__)
    assert endpoint_failures.is_permanent(caught.value)


@pytest.mark.parametrize(
    ("status", "hopeless"), [(400, False), (401, True), (403, True), (404, True), (429, False), (500, False)]
)
def test_what_ends_everything_is_told_from_what_ends_one_request(status: int, hopeless: bool):
    with serving(lambda path, body: refused("no", status)) as server, pytest.raises(KickError) as caught:
        endpoint(server, attempts=1).chat(**HELLO)
    assert endpoint_failures.is_permanent(caught.value) is hopeless


def test_a_text_that_cannot_be_sent_is_that_requests_own_fault():
    with serving(lambda path, body: chat("fine")) as server, pytest.raises(RefusedError, match="cannot be sent"):
        endpoint(server).chat(messages=[{"role": "user", "content": "\ud800"}])
    assert server.asked == []


def test_where_text_is_needed_an_answer_without_it_is_half_an_answer():
    replies = iter([chat("") | {"choices": [{"index": 0, "finish_reason": "stop"}]}, chat(""), chat("done")])
    with serving(lambda path, body: next(replies)) as server:
        assert text_of(endpoint(server, text_needed=True).chat(**HELLO)) == "done"
    with serving(lambda path, body: chat("")) as server:
        assert text_of(endpoint(server).chat(**HELLO)) == ""
        with pytest.raises(ModelError, match=r"\(3 attempts\): its reply has no text"):
            endpoint(server, text_needed=True).chat(**HELLO)
    refusal: Any = chat("")
    refusal["choices"][0]["message"]["refusal"] = "I will not."
    with serving(lambda path, body: refusal) as server:
        assert final_text(endpoint(server, text_needed=True).chat(**HELLO)).text == "I will not."


def test_the_first_failure_ends_the_others():
    counter, over = itertools.count(), threading.Event()

    def script(path: str, body: dict[str, Any]) -> Any:
        return refused("no such key", 401) if next(counter) == 0 else Reply(chat("fine"), held=over)

    with serving(script) as server:
        one = endpoint(server, concurrency=2, timeout=50.0)
        with pytest.raises(ModelError, match="does not accept the key"):  # without waiting for what is under way
            one.ask_all(one.chat, [HELLO] * 50)
        over.set()
    assert len(server.asked) <= 3  # whose request failed may begin another before all are called off


# Who is behind it


def test_the_listed_model_is_found_with_what_the_server_says_of_it():
    with serving(lambda path, body: chat("hi"), models=({"id": "o"}, {"id": "m", "max_model_len": 4096})) as server:
        assert endpoint(server).check() == {"id": "m", "max_model_len": 4096}
    assert server.asked == []


def test_a_server_that_lists_others_and_answers_to_anything_is_not_believed():
    with (
        serving(lambda path, body: chat("hi", model=body["model"]), models=({"id": "other"},)) as server,
        pytest.raises(ModelError, match=r"does not serve 'm': it lists other, and answers to any name"),
    ):
        endpoint(server).check()


def test_a_server_that_lists_others_but_tells_names_apart_is_asked():
    def script(path: str, body: dict[str, Any]) -> Any:
        return chat("hi") if body["model"] == "m" else refused("pinned to m")

    with serving(script, models=({"id": "other"},)) as server:
        assert endpoint(server).check() == {}


@pytest.mark.parametrize(
    "models", [Reply({"error": {"message": "no"}}, status=404), Reply("<html>"), refused("no cache", 500), ()]
)
def test_a_server_without_a_list_is_not_refused_for_it(models: Any):
    with serving(lambda path, body: chat("hi"), models=models) as server:
        assert endpoint(server).check() == {}


@pytest.mark.parametrize("name", ["m", "m@main", "m-2026-01-31"])
def test_a_revision_or_date_behind_the_name_is_the_same_model(name: str):
    with serving(lambda path, body: chat("hi", model=name)) as server:
        assert text_of(endpoint(server).chat(**HELLO)) == "hi"


@pytest.mark.parametrize("name", ["other", "m-instruct", "M", "mm", "m-2"])
def test_answers_of_another_model_are_thrown_away(name: str):
    with (
        serving(lambda path, body: chat("hi", model=name)) as server,
        pytest.raises(ModelError, match=f"asked for 'm' and answers as '{name}'"),
    ):
        endpoint(server).chat(**HELLO)
    assert len(server.asked) == 1


def test_any_name_will_do_where_that_is_said():
    with serving(lambda path, body: chat("hi", model="m-0613")) as server:
        assert text_of(endpoint(server, any_name=True).chat(**HELLO)) == "hi"


# Keys


def sent(server: Any) -> str:
    return str(server.headers[-1]["authorization"])


def test_keys_come_from_the_environment(monkeypatch: pytest.MonkeyPatch):
    with serving(lambda path, body: chat("hi")) as server:
        endpoint(server).chat(**HELLO)
        assert sent(server) == "Bearer none"
        monkeypatch.setenv("OPENAI_API_KEY", "common")
        endpoint(server).chat(**HELLO)
        assert sent(server) == "Bearer common"
        monkeypatch.setenv("LLMKICK_API_KEY", "own")
        endpoint(server).chat(**HELLO)
        assert sent(server) == "Bearer own"
        monkeypatch.setenv("JUDGE_KEY", "judge")
        endpoint(server, api_key_env="JUDGE_KEY").chat(**HELLO)
        assert sent(server) == "Bearer judge"
        with pytest.raises(JudgeError, match="needs a key: set the environment variable NO_KEY"):
            endpoint(server, api_key_env="NO_KEY", error=JudgeError).chat(**HELLO)


@pytest.mark.parametrize("key", ["sk-secret\nsk-other", "sk-secrét"])
def test_what_can_be_no_key_is_said_without_showing_it(key: str, monkeypatch: pytest.MonkeyPatch):
    with serving(lambda path, body: chat("hi")) as server:
        monkeypatch.setenv("LLMKICK_API_KEY", key)
        with pytest.raises(ModelError, match="LLMKICK_API_KEY holds no key: one is a line of ASCII") as caught:
            endpoint(server).chat(**HELLO)
        assert "sk-" not in str(caught.value)
        monkeypatch.setenv("LLMKICK_API_KEY", " sk-good\n")
        endpoint(server).chat(**HELLO)
        assert sent(server) == "Bearer sk-good"


@pytest.mark.parametrize("before", [0, 40, 55, 240, 290])
@pytest.mark.parametrize("page", [True, False])
def test_a_key_is_not_cut_before_it_is_hidden(before: int, page: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMKICK_API_KEY", "sk-very-secret")
    said = "x" * before + " sk-very-secret is what you sent"
    with (
        serving(
            lambda path, body: Reply(said, headers={"content-type": "text/html"}) if page else refused(said, 418)
        ) as server,
        pytest.raises(ModelError) as caught,
    ):
        endpoint(server, attempts=1).chat(**HELLO)
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://api.example.org/v1", "common"),
        ("http://localhost:1/v1", "common"),
        ("http://[::1]:1/v1", "common"),
        ("http://node7:8000/v1", "none"),
        ("http://10.0.0.7:8000/v1", "none"),
    ],
)
def test_the_common_key_is_not_given_to_just_any_host(url: str, key: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "common")
    assert Endpoint(Address(url, "m")).client.api_key == key
    # Nor to a judge, whose settings name that variable by default.
    assert Endpoint(Address(url, "m"), api_key_env="OPENAI_API_KEY").client.api_key == key
    monkeypatch.setenv("LLMKICK_API_KEY", "own")
    judged = Endpoint(Address(url, "m"), api_key_env="OPENAI_API_KEY").client.api_key
    assert judged == ("common" if key == "common" else "own")


@pytest.fixture
def headers_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OTHERS_HEADERS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("headers_of_others")
@pytest.mark.parametrize("is_private", [True, False])
@pytest.mark.parametrize("key", ["sk-own", ""])
def test_headers_of_other_programs_go_where_the_common_key_may_go(
    key: str, is_private: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LLMKICK_API_KEY", key)
    monkeypatch.setattr(credentials, "is_private_connection", lambda _url: is_private)
    with serving(lambda path, body: chat("hi")) as server:
        endpoint(server).chat(**HELLO)
    names = ("openai-organization", "openai-project", "x-gateway", "no header")
    expected = ["org-of-the-user", "proj-of-the-user", "Token gw-very-secret", None] if is_private else [None] * 4
    assert [server.headers[-1].get(name) for name in names] == expected
    without_key = "Bearer sk-of-others" if is_private else "Bearer none"
    assert sent(server) == (f"Bearer {key}" if key else without_key)
    assert {name: os.environ[name] for name in OTHERS_HEADERS} == OTHERS_HEADERS


@pytest.mark.usefixtures("headers_of_others")
def test_a_judge_with_a_key_of_its_own_gets_that_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", "sk-judge")
    with serving(lambda path, body: chat("hi")) as server:
        endpoint(server, api_key_env="JUDGE_KEY").chat(**HELLO)
    assert sent(server) == "Bearer sk-judge"
    assert "sk-of-others" not in str(server.headers)


@pytest.mark.usefixtures("headers_of_others")
def test_clients_that_are_made_at_once_leave_the_environment_as_it_was():
    made = [Endpoint(Address("http://localhost:1/v1", "m")) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        clients = list(pool.map(lambda one: one.client, made))
    assert [client.default_headers["X-Gateway"] for client in clients] == ["Token gw-very-secret"] * 8
    assert {name: os.environ[name] for name in OTHERS_HEADERS} == OTHERS_HEADERS


@pytest.mark.usefixtures("headers_of_others")
def test_headers_of_other_programs_follow_no_redirect():
    with serving(lambda path, body: chat("elsewhere")) as other:
        to = {"location": f"{other.url}/chat/completions?ticket=1"}
        with (
            serving(lambda path, body: Reply(status=307, headers=to)) as server,
            pytest.raises(ModelError, match=rf"redirects to {other.url}/chat/completions, where headers"),
        ):
            endpoint(server).chat(**HELLO)
    assert (len(server.asked), len(other.asked)) == (1, 0)


@pytest.mark.usefixtures("headers_of_others")
def test_a_redirect_is_named_without_a_user_a_password_and_a_query():
    to = {"location": "http://somebody:hunter2@127.0.0.1:1/v1?ticket=1#place"}
    with (
        serving(lambda path, body: Reply(status=307, headers=to)) as server,
        pytest.raises(ModelError, match=r"redirects to http://127.0.0.1:1/v1, where headers"),
    ):
        endpoint(server).chat(**HELLO)


def test_without_such_headers_a_redirect_is_followed_without_the_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMKICK_API_KEY", "sk-own")
    with serving(lambda path, body: chat("elsewhere")) as other:
        to = {"location": f"{other.url}/chat/completions"}
        with serving(lambda path, body: Reply(status=307, headers=to)) as server:
            assert text_of(endpoint(server).chat(**HELLO)) == "elsewhere"
    assert "sk-own" not in str(other.headers)


def test_a_key_of_one_letter_is_no_secret(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMKICK_API_KEY", "x")
    with (
        serving(lambda path, body: refused("x is exact", 401)) as server,
        pytest.raises(ModelError, match="x is exact; set"),
    ):
        endpoint(server).chat(**HELLO)


@pytest.mark.usefixtures("headers_of_others")
def test_no_header_of_the_environment_is_shown():
    said = "wrong: Token gw-very-secret, gw-very-secret, org-of-the-user, proj-of-the-user, Bearer sk-of-others; Bearer"
    with (
        serving(lambda path, body: refused(said, 401)) as server,
        pytest.raises(ModelError) as caught,
    ):
        endpoint(server).chat(**HELLO)
    assert ": wrong: ***, ***, ***, ***, ***; Bearer; set" in str(caught.value)
    assert "secret" not in repr(endpoint(server)._credentials)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OPENAI_ORG_ID", "org-s3cret\rx"),
        ("OPENAI_PROJECT_ID", "proj-s3crét"),
        ("OPENAI_CUSTOM_HEADERS", "X-Good: 1\nX-Bad: s3cret\rx"),
        ("OPENAI_CUSTOM_HEADERS", "s3cret name: 1"),
        ("OPENAI_CUSTOM_HEADERS", ": s3cret"),
    ],
)
def test_what_can_be_no_header_is_said_without_showing_it(variable: str, value: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(variable, value)
    with serving(lambda path, body: chat("hi")) as server:
        with pytest.raises(ModelError, match=f"the variable {variable} cannot be sent: ") as caught:
            endpoint(server).chat(**HELLO)
        assert "s3cr" not in str(caught.value)
        assert server.asked == []
        monkeypatch.setattr(credentials, "is_private_connection", lambda _url: False)
        endpoint(server).chat(**HELLO)  # it is not sent there


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_said_and_never_shown(status: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMKICK_API_KEY", "sk-very-secret")
    with (
        serving(lambda path, body: refused("wrong key sk-very-secret", status)) as server,
        pytest.raises(ModelError, match=r"does not accept the key: wrong key \*\*\*; set LLMKICK_API_KEY"),
    ):
        endpoint(server).chat(**HELLO)
    assert "sk-very-secret" not in repr(endpoint(server))


def test_an_address_without_its_path_is_said():
    with (
        serving(lambda path, body: refused("Not Found", 404)) as server,
        pytest.raises(KickError, match=r"has no such endpoint.*most addresses end in /v1"),
    ):
        endpoint(server).chat(**HELLO)
