"""`kick tasks`: the tasks."""

from __future__ import annotations

from rich.table import Table

from llmkick.cli.common import LISTS, app, out, print_warnings, with_origin
from llmkick.errors import KickError


@app.command(rich_help_panel=LISTS)
def tasks() -> None:
    """List the tasks.

    Example:

        kick tasks
    """
    from llmkick.paper import SETTINGS
    from llmkick.tasks.registry import all_tasks, get_task, has_pocket_data

    available, problems = all_tasks()
    table = Table("task", "metric", "chance", "setting", "what it asks")
    for base, entry in available.items():
        summary = with_origin(entry.summary, entry.plugin)
        for name in entry.names(base):
            try:
                task = get_task(name, source="pocket" if has_pocket_data(name) else "hub")
            except KickError as error:
                problems.append(str(error))
                continue
            table.add_row(name, task.metric, f"{task.chance_level:g}", SETTINGS[task.setting], summary)
    out.print(table)
    print_warnings(problems)
