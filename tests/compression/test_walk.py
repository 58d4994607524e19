"""The walk over the blocks against the obvious procedure: whole forwards, one sequence at a time, block after block."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from forwards import count_forwards
from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.recipe import Recipe
from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk import batches, inputs, recipe_output
from llmkick.compression.walk.block_forward import BlockRunner
from llmkick.compression.walk.calibration import Calibration
from llmkick.compression.walk.compress import compress
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.size import compact_bytes
from llmkick.compression.walk.weight import compress_weight
from llmkick.errors import ConfigError, NumericalError
from llmkick.models.checkpoints.loading import on_the_meta_device
from llmkick.models.engine.runner import Runner
from llmkick.models.transformers_model import TransformersModel
from llmkick.models.weights import weights_digest
from toy import toy_model

ARCHITECTURES = ("llama", "qwen2", "gemma", "gemma3", "mistral", "opt", "gpt_neox", "gpt2", "mixtral")
UNUSUAL = ("deepseek_v3", "lfm2", "gpt_oss", "gpt_neo", "bloom")
# Shared keys and values, tokens chosen by an earlier block, hidden states of earlier blocks; gates of shared experts.
HANDING_ON = ("gemma3n", "gemma4", "glm_moe_dsa", "inkling2", "qwen2_moe")
ROUTERS = ("router", "expert_gate", ".gate.", "per_layer_input_gate")
RECIPES = ("wanda@0.5", "wanda@2:4", "magnitude@0.25", "rtn@4b", "rtn@3b-g8", "sparsegpt@0.5", "gptq@4b")
BLOCKS = {
    "opt": "model.decoder.layers",
    "gpt_neox": "gpt_neox.layers",
    **dict.fromkeys(("gpt2", "gpt_neo", "bloom"), "transformer.h"),
}
SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def windows(sequences: int = 7, length: int = 30, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, 284, (sequences, length))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_TOKENS", 65)  # batches of 2, 2, 2 and 1 sequences
    monkeypatch.setattr(inputs, "ERROR_TOKENS", 4 * 60)  # all of every batch, so that errors can be told from outside


# The obvious procedure

Weights = dict[str, Tensor]  # name as in the report → (out, in)


def block_modules(network: nn.Module, architecture: str) -> dict[str, nn.Module]:
    blocks = network.get_submodule(BLOCKS.get(architecture, "model.layers"))
    return {f"{BLOCKS.get(architecture, 'model.layers')}.{name}": block for name, block in blocks.named_children()}


def is_experts(module: nn.Module) -> bool:
    return type(module).__name__.endswith("Experts")


def expert_weights(module: Any, key: str) -> list[Tensor]:
    """(out, in) of each expert; GPT-OSS stores them the other way round."""
    return [matrix.t() if module.is_transposed else matrix for matrix in getattr(module, key).detach()]


def weights_of(prefix: str, block: nn.Module) -> Weights:
    found: Weights = {}
    for name, module in block.named_modules():
        if any(part in name for part in ROUTERS):
            continue
        if isinstance(module, nn.Linear):
            found[f"{prefix}.{name}"] = module.weight.detach()
        elif isinstance(module, Conv1D):
            found[f"{prefix}.{name}"] = module.weight.detach().t()
        elif is_experts(module):
            for key in ("gate_up_proj", "down_proj"):
                for expert, matrix in enumerate(expert_weights(module, key)):
                    found[f"{prefix}.{name}.{key}.{expert}"] = matrix
    return found


def inputs_of(network: nn.Module, prefix: str, block: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """(sequences, tokens, in) of each layer, or (1, tokens, in) of an expert: one whole forward a sequence."""
    seen: dict[str, list[Tensor]] = {}

    def plain(name: str) -> Any:
        return lambda _module, arguments: seen.setdefault(name, []).append(arguments[0].clone())

    def experts(name: str) -> Any:
        def hook(module: Any, arguments: tuple[Tensor, ...]) -> None:
            states, chosen = arguments[:2]
            for expert in range(len(module.down_proj)):
                rows = states[(chosen == expert).any(dim=1)]
                product = rows @ expert_weights(module, "gate_up_proj")[expert].t()
                if module.has_bias:
                    product = product + module.gate_up_proj_bias[expert]
                seen.setdefault(f"{name}.gate_up_proj.{expert}", []).append(rows)
                seen.setdefault(f"{name}.down_proj.{expert}", []).append(module._apply_gate(product))

        return hook

    handles = []
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            handles.append(module.register_forward_pre_hook(plain(f"{prefix}.{name}")))
        elif is_experts(module):
            handles.append(module.register_forward_pre_hook(experts(f"{prefix}.{name}")))
    with torch.no_grad():
        for sequence in ids:
            network(sequence[None])
    for handle in handles:
        handle.remove()
    return {
        name: torch.cat(rows)[None] if rows[0].dim() == 2 else torch.cat(rows).flatten(1, -2)
        for name, rows in seen.items()
    }


def reference(
    model: TransformersModel, architecture: str, recipe: Recipe, *, propagate: bool
) -> tuple[Weights, dict[str, Tensor]]:
    """Every compressed weight, and the inputs that it was calibrated on."""
    ids = torch.from_numpy(windows())
    dense, network = model.network, copy.deepcopy(model.network)
    compressed: Weights = {}
    calibrated_on: dict[str, Tensor] = {}
    for prefix, block in block_modules(network, architecture).items():
        source = network if propagate else dense
        source_block = source.get_submodule(prefix)
        inputs = inputs_of(source, prefix, source_block, ids)
        calibrated_on |= inputs
        for name, weight in weights_of(prefix, block).items():
            compressed[name] = compress_weight(weight, inputs[name] if recipe.needs_calibration else None, recipe)
            weight.copy_(compressed[name])
    return compressed, calibrated_on


def agreement(found: Weights, expected: Weights) -> float:
    """Share of equal entries. A choice between two scores that tie within float32 may fall either way."""
    assert found.keys() == expected.keys()
    equal = [torch.isclose(found[name], expected[name], rtol=1e-3, atol=1e-4).flatten() for name in expected]
    return float(torch.cat(equal).double().mean())


def compressed_weights(model: TransformersModel, architecture: str) -> Weights:
    blocks = block_modules(model.network, architecture)
    return {name: w for prefix, block in blocks.items() for name, w in weights_of(prefix, block).items()}


# Measured: the wrong choice of propagation agrees in at most 0.991 of the entries, the right one in all. The
# rest is room for choices that fall the other way on another machine.
AGREEMENT = 0.996


def walks() -> Iterator[Any]:
    """Every recipe on the first architecture, and a quarter of the recipes on each other one; the rest is slow."""
    for a, architecture in enumerate(ARCHITECTURES):
        for r, text in enumerate(RECIPES):
            for propagate in (True, False):
                quick = a == 0 or (a + r + propagate) % 4 == 0
                yield pytest.param(architecture, text, propagate, marks=() if quick else pytest.mark.slow)
    yield from itertools.product(UNUSUAL, ("wanda@0.5", "rtn@4b"), (True,))
    for architecture in HANDING_ON:
        yield architecture, "wanda@0.5", True
        yield pytest.param(architecture, "wanda@0.5", False, marks=pytest.mark.slow)


@pytest.mark.parametrize(("architecture", "text", "propagate"), walks())
def test_the_walk_equals_the_obvious_procedure(architecture: str, text: str, propagate: bool):
    model, recipe = toy_model(architecture), parse_recipe(text)
    expected, inputs = reference(model, architecture, recipe, propagate=propagate)
    before = {name: weight.clone() for name, weight in compressed_weights(model, architecture).items()}
    parameters = dict(model.network.named_parameters())

    found, report = compress(model, text, calibration=windows(), propagate=propagate)

    weights = compressed_weights(found, architecture)
    assert agreement(weights, expected) >= AGREEMENT
    # The model given is as it was, and all that was not compressed is its memory.
    assert weights_digest(model.network) == model.info.digest
    assert weights_digest(found.network) == found.info.digest == report.digest != model.info.digest
    changed = {name for name, parameter in found.network.named_parameters() if parameter is not parameters[name]}
    assert changed == {f"{n}.weight" if f"{n}.weight" in parameters else n.rsplit(".", 1)[0] for n in before}
    check_report(report, model, recipe, before, weights, inputs)


def test_a_network_that_is_built_meanwhile_takes_no_weights_away():
    """Building on the meta device replaces how parameters are registered, for all threads of the process."""
    model = toy_model("llama")
    expected, _ = compress(model, "magnitude@0.5")
    with on_the_meta_device():
        found, _ = compress(model, "magnitude@0.5")
    assert not any(parameter.is_meta for parameter in found.network.parameters())
    assert found.info.digest == expected.info.digest


def check_report(
    report: CompressionReport,
    model: TransformersModel,
    recipe: Recipe,
    before: Weights,
    after: Weights,
    inputs: dict[str, Tensor],
) -> None:
    """Every number of a report, counted from the weights themselves."""
    assert report.recipe == str(recipe)
    assert (report.model, report.source_precision, report.seed) == (model.info.name, "float", 0)
    assert [layer.name for layer in report.layers] == list(before)
    zeros = 0
    for layer in report.layers:
        old, new = before[layer.name], after[layer.name]
        assert layer.shape == tuple(old.shape)
        assert layer.realised_sparsity == pytest.approx(int((new == 0).sum()) / new.numel(), abs=1e-12)
        zeros += int((new == 0).sum())
        if recipe.needs_calibration:
            own = inputs[layer.name].double()
            assert layer.tokens == len(own.flatten(0, 1))
            rows = (own[:, 1:] if len(own) > 1 else own).flatten(0, 1)  # without first tokens
            change = torch.linalg.vector_norm(rows @ (new - old).double().t())
            expected = float(change / torch.linalg.vector_norm(rows @ old.double().t()))
            assert layer.relative_output_error == pytest.approx(expected, rel=2e-3, abs=1e-6), layer.name
        else:  # measured on the first sequences only
            assert layer.relative_output_error is not None
            assert 0 < layer.relative_output_error < 1
        assert layer.damping == (0.01 if recipe.needs_hessian else None)
    count = sum(weight.numel() for weight in before.values())
    assert report.realised_sparsity == pytest.approx(zeros / count, abs=1e-12)
    assert report.dense_bytes == 4 * count
    assert report.stored_bytes == sum(
        compact_bytes(layer.shape, 4, recipe, layer.realised_sparsity) for layer in report.layers
    )
    used = Calibration(tokens=windows(), source="", seed=0).digest
    assert report.calibration == (used if recipe.needs_calibration else None)
    assert report.calibration_source == ("token ids" if recipe.needs_calibration else None)


# What the report says


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [("wanda@0.5", 0.5, 0.5), ("wanda@2:4", 0.5, 0.5), ("wanda@0.25", 0.25, 0.25), ("magnitude@0.25", 0.25, 0.255),
     ("magnitude@1:2", 0.5, 0.5), ("sparsegpt@0.5", 0.5, 0.505), ("sparsegpt@4:8", 0.5, 0.5), ("gptq@4b", 0.0, 0.2),
     ("wanda@0.5+rtn@4b", 0.5, 0.65)],
)  # fmt: skip
def test_realised_sparsity_is_what_was_asked_for(text: str, low: float, high: float):
    _, report = compress(toy_model(), text, calibration=windows())
    assert low <= report.realised_sparsity <= high
    assert all(low <= layer.realised_sparsity <= high for layer in report.layers)


def test_methods_without_calibration_report_no_output_error_unless_windows_are_given():
    model = toy_model("gpt2")
    without, report = compress(model, "rtn@4b")
    assert {layer.relative_output_error for layer in report.layers} == {None}
    assert {layer.tokens for layer in report.layers} == {0}
    with_windows, measured = compress(model, "rtn@4b", calibration=windows())
    assert with_windows.info.digest == without.info.digest  # the same weights
    assert {layer.tokens for layer in measured.layers} == {2 * 30}  # the first two sequences
    _, first_four = compress(model, "rtn@4b", calibration=windows()[:4])
    assert first_four.layers == measured.layers
    errors = [layer.relative_output_error for layer in measured.layers]
    assert all(error is not None and 0.01 < error < 0.2 for error in errors)


def test_what_is_left_alone_is_named():
    _, report = compress(toy_model("mixtral"), "wanda@0.5", calibration=windows())
    assert report.routers == tuple(f"model.layers.{n}.mlp.gate.weight" for n in range(3))
    assert report.router_names == ["model.layers.*.mlp.gate.weight"]
    assert not any(".mlp.gate" in layer.name for layer in report.layers)
    _, report = compress(toy_model("lfm2"), "wanda@0.5", calibration=windows())
    assert [warning for warning in report.warnings if warning.startswith("left alone")] == [
        f"left alone: model.layers.{n}.conv.conv.weight: no linear layer, but a Conv1d" for n in (0, 2)
    ]


@pytest.mark.parametrize("text", ["wanda@2:4", "gptq@4b", "wanda@0.5"])
def test_experts_that_saw_nothing_stay_dense_and_are_named(monkeypatch: pytest.MonkeyPatch, text: str):
    model = toy_model("mixtral", num_experts_per_tok=1)
    router = model.network.model.layers[1].mlp.gate.weight
    router[1], router[2:] = -router[0], 0  # each token goes to 0 or to 1, none to 2 and 3
    before = compressed_weights(model, "mixtral")
    hit = routed_tokens(model)
    starved = [2, 3]
    assert [expert for expert in range(4) if hit[expert] == 0] == starved
    monkeypatch.setattr(recipe_output, "FEW_TOKENS", max(hit))  # the other of 0 and 1 has seen few
    found, report = compress(model, text, calibration=windows(), propagate=False)
    after = compressed_weights(found, "mixtral")
    for layer in report.layers:
        if not layer.name.startswith("model.layers.1.mlp.experts"):
            continue
        expert = int(layer.name.rsplit(".", 1)[1])
        assert layer.tokens == hit[expert]
        named = [warning for warning in report.warnings if f"{layer.name} " in warning]
        if expert in starved:
            assert named == [f"left dense: {layer.name} saw no calibration token"]
            assert torch.equal(after[layer.name], before[layer.name])
            assert (layer.realised_sparsity, layer.relative_output_error, layer.damping) == (0.0, None, None)
        else:
            few = [f"few tokens: {layer.name} was calibrated on {hit[expert]} tokens"]
            assert named == (few if hit[expert] < max(hit) else [])
            assert not torch.equal(after[layer.name], before[layer.name])
    # What stays dense is stored dense.
    recipe, dense = parse_recipe(text), parse_recipe("dense")
    assert report.stored_bytes == sum(
        compact_bytes(layer.shape, 4, recipe if layer.tokens else dense, layer.realised_sparsity)
        for layer in report.layers
    )


def routed_tokens(model: TransformersModel) -> list[int]:
    """Calibration tokens that each expert of block 1 gets."""
    counts = torch.zeros(4, dtype=torch.long)

    def count(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        counts.add_(arguments[1].flatten().bincount(minlength=4))

    handle = model.network.model.layers[1].mlp.experts.register_forward_pre_hook(count)
    with torch.no_grad():
        model.network(torch.from_numpy(windows()))
    handle.remove()
    return counts.tolist()


def test_groups_that_do_not_divide_a_row_are_said():
    _, report = compress(toy_model(), "rtn@4b-g12")
    assert report.warnings == (
        "the last group of rows with 16 inputs has 4 inputs instead of 12",
        "the last group of rows with 32 inputs has 8 inputs instead of 12",
    )


def test_dense_changes_nothing():
    model = toy_model()
    found, report = compress(model, "dense", calibration=windows())
    assert (found.info, report.digest) == (model.info, model.info.digest)
    assert (report.layers, report.dense_bytes, report.realised_sparsity) == ((), 0, 0.0)
    assert all(p is q for p, q in zip(found.network.parameters(), model.network.parameters(), strict=True))


def test_progress_is_told_block_by_block():
    told: list[tuple[int, int]] = []
    compress(toy_model(), "wanda@0.5", calibration=windows(), progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_where_a_calibration_comes_from_is_kept():
    given = Calibration(tokens=windows(), source="self", seed=5)
    _, report = compress(toy_model(), "wanda@0.5", calibration=given, seed=5)
    assert (report.calibration, report.calibration_source, report.seed) == (given.digest, "self", 5)
    assert report.propagate


# How the work is done


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch):
    model, found = toy_model(), []
    for tokens in (1, 65, 10**6):
        monkeypatch.setattr(batches, "BATCH_TOKENS", tokens)
        monkeypatch.setattr(batches, "BATCH_TOKENS_CPU", tokens)
        compressed, report = compress(model, "sparsegpt@0.5", calibration=windows())
        found.append(compressed_weights(compressed, "llama"))
        assert {layer.tokens for layer in report.layers} == {7 * 30}
    assert agreement(found[0], found[1]) >= AGREEMENT
    assert agreement(found[0], found[2]) >= AGREEMENT


def test_a_second_compression_starts_from_the_first():
    first, _ = compress(toy_model(), "magnitude@0.25")
    digest = first.info.digest
    second, report = compress(first, "rtn@4b")
    assert weights_digest(first.network) == digest
    chained, _ = compress(toy_model(), "magnitude@0.25+rtn@4b")
    assert second.info.digest == chained.info.digest == report.digest


@pytest.mark.parametrize(
    ("architecture", "inputs"),
    # q,k,v · o · gate,up · down; OPT's q,k,v · out · fc1 · fc2; parallel or fused: each layer its own
    [("llama", 4), ("gemma", 4), ("opt", 4), ("gpt_neox", 4), ("gpt2", 4)],
)
def test_a_shared_input_is_accumulated_once(monkeypatch: pytest.MonkeyPatch, architecture: str, inputs: int):
    added: list[tuple[str, int]] = []
    factorised: list[str] = []
    add, factor = InputStatistics.add, InputStatistics.factor

    def spy_add(self: InputStatistics, rows: Tensor) -> None:
        added.append((self.name, rows.shape[0] * rows.shape[1]))
        add(self, rows)

    def spy_factor(self: InputStatistics, **options: Any) -> Any:
        factorised.append(self.name)
        return factor(self, **options)

    monkeypatch.setattr(InputStatistics, "add", spy_add)
    monkeypatch.setattr(InputStatistics, "factor", spy_factor)
    _, report = compress(toy_model(architecture), "gptq@4b", calibration=windows())
    # Once for each distinct input of each block, in each of the four batches.
    assert len(added) == inputs * 3 * 4
    assert len({name for name, _ in added}) == inputs * 3
    assert sum(tokens for _, tokens in added) == inputs * 3 * 7 * 30
    assert len(factorised) == len(report.layers)
    assert set(factorised) == {name for name, _ in added}


def test_the_dense_pass_runs_each_block_once_and_the_propagated_one_twice(monkeypatch: pytest.MonkeyPatch):
    model = toy_model()
    for propagate, expected in ((False, 3 * 4), (True, 2 * 3 * 4 - 4)):  # the last block's outputs serve nobody
        run: list[int] = []
        with monkeypatch.context() as patch:
            count_forwards(patch, run)
            compress(model, "wanda@0.5", calibration=windows(), propagate=propagate)
        assert len(run) == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_models_stay_in_their_dtype(dtype: torch.dtype):
    model = toy_model(dtype=dtype)
    for text in ("wanda@0.5", "sparsegpt@2:4", "gptq@4b"):
        found, report = compress(model, text, calibration=windows())
        assert {parameter.dtype for parameter in found.network.parameters()} == {dtype}
        assert report.dense_bytes == 2 * sum(a * b for a, b in (layer.shape for layer in report.layers))
        assert all(layer.relative_output_error < 1 for layer in report.layers)  # type: ignore[operator]


# What bad input gets


def no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = lambda *_, **__: pytest.fail("work was begun")  # noqa: E731
    monkeypatch.setattr(BlockRunner, "only", refuse)
    monkeypatch.setattr(Runner, "forward", refuse)
    monkeypatch.setattr(recipe_output, "compress_with_statistics", refuse)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wanda@3:7", r"wanda@3:7: model\.layers\.0\.self_attn\.q_proj has 16 inputs, .* not a multiple of 7; choose"),
        ("sparsegpt@8:32", r"model\.layers\.0\.self_attn\.q_proj has 16 inputs, which is not a multiple of 32"),
        ("wanda@0.5", r"wanda@0\.5 needs calibration: pass a Calibration or token ids"),
        ("gptq@4b", "gptq@4b needs calibration"),
        ("wanda@1.5", r"recipe 'wanda@1\.5': sparsity 1\.5 is not the share of zeros"),
        ("wander@0.5", "recipe 'wander@0.5': unknown method 'wander'; choose from: .*wanda"),
        ("rtn@5b", "recipe 'rtn@5b': .*choose from: 2b, 3b, 4b, 8b"),
        ("", "the text is empty"),
    ],
)
def test_recipes_that_do_not_fit_are_refused_before_any_work(monkeypatch: pytest.MonkeyPatch, text: str, message: str):
    no_forward(monkeypatch)
    with pytest.raises(ConfigError, match=message):
        compress(toy_model(), text, calibration=None if "needs" in message else windows())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.array([[1, 288]]), "token id 288, but the model's vocabulary has 288"),
        (np.array([[-1, 5]]), "token id -1, but the model's vocabulary has 288"),
        (np.zeros((1, 257), dtype=int), "windows of 257 tokens exceed the model's context of 256"),
        (np.zeros((2, 3)), "integer token ids"),
        (np.zeros((0, 8), dtype=int), "integer token ids"),
    ],
)
def test_calibrations_that_do_not_fit_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, tokens: Any, message: str
):
    no_forward(monkeypatch)
    for text in ("wanda@0.5", "magnitude@0.5"):
        with pytest.raises(ConfigError, match=message):
            compress(toy_model("opt"), text, calibration=tokens)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("text", ["magnitude@0.5", "rtn@4b", "wanda@0.5", "gptq@4b"])
def test_damaged_weights_are_named_before_any_work(monkeypatch: pytest.MonkeyPatch, text: str, value: float):
    no_forward(monkeypatch)
    model = toy_model()
    model.network.model.layers[1].mlp.down_proj.weight[2, 3] = value
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.down_proj\.weight hold NaN or Inf"):
        compress(model, text, calibration=windows())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("text", ["wanda@0.5", "sparsegpt@0.5", "rtn@4b"])
def test_activations_that_are_not_finite_name_the_layer(text: str, value: float):
    model = toy_model()
    layer = model.network.model.layers[1].mlp.up_proj
    # Finite weights can still overflow on the way: here the output of up_proj, which is down_proj's input.
    handle = layer.register_forward_hook(
        lambda _module, _arguments, output: output.index_fill(2, torch.tensor(5), value)
    )
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.down_proj: .*column 5"):
        compress(model, text, calibration=windows())
    handle.remove()


def test_an_error_leaves_the_model_as_it_was():
    model = toy_model("mixtral")
    implementation = model.network.get_experts_implementation()
    model.network.model.layers[1].mlp.experts.gate_up_proj[:] = 1e30  # finite, but not its products
    digest = weights_digest(model.network)
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.experts\.down_proj\.\d"):
        compress(model, "gptq@4b", calibration=windows())
    assert weights_digest(model.network) == digest
    assert model.network.get_experts_implementation() == implementation
    assert not any(module._forward_pre_hooks for module in model.network.modules())
    assert not any("forward" in vars(module) for module in model.network.modules())


# The built-in model against the reference implementations' own walk


# Methods that mend amplify rounding: the reference itself, with another number of threads, moves by up to 1 % where
# 2 % are asked here, and by 10 % in gptq@3b-g128, where its figure is no more than orientation. Ours moves as much
# with the size of the batches, gptq@4b from 34.1 over 35.7 to 36.9: the test takes the size nearest the reference's.
TOLERANCES = {"dense": 0.003, "wanda@0.5": 0.003, "sparsegpt@0.5": 0.02, "gptq@4b": 0.02, "sparsegpt@2:4": 0.05,
              "gptq@3b-g128": 0.25}  # fmt: skip


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize(("text", "tolerance"), [("magnitude@0.3", 0.003), *TOLERANCES.items()])
@pytest.mark.timeout(1500)
def test_perplexity_of_the_built_in_model_is_that_of_the_reference(
    monkeypatch: pytest.MonkeyPatch, builtin_model: TransformersModel, text: str, tolerance: float
):
    from llmkick.tasks.suite.perplexity import cut_windows, perplexity

    if not (SHARED / "oracles" / "smollm2.json").exists():
        pytest.skip(f"no reference results at {SHARED}")
    monkeypatch.setattr(batches, "BATCH_TOKENS_CPU", 8192)
    expected = json.loads((SHARED / "oracles" / "smollm2.json").read_text())["perplexity"][text]
    calibration = np.load(SHARED / "oracles" / "smollm2_calibration_seed0.npy")
    wikitext = gzip.decompress((SHARED / "data" / "wikitext2" / "wiki.valid.raw.gz").read_bytes()).decode()
    ids = [token for window in cut_windows(builtin_model.tokenize(wikitext), 1024)[:8] for token in window]
    needed = parse_recipe(text).needs_calibration
    compressed, _ = compress(builtin_model, text, calibration=calibration if needed else None)
    found = perplexity(compressed, ids, window=1024)
    print(f"{text}: {found:.4f}, reference {expected}")
    assert found == pytest.approx(expected, rel=tolerance)
