"""Chat templates: whether the model is to think, and what a template does not take of a conversation."""

from __future__ import annotations

from typing import Any

import pytest

from llmkick.errors import ConfigError
from llmkick.models.engine.prompt_encoder import PromptEncoder
from llmkick.models.language_model import Message
from llmkick.models.thoughts import Thinking
from toy import CHAT_TEMPLATE, toy_tokenizer

USER, SYSTEM = Message("user", "Hello"), Message("system", "Be brief.")
ANSWER = Message("assistant", "Hi")
TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
# The ends of prompts in templates with a switch.
QWEN3 = (
    TURNS + "{% if add_generation_prompt %}<bot>\n{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# Its switch is also in the system text, its default is set by the template, and it marks what the assistant says.
SMOLLM3 = (
    "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
    "{% set mode = '/think' if enable_thinking else '/no_think' %}<system>{{ mode }}"
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<bot>\n{% if mode == '/no_think' %}<think>\n\n</think>\n{% endif %}{% endif %}"
)
DEEPSEEK = (
    "{% if not thinking is defined %}{% set thinking = false %}{% endif %}" + TURNS
    + "{% if add_generation_prompt %}<bot>{{ '<think>' if thinking else '</think>' }}{% endif %}"
)  # fmt: skip
R1 = TURNS + "{% if add_generation_prompt %}<bot><think>\n{% endif %}"
PLAIN = TURNS + "{% if add_generation_prompt %}<bot>\n{% endif %}"
LOOPS = "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def encoder(template: str, thinking: Thinking = "off") -> PromptEncoder:
    tokenizer: Any = toy_tokenizer(chat=True)
    tokenizer.chat_template = template
    return PromptEncoder(tokenizer=tokenizer, model_name="toy", thinking=thinking)


@pytest.mark.parametrize(
    ("template", "off", "on", "changed"),
    [
        (QWEN3, "<user>Hello<bot>\n<think>\n\n</think>\n\n", "<user>Hello<bot>\n", True),
        (SMOLLM3, "<system>/no_think<user>Hello<bot>\n<think>\n\n</think>\n", "<system>/think<user>Hello<bot>\n", True),
        (DEEPSEEK, "<user>Hello<bot></think>", "<user>Hello<bot><think>", False),
        (R1, "<user>Hello<bot><think>\n\n</think>\n\n", "<user>Hello<bot><think>\n", True),
        (PLAIN, "<user>Hello<bot>\n", "<user>Hello<bot>\n", False),
        (LOOPS + "<bot>", "<user>Hello<bot>", "<user>Hello<bot>", False),
    ],
)
def test_the_switch_of_a_template(template: str, off: str, on: str, changed: bool):
    assert encoder(template).render_chat([USER]) == off
    assert encoder(template, "on").render_chat([USER]) == on
    assert encoder(template).template.changed_by_thinking is changed
    assert encoder(template, "on").template.changed_by_thinking
    assert encoder(template, "on").template.opens_thought is on.rstrip().endswith("<think>")
    assert not encoder(template).template.opens_thought


@pytest.mark.parametrize(
    ("template", "options"),
    [
        (QWEN3, {"enable_thinking": False}),
        (SMOLLM3, {"enable_thinking": False}),
        (DEEPSEEK, {"thinking": False}),
        ("{% if reasoning %}x{% endif %}", {"reasoning": False}),
        ("{{ thinking_budget }}", {"thinking_budget": 0}),
        ("{% for thinking in messages %}{{ thinking.content }}{% endfor %}", {}),  # a name of its own
        ("{{ messages[0].thinking }} enable_thinking", {}),
        (PLAIN, {}),
        (CHAT_TEMPLATE, {}),
    ],
)
def test_only_variables_that_a_template_reads_are_switches(template: str, options: dict[str, Any]):
    assert encoder(template).template.options == options


def test_a_begun_answer_is_continued_without_a_thought():
    for template in (QWEN3, R1):
        assert encoder(template).render_chat([USER, ANSWER]).endswith("<user>Hello<assistant>Hi")


REFUSE = "{{ raise_exception('System role not supported') }}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}" + REFUSE + "{% endif %}" + PLAIN
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}" + PLAIN
)
SILENT = PLAIN.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
STRICT = "{% for m in messages if m.role == 'system' %}{{ m.content + 1 }}{% endfor %}" + PLAIN  # a TypeError
NEVER = "{{ raise_exception('no conversations today') }}"


@pytest.mark.parametrize("template", [NO_SYSTEM, ALTERNATE, SILENT, STRICT])
def test_a_system_message_that_a_template_does_not_take_goes_to_the_question(template: str):
    one = encoder(template)
    for _ in range(2):
        assert one.render_chat([SYSTEM, USER]) == "<user>Be brief.\n\nHello<bot>\n"
    assert one.render_chat([SYSTEM, USER, ANSWER, USER]).startswith("<user>Be brief.\n\nHello<assistant>Hi")
    (note,) = one.notes
    assert note.startswith("toy: it takes no system message")


def test_turns_are_joined_where_a_template_wants_them_to_alternate():
    one = encoder(ALTERNATE)
    assert one.render_chat([USER, USER]) == "<user>Hello\n\nHello<bot>\n"
    assert one.render_chat([SYSTEM, USER, USER, ANSWER]) == "<user>Be brief.\n\nHello\n\nHello<assistant>Hi"
    assert len(one.notes) == 2


def test_a_conversation_that_a_template_takes_is_left_as_it_is():
    one = encoder(PLAIN)
    assert one.render_chat([SYSTEM, USER, USER]) == "<system>Be brief.<user>Hello<user>Hello<bot>\n"
    assert one.notes == []


def test_a_template_that_writes_the_date_writes_the_same_on_all_days():
    """As in Llama 3.1 and its successors: an answer of another day would be to another prompt."""
    one = encoder(
        "{% if not date_string is defined %}{% if strftime_now is defined %}"
        "{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{% endif %}Today is {{ date_string }}." + PLAIN
    )
    assert one.render_chat([USER]) == "Today is 26 Jul 2024.<user>Hello<bot>\n"
    assert one.notes == [
        "toy: the chat template writes the date, here always 26 Jul 2024: prompts are alike on all days"
    ]


def test_a_template_that_refuses_everything_is_an_error_with_its_words():
    with pytest.raises(ConfigError, match=r'chat template of toy refuses the conversation: no conv.*prompting = "raw"'):
        encoder(NEVER).render_chat([SYSTEM, USER])


# Tokens of an answer


def with_marks(*marks: str, special: bool) -> Any:
    tokenizer: Any = toy_tokenizer(chat=True)
    tokenizer.chat_template = PLAIN
    tokenizer.add_tokens(list(marks), special_tokens=special)
    return tokenizer


@pytest.mark.parametrize("special", [False, True])
def test_marks_of_thoughts_are_not_lost_with_the_special_tokens(special: bool):
    tokenizer = with_marks("[THINK]", "[/THINK]", special=special)
    one = PromptEncoder(tokenizer=tokenizer, model_name="toy")
    tokens = tokenizer("[THINK]Lyon[/THINK]the and</s>", add_special_tokens=False)["input_ids"]
    assert one.decode(tokens) == "[THINK]Lyon[/THINK]the and"
    assert one.decode(tokenizer("the and</s>")["input_ids"]) == "the and"
