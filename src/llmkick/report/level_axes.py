"""Where a recipe stands on the axes of the figures: its method, the kind of its level, how severe it is."""

from __future__ import annotations

import re
from dataclasses import dataclass

KINDS = {
    "sparsity": "Unstructured sparsity",
    "nm": "N:M patterns",
    "bits": "Rounding",
    "combined": "Pruned and rounded",
    "other": "Other recipes",
}


@dataclass(frozen=True, kw_only=True)
class Level:
    """A recipe's place: `severity` orders the levels of one kind, mild first; `sparsity` is a figure's x."""

    recipe: str
    method: str
    kind: str
    label: str
    severity: tuple[float, ...]
    sparsity: float | None = None


def level_of(recipe: str) -> Level:
    """Read `wanda@0.5`, `gptq@4b-g128`, `sparsegpt@0.5+4b`, `wanda@0.5+gptq@4b`; whatever else is "other"."""
    steps = [step.partition("@") for step in re.split(r"\+(?=[^+@]*@)", recipe)]
    method = "+".join(name for name, _, _ in steps)
    parts = "+".join(level for _, _, level in steps).split("+")
    kinds = [_part(part) for part in parts]
    kind = kinds[0][0] if len(parts) == 1 else "combined"
    if any(of_part == "other" for of_part, _ in kinds):
        kind = "other"
    severity = tuple(number for _, numbers in kinds for number in numbers)
    sparsity = severity[0] if kind == "sparsity" else None
    label = "+".join(parts) if parts != [""] else recipe
    return Level(recipe=recipe, method=method, kind=kind, label=label, severity=severity, sparsity=sparsity)


def _part(text: str) -> tuple[str, tuple[float, ...]]:
    """Kind and severity of one pattern or grid."""
    if re.fullmatch(r"0?\.[0-9]+", text):
        return "sparsity", (float(text),)
    if pattern := re.fullmatch(r"([0-9]+):([0-9]*[1-9][0-9]*)", text):
        kept, group = int(pattern[1]), int(pattern[2])
        return "nm", (1 - kept / group, -group)  # of two alike, the larger group leaves more freedom
    if grid := re.fullmatch(r"([0-9]+)b(?:-g([0-9]+))?(?:-[a-z-]+)?", text):
        return "bits", (-int(grid[1]), float(grid[2] or "inf"))
    return "other", ()
