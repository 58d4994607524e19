import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkick.models.language_model import GenerateRequest, Message, ScoreRequest
from llmkick.study.journal.prompts import OWN_ANSWER, packed_prompts, unpacked
from llmkick.study.running.metadata import command_line
from llmkick.tasks.task import Item


class Asking:
    """A task that asks with what it is given."""

    def __init__(self, requests):
        self.by_item = requests

    def requests(self, item, prompting):
        return self.by_item[item.id]


texts = st.lists(st.text(alphabet='ab🙂\\"\n', max_size=12), min_size=1, max_size=6)


@given(texts, st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_prompt_comes_back(prompts, clusters):
    items = [Item(id=str(i), cluster=str(i % clusters), question="") for i in range(len(prompts))]
    requests = {
        item.id: [GenerateRequest(text, stops=("\n",), max_new_tokens=7)]
        for item, text in zip(items, prompts, strict=True)
    }
    found = unpacked(packed_prompts(Asking(requests), items, "raw"))
    assert [json.loads(found[item.id])["prompt"] for item in items] == prompts


def test_what_is_asked_is_told_whole():
    items = [Item(id=name, cluster="c", question="") for name in ("scored", "chat", "window")]
    chat = (Message("system", "Be brief."), Message("user", "Why?"))
    requests = {
        "scored": [ScoreRequest("Is it?", " yes"), ScoreRequest("Is it?", " no")],
        "chat": [GenerateRequest(chat, max_new_tokens=3)],
        "window": [ScoreRequest("", (1, 2, 3))],
    }
    found = unpacked(packed_prompts(Asking(requests), items, "chat"))
    assert json.loads(found["scored"]) == {"prompt": "Is it?", "continuations": [" yes", " no"]}
    assert json.loads(found["chat"])["prompt"] == [["system", "Be brief."], ["user", "Why?"]]
    assert "window" not in found


def test_a_later_turn_is_told_with_a_placeholder_for_the_first_answer():
    class Talking(Asking):
        def follow_up(self, item, prompting, earlier):
            return [GenerateRequest(f"{' / '.join(earlier)} / {item.question}")]

    items = [
        Item(id="q:1", cluster="q", question="one", details={"turn": 1}),
        Item(id="q:3", cluster="q", question="three", details={"turn": 3}),
    ]
    found = unpacked(packed_prompts(Talking({"q:1": [GenerateRequest("one")]}), items, "raw"))
    assert json.loads(found["q:1"])["prompt"] == "one"
    assert json.loads(found["q:3"])["prompt"] == f"{OWN_ANSWER} / {OWN_ANSWER} / three"


def test_prompts_that_share_their_examples_are_kept_small():
    examples = "An example of a question, and its answer.\n" * 60
    items = [Item(id=str(i), cluster="c", question="") for i in range(200)]
    requests = {item.id: [GenerateRequest(f"{examples}Question {item.id}?\nAnswer:")] for item in items}
    parts = packed_prompts(Asking(requests), items, "raw")
    assert sum(len(part.middle) for part in parts) < 4 * len(examples)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["/usr/bin/kick", "run", "my study.toml"], "kick run 'my study.toml'"),
        (["x/__main__.py", "run"], "python -m llmkick.cli run"),
        (["kick", "-m", "openai:http://me:secret@host:1/v1#m"], "kick -m 'openai:http://…@host:1/v1#m'"),
        ([], "python"),
    ],
)
def test_the_command_is_noted_without_passwords(arguments, line):
    assert command_line(arguments) == line
