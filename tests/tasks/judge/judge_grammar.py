"""Replies as judges write them, malformed in every way known, each with the scores that it states without doubt."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

Truth = tuple[tuple[float, float], ...] | None
ASPECTS = ("Coherence", "Consistency", "Fluency", "Relevance")

PROSE = (
    "Assistant 1 gives 3 reasons and 2 examples, while Assistant 2 gives only 1.",
    "In 2 of 3 steps Assistant 2 is right; on a scale of 1 to 10 that matters.",
    "Assistant 1 uses 120 words, Assistant 2 uses 45.",
    "The answer of Assistant 1 was published in 2019, 4 years before.",
    "Both assistants mention 7 days and 24 hours.",
    "Assistant 2's second paragraph has 5 sentences.",
    "Assistant 1: a clear answer in 3 parts. Assistant 2: 2 parts are missing.",
    "I compared the two answers with care.",
    "Sure! Here is my evaluation.",
    "Assistant 1 makes 4 mistakes and Assistant 2 makes 6.",
    "They agree on about 80% of the facts, and 9 out of 12 dates.",
    "Neither order nor length (12 lines vs 7) affects my judgment.",
    "Point 1. Accuracy is good. Point 2. Details are few.",
)
SOLUTION = (
    "The lines meet in the point (3, 4).",
    "With x = 2 and y = 5 the sum is 7.",
    "Assistant 1 gets 7, Assistant 2 gets 8; the right answer is 8.",
    "Assistant 1: 7\nAssistant 2: 8\nCorrect: 8",
    "The pair (2, 9) solves the equation, so 2 + 9 = 11.",
    "f(1) = 4, f(2) = 8",
)
REFUSALS = (
    "I'm sorry, but I cannot rate these answers.",
    "As an AI language model, I am unable to provide scores for this content.",
    "I cannot help with that. Both answers are between 1 and 10.",
    "",
    "   \n",
)


@dataclass(frozen=True)
class Case:
    """A reply; `truth` is all that it may be read as, None that it must not be read at all."""

    text: str
    kind: str
    truth: Truth


def _score(luck: random.Random) -> float:
    return luck.choice([0, 0, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 7.5, 8.5, 9.5, 6.25])


def _told(value: float, luck: random.Random) -> str:
    return f"{value:g}" if value % 1 or luck.random() < 0.8 else f"{value:.1f}"


# (first, second) as text → a reply that says whose each is
OWNED: tuple[Callable[[str, str], str], ...] = (
    lambda a, b: f"{a} {b}",
    lambda a, b: f"  {a}   {b}  ",
    lambda a, b: f"**{a} {b}**",
    lambda a, b: f"`{a} {b}`",
    lambda a, b: f"# {a} {b}",
    lambda a, b: f"({a}, {b})",
    lambda a, b: f"[{a}, {b}]",
    lambda a, b: f"{a}/10 {b}/10",
    lambda a, b: f"{a}, {b}",
    lambda a, b: f"Scores: {a} {b}",
    lambda a, b: f"Final scores: ({a}, {b})",
    lambda a, b: f"scores = ({a}, {b})",
    lambda a, b: f"The scores are {a} and {b}.",
    lambda a, b: f"Assistant 1 and 2: {a} {b}",
    lambda a, b: f"```\n{a} {b}\n```",
    lambda a, b: f"```python\n({a}, {b})\n```",
    lambda a, b: f"| Assistant 1 | Assistant 2 |\n|---|---|\n| {a} | {b} |",
    lambda a, b: f"Assistant 1: {a}/10\nAssistant 2: {b}/10",
    lambda a, b: f"**Assistant 1:** {a}/10 - thorough.\n**Assistant 2:** {b}/10 - short.",
    lambda a, b: f"Assistant 2: {b}/10\nAssistant 1: {a}/10",
    lambda a, b: f"{a}/10 for Assistant 1, {b}/10 for Assistant 2.",
    lambda a, b: f"{b} out of 10 for Assistant 2 and {a} out of 10 for Assistant 1",
    lambda a, b: f"Assistant 1's score: {a}\nAssistant 2's score: {b}",
    lambda a, b: f"I give Assistant 1 a score of {a} and Assistant 2 a score of {b}.",
    lambda a, b: f"Assistant 1 receives a score of {a}, whereas Assistant 2 receives a score of {b}.",
    lambda a, b: f"Assistant 1 ({a}/10) is better explained than Assistant 2 ({b}/10).",
)
# Bare numbers behind the names: results, in a maths reply.
BARE: tuple[Callable[[str, str], str], ...] = (
    lambda a, b: f"Assistant 1: {a}\nAssistant 2: {b}",
    lambda a, b: f"- Assistant 2: {b}\n- Assistant 1: {a}",
    lambda a, b: json.dumps({"Assistant 1": float(a), "Assistant 2": float(b)}),
    lambda a, b: f"| Assistant 1 | {a} |\n|---|---|\n| Assistant 2 | {b} |",
    lambda a, b: f"Assistant 1 scores {a} and Assistant 2 scores {b}.",
)
# What has numbers, but not two scores with owners.
UNOWNED: tuple[Callable[[str, str], str], ...] = (
    lambda a, b: f"{a}",
    lambda a, b: f"{a}/10",
    lambda a, b: f"{a}\n{b}",
    lambda a, b: f"Score: {a}\nScore: {b}",
    lambda a, b: f"{a} {b} {a}",
    lambda a, b: f"{a}-{b}",
    lambda a, b: f"{a}/{b}",
    lambda a, b: f"{a} for Assistant 1",
    lambda a, b: f"Assistant 1: {a}/10\nAssistant 2:",
    lambda a, b: f"Assistant 1: {a}/10\nAssistant 2: good/10",
    lambda a, b: f"-{a} {b}",
    lambda a, b: f"1{a[0]}0 {b}",
    lambda a, b: f"{a}0% {b}0%",
    lambda a, b: f"{a}/12 {b}/12",
    lambda a, b: f"Scores for Assistant 2 and Assistant 1:\n{a} {b}x",
    lambda a, b: f"between {a} and {b}",
    lambda a, b: f"Assistant 1: {a}/10, or rather 1.75/10 for Assistant 1. {b}/10 for Assistant 2.",
    lambda a, b: f"11 {b}",
    lambda a, b: f"{a} 10.5",
    lambda a, b: f"0 0 {a}",
    lambda a, b: f"0-{a}",
    lambda a, b: f"-0.5 {b}",
    lambda a, b: f"Assistant 1: 15/10\nAssistant 2: {b}/10",
    lambda a, b: f"{a},5 {b},5",
)
SWAPPED: tuple[Callable[[str, str], str], ...] = (
    lambda a, b: f"Scores for Assistant 2 and Assistant 1:\n{b} {a}",
    lambda a, b: f"| Assistant 2 | Assistant 1 |\n|---|---|\n| {b} | {a} |",
    lambda a, b: f"{b} {a}\n(Assistant 2, Assistant 1)",
)


def _around(body: str, luck: random.Random, *, before: bool, after: bool, prose: tuple[str, ...]) -> str:
    head = "\n\n".join(luck.sample(prose, luck.randint(1, 2))) + "\n\n" if before else ""
    tail = "\n\n" + " ".join(luck.sample(PROSE[:4] + PROSE[5:6], luck.randint(1, 3))) if after else ""
    return head + body + tail


def pair_case(luck: random.Random) -> Case:
    kind = luck.choice(["general", "coding", "maths"])
    first, second = _score(luck), _score(luck)
    a, b = _told(first, luck), _told(second, luck)
    sort = luck.choice(["owned", "owned", "bare", "unowned", "swapped", "revised", "refusal", "prose"])
    prose = PROSE + SOLUTION if kind == "maths" else PROSE
    truth: Truth = ((first, second),)
    before, after = luck.random() < 0.4, luck.random() < 0.4
    if sort == "owned":
        return Case(_around(luck.choice(OWNED)(a, b), luck, before=before, after=after, prose=prose), kind, truth)
    if sort == "bare":
        text = _around(luck.choice(BARE)(a, b), luck, before=before, after=after, prose=PROSE)
        return Case(text, kind, truth)
    if sort == "unowned":
        return Case(_around(luck.choice(UNOWNED)(a, b), luck, before=before, after=after, prose=PROSE), kind, None)
    if sort == "revised":
        text = f"{a} {b}\n\nOn reflection, the final scores are 1.75 and 2.75."
        return Case(_around(text, luck, before=before, after=after, prose=PROSE), kind, ((1.75, 2.75),))
    if sort == "swapped":
        return Case(luck.choice(SWAPPED)(a, b), kind, truth)
    if sort == "refusal":
        return Case(luck.choice(REFUSALS), kind, None)
    return Case("\n\n".join(luck.sample(prose, 3)), kind, None)


def summary_case(luck: random.Random) -> Case:
    pairs = [(_score(luck), _score(luck)) for _ in ASPECTS]
    told = [(_told(a, luck), _told(b, luck)) for a, b in pairs]
    plain = [f"{a} {b}" for a, b in told]
    truth: Truth = tuple(pairs)
    named = [f"{aspect}: {line}" for aspect, line in zip(ASPECTS, plain, strict=True)]
    shuffled = luck.sample(named, 4)
    forms: list[tuple[str, Truth]] = [
        ("\n".join(plain), truth),
        ("\n\n".join(plain), truth),
        ("\n".join(f"{n}. {line}" for n, line in enumerate(plain, 1)), truth),
        ("\n".join(named), truth),
        ("\n".join(shuffled), truth),
        ("\n".join(f"**{line}**" for line in named), truth),
        ("| | Assistant 1 | Assistant 2 |\n|--|--|--|\n"
         + "\n".join(f"| {x} | {a} | {b} |" for x, (a, b) in zip(ASPECTS, told, strict=True)), truth),
        ("| | Assistant 2 | Assistant 1 |\n|--|--|--|\n"
         + "\n".join(f"| {x} | {b} | {a} |" for x, (a, b) in zip(ASPECTS, told, strict=True)), truth),
        ("\n".join(f"{x}: Assistant 2: {b}, Assistant 1: {a}" for x, (a, b) in zip(ASPECTS, told, strict=True)), truth),
        ("\n".join([*named, "Overall: 8 7"]), truth),
        ("\n".join(plain[:3]), None),
        ("\n".join([*plain, "9 9"]), None),
        ("\n".join(plain[:2]) + "\nBoth are coherent.\n" + "\n".join(plain[2:]), None),
        (" ".join(plain), None),
        ("\n".join(named[:3]), None),
        ("\n".join([*named, "Coherence: 1.75 2.75"]), None),
        (" ".join(a for a, _ in told) + "\n" + " ".join(b for _, b in told), None),
        ("\n".join(["11 7", *plain[1:]]), None),
        (luck.choice(REFUSALS), None),
        ("\n".join(luck.sample(PROSE, 3)), None),
    ]  # fmt: skip
    text, may_be = luck.choice(forms)
    tail = "\n\n" + luck.choice(PROSE) if luck.random() < 0.4 else ""
    return Case(text + tail, "summary", may_be)


def cases(count: int, seed: int) -> list[Case]:
    luck = random.Random(seed)
    return [summary_case(luck) if luck.random() < 0.25 else pair_case(luck) for _ in range(count)]
