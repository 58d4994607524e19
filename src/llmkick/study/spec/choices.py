"""The choices of a study that are words: pydantic checks them in study files, typer on the command line.

Nothing heavy is imported here, so that `kick --help` stays fast.
"""

from __future__ import annotations

from typing import Literal

# When a cell of the study ends: after its last item, or as soon as its verdict is certain.
Stop = Literal["never", "decided"]
# How verdicts are adjusted for the number of comparisons.
Correction = Literal["none", "holm", "fixed sequence"]
# Who fills the cells of a study: this process, or the workers of a Ray cluster.
ExecutorName = Literal["local", "ray"]
