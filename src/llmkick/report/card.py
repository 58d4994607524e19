"""The verdict card of a model: a section for its model card, and the evaluation results of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmkick.errors import ConfigError, DataError
from llmkick.files import write_text
from llmkick.report import formatting
from llmkick.report.escaping import markdown
from llmkick.report.lookup import task_comparisons
from llmkick.statistics import Comparison
from llmkick.study.results.records import TaskSummary
from llmkick.study.results.results import StudyResult

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TITLE = "## What this model lost"
ASKED = "asked the same items. Matching: a loss of at most"
DATASETS = "llmkick/"  # before the name of a task, in an evaluation of the hub
OVERALL = "All tasks together: "
LAST = "Made with `kick export --to card` of LLM-KICK."
# All of a section, and no line of anybody else.
SECTION = re.compile(
    rf"\n*{re.escape(TITLE)}\n\n[^\n]+{re.escape(ASKED)}[^\n]+\n\n(\|[^\n]+\n)+(\n{OVERALL}[^\n]+\n)?\n{re.escape(LAST)}\n*"
)
# Facts of a task that determine its items and prompts; the hub has a place of its own for the name and the data.
PROTOCOL_FACTS = ("version", "protocol", "source", "limit", "seed", "shots", "prompting", "judge")


def card(result: StudyResult, recipe: str | None = None) -> str:
    """Return the card of a compared model as Markdown, with `model-index` as YAML at its head.

    `recipe` is the label of the model; it may be None if the study compares only one. Raises ConfigError for an unknown
    label and DataError for a model without a verdict.
    """
    label = _label(result, recipe)
    comparisons = [entry for entry in task_comparisons(result) if entry.recipe == label]
    if not comparisons:
        raise DataError(f"{label} has no verdict on any task in {result.folder}: there is nothing for a card to say")
    section = "\n".join(_section(result, label, comparisons))
    return f"---\n{_metadata(result, label, comparisons)}---\n\n{section}\n"


def write_card(result: StudyResult, path: Path, recipe: str | None = None) -> Path:
    """Write a card.

    Raises ConfigError if the file exists and holds anything but a card: it may be a model's README, even one into which
    a card was pasted.
    """
    if path.exists() and not _is_card(path.read_text(encoding="utf-8", errors="replace")):
        raise ConfigError(f"{path} exists and is not a verdict card; give another file and join the two by hand")
    return write_text(path, card(result, recipe))


def _is_card(text: str) -> bool:
    """Whether a text is a card and nothing else: its section and, in the front matter, at most our evaluations."""
    import yaml  # type: ignore[import-untyped]
    from huggingface_hub import ModelCard

    try:
        read = ModelCard(text)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError):  # not the front matter of a card
        return False
    data: Any = read.data
    ours = all(str(entry.dataset_type).startswith(DATASETS) for entry in data.eval_results or ())
    return ours and set(data.to_dict()) <= {"model-index"} and SECTION.fullmatch(read.text) is not None


def _label(result: StudyResult, recipe: str | None) -> str:
    if recipe is None:
        if len(result.labels) != 1:
            raise ConfigError(
                f"a card is of one model; choose it with --recipe: {', '.join(result.labels) or 'this run has none'}"
            )
        return result.labels[0]
    if recipe not in result.labels:
        raise ConfigError(f"{recipe!r} is not in {result.folder}; choose from: {', '.join(result.labels)}")
    return recipe


def _section(result: StudyResult, label: str, comparisons: Sequence[Comparison]) -> Iterator[str]:
    margin, alpha = formatting.setting(result.study.margin), formatting.setting(result.study.alpha)
    yield f"{TITLE}\n"
    yield (
        f"{markdown(label)} against {markdown(result.model.name)}, {ASKED} "
        f"{margin} of the reference's score is shown; each verdict errs in at most {alpha} of runs.\n"
    )
    yield f"| task | verdict | reference | this model | loss ({formatting.GAIN_SIGN}) | bounds | n |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for entry in comparisons:
        mark = formatting.mark(entry.verdict)
        loss = formatting.loss(entry)
        cells = (
            markdown(entry.task),
            f"{mark.symbol} {entry.verdict}",
            formatting.score(entry.dense),
            formatting.score(entry.compressed),
            loss.value,
            f"{loss.interval} %" if loss.interval else formatting.NOTHING,
            f"{entry.n:,}",
        )
        yield f"| {' | '.join(cells)} |"
    overall = next((row.verdict for row in result.overall if row.recipe == label), None)
    if overall is not None:
        yield f"\n{OVERALL}**{overall}**."
    yield f"\n{LAST}"


def _metadata(result: StudyResult, label: str, comparisons: Sequence[Comparison]) -> str:
    from huggingface_hub import ModelCardData

    tasks = {task.name: task for task in result.tasks}
    entries = [_evaluation(result, tasks[entry.task], entry) for entry in comparisons if entry.compressed is not None]
    if not entries:
        return f"{ModelCardData()}\n"
    return f"{ModelCardData(model_name=label, eval_results=entries)}\n"


def _evaluation(result: StudyResult, task: TaskSummary, entry: Comparison) -> EvalResult:
    """Return the hub's entry of a comparison: the data set with its SHA-256, the protocol, the score, the verdict."""
    from huggingface_hub import EvalResult

    facts = task.facts
    return EvalResult(
        task_type="text-generation",
        task_name=task.name,
        dataset_type=f"{DATASETS}{task.name}",
        dataset_name=f"{task.name} ({facts.get('source', 'pocket')})",
        dataset_revision=None if facts.get("data") is None else str(facts["data"]),
        dataset_args={name: facts[name] for name in PROTOCOL_FACTS if facts.get(name) is not None},
        metric_type=task.metric,
        metric_name=f"{task.metric} on {task.name}",
        metric_value=entry.compressed,
        metric_args=_arguments(result, entry),
    )


def _arguments(result: StudyResult, entry: Comparison) -> dict[str, object]:
    """Return what stands beside the score: verdict, loss and bounds, n, margin, and what it is compared with."""
    low, high = entry.interval or (None, None)
    values = {
        "verdict": entry.verdict,
        "relative_loss": entry.relative_drop,
        "relative_loss_low": low,
        "relative_loss_high": high,
        "n": entry.n,
        "margin": entry.margin,
        "alpha": entry.alpha,
        "reference": result.model.name,
        "reference_score": entry.dense,
        "chance": entry.chance,
    }
    return {name: value for name, value in values.items() if value is not None}
