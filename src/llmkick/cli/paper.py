"""`kick paper`: the experiments of the paper as study files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal

import typer

from llmkick.cli.common import STUDIES, app, check_file_target, given, list_table, out, print_line
from llmkick.cli.options import OUTPUT, Json
from llmkick.errors import ConfigError

# As llmkick.paper.experiments.Scale, which typer has to see here.
Scale = Literal["paper", "small"]


Model = Annotated[str | None, typer.Option("--model", "-m", help="Model to compress. Default: that of the paper.")]
ScaleOption = Annotated[
    Scale, typer.Option("--scale", help="small: questions of the package, few of them, few recipes, one seed.")
]
ItemLimit = Annotated[int | None, typer.Option("--limit", min=1, help="Items of each task; stories of each length.")]
Others = Annotated[
    list[str] | None,
    typer.Option("--other", help="External model as NAME=MODEL, e.g. the small dense one. May be repeated."),
]
Sparsity = Annotated[
    float | None, typer.Option("--sparsity", min=0.0, max=1.0, help="section-4: 1 - parameters of small / of large.")
]
Judge = Annotated[str | None, typer.Option("--judge", help="Judge of texts: a model, or openai:URL#MODEL.")]
References = Annotated[
    list[str] | None,
    typer.Option("--reference", help="Answers that the judge sees beside ours, as TASK=FILE. May be repeated."),
]
Target = Annotated[
    Path | None, typer.Option("--out", "-o", help="Study file to write. Default: print it.", rich_help_panel=OUTPUT)
]


@app.command(rich_help_panel=STUDIES)
def paper(
    context: typer.Context,
    experiment: Annotated[str | None, typer.Argument(help="Experiment, as the list names it.")] = None,
    model: Model = None,
    scale: ScaleOption = "paper",
    limit: ItemLimit = None,
    other: Others = None,
    sparsity: Sparsity = None,
    judge: Judge = None,
    reference: References = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """List the experiments of the paper, or write the study file of one, for any model and for small budgets.

    Examples:

        kick paper

        kick paper figure-7 --model smollm2-135m-instruct --scale small --out figure-7.toml
    """
    if experiment is None:
        typed = [name for name in given(context) if name != "as_json"]
        if typed:
            raise ConfigError(f"--{typed[0].replace('target', 'out')} is of one experiment: name it, see `kick paper`")
        _list_experiments(as_json=as_json)
        return
    if as_json:
        raise ConfigError("--json is for the list; the study of an experiment is a TOML file")
    from llmkick.paper.study_files import StudyOptions, experiment_of, study_text
    from llmkick.study.spec.study import make_study

    chosen = experiment_of(experiment)
    options = StudyOptions(
        model=model or chosen.paper_model, scale=scale, limit=limit, judge=judge, others=other, sparsity=sparsity,
        references=_references(reference or []), file=str(target or f"{experiment}.toml"),
    )  # fmt: skip
    text = study_text(chosen, options)
    make_study({"name": experiment, **tomllib.loads(text)})  # an option can be wrong for it
    if target is None:
        print_line(text.rstrip())
        return
    check_file_target(target)
    target.write_text(text, encoding="utf-8")
    print_line(f"study: {target}")


def _references(texts: list[str]) -> dict[str, str]:
    """TASK=FILE → file by task."""
    from llmkick.paper.study_files import REFERENCES

    files = {}
    for text in texts:
        task, _, file = text.partition("=")
        if task not in REFERENCES or not file:
            raise ConfigError(f"--reference {text!r} is not TASK=FILE with a task of: {', '.join(REFERENCES)}")
        files[task] = file
    return files


def _list_experiments(*, as_json: bool) -> None:
    from llmkick.paper.experiments import EXPERIMENTS

    if as_json:
        out.print_json(
            data=[
                {"name": e.name, "place": e.place, "summary": e.summary, "models": e.models, "claims": e.claims}
                for e in EXPERIMENTS.values()
            ]
        )
        return
    table = list_table("experiment", "in the paper", "claims", "what it shows")
    for e in EXPERIMENTS.values():
        table.add_row(e.name, e.place, ", ".join(map(str, e.claims)) or "–", e.summary)
    out.print(table)
