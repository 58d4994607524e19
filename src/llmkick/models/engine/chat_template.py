"""A tokenizer's chat template: its switch for thinking, and what it does not take of a conversation.

Templates name their switch themselves: a variable such as `enable_thinking`. A template without one may open a thought
at the end of every prompt (`<think>`); with thinking "off" that thought is closed at once.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from llmkick.errors import ConfigError, one_line
from llmkick.models.language_model import Message
from llmkick.models.thoughts import Thinking, closing_of
from llmkick.models.turns import FOLDED, JOINED, joined_turns, without_system

# Variables that turn thoughts off and on, and their values for that.
SWITCHES: Mapping[str, tuple[Any, Any]] = {
    "enable_thinking": (False, True),
    "thinking": (False, True),
    "enable_reasoning": (False, True),
    "reasoning": (False, True),
    "thinking_budget": (0, None),  # None: as the template has it by itself
}
# The day of every prompt whose template writes the date, that of Llama 3.1: answers of two days must compare.
DAY = datetime.datetime(2024, 7, 26)
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
# How templates ask for the date.
_TODAY = re.compile(r"""\bstrftime_now\(\s*(['"])([^'"]*)\1\s*\)""")
# A conversation that every template takes, to see what it writes.
_PLAIN = (Message("user", "Hello"),)


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The chat template of a Hugging Face tokenizer; `model_name` is for error messages, `notes` for readers."""

    tokenizer: Any
    model_name: str
    thinking: Thinking = "off"
    notes: list[str] = field(default_factory=list, compare=False, repr=False)

    @cached_property
    def options(self) -> dict[str, Any]:
        """The variables that the template gets, for `thinking`; empty for a template without a switch."""
        variables = _variables_of(self._template)
        values = {name: pair[self.thinking == "on"] for name, pair in SWITCHES.items() if name in variables}
        return {name: value for name, value in values.items() if value is not None}

    @cached_property
    def _template(self) -> str:
        """The template of the tokenizer; what asks for today's date in it is replaced by that of one day."""
        template: str = self.tokenizer.get_chat_template()
        return _TODAY.sub(lambda match: f"'{DAY.strftime(match[2])}'", template)

    @cached_property
    def opens_thought(self) -> bool:
        """Whether prompts end inside a thought, which the answer continues."""
        return self.thinking == "on" and closing_of(self._plain_prompt(self.options)) is not None

    @cached_property
    def changed_by_thinking(self) -> bool:
        """Whether `thinking` makes another prompt than the template by itself, or is "on"."""
        if self.thinking == "on":
            return True
        by_itself = self._plain_prompt({})
        return closing_of(by_itself) is not None or self._plain_prompt(self.options) != by_itself

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the template writes it, ready for the assistant to speak.

        A system message that the template does not take stands at the beginning of the first user message, and
        messages of one role in a row become one where the template wants turns; `notes` say so. Raises ConfigError
        for a conversation that the template refuses nevertheless.
        """
        if self.changed_by_thinking:
            self._note(f"thinking is {self.thinking} in conversations")
        if self._template != self.tokenizer.get_chat_template():
            self._note(f"the chat template writes the date, here always {DAY:%d %b %Y}: prompts are alike on all days")
        rendered = self._rendered_somehow(messages)
        closing = closing_of(rendered) if self.thinking == "off" and messages[-1].role != "assistant" else None
        return rendered if closing is None else f"{rendered.rstrip()}\n\n{closing}\n\n"

    def _rendered_somehow(self, messages: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        changes = ((), (without_system,), (joined_turns,), (without_system, joined_turns))
        refusal: Exception | None = None
        for change in changes:
            turns = tuple(messages)
            for step in change:
                turns = step(turns)
            if change and turns == tuple(messages):
                continue
            try:
                rendered = self._rendered(turns, self.options)
            except (TemplateError, TypeError, ValueError, LookupError) as error:
                refusal = refusal or error
                continue
            # Some templates leave a system message out without a word.
            if all(message.role != "system" or message.content.strip() in rendered for message in turns):
                for step, note in ((without_system, FOLDED), (joined_turns, JOINED)):
                    if step in change:
                        self._note(note)
                return rendered
        if refusal is None:  # the template writes a system message in its own way
            return self._rendered(messages, self.options)
        raise ConfigError(
            f"the chat template of {self.model_name} refuses the conversation: {one_line(refusal)}; "
            'use prompting = "raw"'
        ) from refusal

    def _note(self, note: str) -> None:
        line = f"{self.model_name}: {note}"
        if line not in self.notes:
            self.notes.append(line)

    def _plain_prompt(self, options: Mapping[str, Any]) -> str:
        """The prompt of a plain question; empty where the template refuses even that."""
        from jinja2 import TemplateError

        try:
            return self._rendered(_PLAIN, options)
        except (TemplateError, TypeError, ValueError, LookupError):
            return ""

    def _rendered(self, messages: Sequence[Message], options: Mapping[str, Any]) -> str:
        continues = messages[-1].role == "assistant"
        rendered: str = self.tokenizer.apply_chat_template(
            [message._asdict() for message in messages],
            tokenize=False,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            chat_template=self._template,
            **options,
        )
        return rendered


def _variables_of(template: str) -> frozenset[str]:
    """The variables that a template reads and does not set; none for one that cannot be parsed."""
    from jinja2 import Environment, TemplateError, meta

    # What transformers adds to Jinja: loop controls, and a block around what the assistant says.
    environment = Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=True)  # it renders nothing
    try:
        return frozenset(meta.find_undeclared_variables(environment.parse(_GENERATION.sub("", template))))
    except TemplateError:
        return frozenset()
