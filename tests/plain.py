"""Frozen dataclasses as plain JSON, for comparison with what a file holds."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any


def as_json(value: Any) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(asdict(value)))
    return plain
