"""`kick methods`: the compression methods."""

from __future__ import annotations

from rich.table import Table

from llmkick.cli.common import LISTS, app, out, print_warnings, with_origin


@app.command(rich_help_panel=LISTS)
def methods() -> None:
    """List the compression methods and how to write a recipe.

    Example:

        kick methods
    """
    from llmkick.compression.registry import all_methods

    available, problems = all_methods()
    table = Table("method", "what it does", "recipes")
    for name, info in available.items():
        table.add_row(name, with_origin(info.summary, info.plugin), "  ".join(info.examples))
    out.print(table)
    print_warnings(problems)
    out.print("0.5: half of the weights zero · 2:4: two of every four kept · 4b: 4 bits · -g128: groups of 128 inputs")
