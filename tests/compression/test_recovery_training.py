"""The training of adapters: it lowers the loss, stops and resumes, and says what went wrong."""

from __future__ import annotations

import builtins
import copy
import errno
import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from llmkick.compression.recipe import with_training
from llmkick.compression.recoveries import Training
from llmkick.compression.registry import parse_recipe
from llmkick.compression.training import trainer as trainer_module
from llmkick.compression.training.losses import distillation_loss, next_token_loss
from llmkick.compression.training.state import STATE_FILE, read_state
from llmkick.compression.training.student import MaskedLinear, Student
from llmkick.compression.training.trainer import Trainer
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.finished_blocks import DamagedBlocksError, FinishedBlocks
from llmkick.compression.walk.report import CompressionReport, RecoveryReport
from llmkick.errors import ConfigError, ModelError
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import weights_digest
from toy import toy_model

WINDOWS = Calibration(tokens=np.random.default_rng(0).integers(5, 200, (16, 24)), source="test", seed=3)


@pytest.fixture(scope="module")
def dense() -> TransformersModel:
    return toy_model(num_hidden_layers=2)


def train(
    model: TransformersModel, text: str = "wanda@0.5+lora-r4", *, windows: Calibration = WINDOWS, keep: Any = None,
    progress: Any = None, **settings: Any,
) -> tuple[TransformersModel, CompressionReport, RecoveryReport]:  # fmt: skip
    recipe = with_training(parse_recipe(text), Training(**{"steps": 12, "learning_rate": 1e-2, **settings}))
    recovered, report = compress(model, recipe, calibration=windows, keep=keep, progress=progress)
    assert report.recovery is not None
    return recovered, report, report.recovery


def test_losses_are_those_of_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, other = (torch.randn(2, 5, 7, generator=generator) for _ in range(2))
    ids = torch.randint(0, 7, (2, 5), generator=generator)
    dense = other.softmax(-1)
    divergence = (dense * (dense.log() - logits.log_softmax(-1))).sum()
    assert float(distillation_loss(logits, other)) == pytest.approx(float(divergence), rel=1e-5)
    assert float(distillation_loss(other, other)) == pytest.approx(0, abs=1e-5)
    nats = -sum(F.log_softmax(logits[s, t], -1)[ids[s, t + 1]] for s in range(2) for t in range(4))
    assert float(next_token_loss(logits, ids)) == pytest.approx(float(nats), rel=1e-5)


@pytest.mark.parametrize("text", ["wanda@2:4+lora-r4", "gptq@3b-g8+lora-r4", "wanda@0.5+gptq@4b+lora-r4"])
def test_a_training_brings_the_model_closer_to_the_dense_one(text: str, dense: TransformersModel) -> None:
    digest = weights_digest(dense.network)
    recovered, report, recovery = train(dense, text)
    assert recovery.loss_before is not None
    assert recovery.loss_after is not None
    assert recovery.loss_after < 0.99 * recovery.loss_before
    assert (recovery.steps, recovery.tokens, recovery.stopped) == (12, 12 * 2 * 24, "")
    ids = torch.from_numpy(WINDOWS.tokens[-2:])  # the windows held out for the checks
    with torch.no_grad():
        logits, other = (model.network(input_ids=ids).logits for model in (recovered, dense))
    assert float(distillation_loss(logits, other)) / ids.numel() == pytest.approx(recovery.loss_after, rel=1e-4)
    assert report.digest == weights_digest(recovered.network) != digest
    assert weights_digest(dense.network) == digest
    assert not any(parameter.requires_grad for parameter in dense.network.parameters())


def test_next_tokens_are_an_objective_too(dense: TransformersModel) -> None:
    _, _, recovery = train(dense, objective="next-token")
    assert recovery.objective == "next-token"
    assert recovery.loss_before is not None
    assert recovery.loss_after is not None
    assert recovery.loss_before > recovery.loss_after > 1


def test_the_same_seed_gives_the_same_weights_and_another_one_others(dense: TransformersModel) -> None:
    other = Calibration(tokens=WINDOWS.tokens, source="test", seed=4)
    digests = [train(dense, windows=windows)[1].digest for windows in (WINDOWS, WINDOWS, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("text", ["wanda@0.5+lora-r4", "gptq@3b-g8+lora-r4"])
@pytest.mark.parametrize("stopped_at", [11])
def test_a_training_that_was_stopped_continues_to_the_same_weights(
    text: str, stopped_at: int, dense: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", 0.0)
    _, whole, _ = train(dense, text, keep=tmp_path / "whole")
    step, taken = Trainer._step, 0

    def stop(self: Trainer) -> float:
        nonlocal taken
        if taken == stopped_at:
            raise KeyboardInterrupt
        taken += 1
        return step(self)

    monkeypatch.setattr(Trainer, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        train(dense, text, keep=tmp_path / "stopped")
    assert (tmp_path / "stopped" / STATE_FILE).is_file()
    taken = -100
    _, report, recovery = train(dense, text, keep=tmp_path / "stopped")
    assert taken == -100 + 12 - 10  # it went on from the check at step 10
    assert report.digest == whole.digest
    assert (recovery.steps, recovery.tokens) == (12, 12 * 2 * 24)
    assert not (tmp_path / "stopped" / STATE_FILE).exists()
    assert not (tmp_path / "stopped" / "base").exists()


def test_a_training_whose_state_finds_no_room_goes_on(
    dense: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole, _ = train(dense, keep=tmp_path / "whole")

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(trainer_module, "CHECK_STEPS", 5)  # two attempts, at steps 5 and 10
    monkeypatch.setattr(trainer_module, "write_state", full)
    _, report, _ = train(dense, keep=tmp_path / "full")
    assert report.digest == whole.digest
    notes = [text for text in report.warnings if "could not be kept" in text]
    assert notes == ["the training could not be kept at step 12 ([Errno 28] No space left on device)"]


def test_a_damaged_state_names_its_folder_and_is_damage(dense: TransformersModel, tmp_path: Path) -> None:
    (tmp_path / STATE_FILE).write_bytes(b"cut")
    with pytest.raises(DamagedBlocksError, match="delete the folder") as raised:
        read_state(tmp_path, {})
    assert raised.value.folder == tmp_path


def test_a_training_with_a_layer_that_gets_no_gradient_continues(
    dense: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Student.__init__

    def without_gradient(self: Student, *arguments: Any, **options: Any) -> None:
        prepare(self, *arguments, **options)
        module = self.layers[0].module
        module.forward = torch.no_grad()(module.forward)

    monkeypatch.setattr(Student, "__init__", without_gradient)
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", 0.0)
    _, whole, _ = train(dense, keep=tmp_path / "whole")

    step = Trainer._step

    def stop(self: Trainer) -> float:
        if self.state.step == 11:
            raise KeyboardInterrupt
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(dense, keep=tmp_path / "stopped")
    assert (tmp_path / "stopped" / STATE_FILE).is_file()
    _, report, recovery = train(dense, keep=tmp_path / "stopped")
    assert (report.digest, recovery.steps) == (whole.digest, 12)


def test_blocks_of_a_training_that_was_stopped_do_not_mix_with_those_of_the_next(
    dense: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first attempt is killed while the blocks are written; the second reaches fewer steps in its minutes."""
    add = FinishedBlocks.add

    def killed(self: FinishedBlocks, index: int, *arguments: Any, **options: Any) -> None:
        if index == 1 and "lora" in self.key["recipe"]:
            raise KeyboardInterrupt
        add(self, index, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(FinishedBlocks, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            train(dense, keep=tmp_path, minutes=5.0)
    assert json.loads((tmp_path / "compression.json").read_text("utf-8"))["finished"] == 1
    monkeypatch.setattr(Trainer, "_seconds", lambda self: 301.0 if self.state.step == 4 else 0.0)
    recovered, report, recovery = train(dense, keep=tmp_path, minutes=5.0)
    assert (recovery.steps, recovery.stopped) == (4, "limit of minutes")
    kept, again, _ = train(dense, keep=tmp_path, minutes=5.0)
    assert weights_digest(kept.network) == weights_digest(recovered.network) == report.digest == again.digest


def test_the_state_of_another_training_is_refused(
    dense: TransformersModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "SAVE_SECONDS", 0.0)

    def stop(done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt  # at the last step, after a check

    with pytest.raises(KeyboardInterrupt):
        train(dense, keep=tmp_path, progress=stop)
    assert (tmp_path / STATE_FILE).exists()
    with pytest.raises(ModelError, match="another training"):
        train(dense, keep=tmp_path, learning_rate=0.5)
    (tmp_path / STATE_FILE).write_bytes(b"cut short")
    with pytest.raises(ModelError, match=r"damaged .*: delete the folder"):
        train(dense, keep=tmp_path)


def test_a_training_that_diverges_is_stopped_at_its_best_state(dense: TransformersModel) -> None:
    before = compress(dense, "wanda@0.5", calibration=WINDOWS)[1]
    _, report, recovery = train(dense, learning_rate=1.0, steps=200)
    assert recovery.stopped == "diverged"
    assert recovery.steps is not None
    assert recovery.steps < 200
    note = next(note for note in report.warnings if "training diverged and was stopped" in note)
    assert "smaller learning rate (now 1)" in note
    assert recovery.loss_before is not None
    assert recovery.loss_after is not None
    assert recovery.loss_after <= recovery.loss_before
    if recovery.loss_after == recovery.loss_before:
        assert report.digest == before.digest


@pytest.mark.parametrize("bad_step", [0, 11])
def test_a_loss_that_is_not_a_number_stops_the_training(
    bad_step: int, dense: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate = Trainer._accumulate

    def broken(self: Trainer, ids: torch.Tensor, total: list[float]) -> None:
        accumulate(self, ids, total)
        if self.state.step == bad_step:
            next(iter(self._parameters.values())).grad.fill_(float("nan"))  # type: ignore[union-attr]

    monkeypatch.setattr(Trainer, "_accumulate", broken)
    _, report, recovery = train(dense)
    assert (recovery.stopped, recovery.steps) == ("diverged", bad_step)
    assert any(f"the loss of step {bad_step + 1} is NaN or Inf" in note for note in report.warnings)
    monkeypatch.setattr(Trainer, "_accumulate", accumulate)
    expected = compress(dense, "wanda@0.5", calibration=WINDOWS)[1].digest
    assert (report.digest == expected) == (bad_step == 0)


def first_gradients(dense: TransformersModel, dtype: torch.dtype) -> tuple[torch.Tensor, Trainer]:
    """What a step of many tokens adds to the matrices' gradients, in one vector."""
    compressed, _ = compress(dense, "wanda@0.5", calibration=WINDOWS)
    student = Student(copy.deepcopy(compressed.network).to(dtype), rank=4, keeps_adapters=False, seed=0, skip=())
    trainer = Trainer(
        student=student, dense=copy.deepcopy(dense.network).to(dtype), windows=torch.as_tensor(WINDOWS.tokens),
        training=Training(steps=12, learning_rate=1e-2), seed=0,
    )  # fmt: skip
    assert math.isfinite(trainer._step())
    gradients = [parameter.grad for parameter in student.parameters().values()]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]), trainer


@pytest.mark.parametrize("scale", [2.0**16, 2.0**60])
def test_gradients_in_float16_are_those_of_float32(
    dense: TransformersModel, monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    monkeypatch.setattr(trainer_module, "FLOAT16_SCALE", scale)
    # A step of so many tokens that each adds too little for float16.
    monkeypatch.setattr(trainer_module, "counted_tokens", lambda ids, distils: 2**16 * ids.numel())
    expected, _ = first_gradients(dense, torch.float32)
    gradients, trainer = first_gradients(dense, torch.float16)
    assert float((gradients - expected).norm() / expected.norm()) < 0.03
    # A scale that float16 cannot hold is halved until it can, and kept with the state.
    assert (trainer.state.scale < scale) == (scale > 2.0**16)


def test_what_does_not_fit_into_memory_runs_in_smaller_pieces(
    dense: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "SHORTEST_PIECE", 12)
    loss, most = Trainer._summed_loss, 12

    def scarce(self: Trainer, network: Any, ids: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and ids.numel() > most:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes")
        return loss(self, network, ids)

    monkeypatch.setattr(Trainer, "_summed_loss", scarce)
    _, report, recovery = train(dense)
    assert recovery.steps == 12
    notes = [note for note in report.warnings if "memory ran short in the training" in note]
    assert len(notes) == 2
    assert "1 windows run at a time" in notes[0]
    assert "pieces of 12 tokens" in notes[1]

    most = 4
    with pytest.raises(ConfigError, match="memory is too short for a training"):
        train(dense)


def test_a_limit_of_tokens_allows_as_many_steps_where_memory_runs_short(
    dense: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "SHORTEST_PIECE", 12)
    loss, rates = Trainer._summed_loss, list[float]()

    def scarce(self: Trainer, network: Any, ids: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and ids.numel() > 12:
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 99 bytes")
        return loss(self, network, ids)

    rate = Trainer._learning_rate
    monkeypatch.setattr(Trainer, "_learning_rate", lambda *given: rates.append(rate(*given)) or rates[-1])
    train(dense, tokens=200)
    enough = rates.copy()
    rates.clear()
    monkeypatch.setattr(Trainer, "_summed_loss", scarce)
    _, report, recovery = train(dense, tokens=200)
    assert any("pieces of 12 tokens" in note for note in report.warnings)
    assert (recovery.steps, recovery.tokens, recovery.stopped) == (4, 192, "limit of tokens")
    assert rates == enough == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3])


def test_several_windows_that_do_not_fit_run_one_by_one_to_the_same_loss(
    dense: TransformersModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = train(dense)[2]
    prepare = Trainer.__post_init__

    def several(self: Trainer) -> None:
        prepare(self)
        self.state.micro = 2  # as on a GPU

    monkeypatch.setattr(Trainer, "__post_init__", several)
    loss = Trainer._summed_loss

    def scarce(self: Trainer, network: Any, ids: torch.Tensor) -> torch.Tensor:
        if len(ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(self, network, ids)

    monkeypatch.setattr(Trainer, "_summed_loss", scarce)
    _, report, recovery = train(dense)
    assert any("1 windows run at a time" in note for note in report.warnings)
    assert recovery.loss_after == pytest.approx(plain.loss_after, rel=1e-4)


def test_limits_of_tokens_and_minutes_end_a_training(dense: TransformersModel) -> None:
    _, _, recovery = train(dense, tokens=200)
    assert (recovery.steps, recovery.tokens, recovery.stopped) == (4, 4 * 48, "limit of tokens")
    _, _, recovery = train(dense, minutes=1e-9)
    assert (recovery.steps, recovery.stopped) == (0, "limit of minutes")
    with pytest.raises(ConfigError, match="47 tokens are less than a step reads, 48"):
        train(dense, tokens=47)


def test_too_few_tokens_for_a_step_are_refused_before_the_base_is_compressed(dense: TransformersModel) -> None:
    recipe = with_training(parse_recipe("wanda@2:4+lora"), Training(tokens=95, batch=2))
    worked: list[int] = []
    with pytest.raises(ConfigError, match="95 tokens are less than a step reads, 96"):
        compress(dense, recipe, calibration=[[1] * 48] * 3, progress=lambda done, _total: worked.append(done))
    assert not worked


def test_one_window_is_enough(dense: TransformersModel) -> None:
    windows = Calibration(tokens=WINDOWS.tokens[:1], source="test", seed=0)
    _, _, recovery = train(dense, windows=windows)
    assert recovery.tokens == 12 * 24


def test_without_peft_there_is_one_line(dense: TransformersModel, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "peft":
            raise ImportError("No module named 'peft'")
        return imported(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "peft", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"lora needs a package: pip install 'llmkick\[recover\]'"):
        train(dense)
    compress(dense, "wanda@0.5+eora-r4", calibration=WINDOWS)


@pytest.mark.parametrize("architecture", ["gpt2", "mixtral"])
def test_other_kinds_of_layers_are_trained_or_named(architecture: str) -> None:
    _, report, recovery = train(toy_model(architecture), "wanda@0.5+lora-r2")
    assert recovery.loss_before is not None
    assert recovery.loss_after is not None
    assert recovery.loss_after < recovery.loss_before
    notes = [note for note in report.warnings if "as it was compressed: experts in one parameter" in note]
    assert bool(notes) == (architecture == "mixtral")


def test_codes_that_were_damaged_meanwhile_are_not_taken_over(tmp_path: Path) -> None:
    """Experts without a digest of their own, which no adapter changes: their files are read again at the end."""
    model, damaged = toy_model("mixtral"), list[str]()

    def damage(done: int, total: int) -> None:
        if damaged or 2 * done <= total:  # the base is compressed first
            return
        file = tmp_path / "base" / "block-00000.safetensors"
        content = bytearray(file.read_bytes())
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        damaged.append(next(name for name in header if ".experts." in name and name.endswith(":values")))
        content[8 + size + header[damaged[0]]["data_offsets"][0]] ^= 1
        file.write_bytes(content)

    with pytest.raises(
        DamagedBlocksError, match=r"base/block-00000\.safetensors.*: delete the folder .*base"
    ) as raised:
        train(model, "rtn@4b-g8+lora-r2", keep=tmp_path, progress=damage)
    assert damaged
    assert raised.value.folder == tmp_path / "base"
    recovered, report, _ = train(model, "rtn@4b-g8+lora-r2", keep=tmp_path / "whole")
    shutil.rmtree(tmp_path / "base")
    again, _, _ = train(model, "rtn@4b-g8+lora-r2", keep=tmp_path)
    assert weights_digest(again.network) == weights_digest(recovered.network) == report.digest


def test_weights_that_are_not_in_memory_are_not_trained(dense: TransformersModel) -> None:
    from llmkick.compression.training.recover import check_trainable

    network = type(dense.network)(dense.network.config).to("meta")
    nowhere = dense.with_network(network, digest="")
    with pytest.raises(ConfigError, match="is not in memory as a whole"):
        check_trainable(parse_recipe("wanda@0.5+lora"), nowhere)
    check_trainable(parse_recipe("wanda@0.5+eora-r4"), nowhere)


def test_gradients_of_the_masked_layer_are_those_of_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weight, b, a = (
        torch.randn(shape, generator=generator, dtype=torch.float32) for shape in ((2, 5, 6), (4, 6), (4, 2), (2, 6))
    )
    mask = torch.rand(4, 6, generator=generator) > 0.5
    both = []
    for layer in (
        lambda x, p, q: MaskedLinear.apply(x, weight, mask, p, q),
        lambda x, p, q: F.linear(x, weight + (p @ q) * mask),
    ):
        leaves = [tensor.clone().requires_grad_() for tensor in (inputs, b, a)]
        output = layer(*leaves)
        output.square().sum().backward()
        both.append([output, *(leaf.grad for leaf in leaves)])
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in zip(*both, strict=True))
