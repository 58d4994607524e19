"""The numbers of `kick power` that the manual quotes, with all draws of the simulation."""

from __future__ import annotations

import re
from pathlib import Path

from commands import Kick


def test_the_manual_says_what_power_says(kick: Kick):
    page = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")
    found = re.search(
        r"`kick (power [^`]*)` says that ([\d,]+) questions .*?that 120 do so in (\d+) %, .*? a loss of ([\d.]+) %",
        page.replace("\n", " "),
    )
    assert found is not None
    _, out, _ = kick(*found[1].split())
    assert f"│ {found[2]} " in out
    assert f"│ {found[3]}% " in out
    assert f"│ {found[4]}% " in out
