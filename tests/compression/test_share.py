"""How much of a model was compressed: what reports state, and the refusal of models that would stay mostly dense."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from llmkick.cli import app
from llmkick.compression.walk.blocks import decoder_blocks
from llmkick.compression.walk.checks import check_seen, count_weights
from llmkick.compression.walk.compress import compress, compress_many
from llmkick.compression.walk.report import CompressionReport
from llmkick.compression.walk.versions import walk_version
from llmkick.errors import ConfigError, ModelError
from llmkick.models.transformers_model import TransformersModel
from llmkick.study.run import run_study
from llmkick.study.spec.study import make_study
from toy import ARCHITECTURES, BLOCKS, UNUSUAL, save_toy, toy_model

MOSTLY_DENSE = {"hidden_size": 16, "state_size": 32, "intermediate_size": 8}


def mostly_dense() -> TransformersModel:
    """A recurrent model with more weights in its states than in its linear layers."""
    return toy_model("mamba", **MOSTLY_DENSE)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def windows() -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(0).integers(3, 284, (4, 24))


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *UNUSUAL, *BLOCKS])
def test_the_shares_are_those_of_the_weights_that_changed(architecture: str):
    model = toy_model(architecture)
    compressed, report = compress(model, "magnitude@0.5", allow_partial=True)
    before, after = dict(model.network.named_parameters()), dict(compressed.network.named_parameters())
    prefixes = tuple(f"{block.name}." for block in decoder_blocks(model.network))
    matrices = {n for n, p in before.items() if n.startswith(prefixes) and p.dim() > 1 and not n.endswith("bias")}
    changed = sum(p.numel() for n, p in before.items() if not torch.equal(p, after[n]))
    assert report.block_share == pytest.approx(changed / sum(before[name].numel() for name in matrices))
    assert report.model_share == pytest.approx(changed / sum(p.numel() for p in before.values()))


def test_experts_that_stay_dense_do_not_count():
    model = toy_model("mixtral", num_experts_per_tok=1)
    for layer in model.network.model.layers:
        layer.mlp.gate.weight[1:] = -layer.mlp.gate.weight[0]  # none to the last two
        layer.mlp.gate.weight[2:] = 0
    _, report = compress(model, "wanda@0.5", calibration=windows(), propagate=False)
    counts = count_weights(model.network, decoder_blocks(model.network))
    dense = sum(layer.shape[0] * layer.shape[1] for layer in report.layers if not layer.tokens)
    assert dense > 0
    assert report.block_share == pytest.approx((counts.layers - dense) / counts.blocks)


def test_a_model_that_would_stay_mostly_dense_is_refused_unless_allowed():
    model = mostly_dense()
    message = (
        r"MambaForCausalLM: recipes would compress \d\d\.\d% of the weights in its blocks and leave the rest dense, "
        r"the most of it in backbone\.layers\.\*\.mixer\.\w+.* \(\d+%\).*--allow-partial, or allow_partial = true"
    )
    for go in (
        lambda: compress(model, "magnitude@0.5"),
        lambda: compress_many(model, ["magnitude@0.5", "rtn@4b"]),
    ):
        with pytest.raises(ConfigError, match=message):
            go()
    _, report = compress(model, "magnitude@0.5", allow_partial=True)
    assert report.block_share is not None
    assert report.block_share < 0.9
    assert compress(model, "dense")[1].block_share == 0


def test_the_command_refuses_before_any_work_and_states_the_shares(tmp_path: Path):
    save_toy(tmp_path / "model", "mamba", **MOSTLY_DENSE)
    arguments = ("compress", str(tmp_path / "model"), "magnitude@0.5", "-o", str(tmp_path / "out"), "-q")
    refused = run(*arguments)
    assert isinstance(refused.exception, ConfigError)
    assert "--allow-partial" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    allowed = run(*arguments, "--allow-partial")
    report = json.loads((tmp_path / "out" / "llmkick_compression.json").read_text())
    shares = f"{report['block_share']:.1%} of the block weights and {report['model_share']:.1%} of all weights"
    assert f"{shares} compressed" in " ".join(allowed.output.split())


def test_the_command_names_the_routers(tmp_path: Path):
    save_toy(tmp_path / "model", "qwen2_moe")
    done = run("compress", str(tmp_path / "model"), "magnitude@0.5", "-o", str(tmp_path / "out"), "-q")
    routers = "model.layers.*.mlp.gate.weight, model.layers.*.mlp.shared_expert_gate.weight"
    assert f"routers left dense: {routers}" in " ".join(done.output.split())


def test_a_study_refuses_too_and_goes_on_with_allow_partial(tmp_path: Path):
    save_toy(tmp_path / "model", "mamba", **MOSTLY_DENSE)
    values: dict[str, Any] = {
        "model": str(tmp_path / "model"),
        "dtype": "float32",
        "recipes": ["magnitude@0.5"],
        "tasks": [{"name": "perplexity", "window": 24, "limit": 2}],
        "calibration": {"sequences": 2, "length": 24},
    }
    study = make_study(values)
    with pytest.raises(ConfigError, match="allow_partial = true"):
        run_study(study, out=tmp_path / "run")
    allowed = make_study({**values, "allow_partial": True})
    assert allowed.hash() == study.hash()
    result = run_study(allowed, out=tmp_path / "run")
    (compression,) = result.compression
    share = compression.facts["block_share"]
    assert isinstance(share, float)
    assert share < 0.9


def test_reports_of_earlier_versions_are_read():
    _, report = compress(toy_model(), "magnitude@0.5")
    values = json.loads(json.dumps(asdict(report)))
    assert CompressionReport.from_json(values) == report
    for name in ("block_share", "model_share", "routers"):
        del values[name]
    earlier = CompressionReport.from_json(values)
    assert (earlier.block_share, earlier.model_share, earlier.routers, earlier.coverage) == (None, None, (), "")


class NeverRuns(nn.Module):
    """A wide layer beside a block's own that text does not reach."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.image = block, nn.Linear(64, 64)

    def forward(self, *arguments: Any, **keywords: Any) -> Tensor:
        states: Tensor = self.block(*arguments, **keywords)
        return states


def test_layers_that_calibration_does_not_reach_end_the_walk_at_its_first_block():
    model = toy_model()
    model.network.model.layers = nn.ModuleList(NeverRuns(block) for block in model.network.model.layers)
    done: list[int] = []
    with pytest.raises(ModelError, match=r"model\.layers\.0: calibration text does not reach model\.layers\.0\.image"):
        compress(model, "wanda@0.5", calibration=windows(), progress=lambda count, _total: done.append(count))
    assert done == []
    compress(model, "magnitude@0.5")
    _, report = compress(model, "wanda@0.5", calibration=windows(), allow_partial=True)
    assert report.block_share is not None
    assert report.block_share < 0.5


def test_single_experts_without_tokens_do_not_end_it():
    block = decoder_blocks(toy_model("mixtral").network)[0]
    check_seen(block, lambda layer: layer.form != "expert" or layer.expert == 0)
    with pytest.raises(ModelError, match="experts"):
        check_seen(block, lambda layer: layer.form != "expert")


def test_keys_change_only_where_weights_do():
    assert {walk_version(name) for name in ("LlamaForCausalLM", "MixtralForCausalLM", "Gemma3ForCausalLM")} == {5}
    changed = ("GptOssForCausalLM", "Llama4ForConditionalGeneration", "Qwen2MoeForCausalLM", "ZambaForCausalLM")
    assert {walk_version(name) for name in changed} == {6}
