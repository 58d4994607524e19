"""Perplexity of a contender's weights in float32: one scorer for all, on our own stories and passages."""

import numpy as np
import torch
from common import answer, linears, read_job
from safetensors.torch import load_file

import llmkick


def main() -> None:
    job = read_job()
    model = llmkick.load_model(job["folder"], dtype="float32")
    if job["weights"]:
        weights, layers = load_file(job["weights"]), linears(model.network)
        if weights.keys() != layers.keys():
            raise SystemExit(f"layers differ from the model's: {sorted(weights.keys() ^ layers.keys())[:3]}")
        for name, layer in layers.items():
            layer.weight = torch.nn.Parameter(weights[name].float(), requires_grad=False)
    items = llmkick.get_task("perplexity").items(model)[: job["text_windows"] or None]
    ids = np.array([item.tokens for item in items])
    answer(job, perplexity=llmkick.perplexity(model, ids, window=ids.shape[1]), scored=ids.size)


if __name__ == "__main__":
    main()
