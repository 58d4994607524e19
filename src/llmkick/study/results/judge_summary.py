"""The entry of results.json about the judge: what it was asked, and which judgements are missing."""

from __future__ import annotations

from llmkick.study.results.records import OpenRecord


class MissingJudgements(OpenRecord):
    """Missing judgements of a recipe and seed, and of the dense model, on the items of a judged task.

    p: of a test that as many are missing in both. adjusted_p: for the number of recipes and seeds of the task.
    """

    task: str
    recipe: str
    seed: int | None
    items: int
    missing: int
    share: float
    dense_missing: int
    dense_share: float
    p: float
    adjusted_p: float
    differs: bool


class JudgeSummary(OpenRecord):
    """The judge of generated answers: its settings, its cost in tokens, its reliability by task, missing judgements."""

    judgements: int
    unanswered: int
    prompt_tokens: int
    completion_tokens: int
    missing: tuple[MissingJudgements, ...] = ()
