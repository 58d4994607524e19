"""Thoughts of reasoning models: how they are marked in a text, and the answer without them.

A thought is never part of an answer. Models mark it in many ways, and a server or a token limit can leave half of the
marks out:

    <think>…</think>Paris            also <thinking>, <reasoning>, [THINK], <|START_THINKING|>, …
    …</think>Paris                   the chat template wrote the opening mark
    <think>…                         the thought did not end: there is no answer
    <|channel|>analysis<|message|>…<|channel|>final<|message|>Paris
    analysis…assistantfinalParis     the same without its special tokens
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# Whether a model is asked to think before it answers, where its chat template has a switch for that.
Thinking = Literal["off", "on"]
# Tokens that a model may use for its thought, beside those of its answer, when thinking is "on".
THOUGHT_TOKENS = 4096

_NAMES = r"(?:think|thinking|thoughts?|reason|reasoning|reflection|scratchpad|(?:seed|mm):think|longcat_think)"
# Opening and closing marks.
_MARKS = (
    (rf"<{_NAMES}(?:\s[^<>]*)?>", rf"</{_NAMES}\s*>"),
    (r"<\|(?:think|thinking|thought|reasoning)\|>", r"<\|/(?:think|thinking|thought|reasoning)\|>"),
    (r"\[(?:THINK|THINKING|REASONING)\]", r"\[/(?:THINK|THINKING|REASONING)\]"),
    (r"<\|(?:begin_of_thought|thought_start)\|>", r"<\|(?:end_of_thought|thought_end)\|>"),
    (r"<\|(?:START_THINKING|think_start)\|>", r"<\|(?:END_THINKING|think_end)\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|channel>thought\b", r"<channel\|>"),
    (r"<unused94>thought\b", r"<unused95>"),
)
_MARK = re.compile(
    "|".join(f"(?P<o{n}>{opening})|(?P<c{n}>{closing})" for n, (opening, closing) in enumerate(_MARKS)), re.IGNORECASE
)
_BEGINNINGS = (
    "<think>",
    "<reasoning>",
    "<reflection>",
    "<scratchpad>",
    "<seed:think>",
    "[think]",
    "<|channel|>",
    "◁think▷",
)
# Around a mark that a text speaks of.
_QUOTES = "`'\"“”‘’«»"
_ENDS_OPEN = re.compile(rf"(?P<mark>{'|'.join(opening for opening, _ in _MARKS)})\s*\Z", re.IGNORECASE)
# Models that begin and end their thought with a sentence.
_SPOKEN = (
    ("Here is my thought process:", "Here is my response:"),
    ("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
)
# What some models put around the answer after a thought.
_WRAPPED = re.compile(
    r"\s*(?:<(?P<tag>answer|response|final_answer)>(?P<answer>.*?)(?:</(?P=tag)>\s*)?"
    r"|<\|begin_of_solution\|>(?P<solution>.*?)(?:<\|end_of_solution\|>\s*)?"
    r"|<\|START_RESPONSE\|>(?P<response>.*?)(?:<\|END_RESPONSE\|>\s*)?)\Z",
    re.DOTALL,
)
_CHANNEL = re.compile(r"\s*(?P<name>analysis|commentary|final)")
_CHANNEL_END = re.compile(r"<\|(?:end|return|call|start)\|>")
# Special tokens that mark channels; without them their names run into the text.
_CHANNEL_MARKS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>")
_RUN_ON = re.compile(r"\s*analysis(?=[A-Z\"'])")
_RUN_ON_FINAL = "assistantfinal"


@dataclass(frozen=True)
class Separated:
    """A text without its thoughts. `unfinished`: the text ends inside a thought."""

    answer: str
    thought: str = ""
    unfinished: bool = False

    @property
    def is_only_thought(self) -> bool:
        """Whether there is a thought, and nothing that could be an answer."""
        return not self.answer.strip() and (self.unfinished or bool(self.thought.strip()))


def separate(text: str, *, opened: bool = False) -> Separated:
    """The answer in a generated text, and its thoughts; `opened`: the prompt has opened a thought."""
    channels = _separate_channels(text)
    if channels is not None:
        return channels
    spoken = _separate_spoken(text)
    if spoken is not None:
        return spoken
    marked = _separate_marked(text, opened=opened)
    if marked is None:
        return Separated(text)
    wrapped = _WRAPPED.match(marked.answer)
    parts = wrapped.group("answer", "solution", "response") if wrapped else (marked.answer,)
    answer = next(part for part in parts if part is not None)
    return Separated(answer.lstrip(), marked.thought, marked.unfinished)


def closing_of(prompt: str) -> str | None:
    """The mark that closes the thought which a prompt leaves open at its end; None where it opens none."""
    unclosed = _ENDS_OPEN.search(prompt)
    if unclosed is None:
        return None
    mark = unclosed["mark"]
    for opening, closing in (
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<|thought_start|>", "<|thought_end|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|think_start|>", "<|think_end|>"),
        ("<|inner_prefix|>", "<|inner_suffix|>"),
        ("<|channel>thought", "<channel|>"),
        ("<unused94>thought", "<unused95>"),
    ):
        if mark == opening:
            return closing
    if mark.startswith("<|"):
        return f"<|/{mark[2:]}"
    name = re.match(r"<[\w:]+", mark)
    return f"</{name[0][1:]}>" if name else f"{mark[0]}/{mark[1:]}"


def may_begin_thought(text: str) -> bool:
    """Whether a text of one token, such as "<", may be the beginning of an opening mark."""
    begun = text.strip().lower()
    return bool(begun) and any(mark.startswith(begun) for mark in _BEGINNINGS)


def is_mark(token: str) -> bool:
    """Whether a special token marks a thought or an answer beside one: it must not be lost in decoding."""
    return bool(_MARK.fullmatch(token)) or token in _CHANNEL_MARKS or token in ("<|channel>", "<unused94>")


def why_no_answer(separated: Separated, *, cut: bool, limit: int, thinking: Thinking) -> str:
    """The reason why a text that is only a thought, or was cut before it had any text, is no answer."""
    if not cut:
        return "it ends inside its thought" if separated.unfinished else "it has a thought and no answer"
    if not (separated.unfinished or separated.thought.strip()):
        return f"the limit of {limit} tokens ended the answer before it had any text"
    more = "" if thinking == "on" else '; with thinking = "on" (--thinking on) it has room to think'
    return f"the limit of {limit} tokens ended the answer inside its thought{more}"


def _separate_marked(text: str, *, opened: bool) -> Separated | None:
    """By opening and closing marks; None for a text without any."""
    answer, thought, start = "", "", 0
    inside: str | None = "any" if opened else None
    marked = opened
    spoken_of: list[str] = []  # kinds of opening marks that the text shows, so that it shows their closing marks too
    for mark in _MARK.finditer(text):
        which = str(mark.lastgroup)
        closes, kind = which[0] == "c", which[1:]
        before = answer + text[start : mark.start()]
        if inside is not None:
            if closes and inside in ("any", kind):
                thought, start, inside = thought + text[start : mark.start()], mark.end(), None
        elif closes and kind in spoken_of:
            spoken_of.remove(kind)
        elif _is_quoted(text, mark) or (not closes and before.count("```") % 2 == 1):
            spoken_of += [] if closes else [kind]
        elif closes:  # the prompt opened it
            thought, answer, start, marked = thought + before, "", mark.end(), True
        elif not before.rpartition("\n")[2].strip() or _is_closed(text, mark.end(), kind):
            answer, start, inside, marked = before, mark.end(), kind, True
    if not marked:
        return None
    if inside is not None:
        return Separated(answer, thought + text[start:], unfinished=True)
    return Separated(answer + text[start:], thought)


def _is_quoted(text: str, mark: re.Match[str]) -> bool:
    """Whether a mark stands between quotation marks: the text speaks of it."""
    around = text[mark.start() - 1 : mark.start()], text[mark.end() : mark.end() + 1]
    return mark.start() > 0 and all(neighbour and neighbour in _QUOTES for neighbour in around)


def _is_closed(text: str, start: int, kind: str) -> bool:
    return any(later.lastgroup == f"c{kind}" for later in _MARK.finditer(text, start))


def _separate_channels(text: str) -> Separated | None:
    """By the channels of gpt-oss, with or without their special tokens; None for a text without channels."""
    if "<|channel|>" not in text and "<|message|>" in text and _CHANNEL.match(text):
        text = f"<|channel|>{text}"  # the prompt ended with the mark
    if "<|channel|>" in text:
        final, thought = None, ""
        for piece in text.split("<|channel|>"):
            name = _CHANNEL.match(piece)
            said = piece[name.end() :] if name else piece
            said = said.rpartition("<|message|>")[2]
            said = said[: end.start()] if (end := _CHANNEL_END.search(said)) else said
            if name and name["name"] == "final":
                final = (final or "") + said
            else:
                thought += said
        return Separated((final or "").lstrip(), thought, unfinished=final is None)
    if not _RUN_ON.match(text) and not (text.lstrip().startswith("analysis") and _RUN_ON_FINAL in text):
        return None
    thought, mark, answer = text.rpartition(_RUN_ON_FINAL)
    return Separated(answer.lstrip(), thought) if mark else Separated("", text, unfinished=True)


def _separate_spoken(text: str) -> Separated | None:
    """By the sentences of models that announce their thought; None for other texts."""
    for begin, end in _SPOKEN:
        if text.lstrip().startswith(begin):
            thought, mark, answer = text.partition(end)
            answer = answer.partition("[END FINAL RESPONSE]")[0].lstrip()
            return Separated(answer, thought) if mark else Separated("", text, unfinished=True)
    return None
