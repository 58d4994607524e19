"""What all contenders start from: one folder with the dense model, calibration windows, a loss to check it by."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from common import answer, read_job

import llmkick
from llmkick.compression.walk.weight import compress_weight


def portable_copy(source: Path, target: Path) -> None:
    """The model's folder in the terms of older releases of transformers too, which pass over new keys in silence."""
    if not target.exists():
        shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters")
    if rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    config.setdefault("torch_dtype", config.get("dtype"))
    (target / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


@torch.no_grad()
def main() -> None:
    job = read_job()
    model = llmkick.load_model(job["model"])
    for recipe in ("sparsegpt@0.5", "gptq@4b"):  # compiles the loop over columns, once for all processes to come
        compress_weight(torch.eye(128), torch.eye(128)[None], recipe)
    folder = Path(job["folder"])
    portable_copy(model.checkpoint.folder, folder)
    windows = {}
    for seed in range(job["seeds"]):
        drawn = llmkick.calibrate(
            model, source=job["calibration"], sequences=job["sequences"], length=job["length"], seed=seed
        )
        windows[seed] = f"{job['work']}/tokens-{seed}.npy"
        np.save(windows[seed], drawn.tokens, allow_pickle=False)
    dense = llmkick.load_model(str(folder), dtype="float32").network
    losses = []
    for path in windows.values():
        ids = torch.from_numpy(np.load(path)[:1])
        losses.append(float(dense(input_ids=ids, labels=ids).loss))
    answer(
        job,
        windows=windows,
        losses=losses,
        dtype=model.info.dtype,
        shapes={
            name.rsplit(".", 1)[-1]: tuple(module.weight.shape)
            for name, module in dense.model.layers[0].named_modules()
            if isinstance(module, torch.nn.Linear)
        },
        blocks=len(dense.model.layers),
        versions={name: version(name) for name in ("torch", "transformers", "numpy")},
    )


if __name__ == "__main__":
    main()
