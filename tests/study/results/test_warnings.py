from __future__ import annotations

from typing import Any

import pandas as pd

from llmkick.study.results.warnings import loops


def records(recipe: str, *answers: dict[str, Any], tokens: int = 20) -> pd.DataFrame:
    rows = [{"task": "instruction", "recipe": recipe, "tokens": tokens, "details": answer} for answer in answers]
    return pd.DataFrame(rows, columns=["task", "recipe", "tokens", "details"])


FINE = {"dense_logprob": -0.5, "distinct_1": 0.9, "unique_tokens": 15, "repetition": 0.1}
WORDS = {**FINE, "repetition": 0.8}
DOTS = {"dense_logprob": -0.1, "unique_tokens": 2}  # not a word among them


def test_recipes_that_run_in_circles_are_named():
    frame = pd.concat([records("dense", FINE, FINE, FINE, WORDS), records("a@1", WORDS, DOTS, FINE, FINE),
                       records("b@1", FINE, FINE, FINE, DOTS)])  # fmt: skip
    (line,) = loops(frame)
    assert line.startswith("instruction: answers that repeat themselves: a@1 50% (dense 25%); a loop is likely text")


def test_nothing_to_say():
    assert loops(records("dense")) == []
    assert loops(pd.concat([records("dense", FINE), records("a@1", FINE)])) == []
    assert loops(pd.concat([records("dense", {"f1": 1.0}), records("a@1", {"f1": 0.0})])) == []
    # A short answer has few tokens to be different.
    assert loops(pd.concat([records("dense", FINE), records("a@1", DOTS, tokens=4)])) == []
