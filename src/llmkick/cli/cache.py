"""`kick cache`: what is kept so that nothing is computed or fetched twice."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from llmkick.cli.common import LISTS, app, out, print_line
from llmkick.errors import ConfigError


@app.command(rich_help_panel=LISTS)
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete the compressed models.")] = False,
    everything: Annotated[
        bool,
        typer.Option("--all", help="With --clear: fetched and converted models, calibration texts and answers too."),
    ] = False,
) -> None:
    """List the compressed models that are kept for later runs, and what else is cached.

    The least recently used are deleted when LLMKICK_CACHE_LIMIT (default: 20GB) is reached; 0 keeps none.

    Examples:

        kick cache

        kick cache --clear
    """
    if everything and not clear:
        raise ConfigError("--all says what to clear; give --clear too")
    if clear:
        _clear(everything=everything)
    _list()


def _clear(*, everything: bool) -> None:
    from llmkick.compression.storage.cache import PART, entries, remove
    from llmkick.files import cache_sizes, clear_cache

    busy = [entry.folder for entry in entries() if not remove(entry.folder)]
    for name in cache_sizes() if everything else ():
        if name != PART:
            busy += clear_cache(name)
    for path in busy:
        print_line(f"in use, left: {path}")


def _list() -> None:
    from llmkick.compression.storage.cache import PART, entries, limit_bytes
    from llmkick.files import cache_folder, cache_sizes

    table = Table("compressed model", "recipe", "precision", "size", "blocks", "last used (UTC)")
    for entry in entries():
        blocks = str(entry.blocks) if entry.complete else f"{entry.blocks}, unfinished"
        size = f"{entry.size / 1e6:,.1f} MB"
        table.add_row(entry.model or "–", entry.recipe, entry.dtype, size, blocks, f"{entry.used:%Y-%m-%d %H:%M}")
    out.print(table)
    for name, size_bytes in cache_sizes().items():
        limit = f" of at most {limit_bytes() / 1e6:,.0f}" if name == PART else ""
        out.print(f"{name}: {size_bytes / 1e6:,.1f}{limit} MB", highlight=False)
    print_line(f"in {cache_folder('')}")
