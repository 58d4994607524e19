"""From a compressed model to a recovered one: train adapters, put them into the weights, keep the blocks and report."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from llmkick.compression.recipe import Recipe, Recovered, is_trained
from llmkick.compression.recoveries import LoRA
from llmkick.compression.training.state import TrainingState, delete_state
from llmkick.compression.training.student import Student, import_peft
from llmkick.compression.training.trainer import Trainer, check_token_limit
from llmkick.compression.walk.blocks import decoder_blocks, shallow_copy
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.finished_blocks import FinishedBlocks, NotKeptError, Tally
from llmkick.compression.walk.linear_layer import LinearLayer, replace_weights
from llmkick.compression.walk.report import CompressionReport, LayerErrors, LayerReport, RecoveryReport
from llmkick.compression.walk.weight import relative_output_error
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.packed import Packed, pack, with_adapter, with_digest
from llmkick.models.low_rank import Adapter
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import weights_digest

ERROR_TOKENS = 128  # tokens of a calibration window on which the errors of layers are measured


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """A compressed model, which a recovery starts from: its report, and its finished blocks if they are kept."""

    model: TransformersModel
    report: CompressionReport
    finished: FinishedBlocks | None = None


@dataclass(kw_only=True)
class TrainedRecovery:
    """Recovers one compressed model by a training. `dense` is the model that it was made from.

    finished: a folder for the recovered blocks, which also keeps the state of the training.
    """

    dense: TransformersModel
    base: Compressed
    recipe: Recovered
    windows: Calibration
    finished: FinishedBlocks | None = None
    progress: Callable[[int, int], None] | None = None
    _adapters: dict[str, Adapter] = field(default_factory=dict)
    _errors: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)

    def run(self) -> tuple[TransformersModel, CompressionReport]:
        """The recovered model and its report. Where the training has not lowered the loss, the base's weights.

        Raises NotKeptError with both where the recovered blocks cannot be written.
        """
        recovery = self.recipe.recovery
        assert isinstance(recovery, LoRA), recovery
        state, results, notes = TrainingState(), dict[LinearLayer, Tensor](), list[str]()
        network = shallow_copy(self.base.model.network)
        loss_after = None
        if recovery.training.steps > 0:
            state, results, loss_after, notes = self._train(recovery)
            by_name = {layer.name: layer for block in decoder_blocks(network) for layer in block.layers}
            replace_weights((by_name[layer.name], weight) for layer, weight in results.items())
        report = self._report(recovery, network, results, state, loss_after, [*state.notes, *notes])
        result = self.dense.with_network(network, digest=report.digest), report
        if self.finished is not None:
            try:
                self._keep(network, report)
            except OSError as error:
                raise NotKeptError(error, result) from error
        return result

    def _train(self, recovery: LoRA) -> tuple[TrainingState, dict[LinearLayer, Tensor], float | None, list[str]]:
        """Train; the state at the end, the layers with new weights, the loss of these weights, and notes."""
        folder = None if self.finished is None else self.finished.folder
        ids = torch.from_numpy(self.windows.tokens).to(self.dense.device)
        student = Student(
            self.base.model.network,
            rank=recovery.rank,
            keeps_adapters=self.recipe.is_rounding,
            seed=self.windows.seed,
            skip=self._uncompressed(),
        )
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.callback(student.release)
            trainer = Trainer(
                student=student,
                dense=self.dense.network,
                windows=ids,
                training=recovery.training,
                seed=self.windows.seed,
                key={} if self.finished is None else self.finished.key,
                folder=folder,
                progress=self.progress,
            )
            state = trainer.run()
            with torch.no_grad():
                found = list(student.results())
                changed = {layer: weight for layer, weight, _ in found if not torch.equal(weight, layer.weight)}
                network = shallow_copy(self.base.model.network)
                by_name = {layer.name: layer for block in decoder_blocks(network) for layer in block.layers}
                replace_weights((by_name[layer.name], weight) for layer, weight in changed.items())
                loss = trainer.loss_of(network)
        if not loss < state.losses[0]:
            note = f"lora did not lower the loss ({state.losses[0]:.4g} nats a token): the weights stay as compressed"
            return state, {}, state.losses[0], [*student.notes, note]
        self._adapters = {layer.name: adapter for layer, _, adapter in found if adapter is not None}
        self._errors = self._output_errors(changed, ids[:1, :ERROR_TOKENS])
        return state, changed, loss, student.notes

    def _uncompressed(self) -> list[str]:
        """Names of layers that the base left dense because no calibration token reached them."""
        if not self.recipe.base.needs_calibration:
            return []
        return [layer.name for layer in self.base.report.layers if layer.tokens == 0]

    def _output_errors(
        self, changed: Mapping[LinearLayer, Tensor], ids: Tensor
    ) -> dict[str, tuple[float | None, float | None]]:
        """Relative errors of the layers' outputs before and after the recovery, on the inputs of the dense model."""
        dense = {layer.name: layer for block in decoder_blocks(self.dense.network) for layer in block.layers}
        errors = {}

        def measuring(layer: LinearLayer, recovered: Tensor) -> Callable[[Any, tuple[Tensor, ...]], None]:
            def hook(_: Any, arguments: tuple[Tensor, ...]) -> None:
                inputs, original = arguments[0].flatten(0, -2), dense[layer.name].weight
                each = (relative_output_error(original, weight, inputs) for weight in (layer.weight, recovered))
                errors[layer.name] = (next(each), next(each))

            return hook

        with contextlib.ExitStack() as stack, torch.no_grad():
            for layer, weight in changed.items():
                module = dense[layer.name].module
                stack.callback(module.register_forward_pre_hook(measuring(layer, weight)).remove)
            self.dense.network(input_ids=ids, use_cache=False)
        return errors

    def _report(
        self,
        recovery: LoRA,
        network: Any,
        results: Mapping[LinearLayer, Tensor],
        state: TrainingState,
        loss_after: float | None,
        notes: list[str],
    ) -> CompressionReport:
        base, training = self.base.report, recovery.training
        extra = sum(adapter.size for adapter in self._adapters.values())
        weights = sum(layer.shape[0] * layer.shape[1] for layer in base.layers)
        merged_weights = {layer.name: weight for layer, weight in results.items() if layer.name not in self._adapters}
        return replace(
            base,
            recipe=str(self.recipe),
            seed=self.windows.seed,
            calibration=self.windows.digest,
            calibration_source=self.windows.source,
            digest=weights_digest(network) if results else base.digest,
            seconds=base.seconds + state.seconds,
            stored_bytes=base.stored_bytes + extra,
            layers=tuple(self._layer_report(layer, merged_weights.get(layer.name)) for layer in base.layers),
            warnings=(*base.warnings, *notes),
            recovery=RecoveryReport(
                recovery=str(recovery),
                seconds=state.seconds,
                tokens=state.tokens,
                extra_bytes=extra,
                extra_bits_per_weight=8 * extra / max(1, weights),
                steps=state.step,
                objective=training.objective,
                loss_before=state.losses[0] if state.losses else None,
                loss_after=loss_after,
                stopped=state.stopped,
                layers=tuple(
                    LayerErrors(name=name, before=before, after=after) for name, (before, after) in self._errors.items()
                ),
            ),
        )

    def _layer_report(self, layer: LayerReport, weight: Tensor | None) -> LayerReport:
        if layer.name not in self._errors:
            return layer
        sparsity = layer.realised_sparsity
        if weight is not None:
            sparsity = 1 - int(torch.count_nonzero(weight != 0)) / weight.numel()
        return replace(layer, relative_output_error=self._errors[layer.name][1], realised_sparsity=sparsity)

    # The recovered blocks on disk

    def _keep(self, network: Any, report: CompressionReport) -> None:
        """Keep the recovered layers of every block, those of adapters beside the compact form of their base."""
        finished, base = self.finished, self.base.finished
        assert finished is not None, "there is no folder"
        assert base is not None, "the blocks of the base are kept where those of the recovery are"
        tally = Tally(
            layers=list(report.layers),
            warnings=list(report.warnings),
            dense_bytes=report.dense_bytes,
            stored_bytes=report.stored_bytes,
            seconds=report.seconds,
        )
        blocks = decoder_blocks(network)
        base.files()  # none is cut short
        # All of them: blocks that an earlier attempt kept may be of other steps, as with a limit of minutes.
        finished.count = 0
        with finished.writing():
            for index in range(len(blocks)):
                weights = {layer.name: layer.weight for layer in blocks[index].layers}
                packed: dict[str, Future[Packed]] = {
                    name: finished.soon(_repacked, part, weights[name], self._adapters.get(name))
                    for name, part, _ in base.packed(index)
                }
                finished.add(index, packed, tally)
        finished.complete(report)
        delete_state(finished.folder)


def _repacked(base: Packed, weight: Tensor, adapter: Adapter | None) -> Packed:
    """The compact form of a recovered weight (out, in), in the way in which its base was stored."""
    if adapter is not None:
        return with_adapter(base, adapter, weight)
    layout = base.layout
    if layout.bits is not None:
        return with_digest(base, weight)
    pattern = None if layout.kept is None or layout.of is None else (layout.kept, layout.of)
    return pack(weight, masked=layout.masked, pattern=pattern, place=layout.place)


def check_training(recipe: Recipe, windows: int, length: int) -> None:
    """Raise ConfigError before any work for a training that has no peft, or no tokens for a step on such windows."""
    if isinstance(recipe, Recovered) and isinstance(recipe.recovery, LoRA):
        import_peft()
        check_token_limit(recipe.recovery.training, windows, length)


def check_trainable(recipe: Recipe, model: TransformersModel) -> None:
    """Raise ConfigError before any work for a training that cannot be: no peft, or weights that are not in memory."""
    if not is_trained(recipe):
        return
    import_peft()
    if any(parameter.is_meta for parameter in model.network.parameters()):
        raise ConfigError(f"{recipe}: {model.info.name} is not in memory as a whole, so it cannot be trained; load it")
