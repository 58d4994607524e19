"""Findings: sentences about a study that claim no more than its verdicts support."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from llmkick.compression.levels import Level, LevelKind
from llmkick.report import formatting
from llmkick.report.came_back import share
from llmkick.report.level_axes import KINDS
from llmkick.report.lookup import comparisons_by_cell, control_name, perplexity_comparisons, task_comparisons
from llmkick.statistics import Comparison, PerplexityComparison
from llmkick.study.results.records import AnyComparison
from llmkick.study.results.results import StudyResult


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One statement of a sentence, in a form that can be checked against the results."""

    recipe: str
    task: str
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A sentence, its subject, and the verdicts that support it."""

    topic: str
    text: str
    claims: tuple[Claim, ...] = ()


def find(result: StudyResult) -> list[Finding]:
    """The main findings: overall counts, losses that perplexity misses, recoveries, each method, and what is open."""
    entries = task_comparisons(result)
    if not entries:
        return [_nothing_to_judge(result)]
    silent = list(_silent_perplexity(result))
    told = {claim for finding in silent for claim in finding.claims}
    return [
        _overall(result),
        *silent,
        *_came_back(result),
        *_by_method(result, told),
        *_no_signal(entries),
        *_incomplete(result, entries),
        *_undecided(entries),
    ]


def _nothing_to_judge(result: StudyResult) -> Finding:
    if not perplexity_comparisons(result):
        return Finding(topic="overall", text="Nothing was compared with the dense model, so nothing is shown.")
    return Finding(
        topic="overall",
        text=f"Only {control_name(result)} was measured. It carries no verdict: it does not tell what a model forgot.",
    )


def _overall(result: StudyResult) -> Finding:
    """The number of recipes with each overall verdict."""
    count = Counter[str](row.verdict for row in result.overall)
    tasks = len({entry.task for entry in task_comparisons(result)})
    margin = formatting.setting(result.study.margin)
    phrases = {
        "matching": "shown to match the dense model" + ("" if tasks == 1 else " on every task that carries a signal"),
        "not matching": f"shown to have lost more than {margin}" + ("" if tasks == 1 else " on at least one task"),
        "undecided": "undecided",
        "incomplete": "incomplete (items without a score)",
        "no signal": "without a task that carries a signal",
    }
    parts = [f"{count[verdict] or 'none'} {phrase}" for verdict, phrase in phrases.items() if _told(verdict, count)]
    total = len(result.labels)
    unknown = total - sum(count.values())
    parts += [f"{unknown} not known yet"] if unknown else []
    return Finding(topic="overall", text=f"Of {formatting.counted(total, 'recipe')}: {'; '.join(parts)}.")


def _told(verdict: str, count: Mapping[str, int]) -> bool:
    return verdict == "matching" or count[verdict] > 0


def _silent_perplexity(result: StudyResult) -> Iterator[Finding]:
    """The paper's main claim, if this study shows it: knowledge is lost although perplexity hardly rises."""
    cells = comparisons_by_cell(result)
    silent = []
    for entry in task_comparisons(result):
        control = _control(result, cells, entry.recipe)
        if entry.verdict == "not matching" and control is not None:
            distance = _distance(control, entry)
            if distance is not None and distance > 0:
                silent.append((distance, entry, control))
    if not silent:
        return
    name = control_name(result)
    # Prefer cases in which perplexity stays within its margin, then the largest distance between the two.
    _, entry, control = max(silent, key=lambda triple: (triple[2].outcome == "within margin", triple[0]))
    others = len(silent) - 1
    text = f"{_contrast(entry, control, name)} of {entry.task}."
    yield Finding(topic="perplexity", text=text, claims=(_claim(entry),))
    if others:
        counted = formatting.counted(others, "other loss")
        yield Finding(topic="other losses", text=f"{name.capitalize()} also moves less than the score in {counted}.")


def _contrast(entry: Comparison, control: PerplexityComparison, name: str) -> str:
    if control.outcome == "within margin":
        told = f"would not have told: with {entry.recipe} it stays within the margin ({formatting.increase(control)})"
    else:
        told = f"plays it down: {entry.recipe} raises it by {formatting.increase(control, signed=False)}"
    return f"{name.capitalize()} {told}, yet the model loses {formatting.loss(entry)}"


def _distance(control: PerplexityComparison, entry: Comparison) -> float | None:
    """How far the interval of the rise in perplexity lies below that of the loss; None without both intervals."""
    if control.interval is None or entry.interval is None:
        return None
    return entry.interval[0] - control.interval[1]


def _control(
    result: StudyResult, cells: Mapping[tuple[str, str], AnyComparison], recipe: str
) -> PerplexityComparison | None:
    """The recipe's perplexity on the study's first text."""
    names = [task.name for task in result.tasks if task.is_control]
    comparison = cells.get((recipe, names[0])) if names else None
    return comparison if isinstance(comparison, PerplexityComparison) else None


def _came_back(result: StudyResult) -> Iterator[Finding]:
    """The recoveries that brought more lost answers back than their control."""
    rows = [row for row in result.returned if not row.detail and row.difference.value is not None]
    back = [row for row in rows if row.outcome == "brought back"]
    if back:
        most = max(back, key=lambda row: row.difference.value or 0.0)
        others = len(back) - 1
        more = f", and so do {others} of the other {len(rows) - 1} recoveries of a task" if len(rows) > 1 else ""
        text = f"{most.recipe} brings back {share(most.returned)} of what {most.base} lost of {most.task}, "
        yield Finding(topic="came back", text=f"{text}more than the control ({share(most.control)}){more}.")
    elif rows:
        yield Finding(topic="came back", text="No recovery is shown to bring back more than its control.")


def _by_method(result: StudyResult, told: Collection[Claim]) -> Iterator[Finding]:
    """For each method and kind of level: the last level proven to match, and the first level with a proven loss."""
    families: dict[tuple[str, LevelKind], list[Level]] = {}
    for recipe in result.labels:
        level = result.level(recipe)
        families.setdefault((level.method, level.kind), []).append(level)
    order = list(KINDS)
    findings: list[Finding] = []
    for _, levels in sorted(families.items(), key=lambda family: order.index(family[0][1])):
        findings += _family(result, sorted(levels, key=lambda level: level.severity), told)
    # Matching levels come before the others.
    yield from sorted(findings, key=lambda finding: finding.claims[0].verdict != "matching")


def _family(result: StudyResult, levels: Sequence[Level], told: Collection[Claim]) -> Iterator[Finding]:
    by_recipe = {level.recipe: _entries(result, level.recipe) for level in levels}
    levels = [level for level in levels if by_recipe[level.recipe]]
    parts, claims = [], []
    reach = _reach(levels, by_recipe)
    if reach:
        far = max(reach.values())
        kept = [task for task, steps in reach.items() if steps == far]
        compared = {entry.task for entries in by_recipe.values() for entry in entries}
        is_whole = compared >= {task.name for task in result.tasks if not task.is_control}
        parts.append(_keeps(kept, levels, far, every=is_whole and len(kept) == len(_with_signal(by_recipe))))
        claims += [Claim(recipe=level.recipe, task=t, verdict="matching") for level in levels[:far] for t in kept]
    losing = next((level for level in levels if _losses(by_recipe[level.recipe])), None)
    if losing is not None:
        entry = max(_losses(by_recipe[losing.recipe]), key=_proven_loss)
        if _claim(entry) not in told:
            parts.append(_loses(result, entry, losing))
            claims.append(_claim(entry))
    if parts:
        yield Finding(topic="method", text=f"{levels[0].method} {'; '.join(parts)}.", claims=tuple(claims))


def _reach(levels: Sequence[Level], by_recipe: Mapping[str, Sequence[Comparison]]) -> dict[str, int]:
    """Task → number of consecutive matching levels from the mildest on. With a gap, "up to" would be wrong."""
    reach: dict[str, int] = {}
    for steps, level in enumerate(levels):
        for entry in by_recipe[level.recipe]:
            if entry.verdict == "matching" and reach.get(entry.task, 0) == steps:
                reach[entry.task] = steps + 1
    return reach


def _with_signal(by_recipe: Mapping[str, Sequence[Comparison]]) -> set[str]:
    return {entry.task for entries in by_recipe.values() for entry in entries if entry.verdict != "no signal"}


def _keeps(tasks: Sequence[str], levels: Sequence[Level], far: int, *, every: bool) -> str:
    what = "every task that carries a signal" if every and len(tasks) > 1 else formatting.listed(tasks)
    tried = ", the strongest level tried" if far == len(levels) > 1 else ""
    return f"keeps {what} {'at' if far == 1 else 'up to'} {levels[far - 1].label}{tried}"


def _loses(result: StudyResult, entry: Comparison, level: Level) -> str:
    control = _control(result, comparisons_by_cell(result), entry.recipe)
    if entry.interval is None or entry.interval[0] <= 0:
        margin = formatting.setting(result.study.margin)
        text = (
            f"at {level.label} loses more than {margin} of {entry.task} (estimate: {formatting.loss_sentence(entry)})"
        )
    else:
        text = f"at {level.label} loses {formatting.loss(entry)} of {entry.task}"
    if control is None:
        return text
    name = control_name(result)
    if control.outcome == "within margin":
        return f"{text} while {name} stays within the margin ({formatting.increase(control)})"
    if control.relative_increase <= 0:
        return f"{text}; {name}: {formatting.increase(control)}"
    only = "only " if (_distance(control, entry) or 0) > 0 else ""
    return f"{text} while {name} rises by {only}{formatting.increase(control, signed=False)}"


def _entries(result: StudyResult, recipe: str) -> list[Comparison]:
    return [entry for entry in task_comparisons(result) if entry.recipe == recipe]


def _losses(entries: Sequence[Comparison]) -> list[Comparison]:
    return [entry for entry in entries if entry.verdict == "not matching"]


def _proven_loss(entry: Comparison) -> float:
    """The lower bound of the loss; without an interval, the point estimate, ranked after all that have an interval."""
    return entry.interval[0] if entry.interval else (entry.relative_drop or 0.0) - 10


def _no_signal(entries: Sequence[Comparison]) -> Iterator[Finding]:
    silent: dict[str, list[Comparison]] = {}
    for entry in entries:
        if entry.verdict == "no signal":
            silent.setdefault(entry.task, []).append(entry)
    for task, of_task in silent.items():
        dense, chance = formatting.score(of_task[0].dense), of_task[0].chance
        guess = f"above guessing ({dense}, where guessing gives {chance:g})" if chance else f"above 0 ({dense})"
        yield Finding(
            topic="no signal",
            text=f"{task} tells nothing here: the dense model itself is not shown to be {guess}.",
            claims=tuple(_claim(entry) for entry in of_task),
        )


def _incomplete(result: StudyResult, entries: Sequence[Comparison]) -> Iterator[Finding]:
    missing = {(row.recipe, row.task) for row in result.missing_judgements if row.differs}
    incomplete = [entry for entry in entries if entry.verdict == "incomplete"]
    related = [entry for entry in incomplete if (entry.recipe, entry.task) in missing]
    others = [entry for entry in incomplete if entry not in related]
    if others:
        yield Finding(
            topic="incomplete",
            text=f"{formatting.counted(len(others), 'verdict')} on {_tasks(others)} could change with "
            "the items that have no score; see their reasons below.",
            claims=tuple(_claim(entry) for entry in others),
        )
    if related:
        count = formatting.counted(len(related), "verdict")
        yield Finding(
            topic="incomplete",
            text=f"{count} on {_tasks(related)} {'is' if len(related) == 1 else 'are'} incomplete: the judgements that "
            "are missing depend on the model; see “Missing judgements” below.",
            claims=tuple(_claim(entry) for entry in related),
        )


def _tasks(entries: Sequence[Comparison]) -> str:
    return formatting.listed(list(dict.fromkeys(entry.task for entry in entries)))


def _undecided(entries: Sequence[Comparison]) -> Iterator[Finding]:
    """Undecided comparisons, the verdict of the paper's rule on them, and the smallest detectable loss."""
    undecided = [entry for entry in entries if entry.verdict == "undecided"]
    if not undecided:
        return
    text = f"{len(undecided)} of {formatting.counted(len(entries), 'verdict')} are undecided: too few items to tell"
    paper = Counter(entry.paper_verdict for entry in undecided)
    if paper["matching"]:
        text += f" (the paper's rule, which has no interval, would call {paper['matching']} of them matching)"
    visible = [entry.smallest_detectable_loss for entry in undecided if entry.smallest_detectable_loss]
    if visible:
        text += f". Losses of {_span(visible)} or more would usually show"
    yield Finding(topic="undecided", text=f"{text}.", claims=tuple(_claim(entry) for entry in undecided))


def _span(shares: Sequence[float]) -> str:
    low, high = min(shares), max(shares)
    several = formatting.percent(low) != formatting.percent(high)
    return formatting.percent_range(low, high) + (" (by task and recipe)" if several else "")


def _claim(entry: Comparison) -> Claim:
    return Claim(recipe=entry.recipe, task=entry.task, verdict=entry.verdict)
