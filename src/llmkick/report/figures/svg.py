"""SVG of charts, drawn by a process of its own while this one renders the page: drawing keeps a core busy."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence

import vl_convert


@contextlib.contextmanager
def drawn_aside(specs: Sequence[str], version: str) -> Iterator[Callable[[], list[str]]]:
    """Begin to draw Vega-Lite specifications (JSON); what is yielded waits for their SVG.

    If the process fails, the charts are drawn by this one, which raises whatever is wrong with them.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8") as given, tempfile.TemporaryFile("w+", encoding="utf-8") as got:
        given.writelines(json.dumps([spec, version]) + "\n" for spec in specs)
        given.seek(0)
        # -P: this file's folder holds modules whose names hide others.
        command = [sys.executable, "-P", __file__]
        process = subprocess.Popen(command, stdin=given, stdout=got, stderr=subprocess.DEVNULL)  # noqa: S603

        def finish() -> list[str]:
            if process.wait() != 0:
                return [_svg(spec, version) for spec in specs]
            got.seek(0)
            return [str(json.loads(line)) for line in got]

        try:
            yield finish
        finally:
            process.kill()
            process.wait()


def _svg(spec: str, version: str) -> str:
    svg: str = vl_convert.vegalite_to_svg(spec, vl_version=version)
    return svg


def _draw_all() -> None:
    """Answer every line of standard input, a specification and its version, with a line of SVG as JSON."""
    for line in sys.stdin.buffer:
        sys.stdout.write(json.dumps(_svg(*json.loads(line))) + "\n")


if __name__ == "__main__":
    _draw_all()
