"""Peak memory of compressing a checkpoint block by block: python benchmarks/memory.py [--quick] [--write].

Makes random-weight Llama-shaped checkpoints in bfloat16, of about 0.3 to 3.1 billion parameters, compresses each
with Wanda and GPTQ in a process of its own, and reports its largest resident size beside what the weights alone
would take, and for the smallest the same without streaming; its compressions are killed half-way and resumed.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from llama_shape import Shape
from safetensors.torch import save_file

from llmkick.models.checkpoints.references import locate

RESULTS = Path(__file__).parent / "results" / "memory.md"
RECIPES = ("wanda@0.5", "gptq@4b-g128")
VOCABULARY = 49152


SHAPES = tuple(
    Shape(
        name=name, hidden=hidden, inner=inner, blocks=blocks, heads=heads, key_heads=8, vocabulary=VOCABULARY,
        longest=2048,
    )
    for name, hidden, inner, blocks, heads in (
        ("0.3 B", 1024, 2816, 16, 16),
        ("1.2 B", 2048, 5632, 22, 32),
        ("3.1 B", 3072, 8192, 28, 24),
    )
)  # fmt: skip


def make_checkpoint(shape: Shape, folder: Path) -> None:
    """A sharded Hugging Face folder of random weights, with the built-in model's tokenizer."""
    folder.mkdir(parents=True)
    source = locate("smollm2-135m-instruct").folder
    for file in source.glob("*token*"):
        shutil.copy(file, folder)
    shape.config().save_pretrained(folder)
    linear = {
        f"{'mlp' if name in ('gate_proj', 'up_proj', 'down_proj') else 'self_attn'}.{name}": size
        for name, size in shape.layers().items()
    }
    generator, places = torch.Generator().manual_seed(0), {}

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(tensors, name))

    def noise(rows: int, columns: int) -> torch.Tensor:
        # One normal draw repeated with random signs of rows and columns: full rank is not needed, speed is.
        base = torch.randn(1, columns, generator=generator) * 0.02
        return (
            base * torch.randn(rows, 1, generator=generator) + 0.02 * torch.randn(rows, columns, generator=generator)
        ).bfloat16()

    ends = {
        "model.embed_tokens.weight": noise(VOCABULARY, shape.hidden),
        "lm_head.weight": noise(VOCABULARY, shape.hidden),
    }
    write("model-ends.safetensors", {**ends, "model.norm.weight": torch.ones(shape.hidden).bfloat16()})
    for block in range(shape.blocks):
        prefix = f"model.layers.{block}"
        tensors = {f"{prefix}.{name}.weight": noise(*size) for name, size in linear.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(shape.hidden).bfloat16()
        write(f"model-{block:05d}.safetensors", tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def make_mixture(folder: Path) -> int:
    """A folder of a Mixtral with 8 experts and random weights, which transformers merges; returns its bytes."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=8,
        num_key_value_heads=4,
        num_local_experts=8,
        max_position_embeddings=2048,
        dtype="bfloat16",
    )
    network = MixtralForCausalLM(config).to(torch.bfloat16)
    network.save_pretrained(folder)
    for file in locate("smollm2-135m-instruct").folder.glob("*token*"):
        shutil.copy(file, folder)
    return sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())


def measure_mixture(temporary: Path, recipes: Sequence[str]) -> Iterator[str]:
    """Lines of a table: a mixture of experts block by block and loaded whole."""
    size = make_mixture(temporary / "mixture")
    yield "| recipe | weights alone | block by block | loaded whole | in sizes of the weights, without Python |"
    yield "| --- | --- | --- | --- | --- |"
    for recipe in recipes:
        streamed, whole = (run(temporary / "mixture", recipe, temporary / "out", streamed=s) for s in (True, False))
        copies = [f"{(result['peak'] - result['base']) / size:.1f}" for result in (streamed, whole)]
        yield (
            f"| {recipe} | {size / 1e9:.2f} GB | **{streamed['peak'] / 1e9:.2f} GB** | {whole['peak'] / 1e9:.2f} GB "
            f"| {copies[0]} and {copies[1]} |"
        )


def work(folder: str, recipe: str, out: str, streamed: str) -> None:
    """In a separate process: compress, write, and print the peak memory in bytes and the seconds."""
    from llmkick.compression.registry import parse_recipe
    from llmkick.compression.storage.folder import StreamedFolder, report_of, save_folder
    from llmkick.compression.walk.calibration import as_calibration
    from llmkick.compression.walk.compress import compress
    from llmkick.compression.walk.streaming import compress_streamed
    from llmkick.models.checkpoints.loading import load_model
    from llmkick.models.checkpoints.meta_model import load_meta_model

    started = time.perf_counter()
    windows = as_calibration(np.random.default_rng(0).integers(0, VOCABULARY, (4, 128)))
    base = peak()
    if streamed == "yes":
        meta_model = load_meta_model(folder, dtype="bfloat16", device="cpu")
        with StreamedFolder(meta_model, Path(out)) as target:
            finished = compress_streamed(
                meta_model, parse_recipe(recipe), Path(out + ".work"), calibration=windows, sink=target.put,
                progress=lambda done, total: print(f"block {done} of {total}", file=sys.stderr, flush=True),
            )  # fmt: skip
            target.finish(report_of(finished))
    else:
        model, report = compress(load_model(folder, dtype="bfloat16", device="cpu"), recipe, calibration=windows)
        save_folder(model, report, Path(out))
    print(json.dumps({"peak": peak(), "base": base, "seconds": time.perf_counter() - started}))


def peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it made this process
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def run(
    folder: Path, recipe: str, out: Path, *, streamed: bool = True, kill_after: int | None = None
) -> dict[str, float]:
    """Run `work` in a process. With `kill_after` kill it at that block and start again; measure the second process."""
    command = [sys.executable, __file__, "--work", str(folder), recipe, str(out), "yes" if streamed else "no"]
    if kill_after is not None:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        for line in process.stderr:
            if line.startswith(f"block {kill_after} "):
                process.send_signal(signal.SIGKILL)
        process.wait()
    process_run = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line for line in process_run.stderr.splitlines() if line.startswith("block")]
    result = json.loads(process_run.stdout.splitlines()[-1])
    result["blocks_done"] = len(lines)
    shutil.rmtree(out)
    shutil.rmtree(f"{out}.work", ignore_errors=True)
    return result


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest shape only")
    parser.add_argument("--shape", action="append", choices=[shape.name for shape in SHAPES], help="some of the shapes")
    parser.add_argument("--mixture", action="store_true", help="only a small mixture of experts, also loaded whole")
    parser.add_argument("--recipe", action="append", help=f"others than {', '.join(RECIPES)}")
    parser.add_argument("--write", action="store_true", help=f"store the table in {RESULTS}")
    parser.add_argument("--folder", type=Path, help="where the checkpoints go (about 15 GB); default: a temporary one")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    if options.mixture:
        with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
            for line in measure_mixture(Path(temporary), options.recipe or RECIPES):
                print(line, flush=True)
        return
    lines = [
        "| parameters | weights alone | largest H | recipe | peak memory | without streaming | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        chosen = ["0.3 B"] if options.quick else options.shape
        for shape in [shape for shape in SHAPES if chosen is None or shape.name in chosen]:
            folder = Path(temporary) / "model"
            make_checkpoint(shape, folder)
            for recipe in options.recipe or RECIPES:
                small = shape is SHAPES[0]
                kill = shape.blocks // 2 if small else None
                streamed = run(folder, recipe, Path(temporary) / "out", kill_after=kill)
                whole = run(folder, recipe, Path(temporary) / "out", streamed=False) if small else None
                note = (
                    "" if kill is None else f" (killed at block {kill}, resumed for {streamed['blocks_done'] - 1} more)"
                )
                without = "–" if whole is None else f"{whole['peak'] / 1e9:.2f} GB"
                lines.append(
                    f"| {shape.name} ({shape.parameters / 1e9:.2f} B) | {2 * shape.parameters / 1e9:.2f} GB "
                    f"| {4 * shape.inner**2 / 1e9:.2f} GB | {recipe} | **{streamed['peak'] / 1e9:.2f} GB** "
                    f"| {without} | {streamed['seconds']:.0f}{note} |"
                )
                print(lines[-1], flush=True)
            shutil.rmtree(folder)
    lines.append(f"\nBefore any work the process holds {streamed['base'] / 1e9:.2f} GB (Python, torch, transformers).")
    print("\n".join(lines))
    if options.write:
        RESULTS.write_text(describe() + "\n".join(lines) + "\n", encoding="utf-8")


def describe() -> str:
    """Command, commit and hardware."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return (
        "# Peak memory of compressing a checkpoint block by block\n\n"
        f"`python {' '.join(sys.argv)}` · commit {commit} · {time.strftime('%Y-%m-%d')} · {os.cpu_count()} cores, "
        f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads\n\n"
        "Random weights in bfloat16, 4 × 128 calibration tokens, written as a Hugging Face folder.\n\n"
    )


if __name__ == "__main__":
    main()
