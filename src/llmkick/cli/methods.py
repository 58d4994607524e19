"""`kick methods`: the compression methods."""

from __future__ import annotations

from llmkick.cli.common import LISTS, app, list_table, out, print_warnings, with_origin
from llmkick.cli.options import Json


@app.command(rich_help_panel=LISTS)
def methods(as_json: Json = False) -> None:
    """List the compression methods, the recoveries, and how to write a recipe.

    Example:

        kick methods

        kick methods --json
    """
    from llmkick.compression.recoveries import RECOVERIES, RECOVERY_EXAMPLES
    from llmkick.compression.registry import all_methods

    available, problems = all_methods()
    recoveries = {name: (RECOVERY_EXAMPLES[name], kind.summary) for name, kind in RECOVERIES.items()}
    if as_json:
        rows = {name: with_origin(info.summary, info.plugin) for name, info in available.items()}
        examples = {name: list(info.examples) for name, info in available.items()}
        listed = [{"method": name, "summary": rows[name], "examples": examples[name]} for name in rows]
        last = [{"method": n, "summary": text, "examples": some} for n, (some, text) in recoveries.items()]
        out.print_json(data=[*listed, *({**row, "is_recovery": True} for row in last)])
        print_warnings(problems)
        return
    table = list_table("method", "recipes", "what it does")
    for name, info in available.items():
        table.add_row(name, "\n".join(info.examples), with_origin(info.summary, info.plugin))
    out.print(table)
    table = list_table("recovery", "recipes", "what it does, as the last step of any recipe")
    for name, (recipes, summary) in recoveries.items():
        table.add_row(name, "\n".join(recipes), summary)
    out.print(table)
    print_warnings(problems)
    out.print("0.5: half of the weights zero · 2:4: two of every four kept")
    out.print("4b: 4 bits · -g128: groups of 128 inputs · -r64: rank 64")
