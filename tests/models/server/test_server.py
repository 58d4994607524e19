"""A server as a language model: what it can do is seen by asking, and what it cannot is said before any work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest

from llmkick.errors import ConfigError, ModelError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.language_model import (
    ContinuationScore,
    GenerateRequest,
    Generation,
    Message,
    ScoreRequest,
    Unanswered,
)
from llmkick.models.server import failures as endpoint_failures
from llmkick.models.server.capabilities import PENALTIES, Capabilities
from llmkick.models.server.outcomes import generated_letter_scores
from llmkick.models.server.server import ServerModel, ServerSettings, connect, open_model
from llmkick.tasks.evaluate import evaluate, refuse_unanswerable
from llmkick.tasks.registry import get_task
from loopback import Reply, chat, completion, refused, serving
from toy import save_toy, toy_model

HELLO = (Message("user", "Hello"),)
DECODING = {"temperature": 0, "frequency_penalty": 0, "repeat_penalty": 1.0, "repetition_penalty": 1.0}
QUICK = ServerSettings(timeout=5.0, concurrency=2, attempts=2)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_failures, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("LLMKICK_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def top_of(values: dict[str, float]) -> dict[str, Any]:
    """The likeliest first tokens, as a chat endpoint gives them."""
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in values.items()]
    return {"logprobs": {"content": [{"token": top[0]["token"], "logprob": top[0]["logprob"], "top_logprobs": top}]}}


def echoed(text: str, values: dict[str, float]) -> dict[str, Any]:
    """A completion that repeats a text, cut into words with their leading space, and adds one token."""
    tokens, position = [], 0
    while position < len(text):
        end = text.find(" ", position + 1)
        end = len(text) if end < 0 else end
        tokens.append(text[position:end])
        position = end
    logprobs: list[Any] = [None, *(values.get(token, -1.0) for token in tokens[1:])]
    top = [None, *({token: value} for token, value in zip(tokens[1:], logprobs[1:], strict=True))]
    return completion(
        text + " new",
        tokens=1,
        logprobs={
            "tokens": [*tokens, " new"],
            "token_logprobs": [*logprobs, -0.5],
            "top_logprobs": [*top, {" new": -0.5}],
        },
    )


class Script:
    """A server of some capabilities that gives the same answer to everything."""

    def __init__(
        self, *, can: Capabilities, says: str = "B", finish: str = "stop", tokens: dict[str, float] | None = None
    ):
        self.can, self.says, self.finish, self.tokens = can, says, finish, tokens or {" B": -0.1, " A": -2.5}

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        if path.endswith("/chat/completions"):
            if not self.can.chat:
                return refused("Not Found", 404)
            extra = top_of({token.strip(): value for token, value in self.tokens.items()})
            return chat(self.says, finish=self.finish, **(extra if self.can.chat_tokens and "logprobs" in body else {}))
        if not self.can.text:
            return refused("Not Found", 404)
        if body.get("echo"):
            return echoed(body["prompt"], {}) if self.can.echo else refused("echo is not supported")
        top = {"tokens": [" B"], "token_logprobs": [-0.1], "top_logprobs": [self.tokens]}
        given = {"logprobs": top} if self.can.text_tokens and "logprobs" in body else {}
        return completion(self.says, finish=self.finish, **given)


EVERYTHING = Capabilities(chat=True, text=True, echo=True, chat_tokens=True, text_tokens=True)
BARE = Capabilities(chat=True, text=True)
ABILITIES = {
    "everything": EVERYTHING,
    "nothing but text and talk": BARE,
    "talk": Capabilities(chat=True, text=False),
    "text": Capabilities(chat=False, text=True),
    "alternatives": Capabilities(chat=True, text=True, chat_tokens=True, text_tokens=True),
}


@pytest.mark.parametrize("can", ABILITIES.values(), ids=ABILITIES)
def test_what_a_server_can_do_is_seen(can: Capabilities):
    with serving(Script(can=can)) as server:
        assert connect(server.reference(), QUICK).capabilities == can


def test_options_that_a_server_does_not_know_do_not_hide_what_it_can():
    def script(path: str, body: dict[str, Any]) -> Any:
        return refused("unknown option logprobs", 422) if "logprobs" in body else Script(can=BARE)(path, body)

    with serving(script) as server:
        assert connect(server.reference(), QUICK).capabilities == BARE


def test_a_server_that_can_neither_is_refused():
    with (
        serving(lambda path, body: refused("Not Found", 404)) as server,
        pytest.raises(ModelError, match="knows no 'm', or has no such endpoint"),
    ):
        connect(server.reference(), QUICK)
    with (
        serving(lambda path, body: refused("not today")) as server,
        pytest.raises(ModelError, match="takes neither conversations nor raw text: the server refused it: not today"),
    ):
        connect(server.reference(), QUICK)


def test_what_the_server_says_of_the_model_is_kept_and_identifies_it():
    entry = {"id": "m", "max_model_len": 4321, "meta": {"n_params": 135, "n_ctx_train": 8192}, "created": 1}
    with serving(Script(can=BARE), models=(entry,)) as server:
        model = connect(server.reference(), QUICK)
        server.models[0]["created"] = 2
        same = connect(server.reference(), QUICK)
        server.models[0]["meta"] = {"n_params": 136}
        other = connect(server.reference(), QUICK)
    assert (model.max_tokens, model.info.parameters, model.info.name) == (4321, 135, "m")
    assert same.info.digest == model.info.digest != other.info.digest
    assert "cannot be verified" in model.notes[0]


def test_a_server_is_not_a_model_that_can_be_loaded(tmp_path: Any):
    with pytest.raises(ConfigError, match="is a server: its weights are not here"):
        load_model("openai:http://127.0.0.1:1/v1#m")
    save_toy(tmp_path / "toy")
    assert open_model(str(tmp_path / "toy"), dtype="float32", device="cpu").info.name == "toy"


# Generating


@pytest.fixture
def bare() -> Iterator[tuple[Any, ServerModel, Script]]:
    script = Script(can=BARE)
    with serving(script) as server:
        model = connect(server.reference(), QUICK)
        server.asked.clear()
        yield server, model, script


def test_generation_is_greedy_and_each_prompt_goes_to_its_endpoint(bare: Any):
    server, model, script = bare
    script.says = " Paris"
    answers = model.generate([GenerateRequest("Q:", ("\n",), 7), GenerateRequest(HELLO, max_new_tokens=5)])
    assert answers == [
        Generation(text=" Paris", tokens=3, finish="end"),
        Generation(text=" Paris", tokens=3, finish="end"),
    ]
    asked = dict(server.asked)
    assert asked["/v1/completions"] == {
        "model": "m", "prompt": "Q:", "max_tokens": 7, "stop": ["\n"], **DECODING
    }  # fmt: skip
    assert asked["/v1/chat/completions"] == {
        "model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 5, **DECODING
    }  # fmt: skip


@pytest.mark.parametrize(
    ("says", "finish", "expected"),
    [
        ("Paris\nand more", "stop", ("Paris", "stop")),  # a server that leaves the stop string in
        ("\nParis\nmore", "stop", ("\nParis", "stop")),
        ("Paris is", "length", ("Paris is", "length")),
        ("Paris", "stop", ("Paris", "end")),
    ],
)
def test_answers_end_as_those_of_a_model_here_do(bare: Any, says: str, finish: str, expected: tuple[str, str]):
    _, model, script = bare
    script.says, script.finish = says, finish
    answer = model.generate([GenerateRequest("Q:", ("\n",))])[0]
    assert (answer.text, answer.finish) == expected


def test_an_answer_that_begins_with_its_stop_is_asked_for_without_it():
    def script(path: str, body: dict[str, Any]) -> Any:
        return completion("" if "stop" in body else "\n\nParis\nfoo")

    with serving(script) as server:
        model = connect(server.reference(), QUICK)
        assert model.generate([GenerateRequest("Q:", ("\n",))]) == [
            Generation(text="\n\nParis", tokens=3, finish="stop")
        ]


def test_a_refused_request_is_unanswered_and_the_others_are_not(bare: Any):
    server, model, _ = bare
    plain = server.script
    server.script = lambda path, body: refused("too long") if "long" in body["prompt"] else plain(path, body)
    answers = model.generate([GenerateRequest("Q:"), GenerateRequest("a long Q:"), GenerateRequest("Q:")])
    assert answers[1] == Unanswered(reason="the server refused it: too long")
    assert isinstance(answers[0], Generation)
    assert isinstance(answers[2], Generation)


def test_an_answer_without_text_is_unanswered(bare: Any):
    server, model, _ = bare
    reply = chat("", finish="tool_calls")
    reply["choices"][0]["message"]["content"] = None
    server.script = lambda path, body: reply
    assert model.generate([GenerateRequest(HELLO)]) == [
        Unanswered(reason="the server's answer has no text (it ended with 'tool_calls')")
    ]


# Choosing


def letters(prompt: Any, space: str = "") -> list[ScoreRequest]:
    return [ScoreRequest(prompt, space + letter) for letter in "ABCD"]


def test_letters_by_the_likeliest_first_tokens():
    can = Capabilities(chat=True, text=True, chat_tokens=True, text_tokens=True)
    with serving(Script(can=can, says=" the", tokens={"Ġthe": -0.05, " B": -1.0, "B": -3.0, "▁C": -2.0})) as server:
        model = connect(server.reference(), QUICK)
        before = len(server.asked)
        for prompt, space, b in (("Answer:", " ", -1.0), (HELLO, "", -3.0)):
            scores = model.logprobs(letters(prompt, space))
            assert [score.logprob for score in scores] == [-3.0, b, -2.0, -3.0]
            assert {score.method for score in scores} == {"first token"}
            assert [score.is_greedy for score in scores] == [False] * 4
        assert len(server.asked) - before == 2  # one request a question


def test_letters_none_of_which_is_likely_are_no_choice():
    can = Capabilities(chat=True, text=True, chat_tokens=True, text_tokens=True)
    with serving(Script(can=can, says=" The", tokens={" The": -0.1, " It": -3.0})) as server:
        scores = connect(server.reference(), QUICK).logprobs(letters("Answer:", " "))
    assert scores == [Unanswered(reason="none of the letters is among the 2 likeliest tokens")] * 4


def test_letters_by_what_is_generated(bare: Any):
    _, model, script = bare
    script.says = "The answer is **C**."
    scores = model.logprobs(letters(HELLO))
    assert [score.logprob for score in scores] == [-math.inf, -math.inf, 0.0, -math.inf]
    assert {score.method for score in scores} == {"generated letter"}


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"), (" B.", "B"), ("(C) Paris", "C"), ("**D**", "D"), ("A", "A"), ("A.", "A"), ("A\n", "A"),
        ("The answer is A", "A"), ("Answer: B because", "B"), ("D it is", "D"),
        ("the correct option is: C.", "C"), ("option (D)", "D"),
        ("A dog", None), ("The answer is A dog", None),
        ("E", None), ("Because", None), ("", None), ("I think so", None), ("Bern", None), ("b", None),
    ],
)  # fmt: skip
def test_which_letter_an_answer_names(text: str, letter: str | None):
    scores = generated_letter_scores(text, "ABCD")
    if letter is None:
        assert all(isinstance(score, Unanswered) for score in scores)
    else:
        assert [score.logprob for score in scores if isinstance(score, ContinuationScore)] == [
            0.0 if one == letter else -math.inf for one in "ABCD"
        ]


def test_whole_options_by_the_echo():
    values = {" Paris": -0.25, " New": -1.5, " York": -0.5}
    can = Capabilities(chat=True, text=True, echo=True)

    def script(path: str, body: dict[str, Any]) -> Any:
        return echoed(body["prompt"], values) if body.get("echo") else Script(can=can)(path, body)

    with serving(script) as server:
        model = connect(server.reference(), QUICK)
        scores = model.logprobs([ScoreRequest("Q: A:", " Paris"), ScoreRequest("Q: A:", " New York")])
        moved = model.logprobs([ScoreRequest("Q: A: Pa", "ris")])[0]
    assert scores == [
        ContinuationScore(logprob=-0.25, tokens=1, is_greedy=True),
        ContinuationScore(logprob=-2.0, tokens=2, is_greedy=True),
    ]
    assert moved == ContinuationScore(logprob=-0.25, tokens=1, is_greedy=True, boundary_moved=True)


def test_an_echo_that_is_not_the_text_is_no_score():
    can = Capabilities(chat=True, text=True, echo=True)

    def script(path: str, body: dict[str, Any]) -> Any:
        return echoed(body["prompt"].replace("é", ""), {}) if body.get("echo") else Script(can=can)(path, body)

    with serving(script) as server:
        score = connect(server.reference(), QUICK).logprobs([ScoreRequest("Q: A:", " café")])[0]
    assert score == Unanswered(reason="the tokens that the server gives back do not add up to the text")


@pytest.mark.parametrize("extra", [0, 1])
def test_an_echo_may_leave_the_new_token_out_of_its_numbers(extra: int):
    def script(path: str, body: dict[str, Any]) -> Any:
        if not body.get("echo"):
            return Script(can=EVERYTHING)(path, body)
        reply = echoed(body["prompt"], {" Paris": -0.25})
        numbers = reply["choices"][0]["logprobs"]
        for name in ("tokens", "token_logprobs", "top_logprobs"):
            numbers[name] = numbers[name][: len(numbers[name]) - 1 + extra]
        return reply

    with serving(script) as server:
        model = connect(server.reference(), QUICK)
        assert model.capabilities.echo
        assert model.logprobs([ScoreRequest("Q: A:", " Paris")])[0].logprob == -0.25  # type: ignore[union-attr]


def test_numbers_that_contradict_the_servers_own_answers_are_not_used():
    def script(path: str, body: dict[str, Any]) -> Any:
        if body.get("echo"):  # each token with what it would have one place later, as llama-cpp-python does
            reply = echoed(body["prompt"], {})
            numbers = reply["choices"][0]["logprobs"]
            numbers["top_logprobs"] = [None, *({" next": -0.1, token: -9.0} for token in numbers["tokens"][1:])]
            numbers["token_logprobs"] = [None, *(-9.0 for _ in numbers["tokens"][1:])]
            return reply
        return Script(can=EVERYTHING, tokens={" A": -0.1, " B": -2.0})(path, body)  # but it says B

    with serving(script) as server:
        assert connect(server.reference(), QUICK).capabilities == BARE


@pytest.mark.parametrize("known", [(), ("repeat_penalty",), ("repetition_penalty",), tuple(PENALTIES)])
def test_penalties_that_a_server_applies_unasked_are_turned_off_where_it_knows_their_names(known: tuple[str, ...]):
    standard = {"model", "messages", "prompt", "max_tokens", "temperature", "frequency_penalty", "stop"}

    def script(path: str, body: dict[str, Any]) -> Any:
        strange = set(body) - standard - set(known)
        return refused(f"unexpected fields: {strange}", 422) if strange else Script(can=BARE)(path, body)

    with serving(script) as server:
        model = connect(server.reference(), QUICK)
        assert model.capabilities.penalties == known
        model.generate([GenerateRequest("Q:")])
    sent = server.asked[-1][1]
    assert {name: sent[name] for name in PENALTIES if name in sent} == dict.fromkeys(known, 1.0)
    assert sent["frequency_penalty"] == 0


# What cannot be asked


@pytest.mark.parametrize(
    ("can", "task", "prompting", "reason"),
    [
        (BARE, "multiple_choice:cloze", "raw", r"ask for letters \(multiple_choice:letter\) instead of cloze"),
        (EVERYTHING, "multiple_choice:cloze", "chat", 'use prompting = "raw"'),
        (EVERYTHING, "perplexity", "raw", "leave perplexity out"),
        (Capabilities(chat=True, text=False), "factoid_qa", "raw", 'takes no raw text: use prompting = "chat"'),
    ],
)
def test_what_cannot_be_asked_is_said_before_it_is(can: Capabilities, task: str, prompting: str, reason: str):
    with serving(Script(can=can)) as server:
        model = connect(server.reference(), QUICK)
        asked = len(server.asked)
        with pytest.raises(ConfigError, match=f"{task} cannot be asked of m: .*{reason}"):
            evaluate(model, get_task(task, limit=4), prompting=prompting)
        assert len(server.asked) == asked


@pytest.mark.parametrize(
    ("can", "task", "prompting"),
    [
        (BARE, "multiple_choice:letter", "chat"),
        (BARE, "multiple_choice:letter", "raw"),
        (BARE, "context_qa:open", "chat"),
        (EVERYTHING, "multiple_choice:cloze", "raw"),
    ],
)
def test_what_can_be_asked_is(can: Capabilities, task: str, prompting: str):
    with serving(Script(can=can)) as server:
        model = connect(server.reference(), QUICK)
        refuse_unanswerable(model, get_task(task, limit=4), prompting=prompting)
        records = evaluate(model, get_task(task, limit=4), prompting=prompting)
    assert len(records) == 4
    assert all(record.score is not None for record in records)


def test_records_say_how_an_option_was_chosen():
    task = get_task("multiple_choice:letter", limit=4)
    found = {}
    for name, can in ABILITIES.items():
        if can.text:
            with serving(Script(can=can)) as server:
                record = evaluate(connect(server.reference(), QUICK), task, prompting="raw")[0]
            found[name] = (record.details.get("chosen_by"), "choice_logprobs" in record.details)
            if name != "everything":
                assert record.response.startswith("B. ")
    assert found == {
        "everything": (None, True),
        "nothing but text and talk": ("generated letter", False),
        "text": ("generated letter", False),
        "alternatives": ("first token", True),
    }


def test_a_model_here_can_be_asked_anything():
    refuse_unanswerable(toy_model(), get_task("perplexity"))


def test_a_server_that_goes_away_stops_the_run_and_is_said():
    def script(path: str, body: dict[str, Any]) -> Any:
        return Reply(nothing=True) if len(server.asked) > 8 else Script(can=BARE)(path, body)

    with serving(script) as server:
        model = connect(server.reference(), QUICK)
        with pytest.raises(ModelError, match=r"cannot reach .* \(2 attempts\)"):
            model.generate([GenerateRequest(f"Q{n}:") for n in range(20)])
