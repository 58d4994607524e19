"""`kick`, `python -m llmkick`, and `torchrun -m llmkick`."""

import sys
import traceback

from llmkick.exit_codes import EXIT_ERROR, command_of, failure


def main() -> None:
    """Run the command line, whose modules may fail to import in a damaged environment."""
    try:
        from llmkick.cli import main as run
    except Exception:  # noqa: BLE001 - Python's exit code of an error is that of a gate's shown loss
        traceback.print_exc()
        sys.exit(failure(EXIT_ERROR, command_of(sys.argv[1:])))
    run()


if __name__ == "__main__":
    main()
