"""Literal types for the options of a study, which pydantic checks in study files and typer on the command line.

The module imports no slow packages, so that `kick --help` stays fast.
"""

from __future__ import annotations

from typing import Literal

# When a cell of the study ends: after its last item, or as soon as its verdict is decided.
Stop = Literal["never", "decided"]
# How verdicts are adjusted for the number of comparisons.
Correction = Literal["none", "holm", "fixed sequence"]
# The precision of the weights while a model runs: the names of `models.precision`, which imports torch.
Precision = Literal["auto", "float32", "bfloat16", "float16"]
# The executor that fills the cells of a study: this process, or the workers of a Ray cluster.
ExecutorName = Literal["local", "ray"]
