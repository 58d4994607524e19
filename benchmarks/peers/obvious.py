"""The obvious procedure, written down plainly: what the published scripts of Wanda, SparseGPT and GPTQ do.

Float32, one sequence at a time, statistics kept for every linear layer by itself, H⁻¹ from three library calls,
a Python loop over columns on the weight as it lies. Same results as ours, up to rounding.
"""

from collections.abc import Callable
from typing import Any

import torch
from common import Level, hand_back, linears, load_network, load_tokens, parse, read_job, timed
from torch import Tensor, nn

BLOCK = 128
DAMPING = 0.01


class Squares:
    """Wanda's statistic of one layer: Σ x² / sequences."""

    def __init__(self, layer: nn.Linear) -> None:
        self.value = torch.zeros(layer.in_features)
        self.sequences = 0

    def add(self, inputs: Tensor) -> None:
        """Take in one sequence (1, tokens, in)."""
        columns = inputs.reshape(-1, inputs.shape[-1]).t().float()
        self.value *= self.sequences / (self.sequences + 1)
        self.sequences += 1
        self.value += torch.norm(columns, p=2, dim=1) ** 2 / self.sequences


class Hessian:
    """H = 2 / sequences · Σ x xᵀ of one layer."""

    def __init__(self, layer: nn.Linear) -> None:
        self.value = torch.zeros(layer.in_features, layer.in_features)
        self.sequences = 0

    def add(self, inputs: Tensor) -> None:
        """Take in one sequence (1, tokens, in)."""
        columns = inputs.reshape(-1, inputs.shape[-1]).t().float()
        self.value *= self.sequences / (self.sequences + 1)
        self.sequences += 1
        columns = (2 / self.sequences) ** 0.5 * columns
        self.value += columns.matmul(columns.t())


def wanda(weight: Tensor, squares: Tensor, sparsity: float) -> Tensor:
    """Zero the lowest |w|·√s of each row: (out, in), (in,) → (out, in)."""
    metric = weight.abs() * squares.sqrt().reshape(1, -1)
    mask = torch.zeros_like(metric, dtype=torch.bool)
    order = torch.sort(metric, dim=-1, stable=True)[1]
    mask.scatter_(1, order[:, : int(metric.shape[1] * sparsity)], True)
    pruned = weight.clone()
    pruned[mask] = 0
    return pruned


def factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of (H + λI)⁻¹; dead inputs count as 1."""
    hessian = hessian.clone()
    dead = torch.diag(hessian) == 0
    hessian[dead, dead] = 1
    places = torch.arange(hessian.shape[0])
    hessian[places, places] += DAMPING * torch.mean(torch.diag(hessian))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    return torch.linalg.cholesky(inverse, upper=True)


def sparsegpt(weight: Tensor, dead: Tensor, upper: Tensor, sparsity: float) -> Tensor:
    """Prune column by column: (out, in) → (out, in)."""
    weight = weight.clone()
    weight[:, dead] = 0

    def begin(block: Tensor, corner: Tensor, _start: int) -> Callable[[int, Tensor], Tensor]:
        metric = block**2 / torch.diag(corner).reshape(1, -1) ** 2
        threshold = torch.sort(metric.flatten())[0][int(metric.numel() * sparsity)]
        mask = metric <= threshold

        def pruned(column: int, values: Tensor) -> Tensor:
            values = values.clone()
            values[mask[:, column]] = 0
            return values

        return pruned

    return sweep(weight, upper, begin)


def grid(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Asymmetric min-max grid of each row, holding 0: (out, in) → scale and zero, (out, 1)."""
    low = torch.minimum(weight.min(1)[0], torch.zeros(1))
    high = torch.maximum(weight.max(1)[0], torch.zeros(1))
    flat = (low == 0) & (high == 0)
    low[flat], high[flat] = -1, 1
    scale = (high - low) / (2**bits - 1)
    return scale.unsqueeze(1), torch.round(-low / scale).unsqueeze(1)


def gptq(weight: Tensor, dead: Tensor, upper: Tensor, bits: int, group: int | None) -> Tensor:
    """Round column by column: (out, in) → (out, in)."""
    scale, zero = grid(weight, bits)
    weight = weight.clone()
    weight[:, dead] = 0

    def begin(block: Tensor, _corner: Tensor, start: int) -> Callable[[int, Tensor], Tensor]:
        def rounded(column: int, values: Tensor) -> Tensor:
            nonlocal scale, zero
            if group is not None and (start + column) % group == 0:
                # From the block at hand where the group lies in it, as it is up to date; groups of more than
                # a block begin with one, when all of the weight is.
                source = block[:, column : column + group] if group <= BLOCK else weight[:, start : start + group]
                scale, zero = grid(source, bits)
            codes = torch.clamp(torch.round(values.unsqueeze(1) / scale) + zero, 0, 2**bits - 1)
            return (scale * (codes - zero)).flatten()

        return rounded

    return sweep(weight, upper, begin)


def sweep(
    weight: Tensor, upper: Tensor, begin: Callable[[Tensor, Tensor, int], Callable[[int, Tensor], Tensor]]
) -> Tensor:
    """Replace the columns of (out, in) one by one; those that follow make up for the error. In place."""
    columns = weight.shape[1]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block = weight[:, start:stop].clone()
        done, errors = torch.zeros_like(block), torch.zeros_like(block)
        corner = upper[start:stop, start:stop]
        replacement = begin(block, corner, start)
        for i in range(stop - start):
            values = block[:, i]
            new = replacement(i, values)
            done[:, i] = new
            error = (values - new) / corner[i, i]
            block[:, i:] -= error.unsqueeze(1).matmul(corner[i, i:].unsqueeze(0))
            errors[:, i] = error
        weight[:, start:stop] = done
        weight[:, stop:] -= errors.matmul(upper[start:stop, stop:])
    return weight


def solve(weight: Tensor, hessian: Tensor, level: Level, upper: Tensor | None = None) -> Tensor:
    """SparseGPT or GPTQ of one weight given its H; `upper` where the factor is at hand already."""
    upper = factor(hessian) if upper is None else upper
    dead = torch.diag(hessian) == 0
    if level.method == "sparsegpt":
        return sparsegpt(weight, dead, upper, level.sparsity)
    return gptq(weight, dead, upper, level.bits, level.group)


class _Caught(Exception):  # noqa: N818 - not an error: it ends a forward early
    """The first block has been reached."""


def first_inputs(network: Any, blocks: nn.ModuleList, tokens: Tensor) -> tuple[list[Tensor], dict[str, Any]]:
    """What the network gives its first block: states (1, tokens, width) for each window, keyword arguments."""
    states: list[Tensor] = []
    keywords: dict[str, Any] = {}

    def catch(_block: nn.Module, arguments: tuple[Tensor, ...], given: dict[str, Any]) -> None:
        states.append(given.pop("hidden_states") if "hidden_states" in given else arguments[0])
        keywords.update(given)  # windows are all of one length: positions and mask are the same for all
        raise _Caught

    handle = blocks[0].register_forward_pre_hook(catch, with_kwargs=True)
    for window in tokens:
        try:
            network(input_ids=window.unsqueeze(0), use_cache=False)
        except _Caught:
            continue
    handle.remove()
    return states, keywords


def run_block(block: nn.Module, states: Tensor, keywords: dict[str, Any]) -> Tensor:
    """Output of a block: (1, tokens, width)."""
    output = block(states, **keywords)
    return output[0] if isinstance(output, tuple) else output


@torch.no_grad()
def compress(network: Any, tokens: Tensor, level: Level) -> None:
    """Compress the linear layers of every block in place."""
    blocks = network.model.layers
    states, keywords = first_inputs(network, blocks, tokens)
    for block in blocks:
        layers = {name: m for name, m in block.named_modules() if isinstance(m, nn.Linear)}
        statistics = {name: (Squares if level.method == "wanda" else Hessian)(m) for name, m in layers.items()}
        handles = [
            layer.register_forward_hook(lambda _m, inputs, _out, kept=statistics[name]: kept.add(inputs[0]))
            for name, layer in layers.items()
        ]
        for window in states:
            run_block(block, window, keywords)
        for handle in handles:
            handle.remove()
        for name, layer in layers.items():
            if level.method == "wanda":
                layer.weight.data = wanda(layer.weight.data, statistics[name].value, level.sparsity)
            else:
                layer.weight.data = solve(layer.weight.data, statistics[name].value, level)
        states = [run_block(block, window, keywords) for window in states]


def main() -> None:
    job = read_job()
    network = load_network(job)
    tokens = torch.from_numpy(load_tokens(job))
    seconds, _ = timed(lambda: compress(network, tokens, parse(job["recipe"])))
    weights = {name: layer.weight for name, layer in linears(network).items()}
    hand_back(job, seconds, weights, ("torch", "transformers"))


if __name__ == "__main__":
    main()
