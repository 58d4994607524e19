"""The summary of a gate as Markdown, for a pull request or the summary page of a GitHub job."""

from __future__ import annotations

from collections.abc import Iterator

from llmkick.gate.result import GateResult, Outcome, TaskOutcome
from llmkick.report import formatting
from llmkick.report.escaping import markdown

# Flipped items that are shown, of a task and of all tasks; all of them are in gate.json. GitHub shows at most 1 MiB,
# and an item takes up to 4 kB.
MOST_FLIPS, MOST_OF_ALL_TASKS = 20, 100
SYMBOLS: dict[Outcome, str] = {"matches": "✅", "loses": "❌", "undecided": "❔", "unmeasured": "⚠️"}
HEADS: dict[Outcome, str] = {
    "matches": "is shown to match",
    "loses": "is shown to lose more than the margin",
    "undecided": "is undecided within the budget",
    "unmeasured": "could not be measured",
}


def summary(result: GateResult) -> str:
    """Return the verdict, a table of the tasks with bounds, n and margin, and the items that flipped."""
    return "\n".join(_lines(result)).rstrip() + "\n"


def _lines(result: GateResult) -> Iterator[str]:
    candidate = markdown(result.candidate) if result.candidate else markdown(result.name)
    yield f"## {SYMBOLS[result.outcome]} {candidate} {HEADS[result.outcome]}"
    yield ""
    if result.error is not None:
        yield f"The gate could not run: {markdown(result.error, limit=2000)}"
        return
    assert result.margin is not None, "a gate that ran has a margin"
    assert result.alpha is not None, "a gate that ran has an alpha"
    yield (
        f"Compared with {markdown(result.reference)}, item by item. Margin: a loss of "
        f"{formatting.setting(result.margin)} of the reference's score. Error rate of a verdict: "
        f"{formatting.setting(result.alpha)}."
    )
    yield ""
    yield f"| task | verdict | reference | candidate | loss ({formatting.GAIN_SIGN}) | bounds | n | of |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for entry in result.tasks:
        yield _row(entry)
    yield ""
    for entry in result.tasks:
        yield f"- {markdown(entry.task)}: {markdown(entry.reason, limit=500)}"
    yield ""
    left = MOST_OF_ALL_TASKS
    for entry in result.tasks:
        yield from _flips(entry, min(left, MOST_FLIPS))
        left -= min(left, MOST_FLIPS, len(entry.flips))
    if result.warnings:
        yield "<details><summary>Notes</summary>\n"
        yield from (f"- {markdown(warning, limit=1000)}" for warning in result.warnings)
        yield "\n</details>\n"
    if result.asked is not None:
        asked = f"{result.asked.reference_questions:,} questions of the reference"
        yield f"Asked in {result.seconds:.0f} s: {result.asked.candidate_items:,} items of the candidate, {asked}."


def _row(entry: TaskOutcome) -> str:
    loss = formatting.relative_loss(entry.loss, entry.bounds)
    cells = (
        markdown(entry.task),
        f"{SYMBOLS[entry.outcome]} {entry.outcome}",
        formatting.score(entry.reference_score),
        formatting.score(entry.candidate_score),
        loss.value,
        f"{loss.interval} %" if loss.interval else formatting.NOTHING,
        f"{entry.scored:,}",
        f"{entry.items:,}",
    )
    return f"| {' | '.join(cells)} |"


def _flips(entry: TaskOutcome, most: int) -> Iterator[str]:
    """Yield up to `most` items of a task whose score changed, the lost ones first."""
    lost = sum(flip.is_lost for flip in entry.flips)
    count = f"{markdown(entry.task)}: {lost:,} items lost, {len(entry.flips) - lost:,} gained"
    if not entry.flips or not most:
        yield from [f"{count}\n"] if entry.flips else []
        return
    yield f"<details><summary>{count}</summary>\n"
    yield "| item | question | reference | candidate |"
    yield "| --- | --- | --- | --- |"
    for flip in entry.flips[:most]:
        answers = (
            _answer(flip.reference_answer, flip.reference_score),
            _answer(flip.candidate_answer, flip.candidate_score),
        )
        yield f"| {' | '.join([markdown(flip.item_id), markdown(flip.question), *answers])} |"
    if len(entry.flips) > most:
        yield f"\n{len(entry.flips) - most:,} more are in gate.json."
    yield "\n</details>\n"


def _answer(text: str, score: float) -> str:
    return f"{markdown(text)} ({score:.3g})"
