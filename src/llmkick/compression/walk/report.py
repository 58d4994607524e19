"""What a compression did, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What happened to one weight matrix; `shape` is (out, in), `tokens` those it was calibrated on."""

    name: str
    shape: tuple[int, int]
    realised_sparsity: float
    relative_output_error: float | None
    damping: float | None
    tokens: int


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """What a compression did, layer by layer. Sizes are of the compressed layers in compact form."""

    recipe: str
    model: str
    source_precision: str
    seed: int
    calibration: str | None
    calibration_source: str | None
    propagate: bool
    digest: str
    seconds: float
    dense_bytes: int
    stored_bytes: int
    layers: tuple[LayerReport, ...]
    warnings: tuple[str, ...]

    @property
    def realised_sparsity(self) -> float:
        """Share of zeros over all compressed layers."""
        weights = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        zeros = sum(w * layer.realised_sparsity for w, layer in zip(weights, self.layers, strict=True))
        return zeros / sum(weights) if weights else 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CompressionReport:
        """Undo `dataclasses.asdict` and a trip through JSON."""
        layers = tuple(LayerReport(**{**layer, "shape": tuple(layer["shape"])}) for layer in values["layers"])
        return cls(**{**values, "layers": layers, "warnings": tuple(values["warnings"])})
