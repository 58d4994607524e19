"""The exit codes of `kick`."""

from llmkick.errors import ConfigError, KickError

EXIT_ERROR, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def exit_code(error: KickError) -> int:
    """The exit code of an expected error."""
    return EXIT_USAGE if isinstance(error, ConfigError) else EXIT_ERROR
