"""A recovered model as two things: the compressed weights as plain values, and the matrices as an adapter of peft."""

from __future__ import annotations

import itertools
from pathlib import Path

from torch import Tensor

from llmkick.compression.recipe import Recipe, Recovered
from llmkick.compression.recoveries import EoRA, LowRank
from llmkick.compression.storage.cache import matrices_bytes
from llmkick.compression.storage.configuration import write_config
from llmkick.compression.storage.folder import UnchangedWeights, report_of
from llmkick.compression.storage.shards import ShardWriter, write_json
from llmkick.compression.storage.stored_model import StoredModel
from llmkick.compression.storage.target import StreamedShards, write_model
from llmkick.compression.walk.blocks import Block, decoder_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.network_parts import NetworkPart
from llmkick.compression.walk.report import CompressionReport
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.meta_model import MetaModel
from llmkick.models.checkpoints.packed import decoded, unpack_apart
from llmkick.models.checkpoints.packed_file import read_parts
from llmkick.models.checkpoints.tensor_writer import write_tensors
from llmkick.models.low_rank import Adapter
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


def check_plain_names(stored: StoredModel, blocks: list[Block]) -> None:
    """Raise ConfigError when a layer has another form in checkpoints of the model's architecture."""
    for block in blocks:
        for layer in block.layers:
            if stored.stem_of(layer.name) is None:
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
    unchanged, report = UnchangedWeights(model), report_of(finished)
    stored = StoredModel(unchanged.model)
    adapter = _Adapter(recipe, folder)

    def write(temporary: Path) -> list[str]:
        with ShardWriter(temporary, stored.planned()) as shards:
            shards.put(itertools.chain(stored.tensors(unchanged), stored.other_tensors()))
            for file in finished.files():
                with finished.reading(file):
                    for name, packed in read_parts(file):
                        _, base, matrices = unpack_apart(packed)
                        adapter.add(name, matrices)
                        shards.put([(f"{stored.stem_of(name)}weight", base)])
            shards.close()
        return adapter.configure(unchanged.model, temporary)

    size = 2 * report.stored_bytes + unchanged.bytes + report.dense_bytes + stored.other_bytes
    return write_model(unchanged.model, report, folder, size, write, form=_form(unchanged.model))


class StreamedAdapter(StreamedShards):
    """A folder with an adapter that is written while a meta model is compressed; otherwise as `save_adapter`.

    The matrices are in memory until the end.
    """

    def __init__(
        self,
        meta_model: MetaModel,
        folder: Path,
        *,
        recipe: Recipe,
        besides: int = 0,
        stored: StoredModel | None = None,
    ) -> None:
        super().__init__(meta_model, folder, besides=besides, stored=stored)
        self._adapter, self._recipe = _Adapter(recipe, folder), recipe

    def _size(self) -> int:
        return super()._size() + matrices_bytes(self._recipe, decoder_blocks(self._model.network))

    @property
    def _form(self) -> str:
        return _form(self._model)

    def put(self, part: NetworkPart) -> None:
        """Write the weights without what was recovered, and all other tensors."""
        tensors = dict(part.tensors)
        for name, packed in ({} if part.kept is None else part.kept.layers).items():
            tensors[f"{name}.weight"], matrices = decoded(packed)
            self._adapter.add(name, matrices)
        self._put_network(tensors)

    def _configure(self, temporary: Path) -> list[str]:
        return self._adapter.configure(self._model, temporary)


class _Adapter:
    """The matrices of all layers, which become an adapter of peft in a folder inside that of the model."""

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self._recipe, self._matrices = recipe, dict[str, Tensor]()
        self._folder = folder.absolute()  # as peft is told it, in whatever folder it runs

    def add(self, layer: str, adapter: Adapter | None) -> None:
        """Add the matrices of a layer, if it has any."""
        if adapter is not None:
            self._matrices[f"base_model.model.{layer}.lora_A.weight"] = adapter.a
            self._matrices[f"base_model.model.{layer}.lora_B.weight"] = adapter.b

    def configure(self, model: TransformersModel, folder: Path) -> list[str]:
        """Write the configuration of the model, and the adapter. Returns warnings and what to know."""
        notes = write_config(model, folder)
        if not self._matrices:  # a training that made nothing better keeps the weights as they were
            return [*notes, "the recovery left all weights as they were, so there is no adapter"]
        (folder / ADAPTER).mkdir()
        write_tensors(folder / ADAPTER / "adapter_model.safetensors", self._matrices)
        settings = _settings(self._recipe, self._matrices, self._folder)
        write_json(folder / ADAPTER / "adapter_config.json", settings)
        return [
            f"the weights in the folder are those of {getattr(self._recipe, 'base', self._recipe)}; the recovered "
            f"model is these with the adapter: PeftModel.from_pretrained(model, '{self._folder / ADAPTER}')",
            *notes,
        ]


def _form(model: TransformersModel) -> str:
    return f"{model.info.dtype} weights without the matrices of the recovery, which are an adapter of peft"


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
