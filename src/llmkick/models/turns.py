"""Conversations for models that know no system role, or want user and assistant to take turns."""

from __future__ import annotations

from collections.abc import Sequence

from llmkick.models.language_model import Message

# Between texts that become one message.
_BETWEEN = "\n\n"
FOLDED = "it takes no system message: the text of that message stands at the beginning of the next user message"
JOINED = "it wants user and assistant to take turns: messages of one role in a row are sent as one message"


def without_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with the text of every system message at the beginning of the next user message."""
    turns: list[Message] = []
    waiting: list[str] = []
    for message in messages:
        if message.role == "system":
            waiting.append(message.content)
        elif message.role == "user" and waiting:
            turns.append(Message("user", _BETWEEN.join([*waiting, message.content])))
            waiting = []
        else:
            turns.append(message)
    return (*turns, Message("user", _BETWEEN.join(waiting))) if waiting else tuple(turns)


def joined_turns(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The conversation with messages of one role in a row as one message."""
    turns: list[Message] = []
    for message in messages:
        if turns and turns[-1].role == message.role:
            turns[-1] = Message(message.role, _BETWEEN.join([turns[-1].content, message.content]))
        else:
            turns.append(message)
    return tuple(turns)
