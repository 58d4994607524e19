"""The address of a server and the name of its model, parsed without the client library, which is slow to import."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmkick.errors import ConfigError
from llmkick.models.server_scheme import SERVER_SCHEME, is_server

# The first is set for llmkick alone. The second is used by many programs, so it is not sent to just any host.
KEY_VARIABLE, COMMON_KEY_VARIABLE = "LLMKICK_API_KEY", "OPENAI_API_KEY"


@dataclass(frozen=True)
class Address:
    """The URL of a server and the name of a model there."""

    url: str
    name: str

    def __str__(self) -> str:
        return f"{SERVER_SCHEME}{self.url}#{self.name}"


def parse_address(reference: str) -> Address:
    """`openai:URL#name` → its parts. Raises ConfigError for anything else, and where the URL could hold a key."""
    url, _, name = reference.removeprefix(SERVER_SCHEME).partition("#")
    if "@" in url or "?" in url:
        raise ConfigError(
            "a server's address must hold no key, user, password or query: keys come from the environment alone "
            f"({KEY_VARIABLE}; a judge's from its api_key_env)"
        )
    if not is_server(reference) or not _is_web_address(url) or not name.strip():
        raise ConfigError(
            f"cannot read the server {reference!r}; it is written openai:URL#NAME, "
            "for example openai:http://127.0.0.1:8000/v1#my-model"
        )
    return Address(url=url.rstrip("/"), name=name)


def _is_web_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # unbalanced brackets, or a port that is not a number
        return False


def is_private_connection(url: str) -> bool:
    """Whether the connection is encrypted or stays on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
