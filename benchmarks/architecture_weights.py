"""What a compression did to the weights and files of a tiny model, told without the code that did it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from tiny import EXPERTS

LEAST_SHARE = 0.9
OTHER_TOWERS = re.compile(r"vision|visual|audio|image|speech|video|projector|resampler|aligner|qformer|patcher")
ROUTER_NAMES = re.compile(r"router|expert_gate|input_gate|(^|\.)gate\.(weight|wg)|(^|\.)gate$")


class Fault(Exception):  # noqa: N818
    """What is wrong, in one line."""


def check_weights(row: Any, dense: dict[str, Tensor], network: Any) -> None:
    """Share, zeros and routers of a model that was compressed in memory. Raises Fault."""
    after = network.state_dict()
    if parted := parted_twins(network):
        raise Fault(f"tied weights were parted: {', '.join(kinds_of(parted)[:3])}")
    matrices, routers = block_matrices(network)
    row.routers_changed = sum(not torch.equal(dense[name], after[name]) for name in routers)
    total = touched = zeros = 0
    untouched: list[str] = []
    broken: list[str] = []
    for name in matrices:
        for before, now in zip(slices(dense[name]), slices(after[name]), strict=True):
            total += now.numel()
            if torch.equal(before, now):
                untouched.append(name)
                continue
            touched += now.numel()
            zeros += int((now == 0).sum())
            if row.recipe == "wanda@2:4" and not (is_two_of_four(now) or is_two_of_four(now.t())):
                broken.append(name)
    row.share, row.zeros = round(touched / max(total, 1), 4), round(zeros / max(touched, 1), 4)
    faults = []
    if row.stated_share is None or abs(row.share - row.stated_share) > 0.1:
        faults.append(f"the report states a share of {row.stated_share}, and it is {row.share:.2f}")
    if row.share < LEAST_SHARE:
        faults.append(f"{row.share:.2f} of the block weights compressed, not {', '.join(kinds_of(untouched)[:4])}")
    if row.routers_changed:
        changed = [name for name in routers if not torch.equal(dense[name], after[name])]
        faults.append(f"routers changed: {', '.join(kinds_of(changed))}")
    if not row.recipe.startswith("gptq") and abs(row.zeros - 0.5) > 0.01:
        faults.append(f"{row.zeros:.1%} zeros")
    if broken:
        faults.append(f"no 2:4 pattern: {', '.join(kinds_of(broken)[:3])}")
    outside = [n for n in dense if n not in matrices and n not in routers and not torch.equal(dense[n], after[n])]
    if outside := [name for name in outside if not re.search(r"\.\d+\.", name) or OTHER_TOWERS.search(name)]:
        faults.append(f"changed outside the blocks: {', '.join(kinds_of(outside)[:3])}")
    if faults:
        raise Fault("; ".join(faults))


def parted_twins(network: Any) -> list[str]:
    """Tied tensors that are no longer equal to the tensor that they are tied to."""
    state = network.state_dict()
    twins = getattr(network, "all_tied_weights_keys", {})
    return [name for name, twin in twins.items() if not torch.equal(state[name], state[twin])]


def block_matrices(network: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the weight matrices and of the routers in the decoder blocks, told apart by shape and name only."""
    matrices, routers = [], []
    modules = dict(network.named_modules())
    both = any("decoder." in name for name in modules)  # an encoder beside a decoder is another tower
    for name, parameter in network.named_parameters():
        module = modules[name.rpartition(".")[0]]
        if both and re.search(r"(^|\.)encoder\.", name):
            continue
        if not re.search(r"\.\d+\.", name) or OTHER_TOWERS.search(name) or parameter.dim() < 2:
            continue
        if isinstance(module, nn.Embedding | nn.modules.conv._ConvNd):
            continue
        if parameter.dim() == 2 and (ROUTER_NAMES.search(name) or EXPERTS in parameter.shape or 1 in parameter.shape):
            routers.append(name)
        elif (
            parameter.shape[-1] >= 16
            and parameter.shape[-2] >= 16
            and not re.search(r"conv|A_log|position_bias|embed", name)
        ):
            matrices.append(name)
    return matrices, routers


def slices(parameter: Tensor) -> list[Tensor]:
    """The matrices of a parameter; those of experts are stacked."""
    return list(parameter.reshape(-1, *parameter.shape[-2:]))


def is_two_of_four(matrix: Tensor) -> bool:
    if matrix.shape[-1] % 4:
        return False
    return bool((matrix.reshape(matrix.shape[0], -1, 4) == 0).sum(-1).ge(2).all())


def kinds_of(names: list[str]) -> list[str]:
    """Names without their numbers, each once."""
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".N", name) for name in names))


def lost_tensors(expected: nn.Module, network: nn.Module, *, exact: bool) -> int:
    """Tensors of the expected state dict that a network lacks or holds with other values."""
    state, lost = network.state_dict(), 0
    for name, tensor in expected.state_dict().items():
        twin = state.get(name)
        same = torch.equal if exact else lambda a, b: torch.allclose(a, b, rtol=1e-3, atol=1e-5)
        lost += twin is None or twin.shape != tensor.shape or not same(twin.float(), tensor.float())
    return lost


def changed_beside(dense: nn.Module, plain: nn.Module, changed: int) -> int:
    """Tensors in which the folder differs from the dense model, beyond those that the compression changed."""
    state, differing = plain.state_dict(), 0
    for name, tensor in dense.state_dict().items():
        differing += name not in state or not torch.equal(state[name], tensor)
    return abs(differing - changed)


def files_lost(dense: Path, folder: Path) -> list[str]:
    """What stands beside the weights of the dense folder and is not in the compressed one."""
    lost = []
    for file in sorted(dense.iterdir()):
        if file.suffix == ".safetensors" or file.name.endswith(".index.json"):
            continue
        if not (folder / file.name).is_file():
            lost.append(file.name)
    if "generation_config.json" not in lost:
        before, after = (GenerationConfig.from_pretrained(path).to_diff_dict() for path in (dense, folder))
        if {k: v for k, v in before.items() if k != "transformers_version"} != {
            k: v for k, v in after.items() if k != "transformers_version"
        }:
            lost.append("settings of generation_config.json")
    return lost
