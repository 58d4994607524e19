"""`kick power`: how many items a verdict needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from llmkick.cli.common import STUDIES, app, check_file_target, err, out, print_line
from llmkick.cli.options import OUTPUT, STUDY, Alpha, Margin
from llmkick.errors import ConfigError

if TYPE_CHECKING:
    from llmkick.statistics import Design

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
ChanceLevel = Annotated[float, typer.Option(help="Score of guessing: 0.25 with four options.", rich_help_panel=STUDY)]
ClusterSize = Annotated[
    int, typer.Option(help="Items in a cluster (a passage, a dialogue). 1: independent items.", rich_help_panel=STUDY)
]
Correlation = Annotated[float, typer.Option(help="Correlation of losses within a cluster.", rich_help_panel=STUDY)]
Seeds = Annotated[int, typer.Option(help="Number of calibration seeds.", rich_help_panel=STUDY)]
Graded = Annotated[
    bool,
    typer.Option("--graded", help="Graded scores (F1, a judge's) instead of right or wrong.", rich_help_panel=STUDY),
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
    chance_level: ChanceLevel = 0.0,
    cluster_size: ClusterSize = 1,
    correlation: Correlation = 0.05,
    seeds: Seeds = 1,
    graded: Graded = False,
    plot: Plot = None,
) -> None:
    """Tell how many items a verdict needs, or what a number of items can tell.

    Studies of this design are simulated and go through the test of the verdicts.

    Examples:

        kick power --accuracy 0.45

        kick power --accuracy 0.45 --loss 0.15 --discordance 0.2

        kick power --accuracy 0.6 --items 120 --cluster-size 10

        kick power --accuracy 0.75 --items 120 --plot power.svg
    """
    from llmkick.statistics import Design

    if plot is not None:
        _check_plot(plot, is_plain=seeds == 1 and not graded)
    _check(items, cluster_size, seeds, loss=loss, margin=margin, alpha=alpha, wanted=chance)
    design = Design.of_items(
        items or 10 * cluster_size,
        cluster_size=cluster_size,
        accuracy=accuracy,
        discordance=discordance,
        chance=chance_level,
        correlation=correlation,
        seeds=seeds,
        graded=graded,
    )
    with err.status("simulating studies"):
        table = _answers(design, items, loss=loss, margin=margin, alpha=alpha, wanted=chance)
    out.print(table)
    if plot is not None:
        from llmkick.report.figures.power import power_chart, write_chart

        chart = power_chart(
            accuracy, loss=loss, discordance=discordance, margin=margin, alpha=alpha, chance=chance_level,
            design_effect=1 + (cluster_size - 1) * correlation, power=chance,
        )  # fmt: skip
        print_line(f"drawn: {write_chart(chart, plot)}")


def _check_plot(plot: Path, *, is_plain: bool) -> None:
    """Raise ConfigError for a file that cannot be written, or a design that the chart does not show."""
    from llmkick.report.figures.power import FORMS

    if plot.suffix not in FORMS:
        raise ConfigError(f"{plot} should end in one of: {', '.join(FORMS)}")
    if not is_plain:
        raise ConfigError("--plot draws answers that are right or wrong, of one seed; leave out --seeds and --graded")
    check_file_target(plot)


def _check(
    items: int | None, cluster_size: int, seeds: int, *, loss: float, margin: float, alpha: float, wanted: float
) -> None:
    """Raise ConfigError for values that no simulation has a meaning for."""
    from llmkick.statistics.pairing import check_settings
    from llmkick.statistics.power import check_power

    if loss == margin:
        raise ConfigError(f"a loss of exactly the margin ({margin}) is never decided; give another loss")
    if cluster_size < 1 or seeds < 1 or (items is not None and items < 1):
        raise ConfigError("items, cluster size and seeds must be whole numbers of at least 1")
    check_settings(margin, alpha)
    for name, share in (("loss", loss), ("power", wanted)):
        if not 0 <= share <= 1:
            raise ConfigError(f"{name} {share} must be a share between 0 and 1")
    check_power(wanted, alpha)


def _answers(design: Design, items: int | None, *, loss: float, margin: float, alpha: float, wanted: float) -> Table:
    """The items that the verdict needs; of a number of items, their power and the loss that they detect."""
    from llmkick.statistics import detectable_loss, items_for_power, simulated_power

    right = "matching" if loss < margin else "not matching"
    table = Table("question", "answer")
    needed = items_for_power(design, loss=loss, margin=margin, alpha=alpha, power=wanted)
    number = "no realistic number: seeds that differ set a limit" if needed is None else f"{needed:,}"
    table.add_row(f"items to call a true loss of {loss:.0%} “{right}” in {wanted:.0%} of runs", number)
    if items is not None:
        share = simulated_power(design, loss=loss, margin=margin, alpha=alpha)
        table.add_row(f"chance that {items:,} items call it “{right}”", f"{share:.0%}")
        smallest = detectable_loss(design, margin=margin, alpha=alpha, power=wanted)
        answer = "none, not even a loss of everything" if smallest is None else f"{smallest:.1%}"
        table.add_row(f"smallest loss that {items:,} items call “not matching” in {wanted:.0%} of runs", answer)
    return table
