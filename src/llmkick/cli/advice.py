"""Advice on shorter runs in the options of the command that shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # scipy and pandas would slow every command down
    from llmkick.study.advice import Advice

# Command → setting of a study → the option that sets it. A setting without an option cannot be given there.
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "run": {
        "limit": "--limit", "tasks": "--task", "stop": "--stop",
        "sequences": "--sequences", "source": "--calibration", "seeds": "--seed",
    },
    "frontier": {
        "limit": "--limit", "tasks": "--task",
        "sequences": "--sequences", "source": "--calibration", "seeds": "--seed",
    },
    "eval": {"limit": "--limit", "tasks": "--task"},
    "compare": {"limit": "--limit", "tasks": "--task"},
    "gate": {"limit": "--items"},
    "compress": {"sequences": "--sequences", "source": "--calibration"},
    "recover": {"sequences": "--sequences", "source": "--calibration"},
}  # fmt: skip


def words_of(command: str) -> Callable[[Advice], str | None]:
    """How advice reads where this command shows it."""
    options = OPTIONS[command]

    def words(advice: Advice) -> str | None:
        option = options.get(advice.setting)
        if option is None or advice.setting == "tasks":
            return None if option is None else str(advice)
        value = advice.value.strip("[]").strip('"')
        return f"{option} {value} ({advice.reason})"

    return words
