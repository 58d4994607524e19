"""The report of a compression, layer by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What happened to one weight matrix.

    shape: (out, in). relative_output_error: ‖change of the output‖ / ‖output‖ on a sample of the calibration. damping:
    share of the Hessian's mean diagonal. tokens: the number that the layer was calibrated on.
    """

    name: str
    shape: tuple[int, int]
    realised_sparsity: float
    relative_output_error: float | None
    damping: float | None
    tokens: int


@dataclass(frozen=True, kw_only=True)
class LayerErrors:
    """‖change of the output‖ / ‖output‖ of a layer before and after its recovery, see docs/recovery.md."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True, kw_only=True)
class RecoveryReport:
    """What a recovery did beside the compression of its base.

    recovery: its text. seconds: without those of the compression. tokens: read, those of every step of a training.
    extra_bytes, extra_bits_per_weight: of adapters kept beside the compressed weights, per weight of their layers.
    steps, objective, loss_before, loss_after: of a training, in nats a token; None otherwise. stopped: why a training
    ended before its last step; empty if it did not. layers: the errors of the layers that were recovered.
    """

    recovery: str
    seconds: float
    tokens: int
    extra_bytes: int
    extra_bits_per_weight: float
    steps: int | None = None
    objective: str | None = None
    loss_before: float | None = None
    loss_after: float | None = None
    stopped: str = ""
    layers: tuple[LayerErrors, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CompressionReport:
    """What a compression did, layer by layer; sizes are in bytes, `stored_bytes` in compact form.

    calibration: digest of the windows, None for a recipe that needs none. digest: of the compressed weights.
    block_share, model_share: share of the weights in the blocks, and of all weights, that were compressed; None in
    reports of versions that did not count them. routers: names of the routers' weights, which stay dense. recovery: of
    a recovered recipe; `stored_bytes` and `seconds` include it.
    """

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
    block_share: float | None = None
    model_share: float | None = None
    routers: tuple[str, ...] = ()
    recovery: RecoveryReport | None = None

    @property
    def realised_sparsity(self) -> float:
        """Share of zeros over all compressed layers."""
        weights = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        zeros = sum(w * layer.realised_sparsity for w, layer in zip(weights, self.layers, strict=True))
        return zeros / sum(weights) if weights else 0.0

    @property
    def coverage(self) -> str:
        """The shares in words, empty where they were not counted."""
        if self.block_share is None or self.model_share is None:
            return ""
        return f"{self.block_share:.1%} of the block weights and {self.model_share:.1%} of all weights compressed"

    @property
    def router_names(self) -> list[str]:
        """The routers left dense, those of all blocks under one name: `model.layers.*.mlp.gate.weight`."""
        return list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", name) for name in self.routers))

    def to_json(self) -> dict[str, Any]:
        """The report as plain values. Only that of a recovered recipe has an entry `recovery`."""
        values = asdict(self)
        if self.recovery is None:
            del values["recovery"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> CompressionReport:
        """The report from its JSON form."""
        layers = tuple(LayerReport(**{**layer, "shape": tuple(layer["shape"])}) for layer in values["layers"])
        lists = {name: tuple(values.get(name, ())) for name in ("warnings", "routers")}
        recovery = values.get("recovery")
        recovered = None
        if recovery is not None:
            errors = tuple(LayerErrors(**layer) for layer in recovery["layers"])
            recovered = RecoveryReport(**{**recovery, "layers": errors})
        return cls(**{**values, **lists, "layers": layers, "recovery": recovered})
