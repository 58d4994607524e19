"""A model of this machine as a judge: its batches, its limits, and room for its thoughts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from llmkick.errors import JudgeError
from llmkick.models.engine.answers import Answers, Row
from llmkick.models.language_model import GenerateRequest, Generation, Message, Unanswered
from llmkick.models.transformers_model import TransformersModel
from llmkick.tasks.judge import local_judge
from llmkick.tasks.judge.clients import OVER_BUDGET, NoReply, Question, Reply
from llmkick.tasks.judge.local_judge import LocalJudge
from scripted import ScriptedModel
from toy import save_toy, toy_model


def questions(count: int) -> list[Question]:
    return [Question(key=str(n), messages=(Message("user", f"Rate {n}"),) * 2) for n in range(count)]


def ask(judge: LocalJudge, asked: Sequence[Question], budget: int = 10**9) -> dict[str, Reply | NoReply]:
    replies: dict[str, Reply | NoReply] = {}
    for name, reply in judge.ask(asked, known=(), afford=lambda: len(replies) < budget):
        replies[name] = reply
    return replies


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("judge") / "toy"
    save_toy(folder, chat=True, max_position_embeddings=512)
    return str(folder)


def test_a_local_judge_answers_the_same_when_some_is_known(local: str):
    judge = LocalJudge(reference=local, dtype="float32", device="cpu", max_tokens=5)
    judge.check()
    asked = questions(10)
    everything = dict(judge.ask(asked, known=(), afford=lambda: True))
    assert all(isinstance(reply, Reply) for reply in everything.values())
    rest = dict(judge.ask(asked, known={"0", "1", "9"}, afford=lambda: True))
    assert rest == {key: everything[key] for key in map(str, range(2, 9))}
    long = [Question(key="long", messages=(Message("user", "x" * 2000),))]
    assert "leaves no room" in str(ask(judge, long)["long"])
    assert ask(judge, asked[:1], budget=0) == {"0": NoReply(reason=OVER_BUDGET)}


def test_a_local_judge_that_is_not_there():
    with pytest.raises(JudgeError, match="the judge no-such-model cannot be used"):
        LocalJudge(reference="no-such-model").check()


# A judge that thinks

VERDICT = "8 7"
THOUGHT_TOKENS = 400


class Thinker(ScriptedModel):
    """Thinks for so many words before its verdict; the engine makes answers of the tokens, as of those of a network."""

    def __init__(self, words: dict[str, int], *, max_tokens: int = 4096) -> None:
        super().__init__(generation=self.think, max_tokens=max_tokens)
        self.words = words
        self.toy: TransformersModel = toy_model(chat=True)

    def think(self, request: GenerateRequest) -> Generation | Unanswered:
        thought = "so " * self.words[str(request.prompt).rpartition(" ")[2]]
        tokens = self.toy.tokenize(f"<think>{thought}</think>{VERDICT}" if thought else VERDICT)[1:]
        row = Row(index=0, request=request, prompt=(1,), tokens=tokens[: request.max_new_tokens])
        finish = "end" if len(tokens) <= request.max_new_tokens else "length"
        return Answers(self.toy.engine.encoder, frozenset()).finished(row, finish)


@pytest.fixture(autouse=True)
def _short_thoughts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_judge, "THOUGHT_TOKENS", THOUGHT_TOKENS)


def judge_with(model: Thinker, max_tokens: int = 50) -> LocalJudge:
    judge = LocalJudge(reference="thinker", max_tokens=max_tokens)
    judge._model = model
    return judge


def test_a_thought_that_the_limit_cuts_is_asked_for_once_more_with_room():
    model = Thinker({"0": 100, "1": 0, "2": 3})
    judge = judge_with(model)
    replies = ask(judge, questions(3))
    assert [reply.text for reply in replies.values() if isinstance(reply, Reply)] == [VERDICT] * 3
    assert not any(reply.cut for reply in replies.values() if isinstance(reply, Reply))
    limits = [[request.max_new_tokens for request in call] for call in model.calls]
    assert limits == [[50, 50, 50], [50 + THOUGHT_TOKENS]]
    paid = {key: (reply.prompt_tokens, reply.completion_tokens) for key, reply in replies.items()}  # type: ignore[union-attr]
    assert paid["1"] == (len("Rate 1\n\nRate 1"), 3)
    assert paid["0"] == (2 * paid["1"][0], 50 + 3)
    assert judge.notes == (f"the judge thinker: {local_judge.THINKS}",)
    assert not judge_with(Thinker({})).notes


def test_the_second_attempts_depend_on_the_questions_only():
    model = Thinker({str(n): 100 for n in range(3)})
    judge = judge_with(model)
    everything = ask(judge, questions(3))
    calls = list(model.calls)
    model.calls.clear()
    assert dict(judge.ask(questions(3), known={"0", "2"}, afford=lambda: True)) == {"1": everything["1"]}
    assert model.calls == calls


@pytest.mark.parametrize(
    ("context", "limit"), [(4096, 50 + THOUGHT_TOKENS), (200, 200 - len("Rate 0\n\nRate 0")), (64, 50)]
)
def test_a_thought_without_an_end_is_no_reply_and_nothing_is_advised_that_a_judge_cannot(context: int, limit: int):
    model = Thinker({"0": 1000}, max_tokens=context)
    reply = ask(judge_with(model), questions(1))["0"]
    assert reply == NoReply(reason=f"the limit of {limit} tokens ended the answer inside its thought")
    assert [call[0].max_new_tokens for call in model.calls] == ([50] if limit == 50 else [50, limit])  # type: ignore[union-attr]
