"""Asking a judge over HTTP: what passes is tried again, what does not is said, and the key is never shown."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from judges import KEY, MODEL, Answer, Endpoint, answering, is_probe
from llmkick.errors import JudgeError
from llmkick.models.language_model import Message
from llmkick.models.server import failures as endpoint_failures
from llmkick.models.server.address import Address
from llmkick.tasks.judge import clients as judge_client
from llmkick.tasks.judge.clients import OVER_BUDGET, EndpointJudge, NoReply, Question, Reply
from llmkick.tasks.judge.prompts import reply_schema

ENV = "LLMKICK_TEST_KEY"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV, KEY)
    monkeypatch.setattr(endpoint_failures, "FIRST_WAIT", 0.01)


def judge_at(endpoint: Endpoint, **changes: Any) -> EndpointJudge:
    values = {"api_key_env": ENV, "timeout": 60.0, "attempts": 4, "concurrency": 1, **changes}
    return EndpointJudge(address=Address(endpoint.url, MODEL), **values)


def questions(count: int, schema: dict[str, Any] | None = None) -> list[Question]:
    return [Question(key=str(n), messages=(Message("user", f"Rate {n}"),) * 2, schema=schema) for n in range(count)]


def ask(judge: EndpointJudge, asked: list[Question], budget: int = 10**9) -> dict[str, Reply | NoReply]:
    replies: dict[str, Reply | NoReply] = {}
    for name, reply in judge.ask(asked, known=(), afford=lambda: len(replies) < budget):
        replies[name] = reply
    return replies


BAD = {
    "rate limit": Answer(status=429, headers={"Retry-After": "0.01"}),
    "server error": Answer(status=500),
    "overloaded": Answer(status=503),
    "garbage": Answer(body=b"<html>Bad gateway</html>"),
    "not JSON": Answer(body=b'{"choices": [{"mess'),
    "no choices": Answer(body=b'{"id": "1", "object": "chat.completion", "choices": []}'),
    "no text": Answer(text=None),
    "torn": Answer(text="8 7", torn=50),
    "an error page in HTML": Answer(body=b"<html></html>", headers={"Content-Type": "text/html"}),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_what_may_pass_is_tried_again(bad: Answer):
    with answering(lambda request, number: bad if number < 2 else Answer(text="8 7")) as endpoint:
        replies = ask(judge_at(endpoint), questions(1))
        assert replies == {"0": Reply(text="8 7", cut=False, prompt_tokens=4, completion_tokens=7)}
        assert len(endpoint.requests) == 3


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_after_so_many_tries_there_is_no_reply_and_the_reason(bad: Answer):
    with answering(lambda request, number: bad) as endpoint:
        reply = ask(judge_at(endpoint, attempts=2), questions(1))["0"]
        assert isinstance(reply, NoReply)
        assert reply.reason.startswith(f"the judge {MODEL}: ")
        assert endpoint.url in reply.reason
        assert "(2 attempts)" in reply.reason
        assert len(endpoint.requests) == 2


def test_a_slow_answer_is_a_time_out_and_tried_again():
    over = threading.Event()
    slow = Answer(text="9 9", held=over)
    with answering(lambda request, number: slow if number == 0 else Answer(text="8 7")) as endpoint:
        # So many attempts that one of them is answered in time, however busy the machine is.
        reply = ask(judge_at(endpoint, timeout=0.3, attempts=10), questions(1))["0"]
        assert isinstance(reply, Reply)
        assert reply.text == "8 7"
        assert len(endpoint.requests) >= 2
    with answering(lambda request, number: slow) as endpoint:
        reply = ask(judge_at(endpoint, timeout=0.1, attempts=2), questions(1))["0"]
        assert isinstance(reply, NoReply)
        assert "did not answer within 0.1 s (2 attempts)" in reply.reason
    over.set()


def test_a_judge_that_is_gone_is_not_asked_for_ever():
    with answering(lambda request, number: Answer(status=500)) as endpoint:
        replies = ask(judge_at(endpoint, attempts=1), questions(40))
        assert len(endpoint.requests) == judge_client.MOST_FAILURES
    assert len(replies) == 40
    assert all(isinstance(reply, NoReply) for reply in replies.values())
    assert str(replies["39"]).count("not asked: the judge") == 1


def test_one_refused_question_does_not_stop_the_others():
    def answer(request: dict[str, Any], number: int) -> Answer:
        return Answer(status=400, text="too long") if "Rate 1" in str(request) else Answer(text="8 7")

    with answering(answer) as endpoint:
        replies = ask(judge_at(endpoint), questions(20))
    assert sum(isinstance(reply, NoReply) for reply in replies.values()) == 11  # 1, and 10 to 19
    assert replies["1"] == NoReply(reason=f"the judge {MODEL}: the server refused it: too long")


@pytest.mark.parametrize(("status", "code"), [(401, None), (403, None), (404, None), (429, "insufficient_quota")])
def test_what_nothing_mends_ends_the_asking_at_once(status: int, code: str | None):
    body = f'{{"error": {{"message": "no", "code": {"null" if code is None else chr(34) + code + chr(34)}}}}}'.encode()
    with answering(lambda request, number: Answer(status=status, body=body)) as endpoint:
        replies = ask(judge_at(endpoint), questions(5))
        assert len(endpoint.requests) == 1
    assert len(replies) == 5


def test_a_judge_may_answer_by_a_longer_name():
    def newest(request: dict[str, Any], number: int) -> Answer:
        return Answer(body=Answer(text="8 7").payload({**request, "model": f"{MODEL}-0613"}))

    with answering(newest) as endpoint:
        judge = judge_at(endpoint)
        judge.check()
        assert isinstance(ask(judge, questions(1))["0"], Reply)


def test_who_leaves_does_not_wait_for_further_tries():
    def answer(request: dict[str, Any], number: int) -> Answer:
        return Answer(text="8 7") if "Rate 0" in str(request) else Answer(status=429, headers={"Retry-After": "50"})

    with answering(answer) as endpoint:
        replies = judge_at(endpoint, concurrency=2).ask(questions(2), known=(), afford=lambda: True)
        started = time.perf_counter()
        assert next(iter(replies))[0] == "0"
        replies.close()
        assert time.perf_counter() - started < 20


def test_no_more_at_once_than_allowed():
    three = threading.Barrier(3)  # nobody is answered before three have asked

    def answer(request: dict[str, Any], number: int) -> Answer:
        three.wait(timeout=60)
        return Answer(text="8 7")

    with answering(answer) as endpoint:
        assert len(ask(judge_at(endpoint, concurrency=3), questions(9))) == 9
        assert endpoint.most_at_once == 3


def test_a_spent_budget_begins_nothing_more():
    with answering(lambda request, number: Answer(text="8 7")) as endpoint:
        replies = ask(judge_at(endpoint), questions(6), budget=2)
        assert len(endpoint.requests) == 2
    assert [replies[str(n)] for n in range(2, 6)] == [NoReply(reason=OVER_BUDGET)] * 4


def test_what_is_known_is_not_asked():
    with answering(lambda request, number: Answer(text="8 7")) as endpoint:
        replies = dict(judge_at(endpoint).ask(questions(4), known={"0", "2"}, afford=lambda: True))
        assert sorted(replies) == ["1", "3"]
        assert len(endpoint.requests) == 2


# Structured output, and parameters that an endpoint does not know


def test_a_schema_is_sent_and_given_up_where_it_is_refused():
    schema = reply_schema("general")

    def refusing(request: dict[str, Any], number: int) -> Answer:
        for name in ("response_format", "seed", "temperature", "max_tokens"):
            if name in request:
                return Answer(status=400, text=f"Unsupported parameter: '{name}' is not supported with this model.")
        return Answer(text="8 7")

    with answering(lambda request, number: Answer(text="8 7")) as endpoint:
        ask(judge_at(endpoint), questions(1, schema))
        sent = endpoint.requests[0]
        assert sent["response_format"]["json_schema"]["schema"] == schema
        assert (sent["temperature"], sent["seed"], sent["max_tokens"]) == (0.0, 0, 1024)
    with answering(refusing) as endpoint:
        replies = ask(judge_at(endpoint), questions(3, schema))
        assert all(isinstance(reply, Reply) for reply in replies.values())
        assert len(endpoint.requests) == 4 + 3  # each parameter is refused once, not once a question
        assert endpoint.requests[-1]["max_completion_tokens"] == 1024


# Before anything is generated


def test_the_check_passes_with_one_small_request():
    with answering(lambda request, number: Answer(text="ready")) as endpoint:
        judge_at(endpoint).check()
        (request,) = endpoint.requests
        assert is_probe(request)
        assert request["max_tokens"] <= 16


def test_no_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(ENV)
    with answering(lambda request, number: Answer(text="ready")) as endpoint:
        with pytest.raises(JudgeError, match=f"needs a key: set the environment variable {ENV}"):
            judge_at(endpoint).check()
        assert endpoint.requests == []


def test_a_wrong_key_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ENV, "sk-secret-and-wrong")
    with (
        answering(lambda request, number: Answer(text="ready")) as endpoint,
        pytest.raises(JudgeError, match=rf"does not accept the key: .*; set {ENV}$") as refused,
    ):
        judge_at(endpoint).check()
    assert "sk-secret-and-wrong" not in str(refused.value)
    assert "Incorrect API key provided: ***" in str(refused.value)


def test_a_wrong_address():
    judge = EndpointJudge(address=Address("http://127.0.0.1:9/v1", MODEL), api_key_env=ENV, attempts=2)
    with pytest.raises(
        JudgeError, match=r"cannot reach http://127\.0\.0\.1:9/v1 .*is the server running, and the addr"
    ):
        judge.check()


def test_an_unknown_model():
    with answering(lambda request, number: Answer(text="ready")) as endpoint:
        judge = judge_at(endpoint)
        judge.address = Address(endpoint.url, "gpt-99")
        with pytest.raises(JudgeError, match=r"the judge gpt-99: .* knows no 'gpt-99'.*'gpt-99' does not exist"):
            judge.check()


# A judge that thinks


VERDICT = '{"overall": {"assistant_1": 8, "assistant_2": 6}}'


def message(request: dict[str, Any], finish: str, **fields: Any) -> Answer:
    """A reply whose message has these fields."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", **fields}}
    usage = {"prompt_tokens": 10, "completion_tokens": min(500, request.get("max_tokens", 500)), "total_tokens": 0}
    body = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"], "choices": [choice]}
    return Answer(body=json.dumps({**body, "usage": usage}).encode())


# What a judge gives that has not come to the end of its thought.
THOUGHTS: dict[str, dict[str, Any]] = {
    "a field": {"content": None, "reasoning_content": "Draft: 1 1"},
    "another field": {"content": "", "reasoning": "Draft: 1 1"},
    "inline": {"content": "<think>Draft: 1 1"},
    "parts": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Draft: 1 1"}]}]},
    "hidden": {"content": None},
    "hidden and empty": {"content": ""},
}
# And at the end of it.
WHOLE: dict[str, dict[str, Any]] = {
    "a field": {"content": VERDICT, "reasoning_content": "Draft: 1 1"},
    "another field": {"content": VERDICT, "reasoning": "Draft: 1 1"},
    "inline": {"content": f"<think>Draft: 1 1</think>\n\n{VERDICT}"},
    "parts": {"content": [*THOUGHTS["parts"]["content"], {"type": "text", "text": VERDICT}]},
    "hidden": {"content": VERDICT},
    "hidden and empty": {"content": VERDICT},
}


@pytest.mark.parametrize("name", THOUGHTS)
@pytest.mark.parametrize("needed", [300, 2000])  # less and more than a reply may have
def test_a_judge_may_think(name: str, needed: int):
    def answer(request: dict[str, Any], number: int) -> Answer:
        ended = request["max_tokens"] >= needed
        return message(request, "stop" if ended else "length", **(WHOLE if ended else THOUGHTS)[name])

    with answering(answer) as endpoint:
        judge = judge_at(endpoint)
        judge.check()
        assert endpoint.requests[0]["max_tokens"] == 16
        replies = ask(judge, questions(3))
    assert all(isinstance(reply, Reply) and reply.text == VERDICT and not reply.cut for reply in replies.values())
    assert len(endpoint.requests) == 2 + 3  # the probe is asked twice, with more room
    assert any("thinks before it replies" in note for note in judge.notes)


def test_a_judge_that_begins_to_think_in_mid_run_gets_room():
    def answer(request: dict[str, Any], number: int) -> Answer:
        if is_probe(request):
            return Answer(text="ready")
        ended = request["max_tokens"] > 1024
        return message(request, "stop" if ended else "length", **(WHOLE if ended else THOUGHTS)["a field"])

    with answering(answer) as endpoint:
        judge = judge_at(endpoint)
        judge.check()
        replies = ask(judge, questions(3))
    first, second = replies["0"], replies["1"]
    assert isinstance(first, Reply)
    assert isinstance(second, Reply)
    assert (first.text, second.text) == (VERDICT, VERDICT)
    assert (first.prompt_tokens, first.completion_tokens) == (20, 1000)  # both requests are paid
    assert (second.prompt_tokens, second.completion_tokens) == (10, 500)
    assert len(endpoint.requests) == 1 + 2 + 2


@pytest.mark.parametrize("name", THOUGHTS)
def test_a_judge_that_never_ends_its_thought_is_refused_before_any_work(name: str):
    with answering(lambda request, number: message(request, "length", **THOUGHTS[name])) as endpoint:
        with pytest.raises(JudgeError, match=r"thinks for more than 4112 tokens and gives no reply"):
            judge_at(endpoint).check()
        assert len(endpoint.requests) == 2


def test_a_judge_whose_server_refuses_a_limit_that_its_thought_reaches():
    said = "Could not finish the message because max_tokens or model output limit was reached. Please try again."

    def answer(request: dict[str, Any], number: int) -> Answer:
        return Answer(text="8 7") if request["max_tokens"] > 1024 else Answer(status=400, text=said)

    with answering(answer) as endpoint:
        judge = judge_at(endpoint)
        judge.check()
        reply = ask(judge, questions(1))["0"]
    assert isinstance(reply, Reply)
    assert reply.text == "8 7"
    assert not any("refuses" in note for note in judge.notes)


def test_a_reply_that_is_cut_in_its_thought_has_no_draft_in_it():
    with answering(lambda request, number: message(request, "length", **THOUGHTS["inline"])) as endpoint:
        reply = ask(judge_at(endpoint), questions(1))["0"]
    assert isinstance(reply, Reply)
    assert (reply.text, reply.cut) == ("", True)


def test_half_a_character_in_a_reply_is_replaced():
    with answering(lambda request, number: Answer(text="8 7 \ud83d")) as endpoint:
        reply = ask(judge_at(endpoint), questions(1))["0"]
    assert isinstance(reply, Reply)
    assert reply.text == "8 7 \ufffd"


def test_what_an_endpoint_refuses_is_noted():
    def answer(request: dict[str, Any], number: int) -> Answer:
        if "temperature" in request:
            return Answer(status=400, text="Unsupported value: 'temperature' does not support 0.0 with this model.")
        if request["messages"][0]["role"] == "system":
            return Answer(status=400, text="System role not supported")
        return Answer(text="8 7")

    with answering(answer) as endpoint:
        judge = judge_at(endpoint)
        asked = [Question(key="0", messages=(Message("system", "Be fair."), Message("user", "Rate.")))]
        assert isinstance(ask(judge, asked)["0"], Reply)
    assert endpoint.requests[-1]["messages"] == [{"role": "user", "content": "Be fair.\n\nRate."}]
    assert [note.partition(": ")[2].split(",")[0].split(":")[0] for note in judge.notes] == [
        "it refuses temperature", "it takes no system message",
    ]  # fmt: skip
