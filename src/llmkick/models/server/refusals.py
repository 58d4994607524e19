"""Requests that a server will not answer: those it refuses, and those it fails at while it answers others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llmkick.errors import KickError
from llmkick.models.server.failures import is_limit_reached

GREETING = {"role": "user", "content": "Hi"}


@dataclass(frozen=True)
class Refused:
    """A request that the server will not answer, even after retries, and the reason."""

    reason: str


class RefusedError(KickError):
    """The server refused a request that was sent alone; see `Refused`."""


class BrokenError(RefusedError):
    """A request to which the server answers with status 500 each time; `send_tiny` sends its `tiny_request`."""

    def __init__(self, message: str, send_tiny: Callable[[], Any]) -> None:
        super().__init__(message)
        self.send_tiny = send_tiny

    def is_its_own_fault(self) -> bool:
        """Whether the server answers a tiny request of the same kind. Raises what `Endpoint.chat` raises otherwise."""
        try:
            self.send_tiny()
        except RefusedError as refusal:
            return is_limit_reached(refusal.__cause__)
        return True


def tiny_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request with a short text, and with one new token at most; a server that fails at it fails at every text."""
    text = {"messages": [GREETING]} if "messages" in request else {"prompt": GREETING["content"]}
    limits = {name: 1 for name in ("max_tokens", "max_completion_tokens") if name in request}
    return {**request, **text, **limits}
