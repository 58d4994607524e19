"""The final text of a server's reply, for models and judges alike, in every form that servers give it.

A text can be a string, null, or a list of parts; a thought can stand in a field or part of its own, or inline in the
text. What is thought is never part of the final text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmkick.models.clean_text import clean_text
from llmkick.models.server.log_probabilities import plain
from llmkick.models.thoughts import Separated, Thinking, separate, why_no_answer

# Fields of a server's model entry that change although the model is the same.
CHANGING_FACTS = {"created", "permission", "status"}
# Fields of a message that hold its thought.
_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks", "thoughts")
# Types of parts that are text for the user.
_TEXT_PARTS = ("", "text", "output_text", "refusal")
# What servers call the token limit, and ends without an answer.
_LIMIT = ("length", "max_tokens", "model_length", "max_output_tokens")
_NO_ANSWER = ("content_filter", "tool_calls", "function_call", "error", "abort", "safety", "recitation")


@dataclass(frozen=True)
class FinalText:
    """What a reply says: its text without thoughts, and how it ended.

    `given`: the server gave a text, if an empty one. `raw` is the text with its inline thoughts, `cut` says that the
    token limit ended it.
    """

    separated: Separated
    given: bool
    raw: str
    finish: str

    @property
    def text(self) -> str:
        """The text without thoughts."""
        return self.separated.answer

    @property
    def has_thought(self) -> bool:
        """Whether the reply holds a thought, in whatever place."""
        return self.separated.unfinished or bool(self.separated.thought.strip())

    @property
    def cut(self) -> bool:
        """Whether the token limit ended the reply."""
        return self.finish in _LIMIT

    def why_no_answer(self, *, limit: int, thinking: Thinking = "off") -> str | None:
        """The reason why this reply is no answer; None where it is one. Empty is an answer if nothing cut it."""
        if self.separated.is_only_thought or (self.cut and not self.raw):
            return why_no_answer(self.separated, cut=self.cut, limit=limit, thinking=thinking)
        if (not self.text.strip() and self.finish in _NO_ANSWER) or (not self.given and self.finish != "stop"):
            return f"the server's answer has no text (it ended with {self.finish!r})"
        return None


def final_text(reply: Any) -> FinalText:
    """The final text of a reply, in a conversation or after raw text."""
    choice = reply.choices[0]
    message = getattr(choice, "message", None)
    finish = str(getattr(choice, "finish_reason", None) or "").lower()
    if message is None:
        text, given, thought = _text_and_thought(getattr(choice, "text", None))
    else:
        fields = plain(message) if isinstance(plain(message), Mapping) else {"content": message}
        text, given, thought = _text_and_thought(fields.get("content"))
        thought += "".join(_strings(fields.get(name)) for name in _THOUGHT_FIELDS)
        if not text:
            refusal = _strings(fields.get("refusal"))
            text, given = refusal or text, given or bool(refusal)
    # Halves of a character can stand in neighbouring parts.
    text = clean_text(text)
    inline = separate(text)
    separated = Separated(inline.answer, clean_text(thought) + inline.thought, inline.unfinished)
    return FinalText(separated, given, text, finish)


def new_tokens(reply: Any) -> int:
    """New tokens of a reply without those of its thought; 0 where the server does not count."""
    usage = getattr(reply, "usage", None)
    details = plain(getattr(usage, "completion_tokens_details", None))
    thought = details.get("reasoning_tokens") if isinstance(details, Mapping) else None
    return max(0, _count(getattr(usage, "completion_tokens", None)) - _count(thought))


def used_tokens(reply: Any) -> tuple[int, int]:
    """Tokens of the prompt and of the whole reply; 0 where the server does not count."""
    usage = getattr(reply, "usage", None)
    return _count(getattr(usage, "prompt_tokens", None)), _count(getattr(usage, "completion_tokens", None))


def model_entries(body: Any) -> list[dict[str, Any]] | None:
    """The entries of a list of models, each with its name as `id`; None for what is no such list.

    Servers give {"data": […]}, {"models": […]} or a bare list, of objects or of names.
    """
    if isinstance(body, Mapping):
        body = next((body[key] for key in ("data", "models") if isinstance(body.get(key), list)), None)
    if not isinstance(body, list):
        return None
    entries = []
    for entry in body:
        if isinstance(entry, str):
            entries.append({"id": entry})
        elif isinstance(entry, Mapping):
            name = next((entry[key] for key in ("id", "name", "model") if isinstance(entry.get(key), str)), None)
            entries += [{**entry, "id": name}] if name else []
    return entries


def unchanging_facts(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says of its model, without what changes although the model is the same."""
    return {key: value for key, value in entry.items() if key not in CHANGING_FACTS}


def whole_number(facts: Mapping[str, Any], *names: str) -> int | None:
    """The first of the named facts that is a whole number above 0."""
    values = (facts.get(name) for name in names)
    return next(
        (value for value in values if isinstance(value, int) and not isinstance(value, bool) and value > 0), None
    )


def _text_and_thought(content: Any) -> tuple[str, bool, str]:
    """The text of a content, whether there is one, and the thought in its parts."""
    if content is None or isinstance(content, str):
        return content or "", content is not None, ""
    parts = list(_parts(content))
    texts = [text for is_thought, text in parts if not is_thought]
    return "".join(texts), bool(texts), "".join(text for is_thought, text in parts if is_thought)


def _parts(content: Any) -> Iterator[tuple[bool, str]]:
    """(is a thought, text) of every part; parts that are neither, such as calls of tools, are left out."""
    content = plain(content)
    for part in map(plain, content if isinstance(content, list) else [content]):
        if isinstance(part, str):
            yield False, part
        elif isinstance(part, Mapping):
            kind = str(part.get("type") or "").lower()
            if part.get("thought") is True or any(word in kind for word in ("think", "reason", "thought")):
                yield True, _strings(part) or "…"
            elif kind in _TEXT_PARTS:
                said = next((part[key] for key in ("text", "content", "refusal") if part.get(key) is not None), None)
                yield False, _strings(said)


def _strings(value: Any) -> str:
    """The text in a value of JSON: a string, or the strings inside of it, without types, names and signatures."""
    value = plain(value)
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_strings, value))
    if isinstance(value, Mapping):
        return "".join(
            _strings(item) for key, item in value.items() if key not in ("type", "id", "format", "signature", "index")
        )
    return ""


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
