"""The verdict in a judge's reply: what it says after its thoughts and drafts, as JSON or as free text."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from llmkick.models.thoughts import separate
from llmkick.tasks.judge.replies import (
    ASPECTS,
    CONTRADICTION,
    NOUN,
    OUTSIDE,
    Kind,
    Pairs,
    Unreadable,
    in_scale,
    read_scores,
)

JudgeProtocol = Literal["strict", "paper"]
# Increment when other scores may be read in the same reply. The replies themselves are kept: they are read again.
READING_VERSION = 3

CUT = Unreadable("the reply was cut before its end")
ONLY_THOUGHTS = Unreadable("it contains thoughts and no verdict")
ONLY_A_DRAFT = Unreadable("it contains a draft and no verdict")
NO_NUMBERS = Unreadable("the scores of its JSON are no numbers")

# Keys of the scores in the strict protocol's JSON, for all kinds but "summary".
_OVERALL = ("overall",)

# Tags of what a judge writes before its verdict, besides those of thoughts.
_PREPARATION = re.compile(r"<(draft|analysis)>.*?</\1>", re.IGNORECASE | re.DOTALL)
# A closing tag inside a sentence, in a reply without an opening one: the judge speaks of an answer that has it.
_OPENING_TAG = re.compile(r"<\w+>")
_MENTIONED = re.compile(r"(?<=\S )(</\w+>)(?= \S)")

_LATEST = r"(?:final|revised|corrected|updated|definitive)"
_JUDGED = rf"(?:{NOUN}|verdicts?|judge?ments?|ratings?|json)"
_FINAL = re.compile(rf"\b{_LATEST}\s+{_JUDGED}\b(?:\s+tuple\b)?(?:\s+(?:is|are)\b)?[*_]*\s*[:=]?[*_]*", re.IGNORECASE)
# What stands before a JSON verdict may say less clearly that it is the final one: it cannot be the result of a sum.
_FINAL_JSON = re.compile(
    rf"{_FINAL.pattern}|^\W*(?:(?:the|my|so|now|here\s+is\s+the|here\s+is\s+my)\s+)*{_LATEST}(?:\s+\w+){{0,2}}\W*$"
    r"|\bon\s+(?:second\s+thoughts?|reflection)\b|\breconsider(?:ed|ing|ation)?\b|\bI\s+(?:revise|correct|change)\s+my\b",
    re.IGNORECASE | re.MULTILINE,
)
_DRAFT = re.compile(
    r"(?:^|[.,:;])\W*(?:(?:the|my|a|an|here\s+is\s+(?:a|my))\s+)*"
    r"(?:(?:first|rough|initial|preliminary|tentative|provisional)\s+)*"
    rf"(?:draft|first\s+(?:draft|pass|attempt|impression|guess)|(?:initial|preliminary|tentative|provisional)\s+{_JUDGED})"
    r"(?:\s+\w+){0,2}\W*$",
    re.IGNORECASE | re.MULTILINE,
)
_ESCAPE = re.compile(r'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})?')
_PYTHON_DICT = re.compile(r"\{\s*'\w+'\s*:")
_SCORE_TEXT = re.compile(r"\s*([-−+]?[0-9]+(?:\.[0-9]+)?)\s*(?:/\s*10|out\s+of\s+10)?\s*", re.IGNORECASE)
_JSON_BEGINS = re.compile(rf'\{{\s*"(?:explanation|{"|".join((*_OVERALL, *ASPECTS))})"\s*:')


def fields(kind: Kind) -> tuple[str, ...]:
    """The names of the score pairs in a strict judgement."""
    return ASPECTS if kind == "summary" else _OVERALL


def parse_scores(text: str, kind: Kind) -> tuple[float, float] | tuple[tuple[float, float], ...] | None:
    """The scores (Assistant 1, Assistant 2), from 0 to 10, in a judge's reply to one of the paper's prompts.

    For kind "general", "coding" or "maths" the result is one pair. For "summary" it is four pairs: coherence,
    consistency, fluency and relevance. The result is None if the reply is ambiguous or has no scores; `read_reply`
    gives the reason.
    """
    scores = read_reply(text, kind, "paper")
    if isinstance(scores, Unreadable):
        return None
    return scores if kind == "summary" else scores[0]


def read_reply(text: str, kind: Kind, protocol: JudgeProtocol, *, cut: bool = False) -> Pairs | Unreadable:
    """The score pairs in a reply. `cut` is true if the token limit ended the reply.

    Thoughts are no part of a reply. Of several verdicts that differ, the last one counts if the reply calls it the
    final one or the others drafts; otherwise they contradict each other.
    """
    said = without_thoughts(text)
    if said is None:
        return CUT if cut else ONLY_THOUGHTS
    if protocol == "strict":
        begun, verdict_of_json = _json_verdict(said, kind)
        if verdict_of_json is not None:
            return CUT if cut and verdict_of_json == ONLY_A_DRAFT else verdict_of_json
        said = said[begun:]
    # The maths prompt asks for the scores after the solution, so a truncated reply does not contain them.
    if cut and (protocol == "strict" or kind == "maths"):
        return CUT
    verdict = _text_verdict(said, kind)
    return CUT if cut and isinstance(verdict, Unreadable) else verdict


def without_thoughts(text: str) -> str | None:
    """A reply without what the judge thought or drafted between tags; None if it contains nothing else."""
    if _is_json(text):
        return text
    if not _OPENING_TAG.search(text):
        text = _MENTIONED.sub(r"`\1`", text)
    separated = separate(text)
    said = _PREPARATION.sub("", separated.answer)
    return None if separated.is_only_thought or (separated.answer.strip() and not said.strip()) else said


def _is_json(text: str) -> bool:
    """Whether a reply is one JSON object: a tag in its explanation is one that the judge mentions."""
    value, end = _object_at(text, len(text) - len(text.lstrip()))
    return isinstance(value, dict) and not text[end:].strip()


def _text_verdict(text: str, kind: Kind) -> Pairs | Unreadable:
    """The scores in free text; the last ones that it calls final if the whole text cannot be read."""
    scores = read_scores(text, kind)
    if not isinstance(scores, Unreadable):
        return scores
    for announcement in reversed(list(_FINAL.finditer(text))):
        final = read_scores(text[announcement.end() :], kind)
        if not isinstance(final, Unreadable):
            return final
    return scores


@dataclass(frozen=True)
class _Verdict:
    """A JSON object with scores, and what the text before it calls it: "final", "draft" or nothing."""

    pairs: Pairs
    label: Literal["final", "draft", ""]


def _label(introduction: str) -> Literal["final", "draft", ""]:
    """What a text calls the verdict that it introduces; the last word counts."""
    final, draft = (max((m.end() for m in form.finditer(introduction)), default=-1) for form in (_FINAL_JSON, _DRAFT))
    if final == draft:
        return "" if final < 0 else "final"
    return "final" if final > draft else "draft"


def _json_verdict(text: str, kind: Kind) -> tuple[int, Pairs | Unreadable | None]:
    """The scores in the JSON objects of a reply; None if its verdict is no complete object.

    The number is where that verdict begins in the text: what stands before it is no verdict.
    """
    verdicts, end, without_numbers = _complete_verdicts(text, kind)
    begun = max((match.start() for match in _JSON_BEGINS.finditer(text, end)), default=None)
    if not verdicts:
        return begun or 0, NO_NUMBERS if without_numbers else None
    last = verdicts[-1]
    if begun is not None and (last.label == "draft" or _label(text[end:begun]) == "final"):
        return begun, None
    others = [verdict for verdict in verdicts if verdict.pairs != last.pairs]
    settled = last.label == "final" and not any(verdict.label == "final" for verdict in others)
    if others and not settled and (last.label == "draft" or any(verdict.label != "draft" for verdict in others)):
        return 0, CONTRADICTION
    if last.label == "draft":
        return 0, ONLY_A_DRAFT
    return 0, last.pairs if in_scale(last.pairs) else OUTSIDE


def _complete_verdicts(text: str, kind: Kind) -> tuple[list[_Verdict], int, bool]:
    """The JSON objects with scores, in order, the end of the last one, and whether another had no numbers as scores."""
    verdicts, last_end, without_numbers = list[_Verdict](), 0, False
    start = text.find("{")
    while start >= 0:
        value, end = _object_at(text, start)
        pairs = _pairs_of(value, kind)
        if pairs is not None:
            verdicts.append(_Verdict(pairs, _label(text[last_end:start])))
            last_end = end
        elif isinstance(value, dict) and all(name in value for name in fields(kind)):
            without_numbers = True
        start = text.find("{", end)
    return verdicts, last_end, without_numbers


def _object_at(text: str, start: int) -> tuple[Any, int]:
    """The object that begins at a place, and where it ends: JSON, or a dict as Python prints it; None without one."""
    for decode in (_json_at, _latex_json_at, _python_at):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            return decode(text, start)
    return None, start + 1


def _json_at(text: str, start: int) -> tuple[Any, int]:
    return json.JSONDecoder(strict=False).raw_decode(text, start)  # line breaks in texts are no harm


def _latex_json_at(text: str, start: int) -> tuple[Any, int]:
    """JSON with backslashes that it does not know, as judges write them: each stands for itself."""
    places = [match.start() - start for match in _ESCAPE.finditer(text, start) if not match[1]]
    value, end = _json_at(_ESCAPE.sub(lambda match: match[0] if match[1] else r"\\", text[start:]), 0)
    return value, start + end - sum(place + number < end for number, place in enumerate(places))


def _python_at(text: str, start: int) -> tuple[Any, int]:
    if _PYTHON_DICT.match(text, start):
        for brace in re.finditer(r"\}", text[start:]):
            end = start + brace.end()
            with suppress(ValueError, SyntaxError):
                return ast.literal_eval(text[start:end]), end
    raise ValueError("no dict")


def _pairs_of(value: Any, kind: Kind) -> Pairs | None:
    try:
        pairs = [_pair_of(value[name]) for name in fields(kind)]
    except (KeyError, TypeError, IndexError):
        return None
    return tuple(pairs)


def _pair_of(scores: Mapping[str, Any]) -> tuple[float, float]:
    """The two scores of a field. Raises KeyError or TypeError for anything but two numbers, or texts like "8/10"."""
    return _score_of(scores["assistant_1"]), _score_of(scores["assistant_2"])


def _score_of(score: Any) -> float:
    if isinstance(score, str) and (match := _SCORE_TEXT.fullmatch(score)):
        return float(match[1].replace("−", "-"))
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise TypeError(f"{score!r} is not a number")
    return float(score) if abs(score) <= 10 else float("inf")  # a whole number may be too large for a float
