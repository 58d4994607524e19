"""`kick power`: how many items a verdict needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from llmkick.cli.common import STUDIES, app, check_file_target, out, print_line
from llmkick.cli.options import OUTPUT, STUDY, Alpha, Margin
from llmkick.errors import ConfigError

Accuracy = Annotated[
    float, typer.Option("--accuracy", "-a", help="Score of the dense model, from 0 to 1.", rich_help_panel=STUDY)
]
Items = Annotated[
    int | None,
    typer.Option("--items", "-n", help="Number of items. Default: the number needed.", rich_help_panel=STUDY),
]
Loss = Annotated[
    float,
    typer.Option(help="True relative loss. 0: the compressed model lost nothing.", rich_help_panel=STUDY),
]
Discordance = Annotated[
    float, typer.Option(help="Share of items that exactly one of the models gets right.", rich_help_panel=STUDY)
]
Power = Annotated[
    float, typer.Option("--power", help="Wanted probability of the right verdict.", rich_help_panel=STUDY)
]
DesignEffect = Annotated[
    float, typer.Option(help="Factor by which clusters increase the variance.", rich_help_panel=STUDY)
]
Plot = Annotated[Path | None, typer.Option(help="File for a chart: .svg, .html or .json.", rich_help_panel=OUTPUT)]


@app.command(rich_help_panel=STUDIES)
def power(
    accuracy: Accuracy,
    items: Items = None,
    loss: Loss = 0.0,
    discordance: Discordance = 0.1,
    margin: Margin = 0.05,
    alpha: Alpha = 0.05,
    chance: Power = 0.8,
    design_effect: DesignEffect = 1.0,
    plot: Plot = None,
) -> None:
    """Tell how many items a verdict needs, or what a number of items can tell.

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
        print_line(f"drawn: {write_chart(chart, plot)}")
