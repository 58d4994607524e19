"""The one name for what a page is given as JSON: texts and numbers by their names."""

from __future__ import annotations

from typing import Any

Payload = dict[str, Any]
