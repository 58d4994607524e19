"""Extraction of scores from the free text of a judge's reply; an ambiguous reply counts as unreadable.

A judge scores two answers on a scale of 0 to 10. The prompts ask for 1 to 10, but judges give 0 to answers that failed,
and to leave a 0 out is to leave out exactly the worst answers. The parser tries all supported forms: a line of only two
numbers, a labelled tuple, "Assistant 1: 8/10", "8.5/10 for Assistant 1". It rejects forms that contradict each other,
numbers outside the scale, and numbers that do not clearly belong to one of the assistants.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["general", "coding", "maths", "summary"]
Pairs = tuple[tuple[float, float], ...]
# The aspects of a summary that the judge rates, in the order of the paper's prompt.
ASPECTS = ("coherence", "consistency", "fluency", "relevance")


@dataclass(frozen=True)
class Unreadable:
    """A reply without usable scores, with the reason."""

    reason: str


NO_SCORES = Unreadable("no scores can be read")
CONTRADICTION = Unreadable("its scores contradict each other")
OUTSIDE = Unreadable("a score is outside 0 to 10")

_NUMBER = r"([-−+]?[0-9]+(?:\.[0-9]+)?)"
# "/10" or "out of 10". The lookahead rejects text that would make it a different number: 8.5.1, 8/12, 8%, 8,5.
_OF_TEN = r"\s*(?:/\s*10|out\s+of\s+(?:10|ten))"
_NO_MORE = r"(?![0-9%]|\s*/|[.,][0-9])"
_SCORE = rf"{_NUMBER}(?:{_OF_TEN})?{_NO_MORE}"
_SURE_SCORE = rf"{_NUMBER}{_OF_TEN}{_NO_MORE}"
_BETWEEN = r"(?:\s*[,;&]\s+|\s*\|\s*|\s+(?:and\s+|vs\.?\s+)?)"
_PAIR = rf"(?:{_SCORE}{_BETWEEN}{_SCORE}|[(\[]\s*{_SCORE}(?:\s*,\s*|\s+){_SCORE}\s*[)\]])"
_WHOSE = r"(?:AI\s+)?(?:assistants?|answers?|responses?|summar(?:y|ies)|models?)"
_BOTH = rf"{_WHOSE}[\s_]*\#?1(?:\s*(?:,|and|&|/|\|)\s*)(?:{_WHOSE}[\s_]*)?\#?2"
NOUN = r"(?:scores?|ratings?|marks?|grades?)"
_TITLE = (
    rf"(?:(?:(?:the|my|final|overall|here\s+are\s+the)\s+)*(?:{NOUN}|verdicts?)(?:\s+tuple)?"
    rf"(?:\s+(?:for|of)\s+(?:{_BOTH}|(?:the\s+)?(?:two\s+|both\s+)?assistants)(?:,?\s*respectively)?)?"
    rf"\s*(?:are\s*:?|is\s*:?|[:=])\s*|\(?{_BOTH}\)?\s*[:=]\s*)"
)
_LINE = re.compile(rf"(?P<title>{_TITLE})?{_PAIR}\s*[.;]?", re.IGNORECASE)
_INLINE = re.compile(
    rf"\b(?:scores|ratings|score\s+tuple)\b(?:[^.\n()\[\]0-9]{{0,40}}\(\s*{_SCORE}\s*,\s*{_SCORE}\s*\)"
    rf"|\s+(?:are|would\s+be|should\s+be)\s*:?\s+{_SCORE}{_BETWEEN}{_SCORE})",
    re.IGNORECASE,
)

# "Assistant 1", "Assistant 1's answer", "assistant_1".
_OWNER = (
    r"\b(?:AI\s+)?(?:assistant|answer|response|summary|model)[\s_]*(?:\#\s*)?(?P<owner>[12])\b(?!\s*(?:,|and|&|/)\s*"
    rf"(?:{_WHOSE}[\s_]*)?\#?[12]\b(?!\s*/|\.[0-9]|\s+out\b))(?:['’]s)?(?:\s+(?:answer|response|summary|submission|solution|code))?[\"']?"
)
_QUALITY = r"(?:(?:an?|the|overall|final|total)\s+)*"
# Text that may follow a score: the end of the clause, or the first word of the next clause.
_THEN = (
    r"(?=\s*(?:$|[;)\]}|\"'’]|,(?![0-9])|\.(?![0-9])|\s(?:and|but|while|whereas|because|as|for|since|points?)\b"
    rf"|\s[-–—]\s|\s{_WHOSE}[\s_]*\#?[12]\b))"
)
_VERB = r"(?:would\s+|should\s+)?(?:gets?|got|receives?|received|earns?|deserves?|has|is|was|given|awarded)"
_NAMED_NOUN = re.compile(
    rf"{_OWNER}(?:\s*[:=|–—-]\s*|\s+|\s*\(\s*)(?:{_VERB}\s+)*{_QUALITY}{NOUN}\s*"
    rf"(?:is|was|of|would\s+be|:|=|-|–|\|)?\s*{_SCORE}{_THEN}",
    re.IGNORECASE | re.MULTILINE,
)
_NAMED_SURE = re.compile(
    rf"{_OWNER}(?:\s*[:=|–—(]\s*|\s+-\s+|\s+(?:{_VERB}\s+)*(?:scores?\s+|scored\s+|rated\s+)?{_QUALITY}){_SURE_SCORE}",
    re.IGNORECASE | re.MULTILINE,
)
# Without "/10" or "score", the number must directly follow the name. In a maths reply it could be a result instead.
_NAMED_BARE = re.compile(
    rf"{_OWNER}(?:\s*[:=|–—]\s*|\s+-\s+|\s+(?:scores|scored|is\s+rated|was\s+rated)\s+{_QUALITY}){_SCORE}{_THEN}",
    re.IGNORECASE | re.MULTILINE,
)
_FOR_SURE = re.compile(rf"(?<![\w.,/+−-]){_SURE_SCORE}\s+(?:for|to)\s+{_OWNER}", re.IGNORECASE)
_FOR_BARE = re.compile(
    rf"(?:^|\b(?:{NOUN}\s+of|gives?|gave|giving|awards?|assigns?|and|rate)\s+(?:an?\s+)?){_SCORE}\s+(?:for|to)\s+{_OWNER}",
    re.IGNORECASE | re.MULTILINE,
)
_ASPECT = rf"(?P<aspect>{'|'.join(ASPECTS)})"
_ASPECT_ALONE = re.compile(rf"{_ASPECT}\s*(?:{NOUN})?\s*[:–—-]?", re.IGNORECASE)
_ASPECT_PAIR = re.compile(rf"{_ASPECT}\s*(?:{NOUN})?\s*[:=|–—-]\s*{_PAIR}\s*[.;]?", re.IGNORECASE)
_NAME_AND_SCORE = rf"{_WHOSE}[\s_]*\#?([12])\s*(?:[:=–—-]|\()?\s*{_SCORE}\)?"
_ASPECT_NAMED = re.compile(
    rf"{_ASPECT}\s*(?:{NOUN})?\s*[:=|–—-]\s*{_NAME_AND_SCORE}\s*(?:[,;|]|and)?\s*{_NAME_AND_SCORE}\s*[.;]?",
    re.IGNORECASE,
)
_MENTION = re.compile(rf"{_WHOSE}[\s_]*\#?([12])\b", re.IGNORECASE)
# What tells a judge's scores from those of a problem.
_OF_THE_ASSISTANTS = re.compile(
    rf"^\W*(?:the\s+)?{NOUN}\b|\b(?:my|final|overall|revised|corrected|updated|definitive)\s+{NOUN}"
    rf"|\b(?:assign|award|rate)|{_WHOSE}[\s_]*\#?[12]\b|\bassistants\b",
    re.IGNORECASE,
)
_FENCE = re.compile(r"^\s*(?:```|~~~)")
# "[[7]]", as MT-Bench asks for one rating.
_BOXED = re.compile(r"\[\[\s*([-−+]?[0-9.]+(?:\s*/\s*10)?)\s*\]\]")
_ENUMERATED = re.compile(r"[0-9]{1,2}[.)]\s+")


@dataclass(frozen=True)
class _Line:
    """A line with at least one letter or digit, without Markdown; `fence` is the index of its code block, if any."""

    text: str
    fence: int | None


def read_scores(text: str, kind: Kind) -> Pairs | Unreadable:
    """The score pairs (Assistant 1, Assistant 2) in a reply: one pair per aspect for kind "summary", else one pair."""
    lines = _lines(text)
    if not lines:
        return Unreadable("the reply is empty")
    scores = _read_summary(lines) if kind == "summary" else _read_pair(lines, kind)
    if isinstance(scores, Unreadable) or in_scale(scores):
        return scores
    return OUTSIDE


def in_scale(pairs: Pairs) -> bool:
    """Whether every score is from 0 to 10, without a minus sign."""
    return all(math.copysign(1, score) > 0 and score <= 10 for pair in pairs for score in pair)


def _lines(text: str) -> list[_Line]:
    lines, fence, blocks = [], None, 0
    for raw in text.splitlines():
        if _FENCE.match(raw):
            fence, blocks = (None, blocks) if fence is not None else (blocks, blocks + 1)
            continue
        line = re.sub(r"[*`]+|(?<!\w)_+|_+(?!\w)", "", raw).strip()
        line = re.sub(r"^(?:#+|>+)\s*", "", line)
        line = _BOXED.sub(r"\1", line)
        line = re.sub(r"^[-•+]\s+", "", line).strip().strip("|").strip()
        if re.search(r"[^\W_]", line):
            lines.append(_Line(line, fence))
    return lines


def _numbers(match: re.Match[str]) -> list[float]:
    """The scores in a match: the values of its unnamed groups."""
    named = set(match.re.groupindex.values())
    numbers = [match[number] for number in range(1, match.re.groups + 1) if number not in named]
    return [float(number_text.replace("−", "-")) for number_text in numbers if number_text is not None]


def _own_line(line: _Line) -> tuple[tuple[float, float], bool] | None:
    """The two numbers of a line with only them and an optional title ("Scores:"), and whether it has a title."""
    match = _LINE.fullmatch(line.text)
    if match is None and (enumerator := _ENUMERATED.match(line.text)):
        match = _LINE.fullmatch(line.text[enumerator.end() :])
    if match is None:
        return None
    first, second = _numbers(match)
    return (first, second), match["title"] is not None


def _reversed(lines: Sequence[_Line], index: int) -> bool:
    """Whether the line above, or a short line below, names Assistant 2 before Assistant 1."""
    above = lines[index - 1].text if index else ""
    below = lines[index + 1].text if index + 1 < len(lines) else ""
    return any(map(_names_second_first, [above, below if len(below.split()) <= 6 else ""]))


def _names_second_first(text: str) -> bool:
    """Whether a text names both assistants, and Assistant 2 first."""
    mentions = [match[1] for match in _MENTION.finditer(text)]
    return set(mentions) == {"1", "2"} and mentions[0] == "2"


def _read_pair(lines: Sequence[_Line], kind: Kind) -> Pairs | Unreadable:
    text = "\n".join(line.text for line in lines)
    candidates = {*_pair_lines(lines, kind), *_inline_pairs(text, kind)}
    of = {owner: set(_named_scores(text, owner, kind)) for owner in "12"}
    if len(candidates) > 1 or any(len(scores) > 1 for scores in of.values()):
        return CONTRADICTION
    said = {owner: next(iter(scores)) for owner, scores in of.items() if scores}
    if candidates:
        (pair,) = candidates
        agrees = said.get("1", pair[0]) == pair[0] and said.get("2", pair[1]) == pair[1]
        return (pair,) if agrees else CONTRADICTION
    return ((said["1"], said["2"]),) if len(said) == 2 else NO_SCORES


def _pair_lines(lines: Sequence[_Line], kind: Kind) -> Iterator[tuple[float, float]]:
    """The score pairs of lines that contain only two scores."""
    blocks = [line.fence for line in lines]
    for index, line in enumerate(lines):
        line_pair = _own_line(line)
        if line_pair is None or _reversed(lines, index):
            continue
        pair, titled = line_pair
        # Code and its output can also contain lines of two numbers.
        alone = line.fence is None or blocks.count(line.fence) == 1
        at_an_end = index in (0, len(lines) - 1)
        # A maths solution can also contain such lines, for example the coordinates of a point.
        announced = index > 0 and re.search(rf"\b(?:{NOUN}|evaluation)\b", lines[index - 1].text, re.IGNORECASE)
        if titled or (alone and (at_an_end or announced or (kind != "maths" and not _in_a_sentence(lines, index)))):
            yield pair


def _in_a_sentence(lines: Sequence[_Line], index: int) -> bool:
    """Whether the sentence of the line above goes on below a line, as where an output of a program is quoted."""
    above, below = lines[index - 1].text, lines[index + 1].text
    return above[-1].isalnum() and below[0].islower()


def _inline_pairs(text: str, kind: Kind) -> Iterator[tuple[float, float]]:
    """The score pairs inside a sentence."""
    for match in _INLINE.finditer(text):
        begins = max(text.rfind("\n", 0, match.start()), text.rfind(". ", 0, match.start())) + 1
        before = text[begins : match.start()]
        # The scores of a maths problem may be those of an exam.
        is_verdict = kind != "maths" or "tuple" in match[0].lower() or _OF_THE_ASSISTANTS.search(before + match[0])
        if is_verdict and not _names_second_first(before + match[0]):
            first, second = _numbers(match)
            yield first, second


def _named_scores(text: str, owner: str, kind: Kind) -> Iterator[float]:
    """The scores that the text assigns to assistant `owner` by name."""
    forms = [_NAMED_NOUN, _NAMED_SURE, _FOR_SURE]
    if kind != "maths":
        forms += [_NAMED_BARE, _FOR_BARE]
    for form in forms:
        for match in form.finditer(text):
            if match["owner"] == owner:
                yield from _numbers(match)


def _read_summary(lines: Sequence[_Line]) -> Pairs | Unreadable:
    """The score pairs of the four aspects, from four consecutive lines or from lines that name their aspect."""
    named: dict[str, set[tuple[float, float]]] = {}
    bare: list[int] = []
    for index, line in enumerate(lines):
        text = line.text[match.end() :] if (match := _ENUMERATED.match(line.text)) else line.text
        line_pair = _own_line(line)
        labelled = _ASPECT_PAIR.fullmatch(text)
        if line_pair is not None and not line_pair[1]:
            header = _ASPECT_ALONE.fullmatch(lines[index - 1].text) if index else None
            if header is None:
                bare.append(index)
            else:
                named.setdefault(header["aspect"].lower(), set()).add(line_pair[0])
        elif labelled is not None:
            first, second = _numbers(labelled)
            named.setdefault(labelled["aspect"].lower(), set()).add((first, second))
        elif (both := _ASPECT_NAMED.fullmatch(text)) is not None:
            owner, score, other, another = _numbers(both)
            if {owner, other} != {1.0, 2.0}:
                return CONTRADICTION
            pair = (score, another) if owner == 1 else (another, score)
            named.setdefault(both["aspect"].lower(), set()).add(pair)
    starts = [*bare, *(i for i, line in enumerate(lines) if _ASPECT_PAIR.search(line.text))]
    if starts and _reversed(lines, min(starts)):
        return Unreadable("it names Assistant 2 before Assistant 1")
    if named:
        if bare or any(len(pairs) > 1 for pairs in named.values()):
            return CONTRADICTION
        if set(named) != set(ASPECTS):
            return Unreadable("it does not rate every aspect")
        return tuple(next(iter(named[aspect])) for aspect in ASPECTS)
    if len(bare) != len(ASPECTS):
        return Unreadable(f"{len(bare)} lines of two scores, not {len(ASPECTS)}") if bare else NO_SCORES
    if bare[-1] - bare[0] != len(ASPECTS) - 1:
        return Unreadable("its four lines of two scores do not stand together")
    bare_pairs = [_own_line(lines[index]) for index in bare]
    return tuple(bare_pair[0] for bare_pair in bare_pairs if bare_pair is not None)
