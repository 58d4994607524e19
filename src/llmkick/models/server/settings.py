"""How a server is asked: time, concurrency and attempts. It is known without the library that sends requests."""

from __future__ import annotations

from dataclasses import dataclass

from llmkick.errors import ConfigError
from llmkick.models.thoughts import Thinking


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Settings of a server: seconds per request, concurrent requests, attempts per request, and `thinking`."""

    timeout: float = 120.0
    concurrency: int = 8
    attempts: int = 5
    thinking: Thinking = "off"

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ConfigError(f"timeout must be more than 0 seconds; got {self.timeout:g}")
        for name, value in (("concurrency", self.concurrency), ("attempts", self.attempts)):
            if value < 1:
                raise ConfigError(f"{name} must be at least 1; got {value}")
