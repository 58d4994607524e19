"""A thread that tells the progress of long work between its events."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Heartbeat:
    """Calls a function from a thread of its own, again and again, until it is stopped.

    beat: returns the seconds until it is to be called again. No call is under way once `stop` has returned.
    """

    def __init__(self, beat: Callable[[], float]) -> None:
        self._beat = beat
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)

    def start(self) -> None:
        """Begin to call the function."""
        self._thread.start()

    def stop(self) -> None:
        """End the calls, and wait for one that is under way."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._beat()):
            pass
