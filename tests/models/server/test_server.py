"""A server as a language model: what it can do is seen by asking, and what it cannot is said before any work."""

from __future__ import annotations

import hashlib
import json
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
from llmkick.models.server.open_model import open_model
from llmkick.models.server.outcomes import generated_letter_scores
from llmkick.models.server.server import ServerModel, connect
from llmkick.models.server.settings import ServerSettings
from llmkick.tasks.evaluate import evaluate, refuse_unanswerable
from llmkick.tasks.registry import get_task
from loopback import Reply, chat, completion, refused, serving
from toy import save_toy, toy_model

HELLO = (Message("user", "Hello"),)
DECODING = {"temperature": 0, "frequency_penalty": 0, "repeat_penalty": 1.0, "repetition_penalty": 1.0}
QUICK = ServerSettings(timeout=60.0, concurrency=2, attempts=2)


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


def test_an_answer_that_breaks_the_server_without_its_stop_is_unanswered_alone():
    def script(path: str, body: dict[str, Any]) -> Any:
        if body.get("prompt") != "odd":
            return completion("Paris")
        return completion("") if "stop" in body else refused("oh", 500)

    with serving(script) as server:
        model = connect(server.reference(), QUICK)
        answers = model.generate([GenerateRequest("Q:", ("\n",)), GenerateRequest("odd", ("\n",))])
    assert answers == [
        Generation(text="Paris", tokens=3, finish="end"),
        Unanswered(reason=f"{server.url} fails with status 500 (2 attempts): oh"),
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
        ("I think the answer is B", "B"), ("I think the correct option is C.", "C"), ("I'd say the answer is D", "D"),
        ("I’m sure the answer is A.", "A"), ("Q: which one? Answer: B", "B"), ("Answer: I would choose option C", "C"),
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


@pytest.mark.parametrize(
    ("text", "letter"),
    [("I", "I"), ("I.", "I"), ("**I**", "I"), ("The answer is I", "I"), ("I think the answer is B", "B")],
)
def test_an_option_that_is_called_i(text: str, letter: str):
    scores = dict(zip("ABCDEFGHI", generated_letter_scores(text, "ABCDEFGHI"), strict=True))
    assert [one for one, score in scores.items() if isinstance(score, ContinuationScore) and score.logprob == 0] == [
        letter
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


# The list of models

ENTRY = {"id": "m", "object": "model", "n_ctx": 77}


@pytest.mark.parametrize(
    ("listed", "context"),
    [
        ({"object": "list", "data": [ENTRY]}, 77),
        ([ENTRY], 77),
        (["other", "m"], 4096),
        ({"data": ["m"]}, 4096),
        ({"models": [{"name": "m", "n_ctx": 77}]}, 77),
        ([], 4096),
        ({}, 4096),
        ({"data": None}, 4096),
        ({"error": "no list"}, 4096),
    ],
)
def test_a_list_of_models_in_every_shape(listed: Any, context: int):
    with serving(Script(can=BARE), models=Reply(listed)) as server:
        model = connect(server.reference(), QUICK)
        assert model.max_tokens == context
        assert model.generate([GenerateRequest("Q:")]) == [Generation(text="B", tokens=3, finish="end")]


@pytest.mark.parametrize("status", [404, 405, 500, 501])
def test_a_server_without_a_list_of_models(status: int):
    with serving(Script(can=BARE), models=refused("no", status)) as server:
        assert connect(server.reference(), QUICK).capabilities == BARE


@pytest.mark.parametrize("listed", [["other"], [{"id": "other"}], {"models": [{"name": "other"}]}])
def test_a_list_without_the_model(listed: Any):
    def picky(path: str, body: dict[str, Any]) -> Any:
        return refused("unknown model", 404) if body["model"] != "m" else Script(can=BARE)(path, body)

    with serving(picky, models=Reply(listed)) as server:  # a name that the server knows and does not list
        assert connect(server.reference(), QUICK).capabilities == BARE
    with (
        serving(Script(can=BARE), models=Reply(listed)) as server,
        pytest.raises(ModelError, match="does not serve 'm': it lists other, and answers to any name"),
    ):
        connect(server.reference(), QUICK)


def test_an_entry_identifies_a_model_as_before():
    with serving(Script(can=BARE), models=(ENTRY,)) as server:
        digest = connect(server.reference(), QUICK).info.digest
        identity = {"url": server.url, "name": "m", "listed": ENTRY}
    assert digest == hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


# Thoughts


class Thinker:
    """A chat server whose model thinks, in one of the ways of `style`, where `switch` does not say otherwise."""

    def __init__(self, style: str, *, switch: str = "", default: bool = True, thought: int = 20) -> None:
        self.style, self.switch, self.default, self.thought = style, switch, default, thought

    def thinks(self, body: dict[str, Any]) -> bool:
        value = body.get("chat_template_kwargs", {}).get(self.switch, self.default)
        return bool(value)

    def __call__(self, path: str, body: dict[str, Any]) -> Any:
        if not path.endswith("/chat/completions"):
            return refused("Not Found", 404)
        if not self.thinks(body):
            return chat("Paris")
        limit, stop = body["max_tokens"], body.get("stop")
        thought, answer = "It is Lyon\nB?", "\n\nParis"
        cut = limit < self.thought
        finish = "length" if cut else "stop"
        if stop and not cut:  # inside the thought
            thought, answer = "It is Lyon", ""
        if self.style == "inline":
            closing = "" if cut or stop else "</think>"
            return chat(f"<think>\n{thought}{closing}{'' if cut else answer}", finish=finish)
        reply = chat("" if cut else answer, finish=finish)
        message = reply["choices"][0]["message"]
        if self.style == "parts":
            message["content"] = [{"type": "thinking", "thinking": [{"type": "text", "text": thought}]}]
            message["content"] += [] if cut else [{"type": "text", "text": answer}]
        elif self.style == "hidden":  # only the count of tokens shows it
            message["content"] = message["content"] or None
        else:
            message[self.style] = thought
        return reply


STYLES = ("inline", "reasoning_content", "reasoning", "parts")
QUESTIONS = [GenerateRequest(HELLO, max_new_tokens=5), GenerateRequest(HELLO, ("\n",), 5)]


@pytest.mark.parametrize("style", [*STYLES, "hidden"])
@pytest.mark.parametrize("switch", ["enable_thinking", "thinking"])
def test_a_model_that_thinks_is_told_not_to(style: str, switch: str):
    with serving(Thinker(style, switch=switch)) as server:
        model = connect(server.reference(), QUICK)
        answers = model.generate(QUESTIONS)
        plain = connect(server.reference(), ServerSettings(thinking="on", attempts=2)).info.digest
    assert [answer.text for answer in answers if isinstance(answer, Generation)] == ["Paris", "Paris"]
    assert server.asked[0][1].get("chat_template_kwargs") is None
    assert model.capabilities.switch == (switch, False)
    assert any(f"thinking is off (its chat template gets {switch} = False)" in note for note in model.notes)
    assert plain != model.info.digest


def test_a_switch_is_sent_with_every_question():
    with serving(Thinker("inline", switch="enable_thinking")) as server:
        model = connect(server.reference(), QUICK)
        server.asked.clear()
        model.generate([QUESTIONS[0]])
    assert server.asked[0][1]["chat_template_kwargs"] == {"enable_thinking": False}


@pytest.mark.parametrize("style", STYLES)
def test_a_thought_is_never_the_answer(style: str):
    with serving(Thinker(style)) as server:  # it cannot be told not to think
        model = connect(server.reference(), QUICK)
        answers = model.generate(QUESTIONS)
        long = model.generate([GenerateRequest(HELLO, max_new_tokens=50), GenerateRequest(HELLO, ("\n",), 50)])
        letters_ = model.logprobs(letters(HELLO))
    assert model.capabilities.switch is None
    for answer in answers:
        assert isinstance(answer, Unanswered)
        assert answer.reason.startswith("the limit of 5 tokens ended the answer inside its thought; with thinking")
    assert [(answer.text.strip(), answer.has_thought) for answer in long if isinstance(answer, Generation)] == [
        ("Paris", True), ("Paris", True),
    ]  # fmt: skip
    assert all(isinstance(score, Unanswered) and "inside its thought" in score.reason for score in letters_)
    assert any("it thinks although thinking is off" in note for note in model.notes)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("default", [False, True])
def test_a_model_that_is_to_think_gets_room_for_it(style: str, default: bool):
    with serving(Thinker(style, switch="enable_thinking", default=default)) as server:
        model = connect(server.reference(), ServerSettings(thinking="on", attempts=2))
        server.asked.clear()
        answers = model.generate(QUESTIONS)
    assert [answer.text.strip() for answer in answers if isinstance(answer, Generation)] == ["Paris", "Paris"]
    for _, asked in server.asked:
        assert asked["chat_template_kwargs"] == {"enable_thinking": True}
        assert 3000 < asked["max_tokens"] <= 4096


def test_letters_of_a_model_that_thinks_are_those_it_writes_after_its_thought():
    def script(path: str, body: dict[str, Any]) -> Any:
        if not path.endswith("/chat/completions"):
            return refused("Not Found", 404)
        reply = chat("The answer is C" if body["max_tokens"] > 50 else None, finish="stop")  # type: ignore[arg-type]
        reply["choices"][0]["finish_reason"] = "stop" if body["max_tokens"] > 50 else "length"
        reply["choices"][0]["message"]["reasoning_content"] = "A dog"
        if "logprobs" in body:
            reply["choices"][0] |= top_of({"A": -0.1, "B": -2.0})
        return reply

    with serving(script) as server:
        model = connect(server.reference(), ServerSettings(thinking="on", attempts=2))
        scores = model.logprobs(letters(HELLO))
        off = connect(server.reference(), QUICK).logprobs(letters(HELLO))
    assert not model.capabilities.chat_tokens
    assert [score.logprob for score in scores if isinstance(score, ContinuationScore)] == [
        -math.inf, -math.inf, 0.0, -math.inf,
    ]  # fmt: skip
    assert all(isinstance(score, Unanswered) for score in off)


def test_a_server_that_refuses_the_switch_is_asked_without_it_and_that_is_said():
    thinker = Thinker("reasoning_content")

    def script(path: str, body: dict[str, Any]) -> Any:
        if "chat_template_kwargs" in body:
            return refused("Unrecognized request argument supplied: chat_template_kwargs")
        return thinker(path, body)

    with serving(script) as server:
        model = connect(server.reference(), QUICK)
        answer = model.generate([GenerateRequest(HELLO, max_new_tokens=50)])[0]
    assert isinstance(answer, Generation)
    assert answer.text.strip() == "Paris"
    assert sum("chat_template_kwargs" in asked for _, asked in server.asked) <= 2
    assert any("refuses chat_template_kwargs" in note for note in model.notes)


def test_a_model_that_does_not_think_is_asked_as_before(bare: Any):
    server, model, _ = bare
    model.generate([GenerateRequest(HELLO, max_new_tokens=5)])
    assert "chat_template_kwargs" not in str(server.asked)
    assert (model.capabilities.thinks, model.capabilities.switch) == (False, None)
    with serving(server.script) as other:
        thinking = connect(other.reference(), ServerSettings(thinking="on", attempts=2))
        thinking.generate([GenerateRequest(HELLO, max_new_tokens=5)])
    assert other.asked[-1][1]["max_tokens"] == 5
    assert any("no reply to the probe shows a thought" in note for note in thinking.notes)


# Text that no file can hold


def test_half_a_character_is_replaced_and_marked():
    def script(path: str, body: dict[str, Any]) -> Any:
        text = "Paris \ud83d\x00" if body["max_tokens"] > 1 else "B"
        return chat(text, finish="length") if path.endswith("/chat/completions") else refused("Not Found", 404)

    with serving(script) as server:
        model = connect(server.reference(), QUICK)
        records = evaluate(model, get_task("factoid_qa", limit=2))
    for record in records:
        assert record.response == "Paris \ufffd\ufffd"
        assert record.details["replaced_characters"] == 2
        assert record.score is not None


def test_half_a_character_in_the_words_of_a_server_is_replaced():
    def script(path: str, body: dict[str, Any]) -> Any:
        return refused("too long \ud83d") if body["max_tokens"] > 1 else Script(can=BARE)(path, body)

    with serving(script, models=({"id": "m", "owned_by": "\ud83d"},)) as server:
        answer = connect(server.reference(), QUICK).generate([GenerateRequest("Q:")])[0]
    assert answer == Unanswered(reason="the server refused it: too long \ufffd")
