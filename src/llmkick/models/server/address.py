"""Where a server is and what it calls the model, read without the client library, which takes a second to import."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit

from llmkick.errors import ConfigError
from llmkick.models.checkpoints.checkpoint import SERVER_SCHEME, is_server

# Set for one server; the other is what the whole ecosystem uses, and is therefore not given to just any host.
KEY_VARIABLE, COMMON_KEY_VARIABLE = "LLMKICK_API_KEY", "OPENAI_API_KEY"


@dataclass(frozen=True)
class Address:
    """Where a server is and what it calls the model."""

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
    except ValueError:  # brackets that do not match, a port that is no number
        return False


def is_private_way(url: str) -> bool:
    """Whether nobody between here and the server reads along."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False
