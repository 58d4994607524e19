"""How a model reference names a server; it is known without anything that loads a model."""

from __future__ import annotations

SERVER_SCHEME = "openai:"


def is_server(reference: str) -> bool:
    """Whether a model reference names a server (`openai:URL#name`), whose files are not on this machine."""
    return reference.startswith(SERVER_SCHEME)
