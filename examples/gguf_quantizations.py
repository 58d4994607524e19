"""Write a GGUF file at other quantizations, with the `gguf` package alone, to compare what each has forgotten.

    python examples/gguf_quantizations.py smollm2-135m-instruct models/gguf Q8_0 Q4_0
    kick compare smollm2-135m-instruct models/gguf/*.gguf -t factoid_qa -t multiple_choice:cloze -t perplexity

The package quantizes to Q8_0, Q5_1, Q5_0, Q4_1 and Q4_0; for the others use llama.cpp's `llama-quantize`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gguf

from llmkick.models.checkpoints.builtin import BUILTIN_MODELS, builtin_gguf


def quantize(source: Path, target: Path, precision: str) -> None:
    """Every matrix of the blocks at `precision`; what is left of the file as it is."""
    reader = gguf.GGUFReader(source)
    kind = gguf.GGMLQuantizationType[precision]
    writer = gguf.GGUFWriter(str(target), reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        kinds = field.types
        writer.add_key_value(name, field.contents(), kinds[0], kinds[1] if len(kinds) > 1 else None)
    for tensor in reader.tensors:
        stored: Any = tensor.data
        if tensor.name.startswith("blk.") and len(tensor.shape) == 2:
            values = gguf.quants.dequantize(stored, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, stored, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main(model: str, folder: str, *precisions: str) -> None:
    source = builtin_gguf(model) if model in BUILTIN_MODELS else Path(model)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for precision in precisions or ("Q8_0", "Q4_0"):
        target = Path(folder) / f"{source.stem.partition('.')[0]}-{precision}.gguf"
        quantize(source, target, precision)
        print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, from {source.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])
