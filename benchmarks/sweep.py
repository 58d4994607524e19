"""Twelve recipes from one pass over the calibration against single compressions: python benchmarks/sweep.py [--write].

Without propagation every statistic comes from the dense model, so one pass serves all recipes. Seconds are those this
process computed in one thread: what a machine with nothing else to do would take.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

import llmkick
from compression import commit, processor
from llmkick.models.transformers_model import TransformersModel

RECIPES = (
    "magnitude@0.5", "wanda@0.25", "wanda@0.5", "wanda@2:4", "sparsegpt@0.25", "sparsegpt@0.5", "sparsegpt@2:4",
    "rtn@4b-g128", "gptq@8b", "gptq@4b-g128", "gptq@3b-g128", "gptq@2b-g128",
)  # fmt: skip
SINGLE = ("wanda@0.5", "sparsegpt@0.5", "gptq@4b-g128")
TARGET = 3.0
RESULTS = Path(__file__).parent / "results" / "sweep.md"


def seconds_of(model: TransformersModel, recipes: tuple[str, ...], calibration: llmkick.Calibration) -> float:
    """One recipe as always, propagated; several in one pass."""
    start = time.process_time()
    if len(recipes) == 1:
        llmkick.compress(model, recipes[0], calibration=calibration)
    else:
        llmkick.compress_many(model, recipes, calibration=calibration)
    return time.process_time() - start


def main() -> None:
    """Measure, print, write with --write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = llmkick.load_model(options.model)
    calibration = llmkick.calibrate(model, sequences=options.sequences, length=options.length)
    single = {recipe: seconds_of(model, (recipe,), calibration) for recipe in SINGLE}
    together = seconds_of(model, RECIPES, calibration)
    ratio = together * len(single) / sum(single.values())
    rows = [*((f"`{recipe}`, alone", taken) for recipe, taken in single.items()), ("all twelve, one pass", together)]
    text = "\n".join(
        [
            "# Twelve recipes in one pass\n",
            f"`python benchmarks/sweep.py {' '.join(sys.argv[1:])}` · commit {commit()} · {processor()}, one thread\n",
            f"{options.model} in {model.info.dtype}, {options.sequences} × {options.length} calibration tokens.\n",
            "| compression | seconds |",
            "| --- | --- |",
            *(f"| {name} | {taken:.1f} |" for name, taken in rows),
            f"\nTogether they cost {ratio:.2f} single compressions (mean of the three); target: less than {TARGET:g}. "
            f"Recipes: {', '.join(f'`{recipe}`' for recipe in RECIPES)}.",
        ]
    )
    sys.stdout.write(text + "\n")
    if options.write:
        RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
