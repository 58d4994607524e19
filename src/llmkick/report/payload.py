"""The type of the JSON data passed to a page: texts and numbers by name."""

from __future__ import annotations

from typing import Any

Payload = dict[str, Any]
