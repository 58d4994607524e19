"""The kernel for GPUs without a GPU: its results in Triton's interpreter, and its machine code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import interpreted as program
from interpreted import ALIKE, CASES
from llmkick.compression.kernels import columns
from llmkick.compression.kernels.replacement import replace_plainly
from processes import run_commands

NAMES = [f"{recipe} of {rows} × {width}" for recipe, rows, width in CASES]
NAMES += [f"3 × {recipe} of {rows} × {width}" for recipe, rows, width in ALIKE]
# One of each kind. The interpreter takes about a second for each case.
QUICK = (
    "gptq@4b-g8-act of 3 × 24", "gptq@3b-g130 of 2 × 135", "sparsegpt@2:4 of 5 × 24", "sparsegpt@0.5+4b-g8 of 4 × 24",
    "3 × gptq@4b of 33 × 9",
)  # fmt: skip
assert set(QUICK) < set(NAMES)
CASES_TRIED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NAMES]


def require_triton() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: pip install triton (Linux only)")


@pytest.fixture(scope="module")
def interpreted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the interpreter found for each case that is asked for."""
    require_triton()
    asked = [item.callspec.params.get("case") for item in request.session.items if hasattr(item, "callspec")]
    folder, names = tmp_path_factory.mktemp("interpreter") / "said", [name for name in NAMES if name in asked]
    (done,) = run_commands(program.main, folder, [{"TRITON_INTERPRET": "1"}], *names)
    assert done.code == 0, done.err
    results: dict[str, dict[str, Any]] = json.loads(done.out)
    return results


@pytest.mark.parametrize("case", CASES_TRIED)
def test_the_kernel_equals_the_plain_loop_bit_for_bit(interpreted: dict[str, dict[str, Any]], case: str):
    result = interpreted[case]
    assert result["calls"] > 0 or ("wanda" in case and "gptq" not in case)
    assert result["equal"]
    assert result["signs"]


# Tensors and numbers of the kernel as in a launch, and what a recipe fixes when it is compiled.
KINDS = {
    "gptq": {"count": 0, "group": 128, "has_mask": False, "has_grids": True},
    "sparsegpt": {"count": 0, "group": 128, "has_mask": True, "has_grids": False},
    "2:4": {"count": 2, "group": 4, "has_mask": False, "has_grids": False},
    "4:8 and a grid": {"count": 4, "group": 8, "has_mask": False, "has_grids": True},
    "32:64": {"count": 32, "group": 64, "has_mask": False, "has_grids": False},
}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_compiles_and_rounds_each_operation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, capability: int
):
    require_triton()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from llmkick.compression.kernels import fused

    fixed = {**KINDS[kind], "width": fused.ROWS}
    types = dict.fromkeys(fused.TENSORS, "*fp32") | {"zeroed": "*i1", "number": "*i64"}
    types |= dict.fromkeys(fused.NUMBERS, "i32")
    names = fused.kernel.arg_names
    assert set(names) == {*types, *fixed}
    source = ASTSource(
        fused.kernel,
        {name: types.get(name, "constexpr") for name in names},
        {(names.index(name),): value for name, value in fixed.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=fused.OPTIONS)
    assert compiled.asm["cubin"].startswith(b"\x7fELF")
    code = compiled.asm["ptx"]
    assert f".target sm_{capability}" in code
    # No product merged with a sum, no approximate quotient, no small number flushed to 0.
    assert not re.search(r"\bfma\b|div\.(full|approx)|\.ftz", code)
    assert len(re.findall(r"div\.rn\.f32", code)) == fixed["has_grids"]
    assert re.findall(r"(?:mul|sub)(?:\.rn)?\.f32", code)


def test_without_a_gpu_the_plain_loop_is_used_and_said():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.warns(UserWarning, match=r"replace columns one by one on cuda, because .* needs the package triton"):
        assert columns.replacer_for.__wrapped__(torch.device("cuda")) is replace_plainly
    assert columns.replacer_for(torch.device("mps")) is replace_plainly
