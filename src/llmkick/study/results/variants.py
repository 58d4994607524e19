"""The compressed models of a study whose calibration has axes."""

from __future__ import annotations

from pydantic import Field

from llmkick.study.results.records import OpenRecord


class VariantRow(OpenRecord):
    """A recipe at one level of the calibration's axes: its label in the other rows, and the level of each axis."""

    label: str
    recipe: str
    axes: dict[str, int | str] = Field(default_factory=dict)
