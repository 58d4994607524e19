"""gptqmodel's `quantize` as a contender."""

import os

import torch
from common import check_dense, hand_back, load_tokens, parse, read_job, timed
from torch import Tensor

# On a machine with two cores gptqmodel 7.6 gives its pool one worker, and then fails as it asks it for two.
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig


def dequantised(network: torch.nn.Module) -> dict[str, Tensor]:
    """What its packed layers multiply by, {name: (out, in)}."""
    return {
        name: module.dequantize_weight().T.float()
        for name, module in network.named_modules()
        if hasattr(module, "dequantize_weight") and ".layers." in f".{name}"
    }


def main() -> None:
    job = read_job()
    level = parse(job["recipe"])
    if level.method != "gptq":
        raise SystemExit(f"gptqmodel has no {level.method}")
    config = QuantizeConfig(
        bits=level.bits,
        group_size=-1 if level.group is None else level.group,
        desc_act=False,
        true_sequential=False,
        act_group_aware=False,
        sym=False,
        damp_percent=0.01,
        format="gptq_v2",  # the older layout keeps zero points less one, in memory too
        device="cpu",
        offload_to_disk=False,
    )
    model = GPTQModel.load(job["folder"], config, dtype=getattr(torch, job["dtype"]), backend=BACKEND.TORCH)
    check_dense(model.model, job)
    windows = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in torch.from_numpy(load_tokens(job))]
    seconds, _ = timed(lambda: model.quantize(windows, batch_size=1, backend=BACKEND.TORCH))
    with torch.no_grad():
        weights = dequantised(model.model)
    hand_back(job, seconds, weights, ("gptqmodel", "torch", "transformers"))


if __name__ == "__main__":
    main()
