"""Tasks under another name: everything but the name stays, and the key tells both names."""

from __future__ import annotations

from llmkick.tasks.judge.prompts import Judgeable
from llmkick.tasks.registry import full_key, get_task
from llmkick.tasks.renaming import registry_name, renamed
from llmkick.tasks.task import Conversational, ReadByReference


def test_only_the_name_changes():
    task = get_task("multiple_choice", limit=3, shots=2)
    other = renamed(task, "mmlu")
    assert (task.name, other.name) == ("multiple_choice:letter", "mmlu")
    assert (registry_name(task), registry_name(other)) == ("multiple_choice:letter", "multiple_choice:letter")
    assert registry_name(renamed(other, "again")) == "multiple_choice:letter"
    assert [item.id for item in other.items()] == [item.id for item in task.items()]
    assert other.requests(other.items()[0], "raw") == task.requests(task.items()[0], "raw")
    assert (other.metric, other.chance_level, other.setting) == (task.metric, task.chance_level, task.setting)


def test_the_key_has_both_names():
    task = get_task("multiple_choice", limit=3, shots=2)
    assert "task" not in full_key(task)
    assert full_key(renamed(task, "mmlu")) == {**full_key(task), "name": "mmlu", "task": "multiple_choice:letter"}


def test_a_task_keeps_its_protocols():
    for name, protocol in (("instruction", Conversational), ("summarization", ReadByReference)):
        task = get_task(name)
        for one in (task, renamed(task, "x")):
            assert isinstance(one, protocol)
            assert isinstance(one, Judgeable)
        assert isinstance(renamed(task, "x"), type(task))
