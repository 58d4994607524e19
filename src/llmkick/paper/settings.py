"""The settings of the paper, under which tasks are grouped."""

from __future__ import annotations

from collections.abc import Mapping

# A task's `setting` → its title, in the order of the paper (arXiv 2310.01382, sections 3.1 to 3.3). Perplexity is the
# control.
SETTINGS: Mapping[str, str] = {
    "knowledge": "Access to remaining knowledge",
    "synthesis": "Synthesis of given knowledge",
    "instruction": "Instruction following",
    "control": "Control",
}
