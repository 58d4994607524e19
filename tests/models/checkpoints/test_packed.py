"""The compact form: bit for bit there and back, for every shape and width, and nothing damaged gets through."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from llmkick.compression.kernels.hessian import InputStatistics
from llmkick.compression.registry import parse_recipe
from llmkick.compression.walk.linear_layer import LinearLayer
from llmkick.compression.walk.recipe_output import pack_result
from llmkick.compression.walk.size import compact_bytes
from llmkick.compression.walk.weight import compress_with_statistics
from llmkick.errors import ModelError
from llmkick.models.checkpoints.packed import Codes, Place, pack, unpack
from llmkick.models.checkpoints.packed_file import read_checked, write_packed
from llmkick.models.weights import PartedDigest, digest_of

RECIPES = (
    "magnitude@0.5", "magnitude@0.01", "wanda@0.5", "wanda@1:2", "wanda@2:4", "wanda@4:8", "magnitude@3:5",
    "sparsegpt@2:4", "sparsegpt@0.5", "rtn@2b", "rtn@3b", "rtn@4b", "rtn@8b", "rtn@3b-g7", "rtn@4b-g16-sym",
    "gptq@2b-g8", "gptq@3b", "gptq@4b-g16-act", "gptq@8b-sym", "sparsegpt@0.5+3b", "sparsegpt@2:4+4b-g8",
    "wanda@0.5+gptq@4b", "wanda@2:4+rtn@8b-g16", "dense",
)  # fmt: skip
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def read_packed(file: Path) -> Iterator[tuple[str, Tensor]]:
    for name, _, weight in read_checked(file):
        yield name, weight


def same_bits(one: Tensor, other: Tensor) -> bool:
    integers = {2: torch.int16, 4: torch.int32}[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(integers), other.view(integers))


def compressed(text: str, shape: tuple[int, int], dtype: torch.dtype, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(dtype)
    recipe = parse_recipe(text)
    statistics = InputStatistics(shape[1], hessian=True)
    statistics.add(torch.randn(2, 50, shape[1], generator=generator))
    return compress_with_statistics(weight, statistics, recipe), recipe


def layer_of(weight: Tensor) -> LinearLayer:
    module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    return LinearLayer(name="block.layer", module=module, form="linear")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("text", RECIPES)
def test_what_every_recipe_makes_comes_back_bit_for_bit(text: str, dtype: torch.dtype):
    for shape in ((24, 40), (7, 40), (1, 40), (64, 120)):
        result, recipe = compressed(text, shape, dtype)
        packed = pack_result(layer_of(result.weight), result, recipe)
        assert same_bits(unpack(packed), result.weight)
        # The size in every report is the size on disk.
        zeros = float((result.weight == 0).double().mean())
        assert packed.size == compact_bytes(shape, result.weight.element_size(), recipe, zeros)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), columns=st.integers(1, 33), group=st.integers(1, 40), seed=st.integers(0, 1000))
def test_codes_of_any_shape_come_back(bits: int, rows: int, columns: int, group: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    groups = -(-columns // group)
    codes = Codes(
        codes=torch.randint(0, 1 << bits, (rows, columns), generator=generator, dtype=torch.uint8),
        scale=torch.rand(rows, groups, generator=generator) + 0.01,
        zero=torch.randint(0, 1 << bits, (rows, groups), generator=generator).float(),
        bits=bits,
        group=group,
        symmetric=False,
    )
    spread = [torch.repeat_interleave(part, group, dim=1)[:, :columns] for part in (codes.scale, codes.zero)]
    weight = (codes.codes.float() - spread[1]) * spread[0]
    for masked in (False, True):
        packed = pack(weight, codes=codes, masked=masked)
        assert packed.layout.bits == bits
        # A product with 0 is +0, so nothing is lost.
        assert same_bits(unpack(packed), weight)


def test_what_cannot_come_back_is_stored_a_wider_way():
    weight = torch.tensor([[1.0, -0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 3.0]])
    minus_zero = pack(weight, masked=True)
    assert minus_zero.parts["values"].numel() == 4  # −0 is not nothing
    assert same_bits(unpack(minus_zero), weight)
    too_full = pack(torch.ones(2, 4), pattern=(2, 4))
    assert (too_full.layout.masked, too_full.layout.kept) == (True, None)
    assert torch.equal(unpack(too_full), torch.ones(2, 4))
    wrong = Codes(
        codes=torch.zeros(2, 4, dtype=torch.uint8), scale=torch.ones(2, 1), zero=torch.zeros(2, 1), bits=2, group=4,
        symmetric=False,
    )  # fmt: skip
    stored = pack(weight, codes=wrong)
    assert stored.layout.bits is None
    assert same_bits(unpack(stored), weight)


def test_groups_with_fewer_values_than_their_pattern_keeps():
    weight = torch.tensor([[0.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    packed = pack(weight, pattern=(2, 4))
    assert packed.parts["values"].numel() == 4
    assert torch.equal(unpack(packed), weight)


@pytest.mark.parametrize(
    "tensor", [torch.tensor(3), torch.zeros(0, 4), torch.tensor([True, False]), torch.ones(2, 2, 2)]
)
def test_other_tensors_are_kept_as_they_are(tensor: Tensor):
    assert torch.equal(unpack(pack(tensor)), tensor)


def file_of(tmp_path: Path) -> Path:
    weights = {name: pack(torch.randn(8, 16), masked=True) for name in ("first", "second")}
    write_packed(tmp_path / "weights.safetensors", weights)
    return tmp_path / "weights.safetensors"


def test_a_file_comes_back(tmp_path: Path):
    weights = {"a": torch.randn(8, 16), "b": torch.zeros(3, 5)}
    write_packed(tmp_path / "f", {name: pack(weight, masked=True) for name, weight in weights.items()})
    assert [path.name for path in tmp_path.iterdir()] == ["f"]  # no temporary file is left
    found = dict(read_packed(tmp_path / "f"))
    assert list(found) == ["a", "b"]
    assert all(torch.equal(found[name], weights[name]) for name in weights)


@pytest.mark.parametrize("left", [0, 4, 200, -1])
def test_a_file_cut_short_is_named(tmp_path: Path, left: int):
    file = file_of(tmp_path)
    file.write_bytes(file.read_bytes()[:left])
    with pytest.raises(ModelError, match=r"weights\.safetensors: .*cut short or damaged"):
        list(read_packed(file))


@pytest.mark.parametrize("part", ["second:values", "second:places"])
def test_an_altered_tensor_is_named(tmp_path: Path, part: str):
    from safetensors import safe_open

    file = file_of(tmp_path)
    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(file)
    flat = tensors[part].view(torch.uint8).flatten()
    flat[3] ^= 1
    save_file(tensors, file, metadata=metadata)
    read = read_packed(file)
    assert next(read)[0] == "first"
    with pytest.raises(ModelError, match=r"weights\.safetensors: second cannot be read: its checksum does not match"):
        next(read)


def altered(file: Path, part: str) -> None:
    """Flip the lowest bit of a part's first value."""
    from safetensors import safe_open

    with safe_open(file, framework="pt") as stream:
        metadata = stream.metadata()
    tensors = load_file(file)
    tensors[part].view(torch.uint8).flatten()[0] ^= 1
    save_file(tensors, file, metadata=metadata)


@pytest.mark.parametrize("part", ["weight:values", "weight:scale", "weight:zero"])
def test_a_change_that_rounding_would_hide_is_found(tmp_path: Path, part: str):
    """The last bit of a float32 scale does not show in a weight in bfloat16."""
    result, recipe = compressed("rtn@4b-g16", (8, 64), torch.bfloat16)
    write_packed(tmp_path / "f", {"weight": pack_result(layer_of(result.weight), result, recipe)})
    altered(tmp_path / "f", part)
    with pytest.raises(ModelError, match="weight cannot be read: its checksum does not match"):
        list(read_packed(tmp_path / "f"))


def experts_in(file: Path, *, transposed: bool, flat: bool, order: tuple[int, ...] = (0, 1, 2)) -> Tensor:
    """Write a parameter (experts, …) expert by expert, with one digest for all of them; returns it."""
    parameter = torch.randn(24, 16) if flat else torch.randn(3, 8, 16)
    whole, packed = PartedDigest(parameter.dtype, parameter.shape), {}
    for expert in order:
        stored = parameter[8 * expert : 8 * expert + 8] if flat else parameter[expert]
        place = Place(parameter="experts", expert=expert, transposed=transposed, flat=flat)
        weight = stored.t() if transposed else stored
        packed[f"experts.{expert}"] = pack(weight, masked=True, place=place, whole=whole)
    assert whole.hexdigest() == digest_of(parameter)
    assert {form.layout.digest for form in packed.values()} == {""}
    write_packed(file, packed, {"experts": whole})
    return parameter


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_experts_are_checked_with_their_parameter(tmp_path: Path, transposed: bool, flat: bool, order: Any):
    file = tmp_path / "f"
    parameter = experts_in(file, transposed=transposed, flat=flat, order=order)
    found = dict(read_packed(file))
    for expert in range(3):
        weight = found[f"experts.{expert}"]
        assert torch.equal(weight.t() if transposed else weight, parameter.view(3, 8, 16)[expert])
    altered(file, "experts.1:values")
    with pytest.raises(ModelError, match=r"experts, of which it is the last part: its checksum does not match"):
        list(read_packed(file))


def test_experts_whose_digest_is_missing_are_refused(tmp_path: Path):
    from safetensors import safe_open

    experts_in(tmp_path / "f", transposed=False, flat=False)
    with safe_open(tmp_path / "f", framework="pt") as stream:
        metadata = stream.metadata()
    del metadata["llmkick_wholes"]
    save_file(load_file(tmp_path / "f"), tmp_path / "f", metadata=metadata)
    with pytest.raises(ModelError, match=r"experts\.0 cannot be read"):
        list(read_packed(tmp_path / "f"))


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path):
    save_file({"x": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match=r"x\.safetensors: its header cannot be read"):
        list(read_packed(tmp_path / "x.safetensors"))


@pytest.mark.parametrize("text", [text for text in RECIPES if "gptq" not in text])
def test_other_devices_pack_the_same(monkeypatch: pytest.MonkeyPatch, text: str):
    for dtype in DTYPES:
        result, recipe = compressed(text, (24, 120), dtype)
        layer = layer_of(result.weight)
        on_the_host = pack_result(layer, result, recipe)
        with monkeypatch.context() as patched:
            patched.setattr("llmkick.models.checkpoints.packed_places._is_on_the_host", lambda _: False)
            elsewhere = pack_result(layer, result, recipe)
        assert elsewhere.layout == on_the_host.layout
