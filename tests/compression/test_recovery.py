"""Recovered models of a toy network: what stays as the base promises, what is kept on disk, what a key contains."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llmkick.compression.recipe import with_training
from llmkick.compression.recoveries import Training, recovery_of
from llmkick.compression.registry import parse_recipe
from llmkick.compression.storage.compress_to_disk import CalibrationPlan, compress_checkpoint
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.checks import refuse_several
from llmkick.compression.walk.compress import compress, compress_many
from llmkick.compression.walk.compression_key import artifact_key, kept_blocks
from llmkick.compression.walk.finished_blocks import FinishedBlocks
from llmkick.compression.walk.processes import Processes
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.streaming import compress_streamed
from llmkick.errors import ConfigError
from llmkick.models.checkpoints.loading import load_model
from llmkick.models.checkpoints.meta_model import load_meta_model
from llmkick.models.checkpoints.packed import codes_of
from llmkick.models.checkpoints.packed_file import read_parts
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import weights_digest
from speeds import others_slow
from toy import save_toy, toy_model

WINDOWS = Calibration(tokens=np.random.default_rng(0).integers(5, 200, (16, 24)), source="test", seed=3)
SHORT = Training(steps=3, learning_rate=1e-2)
BASES = ("wanda@0.5", "wanda@2:4", "gptq@3b-g8", "wanda@0.5+gptq@4b")


@pytest.fixture(scope="module")
def dense() -> TransformersModel:
    return toy_model(num_hidden_layers=2)


def recovered(
    model: TransformersModel, text: str, *, training: Training = SHORT, **options: Any
) -> tuple[TransformersModel, CompressionReport]:
    recipe = with_training(parse_recipe(text), training)
    return compress(model, recipe, calibration=WINDOWS, **options)


def weights_of(model: TransformersModel) -> dict[str, Tensor]:
    return {layer.name: layer.weight for block in decoder_blocks(model.network) for layer in block.layers}


def same_bits(one: Tensor, other: Tensor) -> bool:
    integers = {2: torch.int16, 4: torch.int32}[one.element_size()]
    return torch.equal(one.contiguous().view(integers), other.contiguous().view(integers))


def parts_of(finished: FinishedBlocks) -> dict[str, Any]:
    return {name: packed for file in finished.files() for name, packed in read_parts(file)}


PRUNED = list(
    product(("wanda@0.5", "wanda@2:4", "magnitude@0.3"), ("lora-r4", "reconstruct"), (torch.float32, torch.bfloat16))
)


@pytest.mark.parametrize(
    ("base", "recovery", "dtype"),
    others_slow(PRUNED, [one for one in PRUNED if "wanda@0.5" in one or torch.float32 in one]),
)
def test_zeros_of_a_pruned_model_are_intact_bit_for_bit(base: str, recovery: str, dtype: torch.dtype) -> None:
    model = toy_model(dtype=dtype, num_hidden_layers=2)
    before, _ = compress(model, base, calibration=WINDOWS)
    after, report = recovered(model, f"{base}+{recovery}")
    old, new = weights_of(before), weights_of(after)
    assert any(not same_bits(old[name], new[name]) for name in old)
    if recovery == "lora-r4":
        for name, weight in old.items():
            zeros = weight == 0
            assert same_bits(weight[zeros], new[name][zeros]), name
    for name, weight in new.items():
        # Reconstruction goes on from other inputs, so that later blocks may be pruned elsewhere.
        zeros = int((weight == 0).sum())
        assert zeros >= int((old[name] == 0).sum()), name
        if base == "wanda@2:4":
            assert int((weight.reshape(-1, 4) != 0).sum(dim=1).max()) <= 2
    assert report.recovery is not None
    assert report.recovery.extra_bytes == 0
    assert report.realised_sparsity >= 0.29


@pytest.mark.parametrize("base", ["rtn@3b-g8", "gptq@4b-sym", "wanda@0.5+gptq@4b"])
def test_rounded_weights_stay_on_a_grid(base: str, tmp_path: Path, dense: TransformersModel) -> None:
    recipe = parse_recipe(f"{base}+reconstruct")
    model, _ = compress(dense, recipe, calibration=WINDOWS, keep=tmp_path)
    finished = kept_blocks(dense.info, dense.device, recipe, WINDOWS, tmp_path, propagate=True)
    for name, packed in parts_of(finished).items():
        codes = codes_of(packed)
        assert codes is not None, name
        assert packed.layout.rank is None
        scale, zero = (part.repeat_interleave(codes.group, dim=1) for part in (codes.scale, codes.zero))
        columns = codes.codes.shape[1]
        grid = (codes.codes.float() - zero[:, :columns].float()) * scale[:, :columns]
        assert torch.equal(grid, weights_of(model)[name])


@pytest.mark.parametrize("recovery", ["lora-r4", "eora-r4"])
def test_an_adapter_stays_beside_the_codes_of_its_base(recovery: str, tmp_path: Path, dense: TransformersModel) -> None:
    # Without propagation the base of a recovery that works layer by layer is the compression alone.
    options: dict[str, Any] = {"propagate": False}
    base_text = "gptq@3b-g8"
    recipe = with_training(parse_recipe(f"{base_text}+{recovery}"), SHORT)
    _, base_report = compress(dense, base_text, calibration=WINDOWS, keep=tmp_path / "a", **options)
    model, report = compress(dense, recipe, calibration=WINDOWS, keep=tmp_path / "b", **options)
    arguments = dense.info, dense.device
    base = parts_of(kept_blocks(*arguments, parse_recipe(base_text), WINDOWS, tmp_path / "a", propagate=False))
    kept = parts_of(kept_blocks(*arguments, recipe, WINDOWS, tmp_path / "b", propagate=False))
    assert base.keys() == kept.keys()
    adapters = 0
    for name, packed in kept.items():
        plain, ours = codes_of(base[name]), codes_of(packed)
        assert plain is not None
        assert ours is not None
        for part in ("codes", "scale", "zero"):
            assert torch.equal(getattr(plain, part), getattr(ours, part)), name
        assert packed.layout.rank == 4
        adapters += sum(packed.parts[part].numel() * 2 for part in ("adapter_a", "adapter_b"))
    assert report.recovery is not None
    assert report.recovery.extra_bytes == adapters == report.stored_bytes - base_report.stored_bytes
    weights = sum(weight.numel() for weight in weights_of(model).values())
    assert report.recovery.extra_bits_per_weight == pytest.approx(8 * adapters / weights)
    restored, again = compress(dense, recipe, calibration=WINDOWS, keep=tmp_path / "b", **options)
    assert again == report
    assert weights_digest(restored.network) == weights_digest(model.network) == report.digest


@pytest.mark.parametrize("recovery", ["eora-r4", "reconstruct"])
@pytest.mark.parametrize("base", BASES)
def test_no_layer_has_a_larger_error_after_its_recovery(base: str, recovery: str, dense: TransformersModel) -> None:
    _, report = recovered(dense, f"{base}+{recovery}")
    assert report.recovery is not None
    assert [layer.name for layer in report.recovery.layers] == [layer.name for layer in report.layers]
    for layer in report.recovery.layers:
        assert layer.before is not None
        assert layer.after is not None
        assert layer.after <= layer.before * (1 + 1e-6), layer


def test_a_refit_on_few_tokens_is_noted(dense: TransformersModel) -> None:
    def notes(text: str, windows: int = 4, length: int = 24) -> list[str]:
        tokens = np.random.default_rng(0).integers(5, 200, (windows, length))
        _, report = compress(dense, text, calibration=Calibration(tokens=tokens, source="test", seed=3))
        return [note for note in report.warnings if "few tokens" in note]

    # 96 tokens: more than ten for each of the 8 weights that are kept of 16, fewer for each of the 16 of 32.
    (note,) = notes("wanda@0.5+reconstruct")
    assert "4 of 14 layers were refitted on few tokens" in note
    assert "on 96, which helps on these tokens and may harm on all others; give about 160 calibration tokens" in note
    assert not notes("wanda@0.5+reconstruct", windows=7)
    assert not notes("wanda@0.5")
    assert not notes("gptq@4b-g8+reconstruct")  # a few scales a row


@pytest.mark.parametrize("base", BASES)
def test_zero_steps_change_nothing(base: str, dense: TransformersModel, tmp_path: Path) -> None:
    before, plain = compress(dense, base, calibration=WINDOWS)
    after, report = recovered(dense, f"{base}+lora", training=Training(steps=0), keep=tmp_path)
    assert all(same_bits(weight, weights_of(after)[name]) for name, weight in weights_of(before).items())
    assert report.digest == plain.digest == weights_digest(after.network)
    assert (report.stored_bytes, report.layers) == (plain.stored_bytes, plain.layers)
    assert report.recovery is not None
    assert (report.recovery.steps, report.recovery.tokens, report.recovery.extra_bytes) == (0, 0, 0)


@pytest.mark.parametrize("text", ["wanda@2:4+reconstruct", "gptq@3b-g8+eora-r4"])
def test_a_walk_that_was_stopped_continues_to_the_same_weights(
    text: str, tmp_path: Path, dense: TransformersModel
) -> None:
    whole, report = recovered(dense, text, keep=tmp_path / "whole")

    def stop(done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recovered(dense, text, keep=tmp_path / "stopped", progress=stop)
    resumed, again = recovered(dense, text, keep=tmp_path / "stopped")
    assert weights_digest(resumed.network) == weights_digest(whole.network)
    assert again.recovery is not None
    assert report.recovery is not None
    assert again.recovery.layers == report.recovery.layers
    assert again.recovery.extra_bytes == report.recovery.extra_bytes
    assert again.stored_bytes == report.stored_bytes


@pytest.mark.parametrize("text", ["wanda@2:4+reconstruct", "wanda@0.5+eora-r4", "gptq@4b-g8+eora-r4"])
def test_a_streamed_recovery_equals_that_in_memory(text: str, tmp_path: Path) -> None:
    save_toy(tmp_path / "model")
    meta = load_meta_model(str(tmp_path / "model"), dtype="float32", device="cpu")
    kept = compress_streamed(meta, parse_recipe(text), tmp_path / "work", calibration=WINDOWS)
    model = load_model(str(tmp_path / "model"), dtype="float32", device="cpu")
    _, report = recovered(model, text)
    assert kept.report is not None
    assert kept.report.digest == report.digest


def test_one_pass_gives_the_same_as_one_by_one(dense: TransformersModel) -> None:
    texts = ["wanda@0.5", "wanda@0.5+eora-r4", "gptq@3b-g8+reconstruct", "wanda@0.5+lora-r2"]
    recipes = [with_training(parse_recipe(text), SHORT) for text in texts]
    together = compress_many(dense, recipes, calibration=WINDOWS)
    for recipe, (_, report) in zip(recipes, together, strict=True):
        alone = compress(dense, recipe, calibration=WINDOWS, propagate=False)[1]
        assert (report.recipe, report.digest) == (str(recipe), alone.digest)


@pytest.mark.parametrize("form", ["folder", "packed"])
@pytest.mark.parametrize("text", ["wanda@2:4+lora-r2", "gptq@3b-g8+eora-r4", "wanda@0.5+reconstruct"])
def test_a_saved_model_has_the_recovered_weights(form: Any, text: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("LLMKICK_CACHE", str(tmp_path / "cache"))
    save_toy(tmp_path / "model")
    recipe = with_training(parse_recipe(text), SHORT)
    plan = CalibrationPlan(source="pocket", sequences=8, length=16)
    report = compress_checkpoint(
        str(tmp_path / "model"),
        recipe,
        tmp_path / "out",
        form=form,
        calibration=plan,
        dtype="float32",
        observer=Silence(),
    )
    model = load_model(str(tmp_path / "out"), dtype="float32", device="cpu")
    assert report.recipe == text
    assert weights_digest(model.network) == report.digest
    if form == "packed":
        stored = sum(file.stat().st_size for file in (tmp_path / "out").glob("packed-block-*.safetensors"))
        assert stored >= report.stored_bytes


class Silence:
    def stage(self, title: str, total: int) -> None: ...

    def advance(self, done: int) -> None: ...


def key_of(model: TransformersModel, text: str, training: Training = SHORT, windows: Calibration = WINDOWS) -> Any:
    recipe = with_training(parse_recipe(text), training)
    return artifact_key(model.info, model.device, recipe, windows, propagate=True)


def test_keys_differ_in_whatever_changes_the_weights(dense: TransformersModel) -> None:
    other_seed = Calibration(tokens=WINDOWS.tokens, source="test", seed=4)
    other_text = Calibration(tokens=WINDOWS.tokens + 1, source="test", seed=3)
    keys = [
        key_of(dense, "wanda@0.5"),
        key_of(dense, "wanda@0.5+reconstruct"),
        key_of(dense, "wanda@0.5+eora-r4"),
        key_of(dense, "wanda@0.5+eora-r8"),
        key_of(dense, "wanda@0.5+lora"),
        key_of(dense, "wanda@0.5+lora-r4"),
        key_of(dense, "wanda@0.5+lora", windows=other_seed),
        key_of(dense, "wanda@0.5+lora", windows=other_text),
        *(
            key_of(dense, "wanda@0.5+lora", training)
            for training in (
                Training(steps=4, learning_rate=1e-2),
                Training(steps=3, learning_rate=2e-2),
                Training(steps=3, learning_rate=1e-2, objective="next-token"),
                Training(steps=3, learning_rate=1e-2, batch=3),
                Training(steps=3, learning_rate=1e-2, tokens=999),
                Training(steps=3, learning_rate=1e-2, minutes=3.0),
            )
        ),
    ]
    assert all(keys[i] != keys[j] for i in range(len(keys)) for j in range(i))
    assert key_of(dense, "wanda@0.5+eora-r4", Training(steps=4)) == key_of(dense, "wanda@0.5+eora-r4")
    assert "recovery" not in key_of(dense, "wanda@0.5")


def test_a_report_without_a_recovery_is_as_before(dense: TransformersModel) -> None:
    _, plain = compress(dense, "wanda@0.5", calibration=WINDOWS)
    assert "recovery" not in plain.to_json()
    _, report = recovered(dense, "wanda@0.5+eora-r4")
    assert CompressionReport.from_json(report.to_json()) == report


@pytest.mark.parametrize("text", ["wanda@0.5+eora-r17", "wanda@0.5+lora-r17", "gptq@4b+eora"])
def test_a_rank_above_the_width_of_a_layer_is_refused(text: str, dense: TransformersModel) -> None:
    with pytest.raises(ConfigError, match=r"rank \d+ is more than model\.layers\.0\S+, a matrix of .*; give at most"):
        compress(dense, text, calibration=WINDOWS)


def test_a_recovery_needs_calibration(dense: TransformersModel) -> None:
    for text in ("magnitude@0.5+lora", "rtn@4b+reconstruct"):
        base, _ = recovery_of(text) or ("", "")
        compress(dense, base)
        with pytest.raises(ConfigError, match="needs calibration"):
            compress(dense, text)


@pytest.mark.parametrize("text", ["wanda@0.5+lora", "wanda@0.5+eora-r4"])
def test_several_processes_do_not_share_a_recovery(text: str) -> None:
    with pytest.raises(ConfigError, match="a recovery runs in one process, not in 2"):
        refuse_several(parse_recipe(text), Processes(0, 2))
    refuse_several(parse_recipe(text), Processes())
    refuse_several(parse_recipe("wanda@0.5"), Processes(0, 2))
