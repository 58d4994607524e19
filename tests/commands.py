"""What a command of the installed script left behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

# Escapes, carriage returns, bells and backspaces: what belongs on a terminal only.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


class Outcome(NamedTuple):
    """Exit code and both streams."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        """What it complained about, on one line."""
        return " ".join(self.err.split())


Kick = Callable[..., Outcome]
