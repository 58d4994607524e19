"""Study files of the paper's experiments, for its models and for any other."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from llmkick.errors import ConfigError
from llmkick.paper.experiments import CLOZE, EXPERIMENTS, MODELS, SAME_SIZE, Experiment, Scale, TaskText, Value
from llmkick.paper.numbers import paper_claims

JUDGE = "openai:https://api.openai.com/v1#gpt-4-0613"
# Answers of GPT-3.5, which the judge sees beside ours: a line for each item, see docs/judge.md.
REFERENCES: Mapping[str, str] = {
    "summarization": "answers/gpt-3.5-summaries.jsonl",
    "instruction": "answers/gpt-3.5-mt-bench.jsonl",
}
SMALL_LIMIT, SMALL_WINDOWS = 100, 16
ABOUT: Mapping[Scale, str] = {
    "paper": "The paper's prompts and metrics (docs/paper-protocol.md), data from the hub (docs/data.md), 3 seeds of "
    "calibration text. Samples are seeded and stratified.",
    "small": "Small scale: questions of the package, few of them, and a few recipes.",
}
C4 = "128 windows of C4, as in the code of Wanda, SparseGPT and GPTQ. The paper calibrated GPTQ on WikiText-2."
COUNTS = "Windows of C4; a smaller count is the first of a larger one."
POCKET = "Calibration text of the package: no corpus is needed, and nothing is sampled."
WIDTH = 118


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """What a user chooses of a study: model, scale, items of each task, judge, and external models by name."""

    model: str
    scale: Scale = "paper"
    limit: int | None = None
    judge: str | None = None
    references: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[str] | None = None  # NAME=MODEL; None: those of the experiment, at the small scale none
    sparsity: float | None = None  # of a large model with as many parameters as a small one
    file: str = ""  # where the study file will lie


def experiment_of(name: str) -> Experiment:
    """The experiment with a name. Raises ConfigError with all names."""
    if name not in EXPERIMENTS:
        raise ConfigError(f"unknown experiment {name!r}; choose from: {', '.join(EXPERIMENTS)} (see `kick paper`)")
    return EXPERIMENTS[name]


def ready_files() -> dict[str, str]:
    """File name → text of the study files for the paper's own models, as in examples/paper."""
    files = {}
    for experiment in EXPERIMENTS.values():
        for nick in experiment.models:
            name = f"{experiment.name}-{nick}.toml"
            files[name] = study_text(experiment, StudyOptions(model=MODELS[nick], file=f"examples/paper/{name}"))
    return files


def study_text(experiment: Experiment, options: StudyOptions) -> str:
    """The study file of an experiment, as TOML with comments. Raises ConfigError for an option without effect."""
    small = options.scale == "small"
    judged = [task.name for task in experiment.tasks if task.name in REFERENCES] if experiment.judged else []
    if options.judge and not judged:
        raise ConfigError(f"no answer of {experiment.name} is judged; leave --judge out")
    _refuse_references(experiment, judged, options)
    if options.sparsity is not None and experiment.name != "section-4":
        raise ConfigError(f"{experiment.name} has sparsities of its own; --sparsity is of section-4")
    parts = [
        _header(experiment, options),
        f"model = {json.dumps(options.model)}",
        f"seeds = {[0] if small else [0, 1, 2]}",
        "margin = 0.05",
        _recipes(experiment.small_grids if small else experiment.grids, options.sparsity),
        *_others(experiment, options),
        "",
        _calibration(experiment, small=small),
        *(_task(task, options) for task in (_tasks(experiment) if small else experiment.tasks)),
        *_judge(judged, options),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _refuse_references(experiment: Experiment, judged: Sequence[str], options: StudyOptions) -> None:
    """Raise ConfigError for answers that no judge sees, and if a judge would see them for a part of the tasks only."""
    given = set(options.references)
    if unseen := sorted(given - set(judged)):
        raise ConfigError(
            f"no judge of {experiment.name} sees answers to {', '.join(unseen)}; leave --reference {unseen[0]}=… out"
        )
    if given and options.scale == "small":
        if options.judge is None:
            raise ConfigError("a small study has no judge who could see the answers of --reference; give --judge, too")
        if lacking := [task for task in judged if task not in given]:
            raise ConfigError(
                f"--reference gives no answers to {', '.join(lacking)}: give them for every task, or none"
            )


def _header(experiment: Experiment, options: StudyOptions) -> str:
    file = options.file or f"{experiment.name}.toml"
    folder = file.rpartition("/")[2].removesuffix(".toml")
    model = next((nick for nick, reference in MODELS.items() if reference == options.model), options.model)
    lines = [f"# {experiment.place} of the paper, {model}: {experiment.summary}.", "#"]
    lines += [f"#     kick run {file} --plan    # prints the cost", f"#     kick run {file} --out runs/{folder}", "#"]
    about = ABOUT[options.scale]
    if experiment.claims:
        titles = "; ".join(f"{claim}. {paper_claims()[claim].title}" for claim in experiment.claims)
        about += f" Claims that it can speak about (`kick claims`): {titles}."
    return "\n".join([*lines, *_comment(about)])


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, WIDTH - 2, break_long_words=False, break_on_hyphens=False)]


def _recipes(grids: Sequence[tuple[str, Sequence[str]]], sparsity: float | None) -> str:
    """A line for each method and grid; `sparsity` stands in for that of the paper's two sizes."""
    rows = []
    for method, levels in grids:
        chosen = [level if sparsity is None or level != SAME_SIZE else f"{sparsity:g}" for level in levels]
        recipes = ", ".join(f'"{method}@{level}"' for level in chosen)
        rows += [f"    {line}" for line in textwrap.wrap(f"{recipes},", WIDTH - 4, break_on_hyphens=False)]
    return "\n".join(["recipes = [", *rows, "]"])


def _others(experiment: Experiment, options: StudyOptions) -> list[str]:
    chosen = options.others
    if chosen is None:
        chosen = [] if options.scale == "small" else [f"{name}={model}" for name, model in experiment.others.items()]
    if not chosen:
        return []
    about = _comment(experiment.about_others) if experiment.about_others else []
    return ["", *about, "others = [", *(f"    {json.dumps(other)}," for other in chosen), "]"]


def _calibration(experiment: Experiment, *, small: bool) -> str:
    counts = experiment.samples or (16 if small else 128,)
    if small and experiment.samples:
        counts = (*experiment.samples[:2], 16)
    about, source, length = (POCKET, "pocket", 128) if small else (COUNTS if experiment.samples else C4, "c4", 2048)
    sequences = list(counts) if len(counts) > 1 else counts[0]
    lines = ["[calibration]", f'source = "{source}"', f"sequences = {sequences}", f"length = {length}"]
    return "\n".join([*_comment(about), *lines])


def _tasks(experiment: Experiment) -> list[TaskText]:
    """The tasks of the small scale: multiple choice by text beside that by letter, with the same worked examples."""
    by_letter = next((task for task in experiment.tasks if task.name == "multiple_choice:letter"), None)
    return [*experiment.tasks, *([replace(CLOZE, small=by_letter.small)] if by_letter else [])]


def _task(task: TaskText, options: StudyOptions) -> str:
    small = options.scale == "small"
    keys: dict[str, Value] = {"name": task.name}
    if small:
        keys |= {"limit": SMALL_LIMIT, **task.small}
        if task.name == "perplexity":
            keys["limit"] = SMALL_WINDOWS
    else:
        keys |= {"source": "hub", "protocol": "paper", **task.keys}
    if "per_bucket" in keys:
        keys.pop("limit", None)
    if options.limit is not None:
        keys["per_bucket" if "per_bucket" in keys else "limit"] = options.limit
    lines = [f"{key} = {_value(value)}" for key, value in keys.items()]
    return "\n".join(["", *(_comment(task.about) if task.about and not small else []), "[[tasks]]", *lines])


def _value(value: Value) -> str:
    return json.dumps(list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value)


def _judge(judged: Sequence[str], options: StudyOptions) -> list[str]:
    small = options.scale == "small"
    if not judged or (small and options.judge is None):
        return []
    references = {task: options.references.get(task, "" if small else REFERENCES[task]) for task in judged}
    if not any(references.values()):
        about, reference = "The judge sees each answer beside the dense model's.", '"dense"'
    else:
        about = "The judge sees each answer beside GPT-3.5's: files with an answer to every item (docs/judge.md)."
        reference = "{ " + ", ".join(f"{task} = {json.dumps(file)}" for task, file in references.items()) + " }"
    protocol = "strict" if small else "paper"
    return [
        "", *_comment(about), "[judge]", f"model = {json.dumps(options.judge or JUDGE)}", f'protocol = "{protocol}"',
        f"reference = {reference}",
    ]  # fmt: skip
