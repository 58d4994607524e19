"""From a server's reply to the outcome of a request: an answer, scores of letters, or the reason why there are none."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from llmkick.models.clean_text import REPLACEMENT
from llmkick.models.engine.answers import first_stop
from llmkick.models.language_model import ContinuationScore, Finish, Generation, Unanswered
from llmkick.models.server.log_probabilities import first_token_scores, likeliest_first
from llmkick.models.server.replies import final_text, new_tokens
from llmkick.models.thoughts import Thinking

# "B", "B.", "(B)", "**B**". An "A" or "I" before a small letter is a word of a sentence: "A good …", "I think", "I'd".
LETTER = r"([A-Z])(?!\w)(?!(?<=[AI]) [a-z])(?!(?<=I)['’][a-z])"
LEADING_LETTER = re.compile(rf"\W*{LETTER}")
NAMED_LETTER = re.compile(rf"\b(?i:answer|option|choice)\b(?: is)?:?\W*{LETTER}")


def generation_of(reply: Any, stops: Sequence[str], *, limit: int, thinking: Thinking) -> Generation | Unanswered:
    """The answer in a reply to a request for at most `limit` tokens, cut at the first stop string."""
    final = final_text(reply)
    reason = final.why_no_answer(limit=limit, thinking=thinking)
    if reason is not None:
        return Unanswered(reason=reason)
    end = first_stop(final.text, stops)
    finish: Finish = "stop" if end is not None else "length" if final.cut else "end"
    text = final.text[:end]
    return Generation(
        text=text,
        tokens=new_tokens(reply),
        finish=finish,
        has_thought=final.has_thought,
        replaced=text.count(REPLACEMENT),
    )


def stopped_early(reply: Any) -> bool:
    """Whether a stop string ended a reply before its answer: at a line break before it, or inside a thought."""
    final = final_text(reply)
    return not final.text.strip() and final.finish in ("stop", "stop_sequence")


def letters_by(
    reply: Any, texts: Sequence[str], *, by_token: bool, limit: int, thinking: Thinking
) -> list[ContinuationScore | Unanswered]:
    """Scores of letters by the likeliest first tokens, or by the letter that is generated within `limit` tokens.

    The first token of a thought says nothing of them.
    """
    final = final_text(reply)
    if by_token and not final.has_thought:
        return first_token_scores(likeliest_first(reply), texts)
    reason = "the first token is a thought's" if by_token else final.why_no_answer(limit=limit, thinking=thinking)
    if reason is not None:
        return [Unanswered(reason=reason)] * len(texts)
    return generated_letter_scores(final.text, letters_of(texts) or [])


def letters_of(continuations: Sequence[str]) -> list[str] | None:
    """The letters, when every continuation is a single capital letter (with or without space before it)."""
    letters = [text.strip() for text in continuations]
    return letters if all(re.fullmatch("[A-Z]", letter) for letter in letters) else None


def generated_letter_scores(text: str, letters: Sequence[str]) -> list[ContinuationScore | Unanswered]:
    """Scores without log-probabilities: 0 for the letter that a generated answer names, −inf for the others.

    It names the letter at its beginning, or else the one that it calls its answer, where that is an option.
    """
    matches = LEADING_LETTER.match(text), NAMED_LETTER.search(text)
    named = next((match[1] for match in matches if match is not None and match[1] in letters), None)
    if named is None:
        shown = " ".join(text.split())[:60]
        return [Unanswered(reason=f"the answer names no option: {shown!r}" if shown else "the answer is empty")] * len(
            letters
        )
    return [
        ContinuationScore(
            logprob=0.0 if letter == named else -math.inf,
            tokens=1,
            is_greedy=letter == named,
            method="generated letter",
        )
        for letter in letters
    ]
