"""`kick power`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from llmkick.cli.common import app, check_file_target, out
from llmkick.errors import ConfigError


@app.command()
def power(
    accuracy: Annotated[float, typer.Option("--accuracy", "-a", help="score of the dense model, 0 to 1")],
    items: Annotated[int | None, typer.Option("--items", "-n", help="items there are; without: those needed")] = None,
    loss: Annotated[float, typer.Option(help="true relative loss; 0: the compressed model lost nothing")] = 0.0,
    discordance: Annotated[float, typer.Option(help="share of items that one model alone gets right")] = 0.1,
    margin: Annotated[float, typer.Option(help="largest relative loss that still matches")] = 0.05,
    alpha: Annotated[float, typer.Option(help="error rate of a verdict")] = 0.05,
    chance: Annotated[float, typer.Option("--power", help="chance of the right verdict that is wanted")] = 0.8,
    design_effect: Annotated[float, typer.Option(help="by how much clusters widen the variance")] = 1.0,
    plot: Annotated[Path | None, typer.Option(help="draw it: a file .svg, .html or .json")] = None,
) -> None:
    """How many items a verdict needs, or what a number of items can tell.

    Examples:

        kick power --accuracy 0.45

        kick power --accuracy 0.45 --loss 0.15 --discordance 0.2

        kick power --accuracy 0.75 --items 120 --plot power.svg
    """
    from llmkick.statistics import items_needed, smallest_detectable_loss, verdict_power

    if plot is not None:
        from llmkick.report.figures.power import FORMS

        if plot.suffix not in FORMS:
            raise ConfigError(f"{plot} should end in one of: {', '.join(FORMS)}")
        check_file_target(plot)
    if not 1 <= design_effect < float("inf"):
        raise ConfigError(f"design effect {design_effect} must be a number of at least 1: clusters never tell more")
    common = {"discordance": discordance, "margin": margin, "alpha": alpha, "design_effect": design_effect}
    right = "matching" if loss < margin else "not matching"
    table = Table("question", "answer")
    needed = items_needed(accuracy, loss=loss, power=chance, **common)
    table.add_row(f"items to call a true loss of {loss:.0%} “{right}” in {chance:.0%} of runs", f"{needed:,}")
    if items is not None:
        share = verdict_power(items, accuracy, loss=loss, **common)
        table.add_row(f"chance that {items:,} items call it “{right}”", f"{share:.0%}")
        smallest = smallest_detectable_loss(items, accuracy, power=chance, **common)
        answer = "none, not even a loss of everything" if smallest is None else f"{smallest:.1%}"
        table.add_row(f"smallest loss that {items:,} items call “not matching” in {chance:.0%} of runs", answer)
    out.print(table)
    if plot is not None:
        from llmkick.report.figures.power import power_chart, write_chart

        chart = power_chart(accuracy, loss=loss, discordance=discordance, margin=margin, alpha=alpha)
        out.print(f"drawn: {write_chart(chart, plot)}", markup=False, highlight=False, soft_wrap=True)
