"""A checkpoint of some blocks compressed from disk to disk: seconds by stage, and those outside arithmetic."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_machine import Machine
from gpu_model import random_model, tokenizer_of_bytes
from llama_shape import Shape
from overhead import FORMS, plain_copy

RECIPES = ("wanda@2:4", "gptq@4b-g128")
STAGES = ("forwards", "kernels", "reading", "hashing", "packing", "writing")
SCRIPT = Path(__file__).parent / "overhead.py"
TEXT = " ".join(f"The number {number} follows {number - 1}." for number in range(1, 2000))


def files_part(
    whole: Shape, options: argparse.Namespace, machine: Machine, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Some blocks in a folder of shards, compressed into a folder and in compact form, beside a plain copy."""
    shape = whole.with_blocks(options.blocks)
    source, text = folder / "model", folder / "text.txt"
    model = random_model(shape, machine.device)
    model.network.save_pretrained(source, max_shard_size="500MB")
    tokenizer_of_bytes().save_pretrained(source)
    del model
    text.write_text(TEXT)
    copy = plain_copy(source, folder / "copy")
    rows = []
    for recipe in RECIPES[:1] if options.tiny else RECIPES:
        for form in FORMS:
            result = _compressed(source, recipe, form, folder, text, machine)
            main, behind = Counter(result["main"]), Counter(result["behind"])
            seconds = result["total"] - main["calibration text"]
            outside = seconds - main["forwards"] - main["kernels"]
            rows.append(
                {
                    "recipe": recipe,
                    "form": form,
                    "seconds": seconds,
                    "outside": outside,
                    "outside_of_all_blocks": outside * whole.parameters / shape.parameters,
                    "stages": {stage: main[stage] + behind[stage] for stage in STAGES},
                }
            )
            say(f"{recipe}, {form}: {seconds:.2f} s, {outside:.2f} of them outside arithmetic")
    return {"bytes": 2 * shape.parameters, "copy": copy, "recipes": rows}


def _compressed(source: Path, recipe: str, form: str, folder: Path, text: Path, machine: Machine) -> dict[str, Any]:
    """A compression in a process of its own, with an empty cache.

    A GPU works while the processor goes on; here each launch is waited for, so that its time counts for its stage.
    """
    out, cache = folder / "out", folder / "cache"
    command = [sys.executable, str(SCRIPT), "--device", machine.device.type]
    command += ["--work", str(source), recipe, form, str(out), str(text)]
    environment = {**os.environ, "LLMKICK_CACHE": str(cache), "CUDA_LAUNCH_BLOCKING": "1"}
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    shutil.rmtree(out)
    shutil.rmtree(cache, ignore_errors=True)
    result: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return result
