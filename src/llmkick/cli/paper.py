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


@app.command(rich_help_panel=STUDIES)
def paper(
    context: typer.Context,
    experiment: Annotated[str | None, typer.Argument(help="Experiment, as the list names it.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model to compress. Default: that of the paper.")
    ] = None,
    scale: Annotated[
        Scale, typer.Option(help="small: questions of the package, few of them, few recipes, one seed.")
    ] = "paper",
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task; stories of each length.")] = None,
    other: Annotated[
        list[str] | None,
        typer.Option("--other", help="External model as NAME=MODEL, e.g. the small dense one. May be repeated."),
    ] = None,
    sparsity: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="section-4: 1 - parameters of small / of large.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Judge of texts: a model, or openai:URL#MODEL.")] = None,
    reference: Annotated[
        list[str] | None,
        typer.Option("--reference", help="Answers that the judge sees beside ours, as TASK=FILE. May be repeated."),
    ] = None,
    target: Annotated[
        Path | None, typer.Option("--out", "-o", help="Study file to write. Default: print it.", rich_help_panel=OUTPUT)
    ] = None,
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
    from llmkick.paper.experiments import MODELS
    from llmkick.paper.study_files import StudyOptions, experiment_of, study_text
    from llmkick.study.spec.study import make_study

    chosen = experiment_of(experiment)
    text = study_text(
        chosen,
        StudyOptions(
            model=model or MODELS[chosen.models[0]], scale=scale, limit=limit, judge=judge, others=other,
            sparsity=sparsity, references=_references(reference or []), file=str(target or f"{experiment}.toml"),
        ),
    )  # fmt: skip
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
