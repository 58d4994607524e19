"""The block-by-block driver: calibration forwards, statistics, kernels, and the report of what was done."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy.typing as npt
import torch
from torch import Tensor

from llmkick.compression.blocks import (
    Block,
    BlockRunner,
    LinearLayer,
    decoder_blocks,
    experts_one_by_one,
    recording_inputs,
    shallow_copy,
)
from llmkick.compression.calibration import Calibration, as_calibration
from llmkick.compression.hessian import InputStatistics
from llmkick.compression.recipe import Dense, Recipe, parse_recipe
from llmkick.compression.size import compact_bytes
from llmkick.compression.weight import WeightResult, compress_with_statistics, relative_output_error
from llmkick.errors import ConfigError, NumericalError
from llmkick.models.language_model import TransformersModel, check_finite, weights_digest

# Part of every run key: raise it when the same recipe could give other weights.
WALK_VERSION = 1
# Calibration tokens run through a block at a time.
BATCH_TOKENS = 8192
# Calibration tokens on which a layer's output error is measured.
ERROR_TOKENS = 1024
# Sequences run only to measure the output error of a method that needs no calibration.
ERROR_SEQUENCES = 4
# An expert that saw fewer tokens than this is named in the report.
FEW_TOKENS = 32

Progress = Callable[[int, int], None]


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


def compress(
    model: TransformersModel,
    recipe: Recipe | str,
    *,
    calibration: Calibration | npt.ArrayLike | None = None,
    seed: int = 0,
    propagate: bool = True,
    progress: Progress | None = None,
) -> tuple[TransformersModel, CompressionReport]:
    """Compress every linear layer inside the decoder blocks; the given model stays as it is.

    calibration: a Calibration, or token ids (sequences, tokens). Methods that need none use a few of its
    sequences, when given, to measure the output error. `seed` is recorded in the report: the randomness of
    a compression is that of its calibration. With `propagate` each block is calibrated on the outputs of
    the compressed blocks before it, as in all originals; without, on those of the dense model.
    Raises ConfigError for a recipe that does not fit the model, NumericalError naming the layer when
    activations or weights are not finite.
    """
    recipe = parse_recipe(recipe) if isinstance(recipe, str) else recipe
    windows = None if calibration is None else as_calibration(calibration)
    blocks = decoder_blocks(model.network)
    check_recipe_fits(recipe, blocks, windows)
    if windows is not None:
        check_calibration_fits(windows, model)
    check_finite(model.network)
    started = time.perf_counter()
    network = shallow_copy(model.network)
    walk = _Walk(
        network=network,
        blocks=decoder_blocks(network),
        recipe=recipe,
        device=model.device,
        propagate=propagate,
        progress=progress,
    )
    with torch.inference_mode(False), torch.no_grad(), experts_one_by_one(network):
        walk.run(windows)
    digest = model.info.digest if isinstance(recipe, Dense) else weights_digest(network)
    report = CompressionReport(
        recipe=str(recipe),
        model=model.info.name,
        source_precision=model.info.source_precision,
        seed=seed,
        calibration=windows.digest if windows is not None and recipe.needs_calibration else None,
        calibration_source=windows.source if windows is not None and recipe.needs_calibration else None,
        propagate=propagate,
        digest=digest,
        seconds=time.perf_counter() - started,
        dense_bytes=walk.dense_bytes,
        stored_bytes=walk.stored_bytes,
        layers=tuple(walk.layers),
        warnings=tuple(walk.warnings),
    )
    return model.with_network(network, digest=digest), report


def check_recipe_fits(recipe: Recipe, blocks: list[Block], calibration: Calibration | None) -> None:
    """Raise ConfigError, before any work, when a layer's width does not suit the recipe."""
    for block in blocks:
        for layer in block.layers:
            width = layer.weight.shape[1]
            if width % recipe.multiple:
                raise ConfigError(
                    f"{recipe}: {layer.name} has {width} inputs, which is not a multiple of {recipe.multiple}; "
                    "choose a pattern whose M divides every layer's width"
                )
    if recipe.needs_calibration and calibration is None:
        raise ConfigError(f"{recipe} needs calibration: pass a Calibration or token ids (sequences, tokens)")


def check_calibration_fits(calibration: Calibration, model: TransformersModel) -> None:
    """Raise ConfigError, before any work, for windows that the model cannot read."""
    tokens, vocabulary = calibration.tokens, model.network.get_input_embeddings().weight.shape[0]
    strange = tokens[(tokens < 0) | (tokens >= vocabulary)]
    if strange.size:
        raise ConfigError(
            f"calibration holds token id {strange[0]}, but the model's vocabulary has {vocabulary}: "
            "it was made with another tokenizer"
        )
    if tokens.shape[1] > model.max_tokens:
        raise ConfigError(
            f"calibration windows of {tokens.shape[1]} tokens exceed the model's context of {model.max_tokens}"
        )


def uneven_groups(recipe: Recipe, blocks: list[Block]) -> list[str]:
    """Which widths the recipe's group size does not divide: their rows end in a smaller group, as in GPTQ's code."""
    group = recipe.group_size
    widths = sorted({layer.weight.shape[1] for block in blocks for layer in block.layers})
    return [
        f"the last group of rows with {width} inputs has {width % group} inputs instead of {group}"
        for width in widths
        if group is not None and width % group
    ]


@dataclass(kw_only=True)
class _Walk:
    """State of one pass over the blocks."""

    network: torch.nn.Module
    blocks: list[Block]
    recipe: Recipe
    device: torch.device
    propagate: bool
    progress: Progress | None
    layers: list[LayerReport] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    dense_bytes: int = 0
    stored_bytes: int = 0

    def run(self, calibration: Calibration | None) -> None:
        """Compress all blocks in order."""
        if isinstance(self.recipe, Dense):
            return
        batches = self._batches(calibration)
        runner = BlockRunner(self.network, self.blocks)
        hidden: list[Tensor | None] = [None] * len(batches)
        for index, block in enumerate(self.blocks):
            record = _InputRecord(block, hessian=self.recipe.needs_hessian)
            with recording_inputs(block.layers, record.see):
                for number, ids in enumerate(batches):
                    output = runner.run(index, ids, hidden[number])
                    if not self.propagate:
                        hidden[number] = output
                    record.end_of_forward()
            self._compress_block(block, record)
            if self.propagate and index + 1 < len(self.blocks):
                for number, ids in enumerate(batches):
                    hidden[number] = runner.run(index, ids, hidden[number])
            self.warnings += [f"left alone: {reason}" for reason in block.skipped]
            if self.progress is not None:
                self.progress(index + 1, len(self.blocks))
        self.warnings += uneven_groups(self.recipe, self.blocks)

    def _batches(self, calibration: Calibration | None) -> list[Tensor]:
        if calibration is None:
            return []
        tokens = torch.from_numpy(calibration.tokens)
        if not self.recipe.needs_calibration:
            tokens = tokens[:ERROR_SEQUENCES]
        return [batch.to(self.device) for batch in torch.split(tokens, max(1, BATCH_TOKENS // tokens.shape[1]))]

    def _compress_block(self, block: Block, record: _InputRecord) -> None:
        for layer in block.layers:
            statistics = record.statistics_of(layer)
            tokens = 0 if statistics is None else statistics.tokens
            if self.recipe.needs_calibration and tokens == 0:
                # No calibration token reached it: there is nothing to choose by, and that is not hidden.
                self.warnings.append(f"left dense: {layer.name} saw no calibration token")
                self._report(layer, WeightResult(layer.weight, None), record, Dense())
                continue
            if layer.form == "expert" and self.recipe.needs_calibration and tokens < FEW_TOKENS:
                self.warnings.append(f"few tokens: {layer.name} was calibrated on {tokens} tokens")
            result = compress_with_statistics(layer.weight, statistics, self.recipe, name=layer.name)
            if not bool(torch.isfinite(result.weight).all()):
                raise NumericalError(f"{self.recipe} made NaN or Inf in {layer.name}")
            self._report(layer, result, record, self.recipe)
            layer.replace_weight(result.weight)

    def _report(self, layer: LinearLayer, result: WeightResult, record: _InputRecord, recipe: Recipe) -> None:
        """Note what became of a layer, before its weight is replaced; `recipe` is the one that was applied."""
        sample, statistics = record.sample_of(layer), record.statistics_of(layer)
        dense, weight = layer.weight, result.weight
        rows, columns = dense.shape
        realised = float((weight == 0).double().mean())
        self.layers.append(
            LayerReport(
                name=layer.name,
                shape=(rows, columns),
                realised_sparsity=realised,
                relative_output_error=None if sample is None else relative_output_error(dense, weight, sample),
                damping=result.damping,
                tokens=0 if statistics is None else statistics.tokens,
            )
        )
        self.dense_bytes += dense.numel() * dense.element_size()
        self.stored_bytes += compact_bytes((rows, columns), dense.element_size(), recipe, realised)


class _InputRecord:
    """The inputs of a block's layers while it runs: statistics and a sample, once for each distinct input."""

    def __init__(self, block: Block, *, hessian: bool) -> None:
        self._hessian = hessian
        self._owner: dict[str, str] = {}
        self._statistics: dict[str, InputStatistics] = {}
        self._samples: dict[str, list[Tensor]] = {}
        # Inputs of the forward in progress, kept alive so that an id names one tensor only.
        self._live: dict[int, tuple[Tensor, str]] = {}
        self._shares = {layer.name for layer in block.layers if layer.form != "expert"}

    def see(self, layer: LinearLayer, inputs: Tensor) -> None:
        """Take in what a layer is given: q, k and v share one input, gate and up another."""
        if layer.name in self._shares:
            _, owner = self._live.setdefault(id(inputs), (inputs, layer.name))
            known = self._owner.setdefault(layer.name, owner)
            if known == owner and owner != layer.name:
                return
        self._owner[layer.name] = layer.name
        # Experts see (tokens, in); some layers (sequences, heads, tokens, in).
        rows = inputs.unsqueeze(0) if inputs.dim() == 2 else inputs.flatten(1, -2)
        self._accumulate(layer.name, rows)

    def _accumulate(self, name: str, rows: Tensor) -> None:
        if name not in self._statistics:
            self._statistics[name] = InputStatistics(rows.shape[-1], hessian=self._hessian, name=name)
            self._samples[name] = []
        self._statistics[name].add(rows)
        missing = ERROR_TOKENS - sum(len(piece) for piece in self._samples[name])
        if missing > 0:
            sample = rows.reshape(-1, rows.shape[-1])[:missing]
            self._samples[name].append(sample.to(torch.float32, copy=True))  # a view would keep all rows alive

    def end_of_forward(self) -> None:
        """Let go of the activations of the forward that just ended."""
        self._live.clear()

    def statistics_of(self, layer: LinearLayer) -> InputStatistics | None:
        """Statistics of the inputs a layer shares, None when it never ran."""
        return self._statistics.get(self._owner.get(layer.name, ""))

    def sample_of(self, layer: LinearLayer) -> Tensor | None:
        """Up to ERROR_TOKENS inputs (tokens, in) of a layer in float32, None when it never ran."""
        pieces = self._samples.get(self._owner.get(layer.name, ""))
        return torch.cat(pieces) if pieces else None
