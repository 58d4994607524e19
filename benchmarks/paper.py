"""The claims of the paper on two models: python benchmarks/paper.py --data DATA [--minutes N] [--model NAME].

DATA holds a folder for each data set in its official layout: freebaseqa, mmlu, triviaqa, cnn_dailymail, mt_bench,
wikitext2, c4 (see docs/data.md). The studies of a model are run one after the other; with --minutes the run stops
after that time, and the same command goes on where it was. At every stop results/paper/MODEL.md says what the claims
are so far, and which cells are left, and results/paper/MODEL/STUDY.json.xz keeps the records, from which the same
command goes on in a new clone, too.
"""

import argparse
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import paper_model
import paper_records
from rich.console import Console

import llmkick
from llmkick.cli.progress import TerminalProgress
from llmkick.errors import DataError
from llmkick.report.claims import claims_markdown, claims_of
from llmkick.report.exports import markdown
from llmkick.report.run_folder import Run, opened_run
from llmkick.study.cells import variants_of
from llmkick.study.results.claim_records import ClaimRow
from llmkick.study.results.records import ResultRow
from llmkick.study.results.results import StudyResult
from llmkick.study.spec.study import Study, make_study

RESULTS = Path(__file__).parent / "results" / "paper"
BUILTIN = "smollm2-135m-instruct"
PRUNING = ("magnitude", "wanda", "sparsegpt")
# What loses much is decided after few questions; a loss near the margin takes all of them. First comes what decides a
# claim: 0.2 beside 0.35 claims 1 and 9, eight bits claim 3.
RECIPES = (
    *(f"{method}@{level}" for level in ("2:4", 0.5, 0.35, "4:8", 0.2) for method in PRUNING),
    *("rtn@8b", "gptq@8b"),
    *(f"{method}@{level}" for level in (0.6, 0.4) for method in PRUNING),
    *("rtn@3b", "gptq@3b", "rtn@4b", "gptq@4b"),
    *(f"{method}@{level}" for level in (0.3, 0.25, 0.1) for method in PRUNING),
)
SAMPLES, SHOTS = [1, 4, 16], [0, 3]
NOT_ASKED = (
    "Claim 5 compares a large pruned model with a small dense one of its family: `kick paper section-4` asks it."
)


class OutOfTimeProgress(TerminalProgress):
    """Ends the run at the next step after the deadline, as Ctrl-C does: everything until then is in the journal."""

    def __init__(self, console: Console, deadline: float) -> None:
        super().__init__(console)
        self.deadline = deadline

    def advance(self, done: int) -> None:
        """This many steps of the stage are done."""
        super().advance(done)
        if time.monotonic() > self.deadline:
            raise KeyboardInterrupt


def studies(model: str, options: argparse.Namespace) -> dict[str, Study]:
    """The studies of a model, those first that decide most claims."""
    data: Path = options.data

    def task(name: str, folder: str, **keys: Any) -> dict[str, Any]:
        return {"name": name, "source": str(data / folder), **keys}

    facts = task("factoid_qa", "freebaseqa", limit=options.questions)
    choice = task("multiple_choice:letter", "mmlu", limit=options.questions, shots=0)
    # The built-in model answers MMLU at chance, by letter and by text: nothing could rise or fall. The package's own
    # questions, it answers.
    on_axes = {**choice, "limit": options.axis_questions}
    if model == BUILTIN:
        on_axes = {"name": "multiple_choice:cloze", "limit": options.axis_questions}
    closed = task("context_qa:closed", "triviaqa", split="rc", limit=options.questions)
    opened = task("context_qa:open", "triviaqa", split="rc", limit=options.questions, evidence_tokens=options.evidence)
    text = task("perplexity", "wikitext2", window=512, limit=options.windows)
    stories = task(
        "summarization", "cnn_dailymail", bucket_words=[470, 790], per_bucket=options.stories, words=60,
        max_new_tokens=96,
    )  # fmt: skip
    halved = [f"{method}@0.5" for method in PRUNING]
    passages = sorted(RECIPES, key=lambda recipe: (not recipe.endswith("@0.35"), not recipe.endswith("@2:4")))
    texts, severe = (
        [f"{method}@{level}" for level in levels for method in PRUNING] for levels in ((0.3, "2:4"), (0.5,))
    )
    plans: dict[str, dict[str, Any]] = {
        # Claims 1, 2, 3 and 9. Every cell ends as soon as its verdict is known.
        "knowledge": {"recipes": RECIPES, "tasks": [facts, choice, text], "stop": "decided"},
        # Claims 2 and 6. Passages take most of the time: a study of their own, so that they hold up nothing. First is
        # what claim 6 asks about.
        "passages": {"recipes": passages, "tasks": [closed, opened], "stop": "decided"},
        # Claims 8 and 11 are read item by item: all items are asked.
        "shots": {"recipes": halved, "tasks": [{**on_axes, "shots": SHOTS}]},
        "samples": {
            "recipes": ["wanda@0.5", "sparsegpt@0.5"], "tasks": [on_axes],
            "calibration": {"source": str(data / "c4"), "sequences": SAMPLES, "length": options.length},
        },
        # Claim 7, without a judge; first is what it asks about.
        "summaries": {
            "recipes": [*texts, "rtn@8b", "gptq@8b", "gptq@4b", *severe],
            "tasks": [stories],
        },
        # Claim 4, without a judge: how likely the answers are to the dense model, and how they repeat themselves.
        "instructions": {
            "recipes": [f"{method}@{level}" for method in PRUNING for level in (0.2, 0.5)],
            "tasks": [task("instruction", "mt_bench", max_new_tokens=options.answer_tokens)],
        },
    }  # fmt: skip
    calibration = {"source": str(data / "c4"), "sequences": options.sequences, "length": options.length}
    common = {"model": model, "dtype": options.dtype, "calibration": calibration}
    return {name: make_study({**common, "name": name, **plan}) for name, plan in plans.items()}


def run_until(deadline: float, wanted: Mapping[str, Study], folder: Path, kept: Path) -> bool:
    """Run the studies in order, from the records in `kept`; False if the time was up before the last was complete."""
    for name, study in wanted.items():
        restored = paper_records.restore(kept / f"{name}{paper_records.SUFFIX}", folder / name, study)
        print(f"study {name}" + (f", {restored:,} records are there" if restored else ""), flush=True)
        try:
            with OutOfTimeProgress(Console(stderr=True), deadline) as progress:
                llmkick.run_study(study, out=folder / name, observer=progress)
        except KeyboardInterrupt:
            print(f"stopped in {name}; the same command goes on", flush=True)
            return False
    return True


def written(label: str, wanted: Mapping[str, Study], folder: Path, earlier: Sequence[str] = ()) -> str:
    """The page of a model, from its run folders: settings, claims, verdicts of each study, cells left, time.

    earlier: file names of pages of runs whose records are not kept; what those asked counts as left here.
    """
    links = ", ".join(f"[{name}]({name})" for name in earlier)
    names = [name for name in wanted if (folder / name / "journal.sqlite").is_file()]
    with ExitStack() as stack:
        runs = {name: stack.enter_context(opened_run(folder / name)) for name in names}
        compared = {name: run for name, run in runs.items() if run.result.comparisons}
        parts = [
            f"# The paper's claims on {label}\n\n`python benchmarks/paper.py --data DATA` · "
            f"llmkick {llmkick.__version__} · {platform.machine()}",
            *([f"Earlier runs, without records: {links}"] if earlier else []),
            f"## Settings\n\n{_settings(runs)}",
        ]
        if compared:
            parts.append(f"## Claims\n\n{_claims(compared)}")
        parts += [f"## Study {name}\n\n{markdown(run.result)}" for name, run in compared.items()]
        parts.append(f"## Cells without a verdict\n\n{_left(wanted, runs)}")
        parts.append(f"## Claims that no study here asks about\n\n{NOT_ASKED}")
        parts.append(f"## Time\n\n{_time(runs)}")
    return "\n\n".join(parts) + "\n"


def _claims(runs: Mapping[str, Run]) -> str:
    """The claims on all studies. One that asked other items of a task is not read with the others, but for itself."""
    groups: list[list[str]] = []
    assessed: list[list[ClaimRow]] = []
    for name, run in runs.items():
        for place, group in enumerate(groups):
            with suppress(DataError):
                assessed[place] = claims_of([*(runs[other] for other in group), run], [*group, name])
                group.append(name)
                break
        else:
            groups.append([name])
            assessed.append(claims_of([run], [name]))
    # Of each claim the first assessment that says something.
    rows = [next((row for row in same if row.outcome != "not asked"), same[0]) for same in zip(*assessed, strict=True)]
    if len(groups) == 1:
        return claims_markdown(rows)
    together = "; ".join(", ".join(group) for group in groups)
    return f"{claims_markdown(rows)}\n\nStudies that asked the same items are read together: {together}."


def _settings(runs: Mapping[str, Run]) -> str:
    """What each study asked, as its folder says."""
    lines = []
    for name, run in runs.items():
        study = run.result.study.facts
        calibration = study.get("calibration")
        text = calibration if isinstance(calibration, dict) else {}
        source = Path(str(text.get("source"))).name
        lines.append(
            f"- {name}: {study.get('dtype')}, stop {study.get('stop')}; calibrated on "
            f"{source}, {text.get('sequences')} windows of {text.get('length')} tokens"
        )
        for task in run.result.tasks:
            shown = ("limit", "shots", "evidence_tokens", "window", "per_bucket", "words", "max_new_tokens")
            stated = [f"{key} {task.facts[key]}" for key in shown if task.facts.get(key) is not None]
            lines.append(f"    - {task.name} of {Path(str(task.facts.get('source'))).name}: {', '.join(stated)}")
    return "\n".join(lines) or "Nothing was run."


def _left(wanted: Mapping[str, Study], runs: Mapping[str, Run]) -> str:
    """The cells of each study that were not asked to the end, and those whose items decided nothing."""
    lines = []
    for name, study in wanted.items():
        result = runs[name].result if name in runs else None
        outcomes = {
            (row.recipe, row.task): getattr(row, "verdict", "compared")
            for row in (result.comparisons if result else ())
        }
        for row in [] if result is None else _asked_to_the_end(result, study):
            outcomes.setdefault((row.recipe, row.task), "without a number")
        labels = list(dict.fromkeys(variant.label for variant in variants_of(study) if not variant.is_dense))
        for task in (spec.make().name for spec in study.task_specs()):
            for outcome in ("left", "without a number", "undecided", "incomplete", "no signal"):
                cells = [label for label in labels if outcomes.get((label, task), "left") == outcome]
                if cells:
                    lines.append(f"- {name}, {task}: {len(cells)} of {len(labels)} {outcome} ({', '.join(cells)})")
    return "\n".join(lines) or "None."


def _asked_to_the_end(result: StudyResult, study: Study) -> list[ResultRow]:
    """The cells that have every item, as far as that is known; a perplexity that is no finite number is among them."""
    items = {row.task: row.n + row.unscored for row in result.results if row.recipe == "dense"}
    whole = {task.name for task in result.tasks if task.is_control or study.stop == "never"}
    return [row for row in result.results if row.task in whole and row.n + row.unscored == items.get(row.task)]


def _time(runs: Mapping[str, Run]) -> str:
    """Wall time by stage, and the tokens that were answered or scored; those of calibration once for each window."""
    lines = ["| study | stage | hours | tokens |", "| --- | --- | --- | --- |"]
    for name, run in runs.items():
        result = run.result
        calibration = result.study.facts.get("calibration")
        text = calibration if isinstance(calibration, dict) else {}
        counts = [value if isinstance(value, list) else [value] for value in map(text.get, ("sequences", "length"))]
        tokens = {
            "evaluate": sum(row.tokens for row in result.results),
            "calibrate": max(counts[0], default=0) * max(counts[1], default=0) if None not in counts[0] else 0,
        }
        for stage, details in result.timing.seconds.items():
            shown = f"{tokens[stage]:,}" if tokens.get(stage) else "–"
            lines.append(f"| {name} | {stage} | {sum(details.values()) / 3600:.2f} | {shown} |")
    return "\n".join(lines)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--model", choices=["qwen", "builtin"], action="append", help="default: both")
    parser.add_argument(
        "--parts", type=Path, default=Path("runs/parts"), help="folder of the wheels of the large model"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so much time")
    parser.add_argument("--only", action="append", help="name of a study; may be repeated")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--questions", type=int, default=1000, help="of each data set at most")
    parser.add_argument("--axis-questions", type=int, default=300, help="of the studies of samples and worked examples")
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens of running text")
    parser.add_argument("--evidence", type=int, default=192, help="tokens, open book")
    parser.add_argument("--stories", type=int, default=10, help="of each length")
    parser.add_argument("--answer-tokens", type=int, default=64, help="most tokens of an answer to an instruction")
    parser.add_argument("--sequences", type=int, default=16, help="calibration windows")
    parser.add_argument("--length", type=int, default=256, help="tokens of a calibration window")
    parser.add_argument("--out", type=Path, default=Path("runs/paper"), help="where the run folders go")
    parser.add_argument("--show", action="store_true", help="run nothing, write the page of what there is")
    return parser.parse_args(arguments)


def main() -> None:
    """Run the studies of each model, and write its page."""
    options = parsed()
    deadline = time.monotonic() + 60 * options.minutes
    for model in options.model or ["qwen", "builtin"]:
        label = BUILTIN if model == "builtin" else paper_model.NAME
        folder = options.out / label
        if options.show and not folder.is_dir():
            print(f"nothing was run in {folder}", flush=True)
            continue
        every = studies(_reference(model, options), options)
        unknown = set(options.only or ()) - set(every)
        if unknown:
            sys.exit(f"unknown study {', '.join(sorted(unknown))}; choose from: {', '.join(every)}")
        wanted = {name: study for name, study in every.items() if name in (options.only or every)}
        complete = options.show or run_until(deadline, wanted, folder, RESULTS / label)
        records = {name: RESULTS / label / f"{name}{paper_records.SUFFIX}" for name in every}
        for name, file in records.items():
            if (folder / name / "journal.sqlite").exists():
                if options.show or name not in wanted:  # so that nothing that is kept is lost
                    paper_records.restore(file, folder / name, every[name])
                paper_records.keep(folder / name, file)
        if lacking := [name for name, file in records.items() if file.exists() and not (folder / name).is_dir()]:
            sys.exit(f"{label}.md stays as it is: run {', '.join(lacking)}, too; what is kept is not asked again")
        page = RESULTS / f"{label}.md"
        earlier = sorted(path.name for path in RESULTS.glob(f"{label}-*.md"))
        page.write_text(written(label, every, folder, earlier), encoding="utf-8")
        print(f"written: {page}", flush=True)
        if not complete:
            return


def _reference(model: str, options: argparse.Namespace) -> str:
    """The name or file of a model. With --show nothing is read of it."""
    if model == "builtin":
        return BUILTIN
    return "large.gguf" if options.show else str(paper_model.model_file(options.parts))


if __name__ == "__main__":
    main()
