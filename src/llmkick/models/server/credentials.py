"""What requests say of their sender: a key and headers, from the environment, and the client that sends them.

The openai library reads an organization, a project and further headers from variables that many programs share, and
sends them to every server. Here they go where OPENAI_API_KEY may go: over https, or within this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import openai

from llmkick.errors import KickError
from llmkick.models.server.address import COMMON_KEY_VARIABLE, KEY_VARIABLE, is_private_connection

# Headers that the library sends, and the variables that it takes them from.
SHARED_HEADERS = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
# Lines of "NAME: VALUE".
CUSTOM_HEADERS = "OPENAI_CUSTOM_HEADERS"
# A shorter value, such as "1", or a shorter word of one, such as "Bearer", is no secret, and its place in other words
# would be hidden too.
SHORTEST_VALUE, SHORTEST_WORD = 4, 8
# Two clients that are made at once could take the variable away for good, or from each other's eyes.
_MAKING = threading.Lock()


@dataclass(frozen=True)
class Credentials:
    """The key of an endpoint, "" for none, and the headers that it gets beside it."""

    key: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)

    def client(self, url: str, timeout: float) -> openai.OpenAI:
        """The openai library's client, which sends these credentials only; its own retries are off.

        With headers it follows no redirects: of what it sends, the library drops only the key at another host.
        """
        with _without_custom_headers():
            client = openai.OpenAI(
                base_url=url,
                api_key=self.key or "none",
                timeout=timeout,
                max_retries=0,
                default_headers=dict(self.headers),
                http_client=openai.DefaultHttpxClient(timeout=timeout, follow_redirects=not self.headers),
            )
        client.organization = client.project = None  # they are in `headers`, where they may be sent
        return client

    def hidden(self, text: str) -> str:
        """The text without the key, the values of the headers, and the words of these values."""
        values = {value for value in (self.key, *self.headers.values()) if len(value) >= SHORTEST_VALUE}
        words = {
            word for value in values - {self.key} for word in re.split(r"[\s;,=]+", value) if len(word) >= SHORTEST_WORD
        }
        for secret in sorted(values | words, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text


def read_credentials(url: str, *, key_variable: str | None, error: type[KickError]) -> Credentials:
    """The credentials for a server. Raises `error` for a variable that cannot be sent, or a key that is missing.

    `key_variable` is the variable that holds the key; by default LLMKICK_API_KEY, then OPENAI_API_KEY. The latter
    is not sent to another machine over plain http, whoever names it.
    """
    is_private = is_private_connection(url)
    key = _key(url, is_private=is_private, chosen=key_variable, error=error)
    headers = _shared_headers(error) if is_private else {}
    if key:  # a header of this name would be sent in its place
        headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    return Credentials(key, headers)


def _key(url: str, *, is_private: bool, chosen: str | None, error: type[KickError]) -> str:
    if chosen == COMMON_KEY_VARIABLE and not is_private:  # a judge names it by default
        chosen = None
    usual = [KEY_VARIABLE, *([COMMON_KEY_VARIABLE] if is_private else [])]
    for variable in usual if chosen is None else [chosen]:
        key = os.environ.get(variable, "").strip()
        if not _is_line(key):
            raise error(f"the variable {variable} holds no key: one is a line of ASCII characters")
        if key:
            return key
    if chosen is not None:
        raise error(
            f"{url} needs a key: set the environment variable {chosen} (to any text for a server that wants none)"
        )
    return ""


def _shared_headers(error: type[KickError]) -> dict[str, str]:
    """The headers that the library would take from the environment."""
    headers: dict[str, str] = {}
    for name, variable in SHARED_HEADERS.items():
        value = os.environ.get(variable, "").strip()
        if not _is_line(value):
            raise error(f"the variable {variable} cannot be sent: it has to be a line of ASCII characters")
        if value:
            headers[name] = value
    with _MAKING:
        lines = os.environ.get(CUSTOM_HEADERS, "").split("\n")
    for line in lines:
        name, colon, value = (part.strip() for part in line.partition(":"))
        if not colon:  # as the library does
            continue
        if not _is_line(value) or not re.fullmatch(r"[!-~]+", name):
            raise error(f"the variable {CUSTOM_HEADERS} cannot be sent: its lines have to be NAME: VALUE, in ASCII")
        headers[name] = value
    return headers


def _is_line(text: str) -> bool:
    """Whether a text can be sent as a header. The HTTP libraries would print others in their error messages."""
    return text.isascii() and text.isprintable()


@contextlib.contextmanager
def _without_custom_headers() -> Iterator[None]:
    """The library, which has no option to ignore that variable, does not see it in this block."""
    with _MAKING:
        kept = os.environ.pop(CUSTOM_HEADERS, None)
        try:
            yield
        finally:
            if kept is not None:
                os.environ[CUSTOM_HEADERS] = kept
