"""A recovered model as two things: the compressed weights as plain values, and the matrices as an adapter of peft."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from llmkick.compression.recipe import Recipe, Recovered
from llmkick.compression.recoveries import EoRA, LowRank
from llmkick.compression.storage.compressed_tensors import stem_of
from llmkick.compression.storage.configuration import write_config
from llmkick.compression.storage.folder import UnchangedWeights, report_of, write_model
from llmkick.compression.storage.shards import bundles, write_json, write_shards
from llmkick.compression.storage.stored_model import StoredModel
from llmkick.compression.walk.blocks import Block
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.report import CompressionReport
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.checkpoints.packed import read_parts, unpack_apart
from llmkick.models.checkpoints.tensor_writer import write_tensors
from llmkick.models.transformers_model import TransformersModel

# The folder with the adapter, inside that of the compressed model.
ADAPTER = "adapter"


def check_has_adapter(recipe: Recipe, blocks: list[Block]) -> None:
    """Raise ConfigError for a recipe that keeps no matrices beside the weights, or a model to which peft adds none."""
    if not isinstance(recipe, Recovered) or not isinstance(recipe.recovery, LowRank):
        raise ConfigError(f"{recipe} has no matrices beside the weights, so there is no adapter; leave --adapter out")
    if not isinstance(recipe.recovery, EoRA) and not recipe.is_rounding:
        raise ConfigError(
            f"{recipe}: the matrices are merged into the weights that are left, so that zeros stay zeros, and there is "
            "no adapter beside them; leave --adapter out"
        )
    for block in blocks:
        for layer in block.layers:
            if layer.form != "linear" or layer.twins:
                kind = "shares its weight" if layer.twins else "is no plain linear layer"
                raise ConfigError(f"{layer.name} {kind}, to which peft cannot add an adapter here; use --packed")


def check_plain_names(model: TransformersModel, blocks: list[Block]) -> None:
    """Raise ConfigError when a layer has another form in checkpoints of the model's architecture."""
    stored = StoredModel(model)
    for block in blocks:
        for layer in block.layers:
            if stem_of(stored, layer.name) is None:
                raise ConfigError(
                    f"{layer.name} is stored merged with other layers, or split, in checkpoints of this architecture; "
                    "use --packed"
                )


def save_adapter(
    model: TransformersModel | MetaModel, recipe: Recipe, finished: FinishedBlocks, folder: Path
) -> CompressionReport:
    """Write the compressed weights as a Hugging Face folder, and the matrices into its folder `adapter`.

    model: the dense, compressed or meta model, for the unchanged weights. finished: all blocks. Result and errors as in
    `folder.save_folder`. The report is that of the recovered model, with a note of what the folder has.
    """
    folder = folder.absolute()  # as peft is told it, in whatever folder it runs
    unchanged, report = UnchangedWeights(model), report_of(finished)
    stored = StoredModel(unchanged.model)
    matrices: dict[str, Tensor] = {}

    def shards() -> Iterator[dict[str, Tensor]]:
        yield from bundles(stored.tensors(unchanged))
        yield from bundles(stored.other_tensors())
        for file in finished.files():
            shard: dict[str, Tensor] = {}
            with finished.reading(file):
                for name, packed in read_parts(file):
                    base, adapter = unpack_apart(packed)
                    shard[f"{stem_of(stored, name)}weight"] = base
                    if adapter is not None:
                        matrices[f"base_model.model.{name}.lora_A.weight"] = adapter.a
                        matrices[f"base_model.model.{name}.lora_B.weight"] = adapter.b
            yield shard

    def write(temporary: Path) -> list[str]:
        write_shards(temporary, shards())
        notes = write_config(unchanged.model, temporary)
        if not matrices:  # a training that made nothing better keeps the weights as they were
            return [*notes, "the recovery left all weights as they were, so there is no adapter"]
        (temporary / ADAPTER).mkdir()
        write_tensors(temporary / ADAPTER / "adapter_model.safetensors", matrices)
        write_json(temporary / ADAPTER / "adapter_config.json", _settings(recipe, matrices, folder))
        return [
            f"the weights in the folder are those of {getattr(recipe, 'base', recipe)}; the recovered model is these "
            f"with the adapter: PeftModel.from_pretrained(model, '{folder / ADAPTER}')",
            *notes,
        ]

    size = 2 * report.stored_bytes + unchanged.bytes + report.dense_bytes + stored.other_bytes
    form = f"{unchanged.model.info.dtype} weights without the matrices of the recovery, which are an adapter of peft"
    return write_model(unchanged.model, report, folder, size, write, form=form)


def _settings(recipe: Recipe, matrices: dict[str, Tensor], folder: Path) -> dict[str, object]:
    """What peft reads: a scale of 1 (alpha = rank), as the matrices are added as they are."""
    names = sorted({name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in matrices})
    rank = max(tensor.shape[0] for name, tensor in matrices.items() if name.endswith("lora_A.weight"))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(folder),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": names,
        "inference_mode": True,
    }
