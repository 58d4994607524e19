"""The exit codes of `kick`."""

from __future__ import annotations

from collections.abc import Sequence

from llmkick.errors import ConfigError, KickError

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
# The other codes of a gate are in `llmkick.gate.result`: 1 is a shown loss and 2 is undecided, so that no error of a
# gate may end with the code that it has in other commands.
GATE, COULD_NOT_RUN = "gate", 3


def command_of(words: Sequence[str]) -> str:
    """The command of a command line, given as the words after `kick`; empty without one."""
    return next((word for word in words if not word.startswith("-")), "")


def failure(code: int, command: str | None) -> int:
    """The exit code of a failure that is `code` in most commands."""
    return COULD_NOT_RUN if command == GATE else code


def exit_code(error: KickError, command: str | None = None) -> int:
    """The exit code of an expected error."""
    return failure(EXIT_USAGE if isinstance(error, ConfigError) else EXIT_ERROR, command)
