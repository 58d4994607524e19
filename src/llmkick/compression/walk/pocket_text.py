"""Calibration text that ships with this package: the passages and stories of the pocket tasks, end to end.

It needs no network and no sampling. It is short: about 25,000 words, so many or long windows overlap.
"""

from __future__ import annotations

import json
from importlib import resources

# File → the field with running text. The files are original text under CC0.
_TEXTS = {"context_qa.jsonl": "text", "summarization.jsonl": "story"}


def pocket_text() -> str:
    """All passages and stories as one document, each once, in the order of their files."""
    folder = resources.files("llmkick.tasks.pocket")
    texts: dict[str, None] = {}
    for file, field in _TEXTS.items():
        for line in (folder / file).read_text(encoding="utf-8").splitlines():
            text = json.loads(line).get(field)
            if text:
                texts[text] = None
    return "\n\n".join(texts)
